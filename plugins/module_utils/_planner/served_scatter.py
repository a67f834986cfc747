# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How much served loads scatter: one against another, and their texts within them. Private. Pure functions only.

What is usual on cards counts as well as what few loads show, unless these contradict it: then they count alone.
"""

from __future__ import annotations

import math
import statistics
import typing as t

from .._base import stats
from .._split import speculation
from .._split.speculation import ServedLoad

#: Degrees of freedom that a usual scatter counts for.
USUAL_DEGREES: t.Final = 4
#: The usual scatter of a text's time per round within a load, relative.
USUAL_OF_TEXTS: t.Final = 0.01
#: What is as unlikely as this by the usual scatter contradicts it.
CONTRADICTED: t.Final = 0.001


class Scatter(t.NamedTuple):
    """A relative standard deviation with its degrees of freedom, and whether loads contradict what is usual."""

    deviation: float
    degrees: int
    unusual: bool = False


def of_squares(squares: float, degrees: int, usual: float) -> Scatter:
    """Return what a sum of squared deviations says together with what is usual, or alone where both disagree."""
    if degrees and stats.f_tail(squares / degrees / usual**2, degrees, USUAL_DEGREES) < CONTRADICTED:
        return Scatter(math.sqrt(squares / degrees), degrees, unusual=True)
    together = degrees + USUAL_DEGREES
    return Scatter(math.sqrt((squares + usual**2 * USUAL_DEGREES) / together), together)


def of_loads(times: t.Iterable[t.Sequence[float]], usual: float) -> Scatter:
    """Return the scatter between loads, from what a token took in each load of each arm."""
    deviation, degrees = stats.pooled_spread(times)
    return of_squares(deviation**2 * degrees, degrees, usual)


def of_texts(loads: t.Sequence[ServedLoad]) -> Scatter:
    """Return the scatter of single texts within a load.

    A round takes the same on all texts, but for what a text makes dearer in every load.
    """
    kinds = (speculation.NONE, *speculation.LINE_KINDS)
    logs = [
        [math.log(found.decode_ms / found.rounds) for found in load.results] for load in loads if load.arm.kind in kinds
    ]
    if not logs:
        return of_squares(0.0, 0, USUAL_OF_TEXTS)
    of_text = [statistics.fmean(column) for column in zip(*logs, strict=True)]
    mean = statistics.fmean(of_text)
    squares = sum(
        (value - statistics.fmean(row) - common + mean) ** 2
        for row in logs
        for value, common in zip(row, of_text, strict=True)
    )
    return of_squares(squares, (len(logs) - 1) * (len(of_text) - 1), USUAL_OF_TEXTS)
