# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a revalidation measures next, until its verdict is clear. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._measuring import contention
from .._split import deployment, engines, layer_split, load_tests, speed
from . import checks, contended, speed_checks, text_answers


def next_load(entry: Mapping, before: t.Sequence[Mapping], now: t.Sequence[Mapping], limits: Mapping) -> Json | None:
    """Return the next load of the recorded split that a verdict needs, or None when it is clear or there were enough.

    C(limits) has C(tolerance_percent), C(least_loads), C(most_loads), and C(baseline): whether today's loads become a
    baseline, which wants more of them (load_tests.LEAST_BASELINE_LOADS, and a slowdown of the tolerance visible).
    Contended loads count for nothing, and there are contention.MOST_CONTENDED of them at most.
    """
    done, most, tolerance = len(now), int(limits["most_loads"]), float(limits["tolerance_percent"])
    if any(load["status"] != "ok" for load in now) or done >= most or contended.given_up(now):
        return None
    if text_answers.wrong(before, now):
        return None
    calm = contention.calm(now)
    least = max(int(limits["least_loads"]), speed.LEAST_LOADS)
    found = speed_checks.measured(before, calm, tolerance) if before else []
    clear = len(calm) >= least and not any(check["verdict"] == "inconclusive" for check in found)
    if limits.get("baseline") and clear:
        visible = load_tests.visible_percent(calm, most).values()
        enough = len(calm) >= load_tests.LEAST_BASELINE_LOADS
        clear = enough and all(value is not None and value <= tolerance for value in visible)
    if clear:
        return None
    layers = [place["layers"] for place in entry["placement"]]
    return {
        "label": f"{layer_split.split_name(layers)} load {done + 1} (revalidation)",
        "split_mode": entry["split_mode"],
        "layers": layers,
        "load": done + 1,
        "purpose": "revalidation",
        "tests": deployment.served_tests(entry),
        "environment": dict(entry.get("environment") or {}),
        **({"experts_in_ram": entry["experts_in_ram"]} if entry.get("experts_in_ram") else {}),
    }


def blocked(observed: Mapping, for_baseline: bool) -> str | None:
    """Return why measuring would tell nothing, or None."""
    for check in (checks.cards(observed), checks.model(observed)):
        if check is not None and check["verdict"] == "broken":
            return str(check["detail"])
    lent = checks.lenders(observed)
    if lent is not None:
        return str(lent["detail"])
    engine = engines.of(observed["entry"]["serving"])
    if observed["configuration"][engine.build_part] is None:
        return f"there is no {engine.display} to measure with: run site, which installs one"
    if observed["baseline"] is None and not for_baseline:
        return "there is no baseline to compare with; -e accept=true measures and records one"
    return None


def step(observed: Mapping, limits: Mapping) -> Json:
    """Return C({suspicion, blocked, load}), each None where there is nothing to say.

    Why the serving instance's timings are not enough, why nothing can be measured, and the next load to measure.
    """
    baseline = observed["baseline"]
    return {
        "blocked": blocked(observed, bool(limits.get("baseline"))),
        "suspicion": speed_checks.suspicion(observed, float(limits["tolerance_percent"])),
        "load": next_load(observed["entry"], baseline["loads"] if baseline else [], observed["loads"], limits),
    }
