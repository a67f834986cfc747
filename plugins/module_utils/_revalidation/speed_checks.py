# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Is the recorded split as fast as in its baseline? As served, and as measured. Private to this collection.

Pure functions only. C(observed) is described in verdict.py; speed.py compares loads.
"""

from __future__ import annotations

import statistics
import typing as t

from .._base.types import Json, Mapping
from .._split import load_tests, speed
from . import contended, text_answers
from .changes import interval, signed
from .checks import check


class Served(t.NamedTuple):
    """A change of the serving instance's own timings: percent more time, with the interval of its repetitions."""

    name: str
    percent: float
    low: float | None
    high: float | None

    @property
    def within(self) -> str:
        """The interval in words."""
        return interval(self.low, self.high, "98 % interval of the repetitions")


def _served_values(tests: t.Sequence[Mapping] | None) -> dict[str, list[float]]:
    """Return, by name, ms per token of prompt and of generation as the server's own timings say."""
    found = {}
    for test in tests or []:
        prompts = [1000 / s["prompt_tokens_per_second"] for s in test["samples"] if s.get("prompt_tokens_per_second")]
        tokens = [1000 / s["decode_tokens_per_second"] for s in test["samples"] if s.get("decode_tokens_per_second")]
        if tokens:
            found[f"decode ({test['name']})"] = tokens
        elif prompts:  # a test of generation has a prompt too short to say anything
            found[f"prefill ({test['name']})"] = prompts
    return found


def served(observed: Mapping) -> list[Served]:
    """Return how the serving instance's own timings changed since the baseline."""
    baseline = observed["baseline"]
    before = _served_values(baseline["served"] if baseline else None)
    now = _served_values(observed["served"])
    return [Served(name, *speed.repeated(old, now[name])) for name, old in before.items() if name in now]


def suspicion(observed: Mapping, tolerance_percent: float) -> str | None:
    """Return why the serving instance's own timings are not enough for a verdict, or None when they are."""
    if observed["baseline"] is None:
        return "there is no baseline"
    if observed["server"]["state"] == "ready" and observed["server"]["server"].get("complete") is False:
        return "the journal no longer holds where the server put its layers"
    compared = served(observed)
    kinds = {one.name.split(" ")[0] for one in compared}
    if not {"decode", "prefill"} <= kinds:
        return "the serving instance's timings cannot be compared with the baseline's"
    slower = [
        f"{one.name} takes {one.percent:.1f} % more time ({one.within})"
        for one in compared
        if one.percent > tolerance_percent
    ]
    if text_answers.differs(observed["baseline"], observed):
        return "the server answers a fixed question otherwise than in the baseline"
    return f"as served, {', '.join(slower)} than in the baseline" if slower else None


def speeds(observed: Mapping, tolerance_percent: float) -> list[Json]:
    """Return a check per test: from today's loads where there are any, else from the serving instance's timings."""
    baseline = observed["baseline"]
    # loads measured before the failure would promise too much
    if observed.get("failure"):
        return [check("speed", "broken", observed["failure"])]
    if observed["loads"]:
        loads = contended.judged_loads(observed["loads"])
        found = measured(baseline["loads"] if baseline else [], loads, tolerance_percent)
        return contended.checked(found, observed)
    found = []
    for one in served(observed):
        verdict = "ok" if one.percent <= tolerance_percent else "inconclusive"
        detail = f"{signed(one.percent)} than in the baseline ({one.within}), as served; not measured under a lease"
        both = None if one.low is None or one.high is None else [round(one.low, 2), round(one.high, 2)]
        change = round(one.percent, 2)
        found.append(check(one.name, verdict, detail, change_percent=change, interval_percent=both, loads=0))
    if not found and observed["server"]["state"] == "ready":
        found.append(check("speed", "inconclusive", "nothing to compare with; measure with -e revalidate_measure=true"))
    return contended.checked(found, observed)


def measured(before: t.Sequence[Mapping], now: t.Sequence[Mapping], tolerance_percent: float) -> list[Json]:
    """Return a check per test of today's loads against those of the baseline."""
    failed = [load for load in now if load["status"] != "ok"]
    if failed:
        why = failed[0]["reason"] or failed[0]["status"]
        return [check("speed", "broken", f"{failed[0]['label']}: {why}; the recorded split no longer works here")]
    return [_compared(before, now, key, tolerance_percent) for key in load_tests.keys(now)]


def _compared(
    before: t.Sequence[Mapping], now: t.Sequence[Mapping], key: load_tests.TestKey, tolerance_percent: float
) -> Json:
    """Return the check of one test."""
    name = load_tests.test_name(key)
    old, new = load_tests.samples(before, key), load_tests.samples(now, key)
    if not old:
        cure = "make a new one with -e accept=true"
        return check(name, "inconclusive", f"the baseline has no calm load with this test; {cure}")
    aside = speed.set_aside(old, new)
    calm = [samples for place, samples in enumerate(new) if place not in aside]
    change = speed.compare(old, calm, tolerance_percent)
    if len(calm) < speed.LEAST_LOADS:
        change = change._replace(verdict="inconclusive")
    both = None if change.low is None or change.high is None else [round(change.low, 2), round(change.high, 2)]
    tokens = key[2] or key[1]
    rates = [1000 * tokens / statistics.fmean(speed.medians(group)) for group in (old, calm)]
    told, within = "the loads differ too much to tell a change", ""
    if both is not None:
        told, within = f"{signed(change.percent)} than in the baseline", f", {interval(change.low, change.high)}"
    detail = f"{told} ({rates[0]:.4g} -> {rates[1]:.4g} tok/s{within}, {len(old)} and {len(calm)} loads)"
    if change.verdict == "inconclusive":
        least = "not known" if change.smallest_visible is None else f"{change.smallest_visible:.1f} %"
        detail += f"; the smallest slowdown that could be seen is {least}"
    for place, why in sorted(aside.items()):
        detail += f"; load {place + 1} set aside: {why}"
    return check(
        name, change.verdict, detail, change_percent=round(change.percent, 2), interval_percent=both,
        loads=len(new), smallest_visible_percent=change.smallest_visible,
    )  # fmt: skip
