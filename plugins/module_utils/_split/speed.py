# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a recorded split became slower: loads of today against those of the baseline. Private to this collection.
Pure functions only.

The load is the unit: repetitions within one load share what that load got (placement, clocks, a neighbour), so two
loads differ by more than their repetitions do. With y the logarithm of a load's median time per token, n0 loads of the
baseline and n1 of today, the change is d = mean(y1) - mean(y0) and its interval d +- t * s * sqrt(1/n0 + 1/n1)
(Student, both groups with the same variance), where s is pooled over both groups, and helped out by what the
repetitions let expect while few loads are known (_disturbance.with_expectation).

regressed: the interval excludes zero and d exceeds the tolerance; improved: likewise below. ok: the interval ends below
the tolerance, so that a slowdown of that size is excluded. Else inconclusive, and another load is worth it. Loads are
looked at one by one; what that costs in false alarms is in docs/benchmarks.md (simulated, `make bench-revalidation`).
"""

from __future__ import annotations

import math
import statistics
import typing as t

from .._base import stats
from . import disturbance

#: Outside of an interval, both ends together: 1 % at each.
OUTSIDE: t.Final = 0.02
#: How sure a slowdown is to be found that smallest_visible_percent names.
POWER: t.Final = 0.95
#: From so many degrees of freedom on, the loads themselves say how much loads differ.
ENOUGH_DEGREES: t.Final = 5
#: Relative difference that counts as none when a load is suspected of a disturbance.
INDIFFERENCE: t.Final = 0.005
#: A wider interval, in logarithms, reaches from half of the time to twice the time: it says nothing, and is not told.
WIDEST: t.Final = math.log(2)
#: Fewest loads of today that a verdict rests on.
LEAST_LOADS: t.Final = 2

#: Tests are told apart by what they do: a prompt at one depth is none at another.
Samples = t.Sequence[float]
Loads = t.Sequence[Samples]


class Change(t.NamedTuple):
    """How much more time something takes than in the baseline; low and high None while noise is unknown or too much."""

    verdict: str
    percent: float
    low: float | None
    high: float | None
    smallest_visible: float | None


def medians(loads: Loads) -> list[float]:
    """Return one time per load, the median of its samples."""
    return [statistics.median(samples) for samples in loads]


def noise(*groups: Loads) -> tuple[float, int]:
    """Return (relative standard deviation between loads, degrees of freedom), pooled over the groups."""
    spread = stats.pooled_spread([medians(group) for group in groups])
    if spread[1] >= ENOUGH_DEGREES:
        return spread
    error = disturbance.repetition_error([samples for group in groups for samples in group])
    return disturbance.with_expectation(*spread, error)


def half_width(spread: tuple[float, int], before: int, now: int) -> float:
    """Return the half width of the interval of a change, in logarithms; infinite without degrees of freedom."""
    deviation, degrees = spread
    if not degrees or not before or not now:
        return math.inf
    return stats.t_quantile(degrees, OUTSIDE) * deviation * math.sqrt(1 / before + 1 / now)


def smallest_visible_percent(spread: tuple[float, int], before: int, now: int) -> float | None:
    """Return the slowdown in percent whose interval excludes zero with probability POWER; None while noise is unknown.

    It is (t + z) standard errors of the change, with z the normal quantile of POWER.
    """
    half = half_width(spread, before, now)
    if math.isinf(half):
        return None
    error = spread[0] * math.sqrt(1 / before + 1 / now)
    return round(100 * math.expm1(half + statistics.NormalDist().inv_cdf(POWER) * error), 2)


def compare(before: Loads, now: Loads, tolerance_percent: float) -> Change:
    """Compare loads of today with those of the baseline, samples in ms of the same test.

    Raises ValueError when one of them is empty.
    """
    if not before or not now:
        raise ValueError("there is nothing to compare: a baseline and a measurement of today need a load each")
    spread = noise(before, now)
    change = statistics.fmean(map(math.log, medians(now))) - statistics.fmean(map(math.log, medians(before)))
    half = half_width(spread, len(before), len(now))
    percent = 100 * math.expm1(change)
    if math.isinf(half) or half > max(WIDEST, abs(change)):
        return Change("inconclusive", percent, None, None, None)
    low, high = 100 * math.expm1(change - half), 100 * math.expm1(change + half)
    if low > 0 and percent > tolerance_percent:
        verdict = "regressed"
    elif high < 0 and percent < -tolerance_percent:
        verdict = "improved"
    elif high < tolerance_percent:
        verdict = "ok"
    else:
        verdict = "inconclusive"
    return Change(verdict, percent, low, high, smallest_visible_percent(spread, len(before), len(now)))


def repeated(before: Samples, now: Samples) -> tuple[float, float | None, float | None]:
    """Return (percent more time, low, high) of repetitions within one process each: medians, and a 98 % interval.

    The interval is that of the repetitions alone. It is None where there are too few of them, or they differ too much.
    """
    change = math.log(statistics.median(now) / statistics.median(before))
    half = half_width(stats.pooled_spread([before, now]), len(before), len(now))
    if half > max(WIDEST, abs(change)):
        return 100 * math.expm1(change), None, None
    return 100 * math.expm1(change), 100 * math.expm1(change - half), 100 * math.expm1(change + half)


def set_aside(before: Loads, now: Loads) -> dict[int, str]:
    """Return which loads of today a neighbour seems to have disturbed, by place, with the reason.

    Two calm loads at least stay; slower loads alone are no reason, since all of them may be slower.
    """
    found: dict[int, str] = {}
    for alarm in disturbance.scattered([*before, *now], INDIFFERENCE):
        if alarm.load >= len(before):
            found[alarm.load - len(before)] = alarm.reason
    if len(now) > LEAST_LOADS:
        times = medians(now)
        error = disturbance.repetition_error([*before, *now])
        others = stats.pooled_spread([medians(before)])
        lonely = disturbance.far_from_twins(times, others, error, INDIFFERENCE)
        if lonely is not None:
            found.setdefault(lonely.load, lonely.reason)
    if len(now) - len(found) < LEAST_LOADS:
        return {}
    return found
