# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The revalidations of a deployment over time. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .recorded import when

#: Rows of the table; the chart shows them all.
_SHOWN: t.Final = 10


def rows(recorded: Mapping | None) -> list[Json]:
    """Return the last revalidations as text, the newest first; C(recorded) is the result of split_record."""
    found = list(reversed((recorded or {}).get("trend") or []))[:_SHOWN]
    return [
        {
            "at": when(row["at"]),
            "verdict": row["verdict"],
            "accepted": row["accepted"],
            "decode": _change(row["decode"]),
            "prefill": _change(row["prefill"]),
            "driver": row["driver_version"] or "none",
        }
        for row in found
    ]


def compared(recorded: Mapping | None) -> list[Mapping]:
    """Return those that compared a speed, the oldest first: what a chart can show."""
    return [row for row in (recorded or {}).get("trend") or [] if row["decode"] or row["prefill"]]


def _change(given: Mapping | None) -> str:
    """Return how much more or less time something takes: C(+8.3 %); C(-) where that was not compared."""
    return "-" if given is None else f"{given['percent']:+.1f} %"
