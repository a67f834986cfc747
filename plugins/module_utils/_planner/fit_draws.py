# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which costs the loads allow beside the fitted ones. Private to this collection. Pure functions only.

The logarithms of the costs are normal around the fit, with the covariance of least squares: of what each measured split
leaves open, and of a prior of the devices' ratios. Draws from that tell how likely another split is the faster one,
also where the longest stage of a pipeline changes, which no derivative does. They are the same in every run.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import statistics
import typing as t

from .._base import least_squares
from .._split import cost_model, split_cost
from .._split.layer_split import Layers
from . import local_misfit

if t.TYPE_CHECKING:
    from .evidence import Evidence

DRAWS: t.Final = 40

#: Relative standard deviations of what nothing is known of: a cost's scale, a ratio without a prior, a free overlap.
OPEN_SCALE: t.Final = 1.0
OPEN_OVERLAP: t.Final = 0.3


class Draw(t.NamedTuple):
    """Costs in ms per average layer, one per device, and the overlap of prefill."""

    costs: list[float]
    overlap: float


class Fitted(t.NamedTuple):
    """A fit of _split/cost_fit, and how sure its points are.

    C(points): amounts and ms. C(errors): relative standard deviation of each. C(ratio_error): that of a device's cost
    by the prior. Of decoding C(batches) is 1 and C(overlap) 0.
    """

    costs: t.Sequence[float]
    points: t.Sequence[cost_model.Point]
    errors: t.Sequence[float]
    ratio_error: float | None
    batches: int = 1
    overlap: float = 0.0
    free_overlap: bool = False


@functools.lru_cache(maxsize=16)
def normal(size: int) -> list[list[float]]:
    """Return DRAWS vectors of independent standard normal numbers: half of them, and their opposites."""
    chance = random.Random(size)
    half = [[chance.gauss(0, 1) for _column in range(size)] for _draw in range(DRAWS // 2)]
    return half + [[-value for value in vector] for vector in half]


def around(fitted: Fitted) -> list[Draw]:
    """Return DRAWS costs and overlaps that the points of a fit allow."""
    devices = len(fitted.costs)
    lower = least_squares.cholesky(_precision(fitted))
    draws = []
    for vector in normal(len(lower)):
        move = least_squares.solve_transposed(lower, vector)
        costs = [cost * math.exp(least_squares.clamp(x, -3, 3)) for cost, x in zip(fitted.costs, move, strict=False)]
        overlap = fitted.overlap + sum(move[devices:])
        draws.append(Draw(costs, least_squares.clamp(overlap, 0.0, 1.0)))
    return draws


def _precision(fitted: Fitted) -> list[list[float]]:
    """Return the inverse of the covariance of the costs' logarithms, and of the overlap where it is free."""
    devices = len(fitted.costs)
    size = devices + fitted.free_overlap
    ratio_weight = 1 / (fitted.ratio_error or OPEN_SCALE) ** 2
    precision = [[0.0] * size for _row in range(size)]
    for i in range(devices):
        for j in range(devices):
            precision[i][j] = ratio_weight * ((i == j) - 1 / devices) + (i == j) / OPEN_SCALE**2
    if fitted.free_overlap:
        precision[-1][-1] = 1 / OPEN_OVERLAP**2
    for (amounts, _ms), error in zip(fitted.points, fitted.errors, strict=True):
        row = _derivatives(fitted, amounts)
        for i in range(size):
            for j in range(size):
                precision[i][j] += row[i] * row[j] / error**2
    return precision


def _derivatives(fitted: Fitted, amounts: cost_model.Amounts) -> list[float]:
    """Return how the logarithm of a time moves with the logarithm of each cost, and with the overlap if it is free."""
    stages = cost_model.stages_ms(fitted.costs, amounts)
    of_sum, of_max = cost_model.prefill_weights(fitted.batches, fitted.overlap)
    longest = max(range(len(stages)), key=stages.__getitem__)
    total = of_sum * sum(stages) + of_max * stages[longest]
    row = [(of_sum + of_max * (device == longest)) * stage / total for device, stage in enumerate(stages)]
    if fitted.free_overlap:
        row.append((fitted.batches - 1) * (stages[longest] - sum(stages)) / total)
    return row


def of_kind(evidence: Evidence, kind: str) -> list[Draw]:
    """Return the costs that the loads allow beside the fit of C(kind), decode or prefill; none without a fit."""
    costs = evidence.decode_fit if kind == "decode" else evidence.prefill_fit
    test = evidence.problem.prefill_test
    if costs is None or (kind == "prefill" and test is None):
        return []
    noise, prior = evidence.load_noise(kind), evidence.prior(kind)
    missed = local_misfit.squared(evidence.gaps(kind), noise, len(costs))
    errors = [math.sqrt(missed + noise**2 / evidence.count(split)) for split in evidence.points]
    fitted = Fitted(costs, evidence.fit_points(kind), errors, None if prior is None else prior.error)
    if kind == "prefill" and test is not None:
        batches = cost_model.micro_batches(test.n_prompt, evidence.problem.micro_batch)
        free = evidence.prefill_form == "between"
        fitted = fitted._replace(batches=batches, overlap=evidence.prefill_overlap, free_overlap=free)
    return around(fitted)


def of_objective(evidence: Evidence) -> list[split_cost.Cost]:
    """Return the objective by each of these draws; none without a fit."""
    nothing = Draw([], 0.0)
    pairs = itertools.zip_longest(of_kind(evidence, "decode"), of_kind(evidence, "prefill"), fillvalue=nothing)
    costs = (
        evidence.cost_of("objective", one.costs or None, two.costs or None, two.overlap) for one, two in pairs
    )
    return [cost for cost in costs if cost is not None]


def rescaling_error(evidence: Evidence, layers: Layers, other: Layers) -> float:
    """Return how well the ratio of two splits is known after both were scaled to the prompt that is asked for.

    A relative standard deviation: the factor from the tested prompt depends on the costs, and differs between splits.
    """
    problem = evidence.problem
    prompt, generated = problem.counted(problem.objective)
    test = problem.prefill_test
    draws = of_kind(evidence, "prefill")
    if test is None or not prompt or prompt == test.n_prompt or not draws:
        return 0.0

    def moved(split: Layers) -> list[float]:
        amounts = problem.weights.amounts("prefill", split)
        decode = evidence.predicted("decode", split) if generated else None
        total = evidence.predicted("objective", split) or 1.0
        share = 1 - generated * (decode or 0.0) / total
        return [
            share * math.log(cost_model.prefill_scale(
                draw.costs, amounts, test.n_prompt, prompt, problem.micro_batch, draw.overlap
            ))
            for draw in draws
        ]  # fmt: skip

    return statistics.stdev(a - b for a, b in zip(moved(layers), moved(other), strict=True))
