# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One table over many hosts: which need a person, which differ from the rest, and the others. Private. Pure functions.

A result is what the module fleet_info returned of a host, or what Ansible says of one that it did not reach. Nothing in
it is believed: every text becomes one short line, and an answer that is no answer is a row that says so.
"""

from __future__ import annotations

import collections
import typing as t

from .._base.text import one_line
from .._base.types import Json, Mapping
from . import fleet_concerns, fleet_rows

SCHEMA: t.Final = 1
#: State of a row -> its words in the first line; also the order of the rows.
STATES: t.Final = {
    "broken": "broken",
    "attention": "needing a person",
    "unreachable": "not reached",
    "unread": "not understood",
    "differs": "differing from the rest",
    "untuned": "never tuned",
    "ok": "well",
}
#: What hosts are compared by, and what it is called.
COMPARED: t.Final = {"driver": "NVIDIA driver", "build": "build", "collection": "collection"}

_LONGEST_CAUSE: t.Final = 120


def table(results: t.Mapping[str, Mapping]) -> Json:
    """Return C({report, lines}) of hosts by name: the fleet of docs/data_formats.md, and the same for a screen.

    Its hosts are sorted: those that need a person first, then those that differ from the rest.
    """
    rows = [_row(one_line(host, fleet_rows.WIDEST["host"]), result) for host, result in results.items()]
    told = _differences(rows)
    order = list(STATES)
    rows.sort(key=lambda row: order.index(row["state"]))
    attention = [
        f"{row['host']}: {one_line('; '.join(row['concerns']), fleet_concerns.MOST_CHARACTERS)}"
        for row in rows
        if row["concerns"]
    ]
    report = {"schema": SCHEMA, "summary": _summary(rows), "attention": [*attention, *told], "hosts": rows}
    return {"report": report, "lines": _lines(report)}


def _row(host: str, result: Mapping) -> Json:
    """Return the row of one host."""
    try:
        if result.get("unreachable"):
            return fleet_rows.without_answer(host, "unreachable", f"cannot be reached ({_end(result.get('msg'))})")
        if "host" not in result:
            return fleet_rows.without_answer(host, "unread", f"cannot be read ({_end(result.get('msg'))})")
        row = fleet_rows.row(host, result["host"])
        worst, concerns = fleet_concerns.of(result["host"])
        state = worst or ("untuned" if row["deployments"] == 0 and not row["lends"] else "ok")
        return {**row, "state": state, "concerns": concerns}
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        return fleet_rows.without_answer(host, "unread", f"its answer is not understood ({type(error).__name__})")


def _end(message: t.Any) -> str:
    """Return the end of what Ansible says of a failure, where the cause is."""
    words = one_line(message, 1000).removeprefix("Task failed: ")
    return words if len(words) <= _LONGEST_CAUSE else f"...{words[3 - _LONGEST_CAUSE :]}"


def _differences(rows: list[Json]) -> list[str]:
    """Name what differs from most hosts in the rows; return a sentence for what no majority agrees on."""
    told = []
    for field, name in COMPARED.items():
        groups: dict[str, list[Json]] = {}
        for row in (row for row in rows if row[field]):
            called = f"{name} of {row['engine']}" if field == "build" else name
            groups.setdefault(called, []).append(row)
        for called, among in groups.items():
            told += _differ(called, field, among)
    return told


def _differ(called: str, field: str, among: list[Json]) -> list[str]:
    """Name in the rows what differs from most of them; return a sentence where there is no majority."""
    counts = collections.Counter(row[field] for row in among)
    usual, most = counts.most_common(1)[0]
    if 2 * most <= len(among):
        said = ", ".join(f"{value} on {count}" for value, count in counts.most_common(5))
        return [f"No version of the {called} is on most hosts: {said}."]
    for row in (row for row in among if row[field] != usual):
        row["concerns"].append(f"the {called} is {row[field]}, and most hosts have {usual}")
        row["state"] = "differs" if row["state"] in ("ok", "untuned") else row["state"]
    return []


def _summary(rows: t.Sequence[Json]) -> str:
    counts = collections.Counter(row["state"] for row in rows)
    said = ", ".join(f"{counts[state]} {words}" for state, words in STATES.items() if counts[state])
    return f"{len(rows)} host{'' if len(rows) == 1 else 's'}: {said or 'none'}."


def _lines(report: Mapping) -> list[str]:
    """Return first line, sentences and table."""
    sentences = [f"  {sentence}" for sentence in report["attention"]]
    return [report["summary"], *sentences, *([""] if sentences else []), *fleet_rows.lines(report["hosts"])]


def view(report: Mapping) -> Json:
    """Return what the HTML page shows: C({summary, attention, head, right, rows}), a row with C(state) and C(cells)."""
    rows = [{"state": row["state"], "cells": fleet_rows.cells(row)} for row in report["hosts"]]
    columns = {"head": fleet_rows.HEAD, "right": fleet_rows.RIGHT}
    return {"summary": report["summary"], "attention": report["attention"], **columns, "rows": rows}
