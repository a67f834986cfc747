# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The rows of the table over many hosts, as data and as cells. Private to this collection. Pure functions only."""

from __future__ import annotations

import collections
import typing as t

from .._base.fields import is_number
from .._base.text import card_name, columns, number, one_line
from .._base.types import Json, Mapping

#: Most characters of a cell.
WIDEST: t.Final = {
    "host": 64, "cards": 32, "model": 30, "verdict": 14, "driver": 14, "build": 20, "collection": 12, "watchdog": 14,
}  # fmt: skip
HEAD: t.Final = (
    "host", "cards", "model", "tok/s", "prompt", "verdict", "age", "driver", "build", "collection", "watchdog",
)  # fmt: skip
#: Columns of numbers.
RIGHT: t.Final = (3, 4, 6)
_DASH: t.Final = "-"  # not every terminal of a play shows more than ASCII


def without_answer(host: str, state: str, why: str) -> Json:
    """Return the row of a host that said nothing; C(why) is its concern."""
    nothing = dict.fromkeys(
        (
            "cards", "model", "engine", "split_mode", "split", "decode_tokens_per_second", "prefill_tokens_per_second",
            "verdict", "verdict_age_hours", "driver", "build", "collection", "watchdog",
        )
    )  # fmt: skip
    return {"host": host, "state": state, "concerns": [one_line(why, 160)], **nothing, "deployments": None, "lends": 0}


def row(host: str, seen: Mapping) -> Json:
    """Return the row of a host from its answer, without its state. Raises what Python does for no such answer."""
    known = seen["deployments"]
    served = next((one for one in known or [] if one["served"] is True), None)
    verdict, build = seen["verdict"], seen["build"]
    speeds = {
        name: finite(served[name]) if served else None
        for name in ("decode_tokens_per_second", "prefill_tokens_per_second")
    }
    return {
        "host": host,
        "cards": _cards(seen["cards"]),
        "model": one_line(served["model"], WIDEST["model"]) if served else None,
        "engine": _text((build or served or {}).get("engine"), "verdict"),
        "split_mode": _text(served and served["split_mode"], "verdict"),
        "split": _text(served and served["split"], "model"),
        "deployments": None if known is None else len(known),
        **speeds,
        "verdict": _text(verdict and verdict["verdict"], "verdict"),
        "verdict_age_hours": finite(verdict["age_hours"]) if verdict else None,
        "driver": _text(seen["driver"]["loaded"], "driver"),
        "build": _text(build and build["version"], "build"),
        "collection": _text(seen["collection"], "collection"),
        "watchdog": _text(_watchdog(seen["watchdog"], seen["units"]), "watchdog"),
        "lends": min(int(seen["lends"]), 99),
    }


def finite(value: t.Any) -> float | None:
    """Return a number that is not negative and no more than any speed or age can be, None for what is none."""
    return float(value) if is_number(value, 0, 1e9) else None


def _text(value: t.Any, column: str) -> str | None:
    """Return a text for a column, None for nothing."""
    return one_line(value, WIDEST[column]) if value else None


def _cards(names: t.Sequence[t.Any]) -> str | None:
    """Return cards in short: RTX 4090 + 2x RTX 3090."""
    counts = collections.Counter(map(card_name, names))
    said = " + ".join(f"{count}x {name}" if count > 1 else name for name, count in counts.items())
    return _text(said, "cards")


def _watchdog(seen: Mapping | None, units: t.Sequence[Mapping] | None) -> str | None:
    """Return the watchdog in a word or two; None where none is set up."""
    if seen is None:
        return None
    if any("watchdog" in str(unit["unit"]) and unit["state"] == "failed" for unit in units or []):
        return "failed"
    if seen["stuck"]:
        return "stuck"
    restarts = int(seen["restarts"])
    if restarts:
        return f"{restarts} restart{'' if restarts == 1 else 's'}"
    return "server failed" if seen["failed"] else "ok" if seen["watches"] else None


def age(hours: float | None) -> str:
    """Return an age in one number and unit: 5 h, 12 d."""
    if hours is None:
        return _DASH
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} d"


def _model(row: Mapping) -> str:
    """Return what is served, or why nothing is known to be."""
    if row["lends"]:
        return f"lends {row['lends']} device{'' if row['lends'] == 1 else 's'}"
    if row["model"]:
        return f"{row['model']} (+{row['deployments'] - 1})" if row["deployments"] > 1 else str(row["model"])
    if row["state"] in ("unreachable", "unread"):
        return {"unreachable": "not reached", "unread": "not understood"}[row["state"]]
    return {None: "record damaged", 0: "never tuned"}.get(row["deployments"], "nothing served")


def cells(row: Mapping) -> tuple[str, ...]:
    """Return the cells of a row, in the order of HEAD."""
    return (
        row["host"],
        row["cards"] or _DASH,
        _model(row),
        number(row["decode_tokens_per_second"], _DASH),
        number(row["prefill_tokens_per_second"], _DASH),
        row["verdict"] or ("never" if row["model"] else _DASH),
        age(row["verdict_age_hours"]),
        row["driver"] or _DASH,
        row["build"] or _DASH,
        row["collection"] or _DASH,
        row["watchdog"] or _DASH,
    )


def lines(rows: t.Sequence[Mapping]) -> list[str]:
    """Return the table as lines."""
    return columns([HEAD, *map(cells, rows)], right=RIGHT) if rows else []
