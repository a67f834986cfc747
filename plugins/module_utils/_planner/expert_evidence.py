# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What loads of placements with experts in RAM say together. Private to this collection. Pure functions only."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import typing as t

from .._base import stats
from .._split import cost_model, disturbance
from .._split.expert_placement import ExpertPlacement
from .._split.split_problem import Problem
from . import expert_costs, expert_memory, expert_plane, expert_threads
from .expert_costs import Point
from .expert_loads import Arm, Row, Run

#: How well the fit predicts (relative standard deviation), beside the noise of what it rests on.
FIT_ERROR: t.Final = 0.02
#: How much of a miss at one placement and micro-batch is expected at others with the same micro-batch.
SHARED_MISS: t.Final = 0.7


class Evidence:
    """What a problem and some loads together say."""

    def __init__(self, problem: Problem, runs: t.Sequence[Run]) -> None:
        self.problem, self.runs = problem, list(runs)
        self.ok = [run for run in self.runs if run.ok]
        #: What each device has held and has not.
        self.memory = expert_memory.bounds(problem, self.runs)
        ram_mib = expert_memory.ram_mib(problem, self.runs)
        self.plane = expert_plane.Plane(problem, self.memory.budgets, ram_mib)
        self.weigher = expert_costs.Weigher(problem)
        self.sizes = expert_plane.micro_batches(problem)
        given = (problem.raw.get("experts_in_ram") or {}).get("threads") or [problem.raw["serving"].get("threads", 1)]
        #: Numbers of threads to measure, and how the time of each test goes with them.
        self.thread_choices = sorted(set(given))
        self.curve = expert_threads.Curve(problem, self.ok, self.thread_choices)
        self.decode_fit = expert_costs.fit_decode(self.points("decode"), self.weigher, self.noise("decode"))
        self.prefill_fit = expert_costs.fit_prefill(self.points("prefill"), self.weigher, self.noise("prefill"))
        self._values: dict[Arm, float] = {}

    # --- noise -------------------------------------------------------------------------------------------------------

    def noise(self, kind: str) -> float:
        """Return how well one load's time is known (relative standard deviation)."""
        error = disturbance.repetition_error(row.samples for run in self.ok for row in run.rows if row.kind == kind)
        deviation, degrees = disturbance.with_expectation(*self._scatter(kind), error)
        return max(self.problem.indifference, deviation) if degrees else expert_costs.POINT_NOISE

    def _scatter(self, kind: str) -> tuple[float, int]:
        """Return the relative standard deviation between loads of the same test, and its degrees of freedom."""
        groups: dict[t.Any, list[float]] = {}
        for run in self.ok:
            for row in run.rows:
                if row.kind == kind:
                    size = row.micro_batch if kind == "prefill" else 0
                    own = dataclasses.replace(run.placement, threads=row.threads)
                    groups.setdefault((own, size, row.n_prompt), []).append(row.ms)
        return stats.pooled_spread(groups.values())

    def spread(self) -> tuple[float, int]:
        """Return the scatter of the objective between loads of one arm, with what the repetitions let expect."""
        arms = {arm for run in self.ok for arm in self.arms_of(run)}
        error = max(
            disturbance.repetition_error(row.samples for run in self.ok for row in run.rows if row.kind == kind)
            for kind in self.problem.kinds
        )
        return disturbance.with_expectation(*stats.pooled_spread(map(self.objectives, arms)), error)

    # --- times -------------------------------------------------------------------------------------------------------

    @property
    def threads(self) -> int:
        """The best number of threads so far."""
        return self.curve.best

    def _row(self, run: Run, kind: str, micro_batch: int, threads: int) -> Row | None:
        """Return the row of a load that tells the most of a test: with these threads, and a prompt as long as asked."""
        rows = run.of(kind, micro_batch, threads)
        prompt, _generated = self.problem.counted(self.problem.objective)
        return min(rows, key=lambda row: abs(row.n_prompt - prompt), default=None)

    def points(self, kind: str) -> list[Point]:
        """Return what the fit of C(kind) rests on, each as it were with the best number of threads."""
        points = []
        for run in self.ok:
            if run.placement.override:
                continue
            amounts = self.weigher.amounts(run.placement)
            nearest = self.curve.nearest(kind, {row.threads for row in run.rows if row.kind == kind})
            for row in run.rows:
                if row.kind == kind and row.threads == nearest:
                    ms = row.ms * self.curve.factor(kind, row.threads)
                    prompt = amounts.prefill(row.n_prompt, row.micro_batch)
                    points.append(Point(amounts.decode if kind == "decode" else prompt, ms))
        return points

    def predicted(self, kind: str, arm: Arm, prompt: int | None = None) -> float | None:
        """Return the time of a token, or of a prompt (else the objective's), by the fit; None without one."""
        asked = self.problem.counted(self.problem.objective)[0] if prompt is None else prompt
        return self._predicted(kind, arm, asked)

    def _predicted(self, kind: str, arm: Arm, prompt: int) -> float | None:
        amounts = self.weigher.amounts(arm.placement)
        fit = self.decode_fit if kind == "decode" else self.prefill_fit
        if fit is None:
            return None
        features = amounts.decode if kind == "decode" else amounts.prefill(prompt, arm.micro_batch)
        return fit.ms(features) / self.curve.factor(kind, arm.placement.threads)

    def drawn(self, arm: Arm) -> list[float]:
        """Return the objective by each of the costs that the loads allow; none where a part of it has no fit."""
        prompt, generated = self.problem.counted(self.problem.objective)
        amounts = self.weigher.amounts(arm.placement)
        parts = []
        for kind, fit, count in (("decode", self.decode_fit, generated), ("prefill", self.prefill_fit, bool(prompt))):
            if kind in self.problem.kinds and count:
                expected = self.time(kind, arm)
                if fit is None or expected is None:
                    return []
                features = amounts.decode if kind == "decode" else amounts.prefill(prompt, arm.micro_batch)
                scale = count * expected / fit.ms(features)
                parts.append([scale * cost_model.decode_ms(draw, features) for draw in fit.draws])
        return [sum(values) for values in zip(*parts, strict=True)]

    def measured(self, kind: str, arm: Arm, prompt: int | None = None) -> list[float]:
        """Return the times of a token, or of a prompt (else the objective's), one per load that measured them."""
        found = []
        prompt = self.problem.counted(self.problem.objective)[0] if prompt is None else prompt
        for run in self.ok:
            if not _same(run.placement, arm.placement):
                continue
            row = self._row(run, kind, arm.micro_batch, arm.placement.threads)
            if row is not None:
                found.append(row.ms * (1.0 if kind == "decode" else self._scale(arm, row.n_prompt, prompt)))
        return found

    def _scale(self, arm: Arm, tested: int, asked: int) -> float:
        """Return the factor from the time of a prompt of C(tested) tokens to that of one of C(asked)."""
        if tested == asked or not asked:
            return 1.0
        before, after = (self._predicted("prefill", arm, prompt) for prompt in (tested, asked))
        return after / before if before and after else asked / tested

    def time(self, kind: str, arm: Arm) -> float | None:
        """Return what a token, or the objective's prompt, takes, as far as fit and loads tell."""
        predicted, own = self.predicted(kind, arm), self.measured(kind, arm)
        if predicted is None:
            return statistics.fmean(own) if own else None
        noise = self.noise(kind)
        misses = self._misses(kind, arm) if kind == "prefill" else []
        log = math.log(predicted)
        if misses:
            log += SHARED_MISS * statistics.fmean(misses) * len(misses) / (len(misses) + (noise / FIT_ERROR) ** 2 / 4)
        if not own:
            return math.exp(log)
        for_loads, for_fit = len(own) / noise**2, 1 / FIT_ERROR**2
        logs = statistics.fmean(math.log(value) for value in own)
        return math.exp((for_loads * logs + for_fit * log) / (for_loads + for_fit))

    def _misses(self, kind: str, arm: Arm) -> list[float]:
        """Return by how much the fit misses prompts of this micro-batch, in logarithms."""
        alike = [
            (run, row)
            for run in self.ok
            if not run.placement.override
            for row in run.rows
            if row.kind == kind and row.micro_batch == arm.micro_batch
        ]
        found = []
        for run, row in alike:
            own = Arm(dataclasses.replace(run.placement, threads=row.threads), row.micro_batch)
            value = self._predicted(kind, own, row.n_prompt)
            found += [math.log(row.ms / value)] if value else []
        return found

    # --- the objective -----------------------------------------------------------------------------------------------

    def objective(self, arm: Arm) -> float:
        """Return the objective in ms, as far as fit and loads tell; infinite where they do not."""
        if arm not in self._values:
            self._values[arm] = self._objective({kind: self.time(kind, arm) for kind in self.problem.kinds})
        return self._values[arm]

    def _objective(self, times: t.Mapping[str, float | None]) -> float:
        prompt, generated = self.problem.counted(self.problem.objective)
        total = 0.0
        for kind, count in (("decode", generated), ("prefill", 1 if prompt else 0)):
            if kind in self.problem.kinds and count:
                value = times.get(kind)
                total += math.inf if value is None else count * value
        return total

    def objectives(self, arm: Arm) -> list[float]:
        """Return the objective by each load that measured all of it."""
        prompt, _generated = self.problem.counted(self.problem.objective)
        found = []
        for run in self.ok:
            if not _same(run.placement, arm.placement):
                continue
            times: dict[str, float | None] = {}
            for kind in self.problem.kinds:
                row = self._row(run, kind, arm.micro_batch, arm.placement.threads)
                scale = 1.0 if kind == "decode" or row is None else self._scale(arm, row.n_prompt, prompt)
                times[kind] = None if row is None else row.ms * scale
            value = self._objective(times)
            found += [value] if math.isfinite(value) else []
        return found

    def arms_of(self, run: Run) -> set[Arm]:
        """Return the arms that a load measured something of."""
        return {
            Arm(dataclasses.replace(run.placement, threads=threads), size)
            for size in {row.micro_batch for row in run.rows}
            for threads in {row.threads for row in run.rows}
        }

    def compare(self, one: Arm, other: Arm) -> cost_model.Comparison:
        """Compare the objectives of two measured arms."""
        return cost_model.compare(self.objectives(one), self.objectives(other), self.spread())

    # --- candidates --------------------------------------------------------------------------------------------------

    def candidates(self, no_host: bool = False, plane: expert_plane.Plane | None = None) -> list[Arm]:
        """Return what there is to choose from with the best number of threads, whatever was measured.

        C(plane): within other budgets than loads let expect.
        """
        return [
            Arm(dataclasses.replace(placement, threads=self.threads, no_host=no_host), size)
            for size in self.sizes
            for placement in (plane or self.plane).candidates(size)
            if not self.is_out(placement)
        ]

    def is_out(self, placement: ExpertPlacement) -> bool:
        """Return whether loads say that a placement is out: failed twice, or for want of memory."""
        return expert_plane.key_of(placement) in self._out

    @functools.cached_property
    def _out(self) -> set[expert_plane.Key]:
        count: dict[expert_plane.Key, int] = {}
        for run in self.runs:
            if not run.ok:
                key = expert_plane.key_of(run.placement)
                count[key] = count.get(key, 0) + (2 if run.status == "out_of_memory" else 1)
        good = {expert_plane.key_of(run.placement) for run in self.ok}
        return {key for key, failures in count.items() if failures > 1} - good

    def best(self, arms: t.Iterable[Arm]) -> Arm | None:
        """Return the arm of the least objective; of equal ones that with the fewest experts in RAM, and most room."""
        return min(arms, key=self.rank, default=None)

    def rank(self, arm: Arm) -> tuple[float, float, int]:
        """Return the order of arms, see best."""
        amounts = self.weigher.amounts(arm.placement)
        return round(self.objective(arm), 6), amounts.cpu, -min(self.plane.headroom(arm.placement, arm.micro_batch))


def _same(one: ExpertPlacement, other: ExpertPlacement) -> bool:
    return expert_plane.key_of(one) == expert_plane.key_of(other) and one.no_host == other.no_host
