# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rows of the table of speculation. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.text import DASH, number, percent
from .._base.types import Json, Mapping
from .._split import speculation


def speculation_rows(entry: Mapping) -> list[Json]:
    """Return the measured ways to speculate as text, in the order of measuring; empty where none was measured.

    C(speeds) has the tokens per second of each kind of text, with the share of drafted tokens that were right;
    C(rounds) what a round gave of each, empty without drafts.
    """
    found = entry["decision"].get("speculation") or {}
    served = speculation.from_json(found.get("served") or {"kind": speculation.NONE, "n_max": 0})
    table = found.get("table") or []
    plain = next((row["ms_per_token"] for row in table if row["kind"] == speculation.NONE), None)
    return [_row(row, plain, speculation.from_json(row) == served) for row in table]


def texts(entry: Mapping) -> list[str]:
    """Return the kinds of text that were measured."""
    table = (entry["decision"].get("speculation") or {}).get("table") or []
    return list(next((row["tokens_per_second"] for row in table if row["tokens_per_second"]), ()))


def _row(row: Mapping, plain: float | None, chosen: bool) -> Json:
    own = row["ms_per_token"]
    less = None if own is None or not plain else 100 * (1 - own / plain)
    reason = row["reason"] or "no reason given"
    return {
        "name": row["name"],
        "speeds": [_speed(row, text) for text in row["tokens_per_second"]],
        "rounds": _rounds(row),
        "prompt": number(row["prompt_tokens_per_second"]),
        "time": DASH if less is None or not less else f"{'-' if less > 0 else '+'}{percent(abs(less))}%",
        "loads": row["loads"],
        "chosen": chosen,
        "why": "" if row["status"] == "ok" else f"{row['status'].replace('_', ' ')}: {reason.rstrip('.')}",
    }


def _speed(row: Mapping, text: str) -> str:
    """Return tokens per second on a kind of text, and the share that was right."""
    right: t.Any = row["acceptance"].get(text)
    share = "" if right is None else f" ({100 * right:.0f}%)"
    return f"{number(row['tokens_per_second'][text])}{share}"


def _rounds(row: Mapping) -> str:
    """Return the tokens per round of each kind of text."""
    if row["kind"] == speculation.NONE:
        return ""
    return ", ".join(f"{text} {number(tokens)}" for text, tokens in row["tokens_per_round"].items())
