# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a problem and measured loads of layer splits say together. Private to this collection. Pure functions only."""

from __future__ import annotations

import functools
import math
import statistics
import typing as t

from .._base import least_squares, stats
from .._split import cost_fit, cost_model, disturbance, split_cost
from .._split.layer_split import Layers
from .._split.measured_loads import Load
from .._split.split_problem import Candidate, KnownCosts, Problem
from . import (
    disturbed_loads,
    fit_draws,
    hop_savings,
    known_costs,
    load_factors,
    loads_so_far,
    local_misfit,
)

#: A fit that misses a measured split by more than this (percent), and by more than noise, is not trusted there.
TRUSTED_RESIDUAL_PERCENT = 5.0

#: How well a point is known (relative standard deviation) while no split has two loads: half of what is trusted.
UNKNOWN_NOISE = TRUSTED_RESIDUAL_PERCENT / 200

#: No point is known better than this, even where no difference is too small to count.
LEAST_NOISE = 0.0005

#: A device alone makes no hop, so a slower load than the fit says was unlucky: by so many standard deviations at most.
UNLUCKY = 8

#: How far a device's cost by the device probe may be off (relative standard deviation): the probe model is small, so
#: launching its kernels counts for more, and its weights are of another type than the model's.
PROBE_ERROR = 0.2


class Evidence(loads_so_far.LoadsSoFar):
    """What a problem and some loads together say: which splits remain, the fit, and what each split costs."""

    def __init__(self, problem: Problem, loads: t.Sequence[Load]) -> None:
        super().__init__(problem, loads)
        self.ok: dict[Layers, list[Load]] = {}
        for load in self.loads:
            if load.ok:
                self.ok.setdefault(load.layers, []).append(load)
        self.measured_again = sum(1 for load in self.loads if load.purpose == "repeat")
        judged = disturbed_loads.judge(self.ok, problem.kinds, problem.indifference)
        #: Why a load is suspected of a disturbance, set aside or not.
        self.suspects = judged.suspects
        self.ok, self.disturbed = judged.ok, judged.aside
        #: The split to measure again, with the reason, while that is allowed.
        self.repeat = judged.repeat if self.allowed and self.measured_again < problem.repeat_disturbed else None
        self._tolerances: dict[str, float] = {}
        self._corrections: dict[str, local_misfit.Correction] = {}
        self._objectives: dict[Layers, float] = {}
        self._ratios: dict[tuple[str, tuple[bool, ...]], float] = {}
        self._slow: dict[tuple[Layers, int], float] = {}
        #: What splits over fewer devices save, as far as measured, by the devices in use.
        self.savings: dict[hop_savings.Used, hop_savings.Savings] = {}
        self._fit_in_turns()
        if any(map(hop_savings.partial, self.ok)) and self.pool_is_whole:
            self.savings = hop_savings.of_evidence(self)
            self._fit_in_turns()

    @property
    def ok_loads(self) -> list[Load]:
        """All loads that were measured and not set aside."""
        return [load for loads in self.ok.values() for load in loads]

    def count(self, layers: Layers) -> int:
        """Return how many loads of a split were measured."""
        return len(self.ok.get(layers, ()))

    @functools.cached_property
    def by_layers(self) -> dict[Layers, Candidate]:
        """The splits to choose from: those listed, and with more than two devices those that a search finds.

        The list is coarse then. Of all splits that remain the search finds the best by the fit and the roomiest that is
        practically as fast; their neighbours, one layer moved, come with them.
        """
        known = {candidate.layers: candidate for candidate in self.splits.listed}
        cost = self.cost("objective") if len(self.problem.names) > 2 else None
        found = set() if cost is None else self.splits.near_best(cost, self.savings)
        for layers in found - known.keys():
            candidate = self.problem.candidate(layers)
            if candidate is not None and self.remains(layers):
                known[layers] = candidate
        return {layers: known[layers] for layers in sorted(known)}

    @functools.cached_property
    def candidates(self) -> list[Candidate]:
        """The splits to choose from, fewest layers on the first device first."""
        return list(self.by_layers.values())

    @functools.cached_property
    def known(self) -> KnownCosts | None:
        """The costs of an earlier tuning, while no load has failed and all bear them out."""
        tolerances = {kind: self.tolerance(kind) for kind in ("decode", "prefill")}
        measured = {
            kind: {split: self.measured(kind, split) for split in self.ok if self.load_means(kind, split)}
            for kind in tolerances
        }
        determined = self._rank >= self._reachable
        holds = not self.failed and known_costs.hold(self.problem, measured, tolerances, determined)
        return self.problem.known if holds else None

    @functools.cached_property
    def carried(self) -> bool:
        """Whether the costs of an earlier tuning tell the best split without anchors."""
        return self.known is not None and known_costs.suffice(self.problem, [c.layers for c in self.pool])

    def cost(self, name: str) -> split_cost.Cost | None:
        """Return what the fit says of an objective as coefficients of the layers, or None without a fit.

        It says the same of any split as predicted.
        """
        return self.cost_of(name, self.decode_fit, self.prefill_fit, self.prefill_overlap)

    def cost_of(
        self, name: str, decode: list[float] | None, prefill: list[float] | None, overlap: float
    ) -> split_cost.Cost | None:
        """Return the cost of an objective by costs of layers for each kind of test and the overlap of prefill."""
        problem = self.problem
        tokens, generated = problem.counted(problem.objective if name == "objective" else name)
        test = problem.prefill_test
        tested = tokens if test is None else test.n_prompt
        return split_cost.workload_cost(
            decode if generated else None, prefill if test is not None else None, tokens, generated, tested,
            problem.micro_batch, overlap, problem.weights,
        )  # fmt: skip

    def _fit_in_turns(self) -> None:
        """Fit the model, and again without what slowed whole loads."""
        self._fit()
        for _turn in range(load_factors.TURNS if len(self.ok_loads) > 2 else 0):
            self._slow = load_factors.of_evidence(self)
            self._fit()

    def fitted(self, layers: Layers) -> bool:
        """Return whether the fit holds for a split: not for one device alone, nor where no such hop was measured."""
        return all(layers) or not self.pool_is_whole or hop_savings.used(layers) in self.savings

    def _fit(self) -> None:
        """Fit the model to the splits over all devices, and to others less what they save: not to one device alone."""
        problem = self.problem
        self.points = [layers for layers in self.ok if self.fitted(layers)]
        self.decode_fit: list[float] | None = None
        self.prefill_fit: list[float] | None = None
        self.prefill_form: str | None = None
        self.prefill_overlap = 1.0
        self.residual: dict[str, float | None] = {"decode": None, "prefill": None}
        if not self.anchored or not self.points:
            return
        telling = len(self.points) > self.coefficients  # else every residual is zero and says nothing
        if problem.decode_test is not None:
            points = self.fit_points("decode")
            self.decode_fit = cost_fit.fit_decode(points, self.prior("decode"))
            if telling:
                predicted = [cost_model.decode_ms(self.decode_fit, amounts) for amounts, _ms in points]
                self.residual["decode"] = cost_model.residual_percent(predicted, [ms for _amounts, ms in points])
        if problem.prefill_test is not None:
            batches = cost_model.micro_batches(problem.prefill_test.n_prompt, problem.micro_batch)
            fit = cost_fit.choose_prefill(
                self.fit_points("prefill"), batches, self.point_noise("prefill"), self.decode_fit, self.prior("prefill")
            )
            self.prefill_form, self.prefill_overlap, self.prefill_fit, self.residual["prefill"] = fit

    def fit_points(self, kind: str) -> list[cost_model.Point]:
        """Return what the fit of C(kind) rests on: amounts and ms of each measured split."""
        return [(self.problem.weights.amounts(kind, split), self.likely(kind, split)) for split in self.points]

    def likely(self, kind: str, layers: Layers) -> float:
        """Return the mean over loads of C(kind) of a measured split, less what slowed all tests of a load."""
        times = zip(self.ok[layers], self.load_means(kind, layers), strict=True)
        likely = (ms * math.exp(-self._slow.get((layers, load.number), 0.0)) for load, ms in times)
        return statistics.fmean(likely) / hop_savings.factor(self, kind, layers)

    @property
    def coefficients(self) -> int:
        """How many numbers a fit has: a cost of each device, and what is saved by using some of them."""
        return len(self.problem.names) + len(self.savings)

    def noise(self, kind: str) -> tuple[float, int]:
        """Return the relative standard deviation between loads of C(kind), and how many degrees of freedom that has.

        Pooled over splits, and over what the repetitions within loads let expect.
        """
        return self.with_expectation(kind, *self.spread(kind))

    def with_expectation(self, kind: str, spread: float, degrees: int) -> tuple[float, int]:
        """Return a scatter of loads with what the repetitions within loads let expect, for a few degrees more."""
        return disturbance.with_expectation(spread, degrees, self._repetition_error(kind))

    def _repetition_error(self, kind: str) -> float:
        """Return the relative standard error of a load's median by its repetitions, the largest of the tests used."""
        kinds = self.problem.kinds if kind == "objective" else (kind,)
        loads = self.ok_loads
        return max(disturbance.repetition_error(load.samples(part) for load in loads) for part in kinds)

    def prior(self, kind: str) -> cost_fit.Prior | None:
        """Return what an earlier tuning or the device probe says of the devices' costs in a test; None without them."""
        known = self.known
        costs = self.problem.probed.get(kind) if known is None else known.costs.get(kind)
        error = PROBE_ERROR if known is None else known.error
        decode = self.decode_fit or [0.0]  # noise may let a device seem to take no time, which is no ratio
        if costs is None and kind == "prefill" and min(decode) > cost_fit.TELLING * max(decode):
            costs, error = tuple(decode), cost_fit.DECODE_ERROR
        return None if costs is None else cost_fit.Prior(costs, error, self.point_noise(kind))

    def load_noise(self, kind: str) -> float:
        """Return the relative standard deviation between loads, as far as known."""
        noise, degrees = self.noise(kind)
        return noise if degrees else UNKNOWN_NOISE

    def point_noise(self, kind: str) -> float:
        """Return how well a point of a fit is known (relative standard deviation); no better than what is nothing."""
        return max(self.problem.indifference, self.load_noise(kind), LEAST_NOISE)

    def spread(self, kind: str) -> tuple[float, int]:
        """Return the relative standard deviation between loads of C(kind), earlier ones as well, and its degrees."""
        own = stats.pooled_spread(self.load_means(kind, layers) for layers in self.ok)
        return known_costs.with_spread(self.problem, kind, own)

    @functools.cached_property
    def pool(self) -> list[Candidate]:
        """The candidates that anchors are chosen from: those over all devices, unless there are too few of them."""
        for among in (self.splits.likely, self.splits.listed):
            whole = [candidate for candidate in among if all(candidate.layers)]
            if len(whole) >= 2:
                return whole
        return self.splits.listed

    @functools.cached_property
    def pool_is_whole(self) -> bool:
        """Whether anchors are splits over all devices."""
        return all(all(candidate.layers) for candidate in self.pool)

    @functools.cached_property
    def anchored(self) -> bool:
        """Whether what was measured determines as many coefficients as measuring any further split could."""
        return bool(self.ok) and self._rank >= (1 if self.carried else self._reachable)

    @functools.cached_property
    def _rank(self) -> int:
        return least_squares.rank(self.anchors)

    @functools.cached_property
    def _reachable(self) -> int:
        """How many coefficients measuring any further split could determine, and a campaign has anchors for."""
        ranked = least_squares.rank([*self.anchors, *(candidate.layers for candidate in self.pool)])
        return min(ranked, self.problem.max_anchors)

    @property
    def anchors(self) -> list[Layers]:
        """The measured splits that a fit can rest on before hops are known: those over all devices."""
        return [layers for layers in self.ok if all(layers) or not self.pool_is_whole]

    def measured(self, kind: str, layers: Layers) -> float:
        """Return the mean over loads of C(kind) (decode, prefill or objective) of a measured split."""
        return statistics.fmean(self.load_means(kind, layers))

    def load_means(self, kind: str, layers: Layers) -> list[float]:
        """Return the mean of each load of a measured split."""
        if kind == "objective":
            return [self.objective_ms(layers, load.decode, load.prefill) for load in self.ok[layers]]
        return [value for load in self.ok[layers] if (value := getattr(load, kind)) is not None]

    def predicted(self, kind: str, layers: Layers) -> float | None:
        """Return what the fit says of C(kind) (decode, prefill of the tested prompt, objective); None without a fit."""
        amounts = self.problem.weights.amounts(kind, layers)
        if kind == "decode":
            return None if self.decode_fit is None else cost_model.decode_ms(self.decode_fit, amounts)
        if kind == "prefill":
            if self.prefill_fit is None or self.problem.prefill_test is None:
                return None
            batches = cost_model.micro_batches(self.problem.prefill_test.n_prompt, self.problem.micro_batch)
            return cost_model.prefill_ms(self.prefill_fit, amounts, batches, self.prefill_overlap)
        if self.decode_fit is None and self.prefill_fit is None:
            return None
        return self.objective_ms(layers, self.predicted("decode", layers), self.predicted("prefill", layers))

    def objective_ms(
        self, layers: Layers, decode: float | None, prefill: float | None, name: str | None = None
    ) -> float:
        """Return an objective in ms, the problem's own by default: its prompt, then its generated tokens.

        C(decode) is in ms per token, C(prefill) in ms per prompt of the test.
        """
        problem = self.problem
        prompt, generated = problem.counted(name or problem.objective)
        total = 0.0
        if generated and decode is not None:
            total += decode * generated
        if prompt and prefill is not None and problem.prefill_test is not None:
            amounts, tested = problem.weights.amounts("prefill", layers), problem.prefill_test.n_prompt
            total += prefill * cost_model.prefill_scale(
                self.prefill_fit, amounts, tested, prompt, problem.micro_batch, self.prefill_overlap
            )
        return total

    @property
    def objective_residual(self) -> float | None:
        """The larger residual of what the objective is made of, in percent; None when unknown."""
        return max((value for kind in self.problem.kinds if (value := self.residual[kind]) is not None), default=None)

    def value(self, kind: str, layers: Layers) -> float | None:
        """Return what a split costs, as far as known: by a trusted fit, else by its own loads, else by any fit.

        One device alone makes no hop, so it takes no longer than a fit to splits that do says: where a load of it was
        slower than that, it was unlucky, as far as loads are.
        """
        predicted = self.predicted(kind, layers)
        if predicted is not None and self.points and self.fitted(layers):
            return predicted * self._correction(kind).factor(layers) * self._beyond_fit(kind, layers)
        if layers in self.ok and self.load_means(kind, layers):
            measured = self.measured(kind, layers)
            residual = self.objective_residual if kind == "objective" else self.residual[kind]
            fits = residual is None or residual <= self.tolerance(kind)
            alone = fits and self.pool_is_whole and sum(map(bool, layers)) == 1
            luck = math.exp(UNLUCKY * self.point_noise(kind) / self.count(layers) ** 0.5)
            return max(min(measured, predicted), measured / luck) if alone and predicted is not None else measured
        return None if predicted is None else predicted * self._beyond_fit(kind, layers)

    def _correction(self, kind: str) -> local_misfit.Correction:
        """Return what the loads of the fitted splits say beyond the fit."""
        if kind not in self._corrections:
            gaps, coefficients = self.gaps(kind), self.coefficients
            self._corrections[kind] = local_misfit.Correction(gaps, self.load_noise(kind), coefficients)
        return self._corrections[kind]

    def gaps(self, kind: str) -> list[local_misfit.Gap]:
        """Return how far the fitted splits are from the fit."""
        known = [(split, self.predicted(kind, split)) for split in self.points if self.load_means(kind, split)]
        return [
            local_misfit.Gap(split, math.log(self.likely(kind, split) / predicted), self.count(split))
            for split, predicted in known
            if predicted
        ]

    @functools.cached_property
    def draws(self) -> list[split_cost.Cost]:
        """The objective by the costs that the loads allow beside the fitted ones; none without a fit."""
        return fit_draws.of_objective(self)

    @functools.cached_property
    def drawn_costs(self) -> dict[str, list[fit_draws.Draw]]:
        """The costs that the loads allow beside the fit, by kind of test; none without a fit."""
        return {kind: fit_draws.drawn_costs(self, kind) for kind in ("decode", "prefill")}

    def _beyond_fit(self, kind: str, layers: Layers) -> float:
        """Return how much longer splits over these devices take than the fit says."""
        devices = hop_savings.used(layers)
        if self.fitted(layers):
            return hop_savings.factor(self, kind, layers)
        if (kind, devices) not in self._ratios:
            self._ratios[kind, devices] = hop_savings.nearest(self, kind, devices)
        return self._ratios[kind, devices]

    def tolerance(self, kind: str) -> float:
        """Return the residual (percent) up to which a fit is trusted: what noise explains is no misfit."""
        if kind not in self._tolerances:
            spread, _degrees = self.spread(kind)
            self._tolerances[kind] = max(TRUSTED_RESIDUAL_PERCENT, 200 * spread)
        return self._tolerances[kind]

    def objective(self, layers: Layers) -> float:
        """Return the objective of a split; infinite when nothing is known of it."""
        if layers not in self._objectives:
            value = self.value("objective", layers)
            self._objectives[layers] = float("inf") if value is None else value
        return self._objectives[layers]

    def compare(self, layers: Layers, other: Layers) -> cost_model.Comparison:
        """Compare the objective of two measured splits.

        The noise between loads is pooled over all, and at least that of repetitions. What the loads leave open
        of the factor to the length of prompt that is asked for counts as well.
        """
        deviation, degrees = self.spread("objective")
        deviation = max(deviation, self._repetition_error("objective"))
        scaled = fit_draws.rescaling_error(self, layers, other)
        own, its = self.load_means("objective", layers), self.load_means("objective", other)
        return cost_model.compare(own, its, (deviation, degrees), scaled)


def room_of(candidate: Candidate) -> int:
    """Return the smallest headroom of the devices in use."""
    return min(left for left, count in zip(candidate.headroom, candidate.layers, strict=True) if count)


def is_single(candidate: Candidate) -> bool:
    """Return whether a split uses one device alone."""
    return sum(1 for count in candidate.layers if count) == 1
