# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rows of the table of both split modes. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.text import DASH, number, percent, vector
from .._base.types import Json, Mapping
from .._split import allreduce
from .recorded import prompt_tokens_of

_VERDICTS: t.Final = {"inconclusive": "no clear difference", "rejected": "not trusted"}


def mode_rows(entry: Mapping) -> list[Json]:
    """Return the measured arms of both modes as text, layer mode first; empty where tensor mode was not measured.

    C(time) is the time of the objective against the layer split's, in percent; C(why) a sentence where an arm failed,
    or where another all-reduce ran than the one that was asked for.
    """
    table = (entry["decision"].get("tensor") or {}).get("table") or []
    return [_row(entry, row) for row in table]


def _row(entry: Mapping, row: Mapping) -> Json:
    decode, prefill, less = row["decode_ms_per_token"], row["prefill_ms"], row["less_percent"]
    tokens = prompt_tokens_of(entry)
    ok = decode is not None or prefill is not None
    time = f"{'+' if less < 0 else '-'}{percent(abs(less))}%" if less and ok else DASH
    return {
        "mode": f"{row['mode']} {vector(row['layers'])}",
        "adds_up": allreduce.short({"ran": row["allreduce"], "transport": row["transport"]}) or DASH,
        "decode": number(decode),
        "rate": number(1000 / decode if decode else None),
        "prefill": number(1000 * tokens / prefill if prefill and tokens else prefill),
        "time": time,
        "loads": row["loads"],
        "ok": ok,
        "chosen": row["verdict"] == "chosen",
        "verdict": _VERDICTS.get(row["verdict"], row["verdict"]),
        "why": _why(row),
    }


def _why(row: Mapping) -> str:
    """Return why an arm failed, or why another all-reduce ran in it; empty where nothing is to be said."""
    found = []
    if row["fallback"]:
        others = [allreduce.name(way) for way in row["asked"] if way != row["allreduce"]]
        wanted = f"{' and '.join(others)} was asked for, and " if others else ""
        found.append(f"{wanted}{allreduce.name(row['allreduce'] or '')} ran: {row['fallback'].rstrip('.')}")
    if row["status"] != "ok":
        found.append(f"{row['status'].replace('_', ' ')}: {(row['reason'] or 'no reason given').rstrip('.')}")
    return "; ".join(found)
