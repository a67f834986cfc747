# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which costs the loads allow beside the fitted ones. Private to this collection. Pure functions only.

The logarithms of the costs are normal around a fit, with the covariance of least squares: of what each measured split
leaves open, and of a prior of the devices' ratios. Of prefill there are several fits, one for each overlap and longest
stage that the loads allow (cost_fit.likely_prefills). With more than two devices these are too many and too near to
each other, so a walk goes through all costs and overlaps. Draws tell how likely another split is the faster one. They
are the same in every run.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import statistics
import typing as t

from .._base import least_squares
from .._split import cost_fit, cost_model, split_cost
from .._split.layer_split import Layers
from . import local_misfit

if t.TYPE_CHECKING:
    from .evidence import Evidence

DRAWS: t.Final = 40

#: Steps of a walk before the first draw and between draws, and their sizes: a cost's logarithm, in errors of a point.
WALK_BEGIN: t.Final = 400
WALK_STEPS: t.Final = 60
WALK_SIZES: t.Final = (1, 4, 16)
#: How often a step tries another overlap.
WALK_OVERLAPS: t.Final = 0.1

#: Relative standard deviation of what nothing is known of: a cost's scale, a ratio without a prior.
OPEN_SCALE: t.Final = 1.0


class Draw(t.NamedTuple):
    """Costs in ms per average layer, one per device, and the overlap of prefill."""

    costs: list[float]
    overlap: float


class Fitted(t.NamedTuple):
    """A fit of _split/cost_fit, and how sure its points are.

    C(points): amounts and ms. C(errors): relative standard deviation of each. C(ratio_error): that of a device's cost
    by the prior. Of decoding C(batches) is 1 and C(overlap) 0. C(degrees): of freedom of the errors, if any.
    """

    costs: t.Sequence[float]
    points: t.Sequence[cost_model.Point]
    errors: t.Sequence[float]
    ratio_error: float | None
    batches: int = 1
    overlap: float = 0.0
    degrees: int | None = None


@functools.lru_cache(maxsize=16)
def normal(size: int) -> list[list[float]]:
    """Return DRAWS vectors of independent standard normal numbers: half of them, and their opposites."""
    chance = random.Random(size)
    half = [[chance.gauss(0, 1) for _column in range(size)] for _draw in range(DRAWS // 2)]
    return [vector for one in half for vector in (one, [-value for value in one])]


@functools.lru_cache(maxsize=16)
def scales(degrees: int) -> list[float]:
    """Return by how much each draw's noise is larger than the noise that so many degrees of freedom let expect."""
    chance = random.Random(degrees)
    squares = [sum(chance.gauss(0, 1) ** 2 for _degree in range(degrees)) for _draw in range(DRAWS // 2)]
    return [math.sqrt(degrees / square) for square in squares for _sign in range(2)]


def around(fitted: Fitted) -> list[Draw]:
    """Return DRAWS costs that the points of a fit allow, with its overlap."""
    lower = least_squares.cholesky(_precision(fitted))
    draws = []
    larger = [1.0] * DRAWS if fitted.degrees is None else scales(fitted.degrees)
    for vector, scale in zip(normal(len(lower)), larger, strict=True):
        move = least_squares.solve_transposed(lower, [scale * value for value in vector])
        costs = [cost * math.exp(least_squares.clamp(x, -3, 3)) for cost, x in zip(fitted.costs, move, strict=True)]
        draws.append(Draw(costs, fitted.overlap))
    return draws


def _precision(fitted: Fitted) -> list[list[float]]:
    """Return the inverse of the covariance of the costs' logarithms."""
    size = len(fitted.costs)
    ratio_weight = 1 / (fitted.ratio_error or OPEN_SCALE) ** 2
    precision = [
        [ratio_weight * ((i == j) - 1 / size) + (i == j) / OPEN_SCALE**2 for j in range(size)] for i in range(size)
    ]
    for (amounts, _ms), error in zip(fitted.points, fitted.errors, strict=True):
        row = _derivatives(fitted, amounts)
        for i in range(size):
            for j in range(size):
                precision[i][j] += row[i] * row[j] / error**2
    return precision


def _derivatives(fitted: Fitted, amounts: cost_model.Amounts) -> list[float]:
    """Return how the logarithm of a time moves with the logarithm of each cost."""
    stages = cost_model.stages_ms(fitted.costs, amounts)
    of_sum, of_max = cost_model.prefill_weights(fitted.batches, fitted.overlap)
    longest = max(range(len(stages)), key=stages.__getitem__)
    total = of_sum * sum(stages) + of_max * stages[longest]
    return [(of_sum + of_max * (device == longest)) * stage / total for device, stage in enumerate(stages)]


class _Place(t.NamedTuple):
    """Where a walk is: logarithms of costs, the overlap and how likely it was before, and what the points miss."""

    logs: list[float]
    overlap: float
    share: float
    misses: list[float]


class _Walk:
    """A walk through all costs and overlaps of prefill that the points of a fit allow (Metropolis).

    Which stage is the longest changes with the costs. So what a device costs that never is the longest is known much
    worse than it seems near the fit.
    """

    def __init__(self, fitted: Fitted, prior: cost_fit.Prior | None) -> None:
        self._fitted, self._chance = fitted, random.Random(len(fitted.costs))
        self._before = [0.0] * len(fitted.costs) if prior is None else [math.log(cost) for cost in prior.costs]
        self._times = [math.log(ms) for _amounts, ms in fitted.points]
        shares = dict(cost_fit.OVERLAPS)
        shares.setdefault(fitted.overlap, cost_fit.LIKELY_BETWEEN)
        self._overlaps = list(shares.items())
        self._sizes = [size * statistics.fmean(fitted.errors) for size in WALK_SIZES]
        self._here = self._place([math.log(cost) for cost in fitted.costs], fitted.overlap, shares[fitted.overlap])
        self._value = self._likelihood(self._here)

    def _place(self, logs: list[float], overlap: float, share: float) -> _Place:
        costs = [math.exp(value) for value in logs]
        of_sum, of_max = cost_model.prefill_weights(self._fitted.batches, overlap)
        misses = []
        for (amounts, _ms), time in zip(self._fitted.points, self._times, strict=True):
            stages = [cost * amount for cost, amount in zip(costs, amounts, strict=True)]
            misses.append(math.log(of_sum * sum(stages) + of_max * max(stages)) - time)
        return _Place(logs, overlap, share, misses)

    def _likelihood(self, place: _Place) -> float:
        """Return the logarithm of how likely a place is. A few loads tell how they scatter (Student's t)."""
        fitted, degrees = self._fitted, self._fitted.degrees or 1
        square = sum((miss / error) ** 2 for miss, error in zip(place.misses, fitted.errors, strict=True))
        apart = [value - own for value, own in zip(place.logs, self._before, strict=True)]
        centre = sum(apart) / len(apart)
        ratios = sum((value - centre) ** 2 for value in apart) / (fitted.ratio_error or OPEN_SCALE) ** 2
        points = (degrees + len(place.misses)) / 2 * math.log1p(square / degrees)
        return math.log(place.share) - ratios / 2 - points

    def step(self) -> Draw:
        """Try another place, and return where the walk is then. Another overlap keeps the mean time of all points."""
        here, chance = self._here, self._chance
        if chance.random() < WALK_OVERLAPS:
            overlap, share = chance.choice(self._overlaps)
            level = self._place(here.logs, overlap, share)
            moved = (sum(here.misses) - sum(level.misses)) / len(here.misses)
            there = _Place([own + moved for own in here.logs], overlap, share, [own + moved for own in level.misses])
        else:
            logs = list(here.logs)
            logs[chance.randrange(len(logs))] += chance.gauss(0, chance.choice(self._sizes))
            there = self._place(logs, here.overlap, here.share)
        value = self._likelihood(there)
        if value > self._value + math.log(1 - chance.random()):
            self._here, self._value = there, value
        return Draw([math.exp(own) for own in self._here.logs], self._here.overlap)


def walked(fitted: Fitted, prior: cost_fit.Prior | None) -> list[Draw]:
    """Return DRAWS costs and overlaps of a walk from a fit of prefill."""
    walk = _Walk(fitted, prior)
    steps = [walk.step() for _step in range(WALK_BEGIN + DRAWS * WALK_STEPS)]
    return steps[WALK_BEGIN + WALK_STEPS - 1 :: WALK_STEPS]


def drawn_costs(evidence: Evidence, kind: str) -> list[Draw]:
    """Return the costs that the loads allow beside the fit of C(kind), decode or prefill; none without a fit."""
    costs = evidence.decode_fit if kind == "decode" else evidence.prefill_fit
    test = evidence.problem.prefill_test
    if costs is None or (kind == "prefill" and test is None):
        return []
    noise, prior = evidence.load_noise(kind), evidence.prior(kind)
    missed = local_misfit.squared(evidence.gaps(kind), noise, evidence.coefficients)
    # what splits over fewer devices save is not known for sure
    saved = [evidence.savings.get(tuple(map(bool, split))) for split in evidence.points]
    errors = [
        math.sqrt(missed + noise**2 / evidence.count(split) + (0.0 if own is None else own[kind].variance))
        for split, own in zip(evidence.points, saved, strict=True)
    ]
    ratio_error = None if prior is None else prior.error
    # of more devices the form has more to be wrong in, and wider draws cost quiet machines a load; below three degrees
    # the squares of Student's t have no mean
    degrees = max(3, evidence.noise(kind)[1]) if evidence.problem.two_devices else None
    fitted = Fitted(costs, evidence.fit_points(kind), errors, ratio_error, degrees=degrees)
    if kind == "decode" or test is None:
        return around(fitted)
    batches = cost_model.micro_batches(test.n_prompt, evidence.problem.micro_batch)
    if batches > 1 and not evidence.problem.two_devices:
        own_degrees = max(3, evidence.noise(kind)[1])
        return walked(fitted._replace(batches=batches, overlap=evidence.prefill_overlap, degrees=own_degrees), prior)
    known = cost_fit.PrefillFit(evidence.prefill_form or "", evidence.prefill_overlap, list(costs), None)
    own = [math.hypot(local_misfit.USUAL_MISFIT, noise / evidence.count(split) ** 0.5) for split in evidence.points]
    draws: list[Draw] = []
    reached = 0.0
    for likely, form in cost_fit.likely_prefills(known, fitted.points, own, batches, prior):
        reached += likely
        same = fitted._replace(costs=form.slot_ms, batches=batches, overlap=form.overlap)
        draws += around(same)[len(draws) : round(DRAWS * reached)]
    return draws


def of_objective(evidence: Evidence) -> list[split_cost.Cost]:
    """Return the objective by each of these draws; none without a fit."""
    nothing = Draw([], 0.0)
    pairs = itertools.zip_longest(*evidence.drawn_costs.values(), fillvalue=nothing)
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
    draws = evidence.drawn_costs["prefill"]
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
