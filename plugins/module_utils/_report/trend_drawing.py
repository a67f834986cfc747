# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Draws how the speed moved from revalidation to revalidation. Private to this collection. Needs matplotlib."""

from __future__ import annotations

import typing as t

from .._base.types import Mapping
from . import drawing

#: Quantity -> colour, marker, words, and how far it stands beside the place of its revalidation.
_KINDS: t.Final = {
    "decode": (drawing.MEASURED, "o", "decode", -0.08),
    "prefill": (drawing.CHOSEN, "D", "prefill", 0.08),
}
#: Dates under the axis that do not run into each other.
_DATES: t.Final = 5


def draw(trend: t.Sequence[Mapping]) -> str:
    """Return the chart as an SVG element: the change against the baseline of its time, per revalidation.

    I(trend) are the rows that trend_rows.compared returns. A dashed line stands where the baseline was made anew.
    """

    def paint(axes: t.Any, _index: int) -> None:
        axes.axhline(0, color=drawing.MUTED, linewidth=1)
        for kind, (colour, marker, words, aside) in _KINDS.items():
            found = [(place + aside, row[kind]) for place, row in enumerate(trend) if row[kind]]
            _points(axes, found, colour, marker, words)
        for place in range(1, len(trend)):
            if trend[place]["baseline_at"] != trend[place - 1]["baseline_at"]:
                axes.axvline(place - 0.5, color=drawing.DEFAULT, linestyle="--", linewidth=1.2, label="new baseline")
        step = -(-len(trend) // _DATES)
        axes.set_xticks(range(0, len(trend), step), [str(row["at"])[:10] for row in trend[::step]])
        axes.set_xlim(-0.5, len(trend) - 0.5)
        axes.margins(y=0.15)
        axes.set_ylabel("time against the baseline, %\n(less is better)")

    return drawing.svg(paint, 1, "Revalidations: time against the baseline")


def _points(
    axes: t.Any, points: t.Sequence[tuple[float, Mapping]], colour: str, marker: str, words: str
) -> None:
    if not points:
        return
    changes = [change for _place, change in points]
    axes.errorbar(
        [place for place, _change in points], [change["percent"] for change in changes],
        yerr=[_reach(changes, "low"), _reach(changes, "high")],
        fmt=marker, markersize=6, color=colour, markeredgecolor=drawing.PAGE, elinewidth=1.4, capsize=3, label=words,
        zorder=3,
    )  # fmt: skip


def _reach(changes: t.Sequence[Mapping], end: str) -> list[float]:
    """Return how far the interval reaches to one side; 0 where it is not known."""
    return [abs(change[end] - change["percent"]) if change[end] is not None else 0.0 for change in changes]
