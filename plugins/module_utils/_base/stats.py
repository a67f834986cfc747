# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Student's t, the tail of F, spreads, expected gains. Private to this collection. Pure functions only."""

from __future__ import annotations

import functools
import math
import statistics
import typing as t

#: Standard deviations of a normal distribution to each side that hold 95 %.
NORMAL_95: t.Final = statistics.NormalDist().inv_cdf(0.975)


def f_tail(ratio: float, over: int, under: int) -> float:
    """Return the probability that F with C(over) and C(under) degrees of freedom exceeds C(ratio).

    It is the regularised incomplete beta function at under / (under + over * ratio), by its continued fraction
    (Abramowitz and Stegun 26.6.2 and 26.5.8).
    """
    if ratio <= 0:
        return 1.0
    return _incomplete_beta(under / (under + over * ratio), under / 2, over / 2)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    # from the last term backwards: the fraction converges in far fewer terms than these
    fraction = 0.0
    for m in range(200, 0, -1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        fraction = even / (1 + odd / (1 + fraction))
    first = -(a + b) * x / (a + 1)
    return front / a / (1 + first / (1 + fraction))


@functools.lru_cache(maxsize=256)
def t_quantile(degrees: int, outside: float) -> float:
    """Return Student's t of the two-sided interval with C(outside) beyond it, by bisection of the F distribution.

    Raises ValueError below one degree of freedom.
    """
    if degrees < 1:
        raise ValueError("an interval needs at least one degree of freedom")
    low, high = 0.0, 1.0
    while f_tail(high**2, 1, degrees) > outside:
        high *= 2
    for _step in range(60):
        middle = (low + high) / 2
        if f_tail(middle**2, 1, degrees) > outside:
            low = middle
        else:
            high = middle
    return high


def log_squares(values: t.Sequence[float]) -> float:
    """Return the sum of squared deviations of the logarithms."""
    logs = [math.log(value) for value in values]
    centre = statistics.fmean(logs)
    return sum((value - centre) ** 2 for value in logs)


def pooled_spread(arms: t.Iterable[t.Sequence[float]]) -> tuple[float, int]:
    """Return (relative standard deviation between loads, its degrees of freedom) from the load means of many splits.

    Loads of one split differ by their noise alone, so what they say about it is pooled over splits; logarithms make it
    relative. (0.0, 0) when no split has two loads.
    """
    squares, degrees = 0.0, 0
    for means in arms:
        if len(means) > 1:
            squares += log_squares(means)
            degrees += len(means) - 1
    return (math.sqrt(squares / degrees), degrees) if degrees else (0.0, 0)


def expected_gain(mean: float, deviation: float) -> float:
    """Return what is above zero of a normal variable, on average."""
    if deviation <= 0:
        return max(0.0, mean)
    z = mean / deviation
    return mean * (1 + math.erf(z / math.sqrt(2))) / 2 + deviation * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def rounded(value: float | None, digits: int = 5) -> float | None:
    """Return a number with so many decimal places, None for None."""
    return None if value is None else round(value, digits)
