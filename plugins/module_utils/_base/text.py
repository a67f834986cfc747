# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Numbers, splits and tables as text. Private to this collection. Pure functions only."""

from __future__ import annotations

import math
import typing as t
import unicodedata

DASH: t.Final = "–"


def number(value: float | None, missing: str = DASH) -> str:
    """Write a number with about three significant digits: 57.9, 812, 0.45. None and NaN become I(missing)."""
    if value is None or not math.isfinite(value):
        return missing
    size = abs(value)
    if size >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"


def span(ends: t.Sequence[float] | None) -> str:
    """Write two ends as text; one where they are equal as shown."""
    if ends is None:
        return "-"
    low, high = (number(end) for end in ends)
    return low if low == high else f"{low} to {high}"


def percent(value: float | None) -> str:
    """Write a percentage with one decimal and no sign after it."""
    return DASH if value is None else f"{value:.1f}"


def less_time(less: float, low: float | None = None, high: float | None = None) -> tuple[str, str, str]:
    """Return how much less or more time something takes, in percent: size, C(less) or C(more), and the interval.

    The interval is of what the word says and empty where it is unknown: C(("3.1", "more", "1.2 to 5.0")).
    """
    sign, word = (1, "less") if less >= 0 else (-1, "more")
    size, *ends = (f"{round(sign * value, 1) + 0.0:.1f}" for value in (less, low, high) if value is not None)
    return size, word, " to ".join(ends[::sign])


def mebibytes(value: float | None, missing: str = DASH) -> str:
    """Write a number of MiB without decimals."""
    return missing if value is None else f"{value:.0f}"


def interval(low: float | None, high: float | None) -> str:
    """Write a range: 57.2 to 58.1."""
    if low is None or high is None:
        return DASH
    return f"{number(low)} to {number(high)}"


def vector(layers: t.Sequence[int] | None) -> str:
    """Write a split as llama-server takes it: 45,36."""
    return ",".join(str(count) for count in layers) if layers else DASH


def card_name(name: t.Any) -> str:
    """Write the name of a card without its maker: RTX 4090."""
    return str(name).removeprefix("NVIDIA ").removeprefix("GeForce ")


def one_line(value: t.Any, most: int) -> str:
    """Write a text of unknown origin as one line of at most I(most) characters, without what moves or hides text."""
    text = str(value)
    # what lies far behind the end of the line is not looked at: such a text may be huge
    words = " ".join(text[: 4 * most].split())
    kept = "".join(mark for mark in words if unicodedata.category(mark)[0] != "C")
    return kept if len(kept) <= most and len(text) <= 4 * most else f"{kept[: most - 3].rstrip()}..."


def terminal_line(text: str) -> str:
    """Write a line for any terminal: without the dash, and without what moves or hides text."""
    return "".join(mark if mark.isprintable() else " " for mark in text.replace(DASH, "-"))


def columns(rows: t.Sequence[t.Sequence[str]], right: t.Container[int]) -> list[str]:
    """Align cells in columns, two blanks apart. The columns whose numbers are in I(right) are flushed right."""
    if not rows:
        return []
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
