# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the loads of split mode tensor and of the layer split against it say. Private to this collection. Pure."""

from __future__ import annotations

import statistics
import typing as t

from .._base import stats
from .._base.types import Json
from .._split import allreduce, cost_model, engines, text_likelihood
from .._split.layer_split import Layers
from .._split.measured_loads import read_loads
from .evidence import Evidence

PURPOSE: t.Final = "tensor"
RIVAL_PURPOSE: t.Final = "against_tensor"
TRIAL_PURPOSE: t.Final = "tensor_trial"
#: Loads of tensor mode and of the layer split against it, in all, unless the problem says otherwise.
MAX_LOADS: t.Final = 10
#: Turns of one load of each mode that are needed before tensor mode may win.
TURNS: t.Final = 2


class TensorLoads:
    """The loads of tensor mode and of the layer split against it, and what they say."""

    def __init__(
        self,
        evidence: Evidence,
        layers: Layers,
        micro_batch: int,
        loads: t.Sequence[Json],
        longest_ms: float | None,
    ) -> None:
        """Take what the layer splits say, the chosen one with its micro-batch, all loads of the later stages, and how
        long the longest load of layer mode took (ms), where that is known."""
        self.evidence, self.layers, self.micro_batch, self.longest_ms = evidence, layers, micro_batch, longest_ms
        self.problem = evidence.problem
        self.family = engines.of(self.problem.memory.serving).family
        self.loads = [load for load in loads if load["purpose"] in (PURPOSE, RIVAL_PURPOSE)]
        #: Loads of the layer split in any later stage, failures included: their numbers are taken.
        self.numbers_taken = sum(
            1 for load in loads if load["split_mode"] == "layer" and tuple(load["layers"]) == layers
        )
        self.trial = next((load for load in reversed(loads) if load["purpose"] == TRIAL_PURPOSE), None)
        self.failed = [load for load in self.loads if load["purpose"] == PURPOSE and load["status"] != "ok"]
        settings = self.problem.raw.get("tensor") or {}
        self.ways: list[str] = list(settings.get("allreduce") or [""])
        self.left = int(settings.get("max_loads") or MAX_LOADS) - len(self.loads)
        #: All-reduces that were measured, or stood in for by another that ran.
        self.tried_ways: set[str] = set()
        #: (shares, way) -> objective of each load
        self.times: dict[tuple[Layers, str], list[float]] = {}
        self.rival_times: list[float] = []
        self.rival_decode: list[float] = []
        self.rival_prefill: list[float] = []
        self.decode: dict[tuple[Layers, str], list[float]] = {}
        self.prefill: dict[tuple[Layers, str], list[float]] = {}
        for load in self.loads:
            if load["status"] != "ok":
                continue
            decode, prefill = self._read(load)
            value = self._objective(decode, prefill, load["purpose"] == RIVAL_PURPOSE)
            if load["purpose"] == RIVAL_PURPOSE:
                self.rival_times.append(value)
                self.rival_decode += [] if decode is None else [decode]
                self.rival_prefill += [] if prefill is None else [prefill]
                continue
            key = (tuple(load["layers"]), allreduce.of_load(load))
            self.times.setdefault(key, []).append(value)
            self.tried_ways |= {allreduce.asked(load), key[1]}
            for known, ms in ((self.decode, decode), (self.prefill, prefill)):
                if ms is not None:
                    known.setdefault(key, []).append(ms)
        self.bad_shares = {tuple(load["layers"]) for load in self.failed if load["status"] == "out_of_memory"}
        self.bad_ways = {allreduce.of_load(load) for load in self.failed if load["status"] != "out_of_memory"}
        self.rival_failed = any(
            load["purpose"] == RIVAL_PURPOSE and load["status"] != "ok" for load in self.loads
        )

    def _read(self, load: Json) -> tuple[float | None, float | None]:
        # the shares have another sum than a split has slots; their results are read alike
        (read,) = read_loads(self.problem, [{**load, "split_mode": "layer", "layers": list(self.layers)}])
        return read.decode, read.prefill

    def _objective(self, decode: float | None, prefill: float | None, layer: bool) -> float:
        """Return the objective in ms. A prompt of another length than the tested one takes time in proportion to it."""
        problem = self.problem
        prompt, generated = problem.counted(problem.objective)
        total = (decode or 0.0) * generated
        if prompt and prefill is not None and problem.prefill_test is not None:
            scale = prompt / problem.prefill_test.n_prompt
            if layer:
                scale = cost_model.prefill_scale(
                    self.evidence.prefill_fit, problem.weights.amounts("prefill", self.layers),
                    problem.prefill_test.n_prompt, prompt, self.micro_batch, self.evidence.prefill_overlap,
                )  # fmt: skip
            total += prefill * scale
        return total

    @property
    def layer_times(self) -> list[float]:
        """The objective of each load of the layer split; those of before count while there is no other micro-batch."""
        return [*self.before("objective"), *self.rival_times]

    def before(self, quantity: str) -> list[float]:
        """The decode, prefill or objective time of each load of the layer split before this stage; none at another
        micro-batch."""
        same = self.micro_batch == self.problem.micro_batch
        return list(self.evidence.load_means(quantity, self.layers)) if same else []

    @property
    def layer_ms(self) -> float:
        """The objective of the layer split, as far as known."""
        known = self.layer_times or self.evidence.load_means("objective", self.layers)
        return statistics.fmean(known)

    def mean(self, key: tuple[Layers, str]) -> float:
        """Return the mean objective of shares with an all-reduce."""
        return statistics.fmean(self.times[key])

    @property
    def best(self) -> tuple[Layers, str] | None:
        """The fastest shares that were measured and never failed, with the all-reduce."""
        sound = [key for key in self.times if key[0] not in self.bad_shares and key[1] not in self.bad_ways]
        return min(sound, key=lambda key: (self.mean(key), key), default=None)

    @property
    def seen(self) -> list[Json]:
        """What loads of tensor mode, and the trial, say of the all-reduce that ran; the trial last."""
        found = [load["allreduce"] for load in self.loads if load["purpose"] == PURPOSE and load.get("allreduce")]
        tried = allreduce.of_trial(self.trial)
        return [*found, *([tried] if tried else [])]

    @property
    def distrust(self) -> str:
        """Why the mode is not trusted, as its trial says; empty where it passed."""
        if self.trial is None:
            return "its trial was not run"
        if self.trial["status"] != "ok":
            return str(self.trial.get("reason") or self.trial["status"])
        rivals = [load for load in self.loads if load["purpose"] == RIVAL_PURPOSE]
        return text_likelihood.difference(rivals, [self.trial])

    @property
    def turns(self) -> int:
        """How many turns, one load of each mode, the best shares and the layer split have had."""
        return 0 if self.best is None else min(len(self.times[self.best]) - 1, len(self.rival_times))

    @property
    def spread(self) -> tuple[float, int]:
        """The relative standard deviation between loads, pooled over all arms of both modes, and its degrees."""
        own = [self.evidence.load_means("objective", layers) for layers in self.evidence.ok]
        arms = [*self.times.values(), *own, self.rival_times]
        return stats.pooled_spread(arm for arm in arms if arm)

    def compare(self) -> cost_model.Comparison | None:
        """Return how much less the best of tensor mode takes than the layer split; None where it was not measured.

        From the loads that took turns as soon as there are enough of them; before that from all that is known, and
        without an interval where the layer split was not measured at this micro-batch.
        """
        if self.best is None:
            return None
        if self.turns >= TURNS:
            return cost_model.compare(self.times[self.best][1:], self.rival_times, self.spread)
        if not self.layer_times:
            return cost_model.compare(self.times[self.best], [self.layer_ms], (0.0, 0))
        return cost_model.compare(self.times[self.best], self.layer_times, self.spread)
