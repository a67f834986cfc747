# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What loads say beyond the fit, and how far that reaches. Private to this collection. Pure functions only.

What a measured split took beside what the fit says of it is noise, or what the form of the fit misses. The form misses
about as much at a neighbour, and something else far away, so the correction of a split comes from the measured ones by
kriging: the nearer one counts for more, and noise counts for less the more loads there are.
"""

from __future__ import annotations

import math
import typing as t

from .._base import least_squares
from .._split.layer_split import Layers

#: What a form misses (relative standard deviation) before anything was measured, and for how many splits that counts.
USUAL_MISFIT: t.Final = 0.002
USUAL_COUNTS: t.Final = 2

#: What share of the layers has to move for a misfit to be another one.
REACH: t.Final = 0.25


class Gap(t.NamedTuple):
    """The logarithm of measured by predicted of one split, of the mean of C(loads) loads."""

    layers: Layers
    log: float
    loads: int


def squared(gaps: t.Sequence[Gap], noise: float, coefficients: int) -> float:
    """Return the variance of what a fit with C(coefficients) misses beyond noise, relative; never zero."""
    beyond = sum(gap.log**2 - noise**2 / gap.loads for gap in gaps)
    free = max(1, len(gaps) - coefficients)
    return (USUAL_COUNTS * USUAL_MISFIT**2 + max(0.0, beyond)) / (USUAL_COUNTS + free)


def alike(one: Layers, other: Layers) -> float:
    """Return how much of what a form misses two splits have in common, from 0 to 1."""
    moved = sum(abs(a - b) for a, b in zip(one, other, strict=True)) / 2
    return math.exp(-moved / (REACH * sum(one)))


def unlike(layers: Layers, measured: t.Iterable[Layers]) -> float:
    """Return how much of what a form misses of a split the measured ones leave open, from 0 to 1."""
    return math.sqrt(1 - max((alike(layers, other) for other in measured), default=0.0) ** 2)


class Correction:
    """How much longer splits take than the fit says, by the measured splits near them."""

    def __init__(self, gaps: t.Sequence[Gap], noise: float, coefficients: int) -> None:
        """Weigh the measured splits; C(noise) is the relative standard deviation between loads."""
        self._gaps = gaps
        variance = squared(gaps, noise, coefficients)
        matrix = [[variance * alike(one.layers, other.layers) for other in gaps] for one in gaps]
        for index, gap in enumerate(gaps):
            matrix[index][index] += noise**2 / gap.loads
        solution = least_squares.solve(matrix, [gap.log for gap in gaps])
        self._weights = [variance * value for value in solution or ()]

    def factor(self, layers: Layers) -> float:
        """Return what the prediction of a split is multiplied by."""
        pairs = zip(self._weights, self._gaps, strict=False)
        return math.exp(sum(weight * alike(layers, gap.layers) for weight, gap in pairs))
