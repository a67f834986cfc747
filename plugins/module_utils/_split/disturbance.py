# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which loads a noisy neighbour disturbed. Private to this collection. Pure functions only.

A load is suspected for one of two reasons, each the rejection of an F test at the level ALARM, never because its
result is unwelcome: what it would do to the decision is not looked at.

- scattered: the variance of the logarithms of its repetitions is larger than the one pooled over the other loads of
  the run, F(own degrees, pooled degrees) (Snedecor and Cochran, Statistical Methods, comparison of two variances).
- far from its twins: it is slower than the other loads of the same split by more than loads differ. The variance
  between loads is pooled from the other splits, the twins among themselves, and PRIOR_DEGREES degrees of freedom of
  an expectation: LOADS_TO_REPETITIONS times the standard error that the repetitions give (standard errors of 4 to 7 %
  on a recorded CPU pair, 10 to 18 % seen between its loads). Of two twins it is unknown which is right, so that is
  only a reason to measure a third. Nothing makes a load faster than its devices are, so a faster load is no suspect.

A variance below the square of the indifference counts as that much: what makes no difference is no disturbance.
Noise with a heavy tail gives more false alarms than ALARM; the unit tests count them in simulated campaigns and in a
recorded one. A false alarm costs a load, never a measurement, since a load is set aside only once its split has been
measured again.
"""

from __future__ import annotations

import math
import statistics
import typing as t

from .._base import stats

ALARM = 0.002
LOADS_TO_REPETITIONS = 2.5
PRIOR_DEGREES = 3

#: Standard error of a median in those of a mean, for normal noise and many samples.
_MEDIAN_TO_MEAN = math.sqrt(math.pi / 2)


class Alarm(t.NamedTuple):
    """One suspected load: its place in what was given, how improbable it would be, and why in words."""

    load: int
    probability: float
    reason: str


def scattered(samples: t.Sequence[t.Sequence[float]], indifference: float) -> list[Alarm]:
    """Return the loads whose repetitions scatter too much, from the samples (ms) of one test in each load.

    The most improbable load is taken out first and the rest is judged without it. Two others are needed at least.
    """
    squares = [stats.log_squares(values) for values in samples]
    degrees = [len(values) - 1 for values in samples]
    calm = [index for index, count in enumerate(degrees) if count]
    found: list[Alarm] = []
    while len(calm) > 2:
        judged = []
        for index in calm:
            others = [other for other in calm if other != index]
            pooled = sum(degrees[other] for other in others)
            usual = max(sum(squares[other] for other in others) / pooled, indifference**2)
            own = squares[index] / degrees[index]
            probability = stats.f_tail(own / usual, degrees[index], pooled) if usual > 0 else float(own == 0)
            judged.append((probability, index, 100 * math.sqrt(own), 100 * math.sqrt(usual)))
        probability, index, own_percent, usual_percent = min(judged)
        if probability >= ALARM:
            break
        reason = f"its repetitions scatter by {own_percent:.1f} %, those of the other loads by {usual_percent:.1f} %"
        found.append(Alarm(index, probability, reason))
        calm.remove(index)
    return found


def repetition_error(samples: t.Iterable[t.Sequence[float]]) -> float:
    """Return the relative standard error of a load's median that the repetitions give, pooled over loads."""
    known = [values for values in samples if len(values) > 1]
    degrees = sum(len(values) - 1 for values in known)
    if not degrees:
        return 0.0
    variance = sum(stats.log_squares(values) for values in known) / degrees
    each = statistics.fmean(len(values) for values in known)
    return _MEDIAN_TO_MEAN * math.sqrt(variance / each)


def with_expectation(deviation: float, degrees: int, error: float) -> tuple[float, int]:
    """Return (relative standard deviation between loads, degrees of freedom) with what the repetitions let expect.

    C(error) is the one of a load's median (repetition_error); loads differ by LOADS_TO_REPETITIONS times that, an
    expectation that counts as PRIOR_DEGREES degrees. Without repetitions only what was seen counts.
    """
    if error <= 0:
        return deviation, degrees
    expected = LOADS_TO_REPETITIONS * error
    pooled = PRIOR_DEGREES + degrees
    return math.sqrt((PRIOR_DEGREES * expected**2 + degrees * deviation**2) / pooled), pooled


def far_from_twins(
    times: t.Sequence[float], others: tuple[float, int], error: float, indifference: float
) -> Alarm | None:
    """Return the slow load among the twins of one split, from their times (ms), or None.

    C(others) is the relative standard deviation between the loads of other splits and its degrees of freedom
    (stats.pooled_spread), C(error) the one of a load's median (repetition_error).
    """
    if len(times) < 2:
        return None
    slowest = max(range(len(times)), key=lambda index: times[index])
    twins = [value for index, value in enumerate(times) if index != slowest]
    deviation, degrees = others
    expected = max(LOADS_TO_REPETITIONS * error, indifference)
    pooled = PRIOR_DEGREES + degrees + len(twins) - 1
    variance = (PRIOR_DEGREES * expected**2 + degrees * deviation**2 + stats.log_squares(twins)) / pooled
    distance = math.log(times[slowest]) - statistics.fmean(map(math.log, twins))
    if distance <= 0 or variance <= 0:
        return None
    probability = stats.f_tail(distance**2 / (variance * (1 + 1 / len(twins))), 1, pooled)
    if probability >= ALARM:
        return None
    many = "its twin" if len(twins) == 1 else f"its {len(twins)} twins"
    return Alarm(
        slowest,
        probability,
        f"it is {100 * math.expm1(distance):.0f} % slower than {many}, where loads differ by "
        f"{100 * math.sqrt(variance):.1f} %",
    )
