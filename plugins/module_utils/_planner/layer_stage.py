# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Plans which split of a model to measure next, and decides. Private to this collection. Pure functions only.

One function, split_plan: the problem and all loads measured so far in, the next loads or the decision out, both as
docs/data_formats.md describes them. It keeps no state: the loads are walked through in their order, and what was asked
for after any of them follows from those before it, so a run that was broken off simply goes on.

The way to a decision, with at most C(max_loads) loads:

1. anchors: as many well separated splits as there are devices (for two, the ends of what memory allows), one load each;
2. fit of the cost model, see _cost_model;
3. confirmation: the predicted winner (A) and the engine's own split (B; the best measured other one where that does not
   fit or is the winner) get two loads each, in the order A B B A, counting what is already measured. After the first
   load of each the fit is made anew. If it is off by more than 5 %, one more anchor between the others is measured,
   and a better split may take A's place;
4. two more loads, one of each, while the two cannot be told apart and loads are left.

Where all splits are practically equal by the fit, one load of the roomiest follows the anchors, and if the loads differ
no more than that either, there is no difference worth having, and nothing more is measured (_equal_within).

A split with a load that looks disturbed (_disturbance) is measured again first, at most C(repeat_disturbed) times.

A split whose load fails is out, with its reason; out of memory also rules out every split with as many slots or more
on the device that had the least room.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
import typing as t

from .._base import least_squares, stats
from .._split import cost_fit, cost_model, disturbance, layer_search, layer_split, memory_plan, split_cost
from .._split.layer_split import Layers, split_name
from .._split.measured_loads import Load, read_loads
from .._split.split_problem import Candidate, Json, Problem, read_problem
from .._split.workload import needed_kinds

#: A fit that misses a measured split by more than this (percent), and by more than noise, is not trusted there.
TRUSTED_RESIDUAL_PERCENT = 5.0

#: Two splits count as equal only when 95 % of what is plausible lies within this many indifferences.
EQUIVALENCE_FACTOR = 3.0

#: How well a point is known (relative standard deviation) while no split has two loads: half of what is trusted.
UNKNOWN_NOISE = TRUSTED_RESIDUAL_PERCENT / 200

#: How far a device's cost by the device probe may be off (relative standard deviation): the probe model is small, so
#: launching its kernels counts for more, and its weights are of another type than the model's.
PROBE_ERROR = 0.2

#: What share of a token's time the hops between devices may be: splits over all devices cannot tell.
HOP_DOUBT = 0.03

WHAT_COUNTS = {
    "decode": "time per generated token",
    "prefill": "time per prompt",
    "ttft": "time to the first token",
    "request": "time per request",
    "agent": "time per generated token",
}

#: The objectives whose best splits are shown beside the chosen one.
SHOWN_OBJECTIVES = ("decode", "prefill", "ttft", "request")


# --- what the loads say ----------------------------------------------------------------------------------------------


class Evidence:
    """What a problem and some loads together say: which splits remain, the fit, and what each split costs."""

    def __init__(self, problem: Problem, loads: t.Sequence[Load]) -> None:
        self.problem = problem
        self.loads = list(loads)
        self.left = problem.max_loads - len(self.loads)
        self.lost = next((load for load in loads if load.status == "device_lost"), None)
        self.failed: dict[Layers, Load] = {load.layers: load for load in reversed(self.loads) if not load.ok}
        self.ok: dict[Layers, list[Load]] = {}
        for load in self.loads:
            if load.ok:
                self.ok.setdefault(load.layers, []).append(load)
        self.measured_again = sum(1 for load in self.loads if load.purpose == "repeat")
        #: Why a load is suspected of a disturbance, set aside or not.
        self.suspects: dict[tuple[Layers, int], str] = {}
        self.disturbed: dict[Layers, list[Load]] = {}
        self.repeat = self._judge_loads()
        self.caps = [problem.slots] * len(problem.names)
        self.listed = self._remaining()
        self._tolerances: dict[str, float] = {}
        self._objectives: dict[Layers, float] = {}
        self._ratios: dict[tuple[str, tuple[bool, ...]], float] = {}
        self._fit()

    @property
    def ok_loads(self) -> list[Load]:
        """All loads that were measured and not set aside."""
        return [load for loads in self.ok.values() for load in loads]

    def next_number(self, layers: Layers) -> int:
        """Return the number that the next load of a split has; one that was set aside keeps its own."""
        return 1 + sum(1 for load in self.loads if load.layers == layers)

    def count(self, layers: Layers) -> int:
        """Return how many loads of a split were measured."""
        return len(self.ok.get(layers, ()))

    def _judge_loads(self) -> tuple[Layers, str] | None:
        """Set disturbed loads aside; return the split to measure again, with the reason, while that is allowed.

        See _disturbance for when a load is suspected. It is set aside only after its split was measured once more, so
        never more loads than were repeated and never the last one of a split. Only tests that count for the objective
        are looked at.
        """
        problem = self.problem
        doubts: dict[Layers, dict[int, disturbance.Alarm]] = {}
        for kind in problem.kinds:
            loads = [load for measured in self.ok.values() for load in measured if load.samples(kind)]
            scattered = disturbance.scattered([load.samples(kind) for load in loads], problem.indifference)
            odd = {id(loads[alarm.load]): alarm for alarm in scattered}
            calm = {layers: [x for x in measured if id(x) not in odd] for layers, measured in self.ok.items()}
            error = disturbance.repetition_error(load.samples(kind) for each in calm.values() for load in each)
            times = {
                layers: [value for load in each if (value := getattr(load, kind)) is not None]
                for layers, each in calm.items()
            }
            for layers, measured in self.ok.items():
                alarms = {load.number: odd[id(load)] for load in measured if id(load) in odd}
                others = stats.pooled_spread(times[other] for other in times if other != layers)
                far = disturbance.far_from_twins(times[layers], others, error, problem.indifference)
                if far is not None:
                    alarms[calm[layers][far.load].number] = far
                for number, alarm in alarms.items():
                    known = doubts.setdefault(layers, {}).get(number)
                    if known is None or alarm.probability < known.probability:
                        doubts[layers][number] = alarm
        wanted: tuple[Layers, str] | None = None
        for layers, alarms in doubts.items():
            ranked = sorted(alarms, key=lambda number: (alarms[number].probability, number))
            repeated = sum(1 for load in self.ok[layers] if load.purpose == "repeat")
            self.suspects.update({(layers, number): alarms[number].reason for number in ranked})
            aside = {number for number in ranked[:repeated] if len(self.ok[layers]) > 1}
            if aside:
                self.disturbed[layers] = [load for load in self.ok[layers] if load.number in aside]
                self.ok[layers] = [load for load in self.ok[layers] if load.number not in aside]
            if len(ranked) > repeated and wanted is None:
                number = ranked[repeated]
                wanted = layers, f"{layer_split.load_label(layers, number)} looks disturbed: {alarms[number].reason}"
        allowed = self.left > 0 and self.measured_again < problem.repeat_disturbed
        return wanted if allowed and self.lost is None else None

    def _remaining(self) -> list[Candidate]:
        """Return the splits that fit and have not failed, nor need as much as one did where memory ran out."""
        fitting = {candidate.layers: candidate for candidate in self.problem.fitting}
        for layers in (*self.ok, *self.failed):
            # with more than two devices what was searched for and tried is not in the list
            if layers not in fitting and (searched := self.problem.candidate(layers)) is not None:
                fitting[layers] = searched
        for candidate in fitting.values():
            failure = self.failed.get(candidate.layers)
            if failure is not None and failure.status == "out_of_memory":
                tightest = min((left, d) for d, left in enumerate(candidate.headroom) if candidate.layers[d])[1]
                self.caps[tightest] = min(self.caps[tightest], candidate.layers[tightest] - 1)
        return [fitting[layers] for layers in sorted(fitting) if self.remains(layers)]

    def remains(self, layers: Layers) -> bool:
        """Return whether a split that fits has not failed, nor needs as much as one did where memory ran out."""
        return layers not in self.failed and all(n <= cap for n, cap in zip(layers, self.caps, strict=True))

    @functools.cached_property
    def by_layers(self) -> dict[Layers, Candidate]:
        """The splits to choose from: those listed, and with more than two devices those that a search finds.

        The list is coarse then. Of all splits that remain the search finds the best by the fit and the roomiest that is
        practically as fast; their neighbours, one slot moved, come with them.
        """
        known = {candidate.layers: candidate for candidate in self.listed}
        found: set[Layers] = set()
        cost = self.cost("objective") if len(self.problem.names) > 2 else None
        if cost is not None and (best := self.best_of_all(cost)) is not None:
            limit = cost.ms(best) * (1 + self.problem.room_price)
            roomiest = self.problem.search.roomiest(cost, limit, self.caps, self.failed) or best
            for split in (best, roomiest):
                found.update((split, *layer_search.moved_by_one(split)))
        for layers in found - known.keys():
            candidate = self.problem.candidate(layers)
            if candidate is not None and self.remains(layers):
                known[layers] = candidate
        return {layers: known[layers] for layers in sorted(known)}

    @functools.cached_property
    def candidates(self) -> list[Candidate]:
        """The splits to choose from, fewest slots on the first device first."""
        return list(self.by_layers.values())

    def best_of_all(self, cost: split_cost.Cost) -> Layers | None:
        """Return the split of the least cost among all that remain, listed or not."""
        return self.problem.search.best(cost, self.caps, self.failed)

    def cost(self, name: str) -> split_cost.Cost | None:
        """Return what the fit says of an objective as coefficients of the layers, or None without a fit.

        It says the same of any split as predicted.
        """
        problem = self.problem
        tokens, generated = problem.counted(problem.objective if name == "objective" else name)
        return split_cost.workload_cost(
            self.decode_fit if generated else None,
            self.prefill_fit if problem.prefill_test is not None else None,
            tokens,
            generated,
            problem.prefill_test.n_prompt if problem.prefill_test is not None else tokens,
            problem.micro_batch,
            self.prefill_overlap,
        )

    def _fit(self) -> None:
        """Fit the model to the splits over all devices; to those on fewer devices only where there are no others.

        One device alone makes no hop, so what it measures says nothing about the splits that do.
        """
        problem = self.problem
        devices = len(problem.names)
        self.points = [layers for layers in self.ok if all(layers) or not self.pool_is_whole]
        self.decode_fit: list[float] | None = None
        self.prefill_fit: list[float] | None = None
        self.prefill_form: str | None = None
        self.prefill_overlap = 1.0
        self.residual: dict[str, float | None] = {"decode": None, "prefill": None}
        if not self.anchored or not self.points:
            return
        # with as many coefficients as splits every residual is zero and says nothing
        telling = len(self.points) > devices
        if problem.decode_test is not None:
            points = [(layers, self.measured("decode", layers)) for layers in self.points]
            self.decode_fit = cost_fit.fit_decode(points, self.prior("decode"))
            if telling:
                predicted = [cost_model.decode_ms(self.decode_fit, layers) for layers, _ms in points]
                self.residual["decode"] = cost_model.residual_percent(predicted, [ms for _layers, ms in points])
        if problem.prefill_test is not None:
            batches = cost_model.micro_batches(problem.prefill_test.n_prompt, problem.micro_batch)
            points = [(layers, self.measured("prefill", layers)) for layers in self.points]
            fit = cost_fit.choose_prefill(
                points, batches, self.point_noise("prefill"), self.decode_fit, self.prior("prefill")
            )
            self.prefill_form, self.prefill_overlap, self.prefill_fit, self.residual["prefill"] = fit

    def noise(self, kind: str) -> tuple[float, int]:
        """Return the relative standard deviation between loads of C(kind), and how many degrees of freedom that has.

        Pooled over splits, and over what the repetitions within loads let expect.
        """
        return self.with_expectation(kind, *self.spread(kind))

    def with_expectation(self, kind: str, spread: float, degrees: int) -> tuple[float, int]:
        """Return a scatter of loads with what the repetitions within loads let expect, for a few degrees more."""
        kinds = self.problem.kinds if kind == "objective" else (kind,)
        errors = [
            disturbance.repetition_error(load.samples(part) for loads in self.ok.values() for load in loads)
            for part in kinds
        ]
        return disturbance.with_expectation(spread, degrees, max(errors))

    def prior(self, kind: str) -> cost_fit.Prior | None:
        """Return what the device probe says of the devices' costs in a test of C(kind); None without a probe."""
        costs = self.problem.probed.get(kind)
        return None if costs is None else cost_fit.Prior(costs, PROBE_ERROR, self.point_noise(kind))

    def point_noise(self, kind: str) -> float:
        """Return how well a point of a fit is known (relative standard deviation); no better than what is nothing."""
        noise, degrees = self.noise(kind)
        return max(self.problem.indifference, noise) if degrees else UNKNOWN_NOISE

    def spread(self, kind: str) -> tuple[float, int]:
        """Return the relative standard deviation between loads of C(kind), pooled over splits, and its degrees."""
        return stats.pooled_spread(self.load_means(kind, layers) for layers in self.ok)

    @functools.cached_property
    def pool(self) -> list[Candidate]:
        """The candidates that anchors are chosen from: those over all devices, unless there are too few of them."""
        whole = [candidate for candidate in self.listed if all(candidate.layers)]
        return whole if len(whole) >= 2 else self.listed

    @functools.cached_property
    def pool_is_whole(self) -> bool:
        """Whether anchors are splits over all devices."""
        return all(all(candidate.layers) for candidate in self.pool)

    @functools.cached_property
    def anchored(self) -> bool:
        """Whether what was measured determines as many coefficients as measuring any further split could."""
        measured = [layers for layers in self.ok if all(layers) or not self.pool_is_whole]
        reachable = least_squares.rank([*measured, *(candidate.layers for candidate in self.pool)])
        return bool(self.ok) and least_squares.rank(measured) >= min(reachable, self.problem.max_anchors)

    def measured(self, kind: str, layers: Layers) -> float:
        """Return the mean over loads of C(kind) (decode, prefill or objective) of a measured split."""
        return statistics.fmean(self.load_means(kind, layers))

    def load_means(self, kind: str, layers: Layers) -> list[float]:
        """Return the mean of each load of a measured split."""
        if kind == "objective":
            return [self._objective(layers, load.decode, load.prefill) for load in self.ok[layers]]
        return [value for load in self.ok[layers] if (value := getattr(load, kind)) is not None]

    def predicted(self, kind: str, layers: Layers) -> float | None:
        """Return what the fit says of C(kind) (decode, prefill of the tested prompt, objective); None without a fit."""
        if kind == "decode":
            return None if self.decode_fit is None else cost_model.decode_ms(self.decode_fit, layers)
        if kind == "prefill":
            if self.prefill_fit is None or self.problem.prefill_test is None:
                return None
            batches = cost_model.micro_batches(self.problem.prefill_test.n_prompt, self.problem.micro_batch)
            return cost_model.prefill_ms(self.prefill_fit, layers, batches, self.prefill_overlap)
        decode, prefill = self.predicted("decode", layers), self.predicted("prefill", layers)
        if self.decode_fit is None and self.prefill_fit is None:
            return None
        return self._objective(layers, decode, prefill)

    def _objective(
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
            total += prefill * cost_model.prefill_scale(
                self.prefill_fit,
                layers,
                problem.prefill_test.n_prompt,
                prompt,
                problem.micro_batch,
                self.prefill_overlap,
            )
        return total

    @property
    def objective_residual(self) -> float | None:
        """The larger residual of what the objective is made of, in percent; None when unknown."""
        return max((value for kind in self.problem.kinds if (value := self.residual[kind]) is not None), default=None)

    def value(self, kind: str, layers: Layers) -> float | None:
        """Return what a split costs, as far as known: by a trusted fit, else by its own loads, else by any fit.

        One device alone makes no hop, so it takes no longer than a fit to splits that do says: where a load of it was
        slower than that, it was unlucky.
        """
        residual = self.objective_residual if kind == "objective" else self.residual[kind]
        fits = residual is None or residual <= self.tolerance(kind)
        predicted = self.predicted(kind, layers)
        if layers in self.ok and self.load_means(kind, layers) and not (
            fits and layers in self.points and predicted is not None
        ):
            measured = self.measured(kind, layers)
            bounded = fits and predicted is not None and self.pool_is_whole and sum(map(bool, layers)) == 1
            return min(measured, predicted) if bounded and predicted is not None else measured
        return None if predicted is None else predicted * self._beyond_fit(kind, layers)

    def _beyond_fit(self, kind: str, layers: Layers) -> float:
        """Return how much longer splits over these devices take than the fit says; 1 where it was fitted to them.

        A split that leaves a device out makes fewer hops, which the fit cannot know. What one of them shows holds for
        those that use the same devices, or nearly so; otherwise each of these would look better than the measured one.
        """
        used = tuple(count > 0 for count in layers)
        if (kind, used) in self._ratios:
            return self._ratios[kind, used]
        ratios: dict[int, list[float]] = {}
        for other in self.ok:
            predicted = self.predicted(kind, other)
            if predicted and self.load_means(kind, other):
                differing = sum(a != (b > 0) for a, b in zip(used, other, strict=True))
                fitted = other in self.points
                ratios.setdefault(differing, []).append(1.0 if fitted else self.measured(kind, other) / predicted)
        self._ratios[kind, used] = statistics.fmean(ratios[min(ratios)]) if ratios else 1.0
        return self._ratios[kind, used]

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

    def best(self, among: t.Sequence[Candidate]) -> Candidate:
        """Return the best of C(among): the fastest, or the roomiest of those that are practically as fast.

        Of these one that is being confirmed stays the best, so that noise does not move the target. One device alone is
        not given up for room: what is predicted for it contains a hop that it does not make.
        """
        fastest = min(among, key=lambda c: (self.objective(c.layers), c.layers))
        if _single(fastest):
            return fastest
        limit = self.limit(among)
        equal = [c for c in among if self.objective(c.layers) <= limit]
        confirming = {load.layers for load in self.loads if load.purpose == "confirm"}
        equal = [c for c in equal if c.layers in confirming] or equal
        return min(equal, key=lambda c: (-_room(c), self.objective(c.layers), c.layers))

    def limit(self, among: t.Iterable[Candidate]) -> float:
        """Return the objective up to which a split may be taken for its room instead of the fastest of C(among)."""
        return min(self.objective(candidate.layers) for candidate in among) * (1 + self.problem.room_price)

    def rival(self, winner: Candidate, among: t.Sequence[Candidate]) -> Candidate | None:
        """Return what the winner is compared with: llama.cpp's own split, else the best measured other one."""
        default = self.by_layers.get(self.problem.default)
        if default is not None and default in among and default != winner:
            return default
        others = [c for c in among if c != winner and c.layers in self.ok]
        return min(others, key=lambda c: (self.objective(c.layers), c.layers), default=None)

    def compare(self, kind: str, layers: Layers, other: Layers) -> cost_model.Comparison:
        """Compare two measured splits; the noise between loads is pooled over all splits."""
        return cost_model.compare(self.load_means(kind, layers), self.load_means(kind, other), self.spread(kind))

    def value_of(self, name: str, layers: Layers) -> float | None:
        """Return what a split costs (ms) by another objective, as far as known; None when a part of it is unknown."""
        parts = {kind: self.value(kind, layers) for kind in needed_kinds(name)}
        if any(value is None for value in parts.values()):
            return None
        return self._objective(layers, parts.get("decode"), parts.get("prefill"), name)


def _room(candidate: Candidate) -> int:
    """Return the smallest headroom of the devices in use."""
    return min(left for left, count in zip(candidate.headroom, candidate.layers, strict=True) if count)


def _single(candidate: Candidate) -> bool:
    """Return whether a split uses one device alone."""
    return sum(1 for count in candidate.layers if count) == 1


# --- the next step ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One load to be measured."""

    layers: Layers
    number: int
    purpose: str


@dataclasses.dataclass(frozen=True)
class Step:
    """What comes next: loads, a decision, or the reason why there is none."""

    stage: str
    why: str
    loads: tuple[Wanted, ...] = ()
    decision: Json | None = None


def split_plan(problem: t.Any, loads: t.Any) -> Json:
    """Return the plan for a problem and the loads measured so far, all as in docs/data_formats.md.

    Pure and deterministic. Raises ValueError, naming the field, for a problem or loads that are not as described there.
    """
    return plan_with_evidence(problem, loads)[0]


def plan_with_evidence(problem: t.Any, loads: t.Any) -> tuple[Json, Evidence]:
    """Return what split_plan returns, and what the loads say."""
    checked = read_problem(problem)
    measured = read_loads(checked, loads)
    evidence = Evidence(checked, measured[:0])
    step = _next_step(evidence)
    for count in range(1, len(measured) + 1):
        evidence = Evidence(checked, measured[:count])
        done = {(load.layers, load.number) for load in measured[:count]}
        open_loads = tuple(
            wanted
            for wanted in step.loads
            if evidence.lost is None
            and (wanted.layers, wanted.number) not in done
            and evidence.remains(wanted.layers)
        )
        step = dataclasses.replace(step, loads=open_loads) if open_loads else _next_step(evidence)
    if evidence.left < len(step.loads):
        cut = dataclasses.replace(step, loads=step.loads[: max(0, evidence.left)])
        step = cut if cut.loads else _next_step(evidence)
    plan = {
        "done": not step.loads,
        "stage": step.stage,
        "why": step.why,
        "loads": [_load_out(checked, wanted) for wanted in step.loads],
        "feasible": [
            {"layers": list(c.layers), "mib": list(c.mib), "headroom_mib": list(c.headroom)}
            for c in evidence.candidates
        ],
        "default_layers": list(checked.default),
        "fit": _fit_out(evidence),
        "decision": step.decision,
    }
    return plan, evidence


def _next_step(evidence: Evidence) -> Step:
    if evidence.lost is not None:
        return Step("impossible", _why_lost(evidence.lost))
    if not evidence.candidates:
        return Step("impossible", _why_none(evidence))
    if evidence.repeat is not None and evidence.remains(evidence.repeat[0]):
        layers, reason = evidence.repeat
        return Step("repeat", f"{reason}; measure this split again", (_wanted(evidence, layers, "repeat"),))
    if len(evidence.candidates) == 1:
        only = evidence.candidates[0]
        if not evidence.count(only.layers) and evidence.left > 0:
            return Step("anchor", f"{_only(evidence)}: measure its speed", (_wanted(evidence, only.layers, "single"),))
    if evidence.left > 0 and not evidence.anchored:
        anchors = _anchors(evidence)
        if anchors:
            wanted = tuple(_wanted(evidence, candidate.layers, "anchor") for candidate in anchors)
            return Step("anchor", _why_anchors(evidence, anchors), wanted)
    measured = [candidate for candidate in evidence.candidates if evidence.count(candidate.layers)]
    if not measured and evidence.left <= 0:
        last = evidence.loads[-1]
        return Step("impossible", f"none of {len(evidence.loads)} loads succeeded: {_failure(last)}")
    if len(evidence.candidates) == 1:
        return _decided(evidence, measured[0], None)
    within = _equal_within(evidence)
    if within is not None and evidence.left > 0 and math.isinf(within):
        winner = evidence.best(evidence.candidates)
        default = evidence.by_layers.get(evidence.problem.default, winner)
        third = next((c for c in (winner, default) if not evidence.count(c.layers)), winner)
        why = _why_confirm(evidence.problem, evidence, third, None)
        return Step("confirm", why, (_wanted(evidence, third.layers, "confirm"),))
    if within is not None and within <= 100 * EQUIVALENCE_FACTOR * evidence.problem.indifference:
        winner = evidence.best(measured)
        return _decided(evidence, winner, evidence.rival(winner, measured))
    same = _as_good_as_default(evidence)
    if same is not None and evidence.left > 0 and (len(evidence.ok_loads) < 3 or not evidence.count(same.layers)):
        third = evidence.by_layers[evidence.problem.default] if evidence.count(same.layers) else same
        return Step(
            "confirm",
            f"{split_name(same.layers)} should be as good as any and as {evidence.problem.engine}'s default: measure "
            f"{split_name(third.layers)} to see whether the fit holds",
            (_wanted(evidence, third.layers, "confirm"),),
        )
    if same is not None and evidence.count(same.layers):
        default = evidence.by_layers[evidence.problem.default]
        known = default != same and evidence.count(default.layers)
        return _decided(evidence, same, default if known else None, "no_difference")
    return _confirm(evidence, measured)


def _as_good_as_default(evidence: Evidence) -> Candidate | None:
    """Return the split to take when llama.cpp's own is practically as fast as the best by the fit, else None.

    The difference must be at most the indifference by a fit that is trusted, from loads that scatter no more than that,
    and the two so near to each other that
    even with every slot between them at the steepest step that the fit knows they are within EQUIVALENCE_FACTOR times
    that: the fit knows steps much better than it knows where they change their sign. The roomier of the two is taken.
    """
    problem = evidence.problem
    default = evidence.by_layers.get(problem.default)
    residual = evidence.objective_residual
    if (
        default is None
        or not all(problem.default)
        or evidence.repeat is not None
        or (residual is not None and residual > evidence.tolerance("objective"))
        or any(_single(candidate) for candidate in evidence.candidates)
        or evidence.point_noise("objective") > problem.indifference
    ):
        return None
    winner = evidence.best(evidence.candidates)
    best = min(evidence.objective(candidate.layers) for candidate in evidence.candidates)
    percent = 100 * (evidence.objective(default.layers) / best - 1)
    limit = 100 * problem.indifference
    apart = _distance(winner.layers, [default.layers])
    if not percent <= limit or apart * _steepest_percent(evidence, winner, default) > EQUIVALENCE_FACTOR * limit:
        return None
    return min(winner, default, key=lambda c: (-_room(c), evidence.objective(c.layers), c.layers))


def _steepest_percent(evidence: Evidence, *splits: Candidate) -> float:
    """Return the most that moving one slot changes the objective by the fit, in percent; infinite without a fit.

    Of two devices between any neighbours that fit, else from one of C(splits).
    """
    if len(evidence.problem.names) == 2:
        pairs = list(itertools.pairwise(candidate.layers for candidate in evidence.candidates))
    else:
        pairs = [(c.layers, other) for c in splits for other in layer_search.moved_by_one(c.layers)]
    steps = []
    for one, other in pairs:
        if all(one) and all(other):
            before, after = evidence.predicted("objective", one), evidence.predicted("objective", other)
            steps.append(100 * abs(after / before - 1) if before and after else math.inf)
    return max(steps, default=math.inf)


def _equal_within(evidence: Evidence) -> float | None:
    """Return how far apart any two loads may be (percent, 95 %), if all splits that remain are practically equal.

    None where the fit says that they are not, and where one of them makes no hop, which the fit does not know. The
    loads of all splits are taken for loads of one: their scatter is the noise and what real difference there is, so the
    interval of Student's t for the difference of two is too wide rather than too narrow. What the repetitions within
    the loads let expect counts as well (disturbance.with_expectation). Infinite below three loads.
    """
    percent, _count = _range_percent(evidence)
    if percent is None or percent > 100 * evidence.problem.indifference:
        return None
    if any(not all(candidate.layers) for candidate in evidence.candidates):
        return None
    logs = [math.log(value) for layers in evidence.ok for value in evidence.load_means("objective", layers)]
    if len(logs) < 3:
        return math.inf
    deviation, degrees = evidence.with_expectation("objective", statistics.stdev(logs), len(logs) - 1)
    return 100 * math.expm1(stats.t_quantile(degrees, 0.05) * deviation * math.sqrt(2))


def _confirm(evidence: Evidence, measured: list[Candidate]) -> Step:
    """Return the loads that confirm the winner, or the decision."""
    problem = evidence.problem
    among = evidence.candidates
    winner = _single_to_try(evidence) or evidence.best(among)
    rival = evidence.rival(winner, among)
    # With too few loads left for both, the rival is one that is measured already; with none left for the winner, so is
    # the winner. One load of the predicted winner tells more than a second one of a split that it should beat.
    if _unmeasured(evidence, winner, rival) > evidence.left:
        rival = evidence.rival(winner, [*measured, winner])
    if _unmeasured(evidence, winner, rival) > evidence.left:
        winner = evidence.best(measured)
        rival = evidence.rival(winner, measured)
    first = [c for c in (winner, rival) if c is not None and not evidence.count(c.layers)]
    if not first and evidence.left > _open_loads(evidence, winner, rival):
        extra = _interior_anchor(evidence)
        if extra is not None:
            return Step(
                "anchor",
                f"the fit misses a measured split by {evidence.objective_residual:.1f} %: measure "
                f"{split_name(extra.layers)} as well, far from the others",
                (_wanted(evidence, extra.layers, "anchor"),),
            )
    # A B, then B A
    second = [c for c in (rival, winner) if c is not None and evidence.count(c.layers) < 2]
    wanted = (first or second)[: max(0, evidence.left)]
    if not wanted and rival is not None and evidence.left >= 2 and _verdict(evidence, winner, rival) == "inconclusive":
        wanted = [winner, rival]
    if not wanted:
        return _decided(evidence, winner, rival)
    why = _why_confirm(problem, evidence, winner, rival)
    return Step("confirm", why, tuple(_wanted(evidence, candidate.layers, "confirm") for candidate in wanted))


def _single_to_try(evidence: Evidence) -> Candidate | None:
    """Return the device that alone may well be the best, while that was not measured.

    What the fit says of it contains a hop that it does not make, so it counts as better by HOP_DOUBT. Only where the
    predicted best is a load that one could still afford to be wrong about.
    """
    singles = [c for c in evidence.candidates if _single(c)]
    if any(evidence.count(c.layers) for c in singles) or evidence.left < 3:
        return None
    best = min(singles, key=lambda c: (evidence.objective(c.layers), c.layers), default=None)
    limit = min(evidence.objective(c.layers) for c in evidence.candidates)
    if best is None or evidence.objective(best.layers) * (1 - HOP_DOUBT) > limit:
        return None
    return best


def _unmeasured(evidence: Evidence, *arms: Candidate | None) -> int:
    """Return how many of the splits have no load yet."""
    return sum(1 for candidate in arms if candidate is not None and not evidence.count(candidate.layers))


def _open_loads(evidence: Evidence, winner: Candidate, rival: Candidate | None) -> int:
    """Return how many loads are missing until both have two."""
    return sum(max(0, 2 - evidence.count(c.layers)) for c in (winner, rival) if c is not None)


def _wanted(evidence: Evidence, layers: Layers, purpose: str) -> Wanted:
    return Wanted(layers, evidence.next_number(layers), purpose)


def _anchors(evidence: Evidence) -> list[Candidate]:
    """Return the splits that are still missing for a fit.

    For each device it is the one with the most slots there; where these do not determine the fit, those farthest from
    all chosen ones follow.
    """
    pool = evidence.pool
    chosen = list(evidence.ok)
    result: list[Candidate] = []
    ends = [_end(pool, device) for device in range(len(evidence.problem.names))]
    if len(ends) > evidence.problem.max_anchors:
        ends = [ends[device] for device in sorted(range(len(ends)), key=lambda d: -ends[d].layers[d])]
    while True:
        known = least_squares.rank(chosen)
        if known >= evidence.problem.max_anchors:
            return result
        useful = [c for c in pool if least_squares.rank([*chosen, c.layers]) > known]
        if not useful:
            return result
        take = next((c for c in ends if c in useful), None)
        if take is None:
            take = max(useful, key=lambda c: (_distance(c.layers, chosen), _room(c), c.layers))
        chosen.append(take.layers)
        result.append(take)


def _end(pool: t.Sequence[Candidate], device: int) -> Candidate:
    """Return the split with the most slots on C(device)."""
    return max(pool, key=lambda c: (c.layers[device], _room(c), c.layers))


def _distance(layers: Layers, others: t.Iterable[Layers]) -> int:
    """Return how many slots have to move, at least, to make C(layers) of one of C(others)."""
    return min((sum(abs(a - b) for a, b in zip(layers, o, strict=True)) // 2 for o in others), default=0)


def _interior_anchor(evidence: Evidence) -> Candidate | None:
    """Return the further anchor that a poor fit asks for: of the good splits the farthest from the measured ones."""
    residual = evidence.objective_residual
    anchors = {load.layers for load in evidence.loads if load.ok and load.purpose == "anchor"}
    if residual is None or residual <= evidence.tolerance("objective") or len(anchors) > len(evidence.problem.names):
        return None
    fresh = [c for c in evidence.pool if not evidence.count(c.layers)]
    if not fresh:
        return None
    limit = 1.1 * min(evidence.objective(candidate.layers) for candidate in evidence.candidates)
    near = [c for c in fresh if evidence.objective(c.layers) <= limit] or fresh
    return max(near, key=lambda c: (_distance(c.layers, evidence.ok), -evidence.objective(c.layers), c.layers))


# --- the decision ----------------------------------------------------------------------------------------------------


def _verdict(evidence: Evidence, chosen: Candidate, rival: Candidate | None) -> str:
    """Return faster, no_difference or inconclusive for two measured splits, by the 95 % interval between their loads.

    faster: the interval excludes zero and the difference is more than the indifference, whichever of the two it
    favours; both have two loads at least.
    no_difference: the difference is at most the indifference, and the interval lies within three times that; or all
    splits are equal within three times that (_equal_within).
    """
    if rival is None or not evidence.count(chosen.layers) or not evidence.count(rival.layers):
        return "inconclusive"
    single = min(evidence.count(chosen.layers), evidence.count(rival.layers)) < 2
    within = _equal_within(evidence)
    if within is not None and within <= 100 * EQUIVALENCE_FACTOR * evidence.problem.indifference:
        return "no_difference"
    result = evidence.compare("objective", chosen.layers, rival.layers)
    if result.low is None or result.high is None:
        return "inconclusive"
    indifference = 100 * evidence.problem.indifference
    if not single and abs(result.percent) > indifference and (result.low > 0 or result.high < 0):
        return "faster"
    widest = max(abs(result.low), abs(result.high))
    if abs(result.percent) <= indifference and widest <= EQUIVALENCE_FACTOR * indifference:
        return "no_difference"
    return "inconclusive"


def _decided(
    evidence: Evidence, winner: Candidate, rival: Candidate | None, known_verdict: str | None = None
) -> Step:
    """Return the decision between the winner and its rival; without C(known_verdict) their loads give the verdict."""
    problem = evidence.problem
    verdict = "only_choice" if len(evidence.candidates) == 1 else known_verdict or _verdict(evidence, winner, rival)
    chosen, other = winner, rival
    if rival is not None and known_verdict is None:
        percent = evidence.compare("objective", winner.layers, rival.layers).percent
        if verdict == "faster" and percent < 0:
            chosen, other = rival, winner
        # where loads cannot tell, room decides, unless the fit says that it costs too much
        elif (
            verdict != "faster"
            and not _single(winner)
            and evidence.objective(rival.layers) <= evidence.limit(evidence.candidates)
        ):
            chosen, other = sorted((winner, rival), key=lambda c: (-_room(c), evidence.objective(c.layers), c.layers))
    default = evidence.by_layers.get(problem.default)
    gain, interval = None, None
    if default is not None and evidence.count(problem.default):
        if default == chosen:
            gain, interval = 0.0, [0.0, 0.0]
        else:
            result = evidence.compare("objective", chosen.layers, default.layers)
            gain = round(result.percent, 2)
            if result.low is not None and result.high is not None:
                interval = [round(result.low, 2), round(result.high, 2)]
    decode, prefill = (
        evidence.measured(kind, chosen.layers) if evidence.load_means(kind, chosen.layers) else None
        for kind in ("decode", "prefill")
    )
    why = _why_decided(evidence, chosen, other, verdict)
    return Step(
        "decided",
        why,
        decision={
            "layers": list(chosen.layers),
            "split_mode": "layer",
            "single_device": _single(chosen),
            "verdict": verdict,
            "why": why,
            "objective": {
                "name": problem.objective,
                "prompt_tokens": problem.prompt_tokens,
                "generated_tokens": problem.generated_tokens,
                "depth_tokens": problem.depth_tokens,
            },
            "default_layers": None if default is None else list(problem.default),
            "gain_over_default_percent": gain,
            "gain_interval_percent": interval,
            "decode_tokens_per_second": None if decode is None else round(1000 / decode, 3),
            "prefill_tokens_per_second": (
                None
                if prefill is None or problem.prefill_test is None
                else round(1000 * problem.prefill_test.n_prompt / prefill, 3)
            ),
            "best_by_objective": {name: _best_by(evidence, name) for name in SHOWN_OBJECTIVES},
            "range_percent": _rounded(_range_percent(evidence)[0], 2),
            "advice": _advice(evidence, chosen),
            "mib": list(chosen.mib),
            "headroom_mib": list(chosen.headroom),
            "loads_used": len(evidence.loads),
            "fit": _fit_out(evidence),
            "table": _table(evidence),
        },
    )


def _best_by(evidence: Evidence, name: str) -> list[int] | None:
    """Return the fastest split by another objective, as far as known; None when a part of it was not measured."""
    among = list(evidence.by_layers)
    cost = evidence.cost(name) if len(evidence.problem.names) > 2 else None
    if cost is not None and (best := evidence.best_of_all(cost)) is not None:
        among.append(best)
    known = [(value, layers) for layers in among if (value := evidence.value_of(name, layers)) is not None]
    return list(min(known)[1]) if known else None


def _range_percent(evidence: Evidence) -> tuple[float | None, int]:
    """Return by how much the slowest split takes longer than the fastest, in percent, and of how many splits.

    It is about all splits over as many devices as anchors have; unknown (None) without a fit that is trusted.
    """
    residual = evidence.objective_residual
    known = [value for c in evidence.pool if (value := evidence.value("objective", c.layers)) is not None]
    misfit = residual is not None and residual > evidence.tolerance("objective")
    if len(known) < 2 or len(known) < len(evidence.pool) or misfit:
        return None, len(known)
    return 100 * (max(known) / min(known) - 1), len(known)


def _fit_out(evidence: Evidence) -> Json | None:
    if evidence.decode_fit is None and evidence.prefill_fit is None:
        return None
    return {
        "decode_ms_per_slot": _rounded(evidence.decode_fit),
        "prefill_ms_per_slot": _rounded(evidence.prefill_fit),
        "prefill_form": evidence.prefill_form,
        "prefill_overlap": None if evidence.prefill_form is None else _rounded(evidence.prefill_overlap, 3),
        "decode_residual_percent": _rounded(evidence.residual["decode"], 2),
        "prefill_residual_percent": _rounded(evidence.residual["prefill"], 2),
    }


def _rounded(value: t.Any, digits: int = 5) -> t.Any:
    if value is None:
        return None
    return [round(item, digits) for item in value] if isinstance(value, list) else round(value, digits)


def _table(evidence: Evidence) -> list[Json]:
    """Return one row per split that was tried, in order of layers."""
    rows = []
    for layers in sorted({load.layers for load in evidence.loads}):
        failure = evidence.failed.get(layers)
        aside = evidence.disturbed.get(layers, ())
        reason = _disturbances(evidence, layers) if failure is None else failure.reason
        rows.append(
            {
                "layers": list(layers),
                "status": "ok" if failure is None else failure.status,
                "reason": reason or None,
                "loads": sum(1 for load in evidence.loads if load.layers == layers),
                "disturbed": bool(aside),
                "disturbed_loads": [load.number for load in aside],
                "decode_ms_per_token": _cell(evidence, "decode", layers),
                "prefill_ms": _cell(evidence, "prefill", layers),
                "objective_ms": _cell(evidence, "objective", layers),
            }
        )
    return rows


def _disturbances(evidence: Evidence, layers: Layers) -> str:
    """Return which loads of a split were suspected, why, and whether they were set aside; empty when none was."""
    aside = {load.number for load in evidence.disturbed.get(layers, ())}
    return "; ".join(
        f"load {number} {'was set aside' if number in aside else 'looks disturbed, but counts'}: {reason}"
        for (split, number), reason in sorted(evidence.suspects.items())
        if split == layers
    )


def _cell(evidence: Evidence, kind: str, layers: Layers) -> Json | None:
    """Return mean, interval and prediction of a split, or None when C(kind) was not measured.

    The interval is 95 %, from the noise between loads, pooled over splits; of a single load the range of its samples.
    """
    if not evidence.count(layers):
        return None
    means = evidence.load_means(kind, layers)
    if not means:
        return None
    mean = statistics.fmean(means)
    if len(means) > 1:
        spread, degrees = evidence.spread(kind)
        half = mean * spread * stats.t_quantile(degrees, 0.05) / len(means) ** 0.5
        low, high = max(0.0, mean - half), mean + half
    else:
        low, high = _sample_range(evidence, kind, evidence.ok[layers][0])
    return {
        "mean": round(mean, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "predicted": _rounded(evidence.predicted(kind, layers), 4),
    }


def _sample_range(evidence: Evidence, kind: str, load: Load) -> tuple[float, float]:
    if kind == "objective":
        low, high = (
            evidence._objective(
                load.layers,
                pick(load.decode_samples) if load.decode_samples else None,
                pick(load.prefill_samples) if load.prefill_samples else None,
            )
            for pick in (min, max)
        )
        return low, high
    samples = load.samples(kind)
    return min(samples), max(samples)


def _load_out(problem: Problem, wanted: Wanted) -> Json:
    return {
        "label": layer_split.load_label(wanted.layers, wanted.number),
        "split_mode": "layer",
        "layers": list(wanted.layers),
        "load": wanted.number,
        "purpose": wanted.purpose,
        "tests": [dict(test) for test in problem.raw["tests"]],
    }


# --- sentences -------------------------------------------------------------------------------------------------------


def _only(evidence: Evidence) -> str:
    problem = evidence.problem
    only = evidence.candidates[0]
    used = [name for name, count in zip(problem.names, only.layers, strict=True) if count]
    if len(problem.names) == 1:
        return f"{used[0]} is the only device, so there is nothing to split"
    if len(used) == 1:
        return f"only {used[0]} alone has room for the model, so there is nothing to split"
    return f"{split_name(only.layers)} is the only split that memory allows"


def _failure(load: Load) -> str:
    reason = f" ({load.reason.rstrip('.')})" if load.reason else ""
    return f"{layer_split.load_label(load.layers, load.number)} ended as {load.status}{reason}"


def _why_lost(load: Load) -> str:
    return (
        f"a device was lost: {_failure(load)}; bring the device back (restart its ggml-rpc-server, or look for its "
        "driver's errors in the kernel log) and run again: what was measured before is kept"
    )


def _why_none(evidence: Evidence) -> str:
    problem = evidence.problem
    if problem.fitting:
        return (
            f"every split that memory should allow failed; the last: {_failure(evidence.loads[-1])}; free the devices "
            "or raise the reserve, and run again"
        )
    return memory_plan.why_nothing_fits(
        problem.raw["devices"], problem.memory.model, problem.memory.serving, problem.splits, problem.budgets,
        problem.raw["reserve_mib"],
    )  # fmt: skip


def _why_anchors(evidence: Evidence, anchors: t.Sequence[Candidate]) -> str:
    names = " and ".join(split_name(candidate.layers) for candidate in anchors)
    failed = next((load for load in reversed(evidence.loads) if not load.ok), None)
    before = f"{_failure(failed)}; " if failed is not None else ""
    return (
        f"{before}measure {names}, as far apart as memory allows, to learn what one slot costs on each of "
        f"{', '.join(evidence.problem.names)}"
    )


def _why_confirm(problem: Problem, evidence: Evidence, winner: Candidate, rival: Candidate | None) -> str:
    value = evidence.value("objective", winner.layers)
    about = "" if value is None else f", {_duration(problem, value)},"
    count = len(evidence.candidates) if len(problem.names) <= 2 else problem.search.count()
    text = f"{split_name(winner.layers)} should be the best{about} of {count} splits that fit"
    if rival is None:
        return f"{text}: measure it to confirm"
    other = evidence.value("objective", rival.layers)
    return (
        f"{text}: confirm it against {_called(problem, rival)}"
        + ("" if other is None else f" ({_duration(problem, other)})")
        + ", in loads that take turns"
    )


def _duration(problem: Problem, ms: float) -> str:
    prompt, generated = problem.counted(problem.objective)
    if not prompt:
        return f"{ms / generated:.2f} ms per token"
    what = {"prefill": "prompt", "ttft": "first token"}.get(problem.objective, "request")
    return f"{ms / 1000:.2f} s per {what}" if ms >= 1000 else f"{ms:.1f} ms per {what}"


def _percent(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"


def _called(problem: Problem, candidate: Candidate) -> str:
    name = split_name(candidate.layers)
    return f"{problem.engine}'s default {name}" if candidate.layers == problem.default else name


def _why_decided(evidence: Evidence, chosen: Candidate, other: Candidate | None, verdict: str) -> str:
    """Return the one sentence that a person can check: where the slots are, why there, and how sure that is.

    Where all splits that fit are about as fast, it says so.
    """
    text = _why_chosen(evidence, chosen, other, verdict)
    percent, count = _range_percent(evidence)
    limit = 100 * EQUIVALENCE_FACTOR * evidence.problem.indifference
    if verdict == "only_choice" or percent is None or percent > limit:
        return text
    which = "that fit" if count == len(evidence.candidates) else "over all devices that fit"
    which = which if len(evidence.problem.names) <= 2 else "looked at"
    return f"{text}; the choice barely matters: all {count} splits {which} are within {percent:.1f} % of each other"


def _why_chosen(evidence: Evidence, chosen: Candidate, other: Candidate | None, verdict: str) -> str:
    problem = evidence.problem
    name = split_name(chosen.layers)
    if verdict == "only_choice":
        return f"{name}: {_only(evidence)}"
    if chosen.layers == problem.default:
        name += f", {problem.engine}'s own default"
    text = f"{name}: {_why_there(evidence, chosen)}"
    if other is None and verdict == "no_difference":
        best = min(evidence.objective(candidate.layers) for candidate in evidence.candidates)
        less = _percent(max(0.0, 100 * (1 - best / evidence.objective(chosen.layers))))
        return (
            f"{text}; by the fit, which {len(evidence.ok_loads)} loads bear out, nothing that fits takes more than "
            f"{less} % less {WHAT_COUNTS[problem.objective]}"
        )
    if other is None:
        return f"{text}; nothing else was measured to compare it with"
    result = evidence.compare("objective", chosen.layers, other.layers)
    loads = f"{evidence.count(chosen.layers)} and {evidence.count(other.layers)} loads"
    against = _called(problem, other)
    less = f"{_percent(abs(result.percent))} % {'less' if result.percent >= 0 else 'more'}"
    what = WHAT_COUNTS[problem.objective]
    within = _equal_within(evidence)
    if verdict == "no_difference" and within is not None and (result.low is None or result.high is None):
        count = sum(len(arm) for arm in evidence.ok.values())
        return f"{text}; in {count} loads any two splits took the same {what} within {within:.1f} % (95 %)"
    if result.low is None or result.high is None:
        return f"{text}; {less} {what} than {against}, from too few loads to be sure ({loads})"
    span = f"95 % interval {_percent(result.low)} to {_percent(result.high)} %, {loads}"
    if verdict == "faster":
        return f"{text}; {less} {what} than {against} ({span})"
    roomier = "it leaves more memory free" if _room(chosen) > _room(other) else "it leaves no less memory free"
    if _room(chosen) < _room(other):
        roomier = "the fit favours it"
    if verdict == "no_difference":
        return f"{text}; practically as fast as {against} ({less} {what}, {span}), and {roomier}"
    return (
        f"{text}; its {what} could not be told from that of {against} (measured {less}, {span}; the smallest "
        f"effect visible was {result.smallest_visible:.1f} %), and {roomier}"
    )


def _why_there(evidence: Evidence, chosen: Candidate) -> str:
    """Return what holds the chosen split where it is: memory, the balance of the stages, or room."""
    problem = evidence.problem
    used = [device for device, count in enumerate(chosen.layers) if count]
    where = ", ".join(f"{chosen.layers[d]} of {problem.slots} slots on {problem.names[d]}" for d in used[:-1] or used)
    if len(used) == 1:
        return f"all {problem.slots} slots on {problem.names[used[0]]}, which has room for the whole model"
    here = evidence.predicted("objective", chosen.layers)
    for device in used:
        for giver in used:
            moved = list(chosen.layers)
            moved[device] += 1
            moved[giver] -= 1
            layers = tuple(moved)
            value = evidence.predicted("objective", layers)
            if giver == device or layers in evidence.by_layers or here is None or value is None or value >= here:
                continue
            failure = evidence.failed.get(layers)
            if failure is not None:
                return f"{where}: the most that works, since {_failure(failure)}"
            over = problem.memory.mib(layers)[device] - problem.budgets[device]
            if over > 0:
                return (
                    f"{where}: the most that fits on {problem.names[device]}, one slot more would exceed its "
                    f"{problem.budgets[device]} MiB by {over} MiB"
                )
    fastest = min((c for c in evidence.candidates), key=lambda c: (evidence.objective(c.layers), c.layers))
    best = evidence.objective(fastest.layers)
    roomier = _room(chosen) > _room(fastest)
    if fastest != chosen and roomier and evidence.objective(chosen.layers) <= best * (1 + problem.room_price):
        return (
            f"{where}: within {100 * problem.room_price:g} % of {split_name(fastest.layers)}, the fastest by the "
            f"fit, and {_room(chosen) - _room(fastest)} MiB roomier where it is tightest"
        )
    if "prefill" in problem.kinds and evidence.prefill_fit is not None and evidence.prefill_overlap > 0:
        stages = cost_model.stages_ms(evidence.prefill_fit, chosen.layers)
        if max(stages) - min(stages) <= max(evidence.prefill_fit) * 1.5:
            return f"{where}: the point where the devices take equally long over a micro-batch"
    if fastest == chosen:
        return f"{where}: the best by the fit"
    return f"{where}: {'roomy, and near the best by the fit' if roomier else 'the best that was measured'}"


def _advice(evidence: Evidence, chosen: Candidate) -> list[str]:
    """Return what a person may want to know beside the decision: what was not understood, that one device would do."""
    problem = evidence.problem
    notes = [
        f"the model was not understood in every part, so its memory may be counted wrongly: {str(note).rstrip('.')}"
        for note in problem.memory.model.get("notes") or []
    ]
    return notes + _advice_of_one_device(evidence, chosen)


def _advice_of_one_device(evidence: Evidence, chosen: Candidate) -> list[str]:
    """Return whether one device alone would do, and what that costs or gains."""
    problem = evidence.problem
    singles = [c for c in evidence.candidates if _single(c)]
    if len(problem.names) == 1 or not singles:
        return []
    best = min(singles, key=lambda c: (evidence.objective(c.layers), c.layers))
    name = problem.names[best.layers.index(problem.slots)]
    if _single(chosen):
        return [f"the whole model fits {name} alone and is best there: what else the host has is free for other work"]
    here, there = evidence.objective(chosen.layers), evidence.objective(best.layers)
    if float("inf") in (here, there):
        return [f"the whole model also fits {name} alone, which was not measured"]
    percent = 100 * (there / here - 1)
    how = "measured" if evidence.count(best.layers) else "by the fit, which counts a hop that one device does not make"
    what = f"{abs(percent):.1f} % {'more' if percent >= 0 else 'less'} {WHAT_COUNTS[problem.objective]} ({how})"
    return [
        f"the whole model also fits {name} alone: {what}, and what else the host has would be free for other work"
    ]
