# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether splits are practically equal. Private to this collection. Pure functions only."""

from __future__ import annotations

import itertools
import math
import statistics

from .._base import stats
from .._split import cost_model, layer_search
from .._split.split_problem import Candidate
from . import anchors, choice
from .evidence import Evidence, is_single, room_of

#: Two splits count as equal only when 95 % of what is plausible lies within this many indifferences.
EQUIVALENCE_FACTOR = 3.0

#: A split counts as good as any only when it loses no more indifferences than this, nine times of ten.
SURE_FACTOR = 1.5

#: What is compared with itself.
SAME = cost_model.Comparison(0.0, 0.0, 0.0, None)


def verdict(result: cost_model.Comparison, indifference: float, single: bool) -> str:
    """Return faster, no_difference or inconclusive for a comparison, by its 95 % interval between loads.

    faster: the interval excludes zero and the difference is more than C(indifference), whichever of the two it favours;
    C(single) says that one of them has one load alone, which is not enough. no_difference: the difference is at most
    the indifference, and the interval lies within EQUIVALENCE_FACTOR times that.
    """
    if result.low is None or result.high is None:
        return "inconclusive"
    limit = 100 * indifference
    if not single and abs(result.percent) > limit and (result.low > 0 or result.high < 0):
        return "faster"
    widest = max(abs(result.low), abs(result.high))
    if abs(result.percent) <= limit and widest <= EQUIVALENCE_FACTOR * limit:
        return "no_difference"
    return "inconclusive"


def gain(result: cost_model.Comparison | None) -> tuple[float | None, list[float] | None]:
    """Return how much less a choice takes than another one (percent), and the interval; None where unknown."""
    if result is None:
        return None, None
    ends = None if result.low is None or result.high is None else [round(result.low, 2), round(result.high, 2)]
    return round(result.percent, 2), ends


def as_good_as_default(evidence: Evidence) -> Candidate | None:
    """Return the split to take when llama.cpp's own is practically as fast as the best by the fit, else None.

    The difference must be at most the indifference by a fit that is trusted, from loads that scatter no more than that.
    Each test must have a residual: a form with as many coefficients as loads fits whatever was measured. And the two
    must be so near to each other that even with every layer between them at the steepest step that the fit knows they
    are within EQUIVALENCE_FACTOR times that: the fit knows steps much better than it knows where they change their
    sign. The roomier of the two is taken, unless one of ten costs that the loads allow beside the fitted ones says that
    it loses more than SURE_FACTOR times that.
    """
    problem = evidence.problem
    default = evidence.by_layers.get(problem.default)
    residual = evidence.objective_residual
    if (
        default is None
        or not all(problem.default)
        or evidence.repeat is not None
        or residual is None
        or any(evidence.residual[kind] is None for kind in problem.kinds)
        or residual > evidence.tolerance("objective")
        or any(is_single(candidate) for candidate in evidence.candidates)
        or evidence.point_noise("objective") > problem.indifference
    ):
        return None
    winner = choice.best(evidence, evidence.candidates)
    best = min(evidence.objective(candidate.layers) for candidate in evidence.candidates)
    percent = 100 * (evidence.objective(default.layers) / best - 1)
    limit = 100 * problem.indifference
    apart = anchors.distance(winner.layers, [default.layers])
    if not percent <= limit or apart * _steepest_percent(evidence, winner, default) > EQUIVALENCE_FACTOR * limit:
        return None
    same = min(winner, default, key=lambda c: (-room_of(c), evidence.objective(c.layers), c.layers))
    among = [candidate.layers for candidate in evidence.candidates]
    lost = sorted(draw.ms(same.layers) / min(map(draw.ms, among)) - 1 for draw in evidence.draws)
    return same if 100 * lost[len(lost) * 9 // 10] <= SURE_FACTOR * limit else None


def _steepest_percent(evidence: Evidence, *splits: Candidate) -> float:
    """Return the most that moving one layer changes the objective by the fit, in percent; infinite without a fit.

    Of two devices between any neighbours that fit, else from one of C(splits).
    """
    if evidence.problem.two_devices:
        pairs = list(itertools.pairwise(candidate.layers for candidate in evidence.candidates))
    else:
        pairs = [(c.layers, other) for c in splits for other in layer_search.moved_by_one(c.layers)]
    steps = []
    for one, other in pairs:
        if all(one) and all(other):
            before, after = evidence.predicted("objective", one), evidence.predicted("objective", other)
            steps.append(100 * abs(after / before - 1) if before and after else math.inf)
    return max(steps, default=math.inf)


def equal_within(evidence: Evidence) -> float | None:
    """Return how far apart any two loads may be (percent, 95 %), if all splits that remain are practically equal.

    None where the fit says that they are not, and where one of them makes no hop, which the fit does not know. The
    loads of all splits are taken for loads of one: their scatter is the noise and what real difference there is, so the
    interval of Student's t for the difference of two is too wide rather than too narrow. What the repetitions within
    the loads let expect counts as well (disturbance.with_expectation). Infinite below three loads.
    """
    percent, _count = range_percent(evidence)
    if percent is None or percent > 100 * evidence.problem.indifference:
        return None
    if any(not all(candidate.layers) for candidate in evidence.candidates):
        return None
    logs = [math.log(value) for layers in evidence.ok for value in evidence.load_means("objective", layers)]
    if len(logs) < 3:
        return math.inf
    deviation, degrees = evidence.with_expectation("objective", statistics.stdev(logs), len(logs) - 1)
    return 100 * math.expm1(stats.t_quantile(degrees, 0.05) * deviation * math.sqrt(2))


def range_percent(evidence: Evidence) -> tuple[float | None, int]:
    """Return by how much the slowest split takes longer than the fastest, in percent, and of how many splits.

    It is about all splits over as many devices as anchors have; unknown (None) without a fit that is trusted.
    """
    residual = evidence.objective_residual
    known = [value for c in evidence.pool if (value := evidence.value("objective", c.layers)) is not None]
    misfit = residual is not None and residual > evidence.tolerance("objective")
    if len(known) < 2 or len(known) < len(evidence.pool) or misfit:
        return None, len(known)
    return 100 * (max(known) / min(known) - 1), len(known)
