# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Revalidation that nobody watches: whether one is due, and what it says. Private to this collection. Pure functions.

The state of the timer is a dict {schema: 1, finished_at, hosts: {name: outcome}}; an outcome is a dict {deployment,
verdict, accepted, measured, summary, change_percent: {decode, prefill}}. `verdict` is one of VERDICTS: those of a
revalidation, and `failed` for one that came to none.
"""

from __future__ import annotations

import datetime
import json
import typing as t

SCHEMA: t.Final = 1
VERDICTS: t.Final = ("ok", "improved", "inconclusive", "regressed", "broken", "failed")
#: Of syslog: 3 is an error, 4 a warning, 6 information.
PRIORITIES: t.Final = {"ok": 6, "improved": 6, "inconclusive": 4, "regressed": 3, "broken": 3, "failed": 3}
#: What could not be done, or is marked for no known time, is tried again in another night.
AGAIN_HOURS: t.Final = 12
SPEEDS: t.Final = ("decode", "prefill")

Outcome = dict[str, t.Any]
State = dict[str, t.Any]


class UnattendedError(ValueError):
    """What cannot be read; the message says why."""


def parse_state(text: str | None) -> State | None:
    """Return the state of the timer, or None where there is none that can be used: then a revalidation is due."""
    try:
        state = json.loads(text or "")
        timestamp(state["finished_at"])
        usable = state["schema"] == SCHEMA and all("verdict" in outcome for outcome in state["hosts"].values())
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return state if usable else None


def due(state: State | None, mark: t.Mapping[str, t.Any], every_hours: float, now: str) -> tuple[bool, str]:
    """Return whether to revalidate now, and why, in words.

    `mark` is `_revalidation_mark.state`; a marked host does not wait until `every_hours` are over, but is not tried
    again and again in one night either.
    """
    if state is None:
        return True, "it was never done"
    hours = abs(timestamp(now) - timestamp(state["finished_at"])) / 3600
    last = f"the last one was {hours:.0f} hours ago ({state['finished_at']})"
    if hours >= every_hours:
        return True, last
    if mark["needed"] and (mark["since"] is None or mark["since"] > state["finished_at"] or hours >= AGAIN_HOURS):
        return True, mark["why"]
    failed = any(outcome["verdict"] == "failed" for outcome in state["hosts"].values())
    if failed and hours >= AGAIN_HOURS:
        return True, f"{last}, and it failed"
    return False, last


def outcomes(report_text: str | None) -> dict[str, Outcome]:
    """Return the outcome of each host from the report of playbooks/revalidate.yml. Raises UnattendedError."""
    try:
        report = json.loads(report_text or "")
        if report["schema"] != SCHEMA:
            raise UnattendedError(f"the report is of schema {report['schema']}, not {SCHEMA}")
        return {name: _outcome(result) for name, result in report["hosts"].items()}
    except (AttributeError, KeyError, TypeError) as exc:
        raise UnattendedError(f"the report is not what it should be ({exc!r})") from exc
    except json.JSONDecodeError as exc:
        raise UnattendedError("there is no report") from exc


def _outcome(result: t.Mapping[str, t.Any]) -> Outcome:
    changes = {
        check["name"]: check["change_percent"]
        for check in result["checks"]
        if check["name"] in SPEEDS and check.get("change_percent") is not None
    }
    if result["verdict"] not in VERDICTS:
        raise UnattendedError(f"the report has an unknown verdict, {result['verdict']!r}")
    advice = [str(sentence) for sentence in result.get("advice") or []]
    return {
        "deployment": result["deployment"] or "", "verdict": result["verdict"], "accepted": bool(result["accepted"]),
        "measured": bool(result["measured"]), "summary": "; ".join([str(result["summary"]), *advice[:1]]),
        "change_percent": changes,
    }  # fmt: skip


def failed(reason: str) -> Outcome:
    """Return the outcome of a host of which nothing could be found out."""
    return {
        "deployment": "", "verdict": "failed", "accepted": False, "measured": False, "summary": reason,
        "change_percent": {},
    }  # fmt: skip


def new_state(hosts: t.Mapping[str, Outcome], now: str) -> State:
    """Return the state after a revalidation."""
    return {"schema": SCHEMA, "finished_at": now, "hosts": dict(hosts)}


def line(name: str, outcome: Outcome) -> tuple[int, str]:
    """Return the priority and the text that tell the verdict in one line."""
    where = f"{name} ({outcome['deployment']})" if outcome["deployment"] else name
    verdict, summary = outcome["verdict"], " ".join(outcome["summary"].split())
    told = summary if summary.startswith(verdict) else f"{verdict}: {summary}"  # most summaries begin with it
    return PRIORITIES[verdict], f"{where}: {told}"


def why_failed(lines: t.Sequence[str]) -> str:
    """Return why a play failed, of what ansible-playbook printed: the message of its last failed task."""
    for text in reversed(lines):
        if text.startswith(("fatal: ", "failed: ")) and "=> " in text:
            try:
                return str(json.loads(text.split("=> ", 1)[1])["msg"])
            except (KeyError, TypeError, ValueError):
                return text
    errors = [text for text in lines if text.startswith(("[ERROR]", "ERROR"))]
    return (errors or [text for text in lines if text.strip()] or ["it printed nothing"])[-1]


def timestamp(stamp: str) -> float:
    """Return seconds since 1970 of a time such as C(2026-11-25T18:20:36Z)."""
    parsed = datetime.datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")
    return parsed.replace(tzinfo=datetime.UTC).timestamp()
