# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Unattended revalidation: whether one is due, its line in the journal, and its metric. Private to this collection.

Pure functions only. The state is a dict {schema: 1, finished_at, outcome}; an outcome is a dict {deployment, verdict,
accepted, measured, summary, driver_version, change_percent: {decode, prefill}, acceptance: {now, baseline}, links}.
"""

from __future__ import annotations

import typing as t

from .._base import fields, json_file
from . import checks, due

SCHEMA: t.Final = 1
#: Of syslog: 3 is an error, 4 a warning, 5 a notice, 6 information.
PRIORITIES: t.Final = {"ok": 6, "improved": 6, "inconclusive": 4, "regressed": 3, "broken": 3}
NOTICE: t.Final = 5
#: A driver that was tried and not accepted is tried again in another night.
AGAIN_HOURS: t.Final = 12
SPEEDS: t.Final = ("decode", "prefill")

_LINK: t.Final = (
    None,
    {
        "round_trip_ms": fields.NUMBER, "to_mb_per_s": (None, *fields.NUMBER), "from_mb_per_s": (None, *fields.NUMBER),
    },
)  # fmt: skip
_SHAPE: t.Final = {
    "schema": int,
    "finished_at": str,
    "outcome": {
        "deployment": str, "verdict": str, "accepted": bool, "measured": bool, "summary": str,
        "driver_version": (None, str), "change_percent": {str: fields.NUMBER}, "acceptance": {str: fields.NUMBER},
        "links": [{"endpoint": str, "before": _LINK, "now": _LINK, "slower": bool}],
    },
}  # fmt: skip

Outcome = dict[str, t.Any]
State = dict[str, t.Any]


def parse_state(text: str | None) -> State | None:
    """Return the state of the timer, or None where there is none that can be used: then a revalidation is due."""
    try:
        state = json_file.from_text(text or "")
        fields.check_shape("the state", state, _SHAPE)
        timestamp(state["finished_at"])
    except ValueError:
        return None
    return state if state["schema"] == SCHEMA and state["outcome"]["verdict"] in checks.VERDICTS else None


def is_due(state: State | None, driver: due.Due, every_hours: float, now: str) -> tuple[bool, str]:
    """Return whether to revalidate now, and why, in words.

    Another driver that is loaded does not wait until C(every_hours) are over, but is not tried again and again in one
    night either. One that is only installed waits for the reboot.
    """
    if state is None:
        return True, "no revalidation was recorded"
    hours = abs(timestamp(now) - timestamp(state["finished_at"])) / 3600
    last = f"the last one was {hours:.0f} hours ago ({state['finished_at']})"
    if hours >= every_hours:
        return True, last
    tried = state["outcome"].get("driver_version") == driver["driver"]["loaded"]
    if driver["now"] and (not tried or hours >= AGAIN_HOURS):
        return True, str(driver["why"])
    return False, last


def outcome(result: t.Mapping[str, t.Any]) -> Outcome:
    """Return what is kept of a revalidation."""
    changes = {
        check["name"]: check["change_percent"]
        for check in result["checks"]
        if check["name"] in SPEEDS and check.get("change_percent") is not None
    }
    drafted = next((check for check in result["checks"] if "share" in check), None)
    right = {} if drafted is None else {"now": drafted["share"], "baseline": drafted["share_before"]}
    advice = [str(sentence) for sentence in result.get("advice") or []]
    return {
        "deployment": result["deployment"] or "", "verdict": result["verdict"], "accepted": bool(result["accepted"]),
        "measured": bool(result["measured"]), "summary": "; ".join([str(result["summary"]), *advice[:1]]),
        "driver_version": result.get("driver_version"), "change_percent": changes,
        "acceptance": right, "links": list(result.get("links") or []),
    }  # fmt: skip


def new_state(found: Outcome, now: str) -> State:
    """Return the state after a revalidation."""
    return {"schema": SCHEMA, "finished_at": now, "outcome": dict(found)}


def line(host: str, found: Outcome) -> tuple[int, str]:
    """Return the priority and the text that tell the verdict in one line."""
    where = f"{host} ({found['deployment']})" if found["deployment"] else host
    verdict, summary = found["verdict"], " ".join(found["summary"].split())
    told = summary if summary.startswith(verdict) else f"{verdict}: {summary}"  # most summaries begin with it
    return PRIORITIES[verdict], f"{where}: {told}"


def skipped_line(host: str, why: str) -> tuple[int, str]:
    """Return the priority and the text that tell that a host in use was skipped."""
    return NOTICE, f"{host}: skipped: {why}; the timer tries again later"


def metrics(host: str, state: State | None, needed: bool, now: str) -> str:
    """Return what is known as text for node_exporter's textfile collector."""
    prefix = "mixed_gpu_revalidation"
    text = _gauge("mixed_gpu_needs_revalidation", "The driver changed and was not revalidated since.", {}, needed)
    text += _gauge(f"{prefix}_last_try_timestamp_seconds", "Last try that was due.", {}, timestamp(now))
    if state is None:
        return text
    found = state["outcome"]
    labels = {"host": host, "deployment": found["deployment"]}
    finished = timestamp(state["finished_at"])
    text += _gauge(f"{prefix}_timestamp_seconds", "End of the last revalidation.", {}, finished)
    states = {verdict: verdict == found["verdict"] for verdict in checks.VERDICTS}
    text += _gauges(
        f"{prefix}_verdict", "Verdict.", [({**labels, f"{prefix}_verdict": name}, on) for name, on in states.items()]
    )
    text += _gauge(f"{prefix}_accepted", "Whether the verdict is accepted.", labels, found["accepted"])
    text += _gauge(f"{prefix}_measured", "Whether the split was measured under the lease.", labels, found["measured"])
    changes = [({**labels, "test": test}, percent) for test, percent in sorted(found["change_percent"].items())]
    text += _gauges(
        f"{prefix}_change_percent", "Change of the time per token since the baseline; more is slower.", changes
    )
    text += _links(host, found["links"])
    shares = [({**labels, "when": when}, share) for when, share in sorted(found["acceptance"].items())]
    about = "Share of drafted tokens that were right, by the texts of the baseline."
    return text + (_gauges("mixed_gpu_draft_acceptance_ratio", about, shares) if shares else "")


def _links(host: str, links: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    """Return the links to lenders, when they were tuned and at the last measurement; nothing without lenders."""
    if not links:
        return ""
    times, rates = [], []
    for link in links:
        for when, measured in (("tuned", link["before"]), ("now", link["now"])):
            labels = {"host": host, "lender": link["endpoint"], "when": when}
            if measured:
                times.append((labels, measured["round_trip_ms"]))
                ways = {way: measured[f"{way}_mb_per_s"] for way in ("to", "from")}
                rates += [({**labels, "direction": way}, rate) for way, rate in ways.items() if rate is not None]
    slow = [({"host": host, "lender": link["endpoint"]}, link["slower"]) for link in links]
    return (
        _gauges("mixed_gpu_lender_round_trip_ms", "A small exchange with an RPC server of another host.", times)
        + _gauges("mixed_gpu_lender_mb_per_s", "Rate to and from an RPC server of another host.", rates)
        + _gauges("mixed_gpu_lender_link_slow", "Whether that is clearly slower than when it was tuned.", slow)
    )


def _gauge(name: str, about: str, labels: t.Mapping[str, str], value: float) -> str:
    return _gauges(name, about, [(labels, value)])


def _gauges(name: str, about: str, samples: t.Iterable[tuple[t.Mapping[str, str], float]]) -> str:
    """Return a metric in the text format: its help, its type, and a line per sample."""
    lines = [f"# HELP {name} {about}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        pairs = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"{name}{{{pairs}}} {float(value)}" if pairs else f"{name} {float(value)}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def timestamp(stamp: str) -> float:
    """Return seconds since 1970 of a time such as C(2026-11-25T18:20:36Z)."""
    return json_file.utc_time(stamp).timestamp()
