# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The guarded trial of llama.cpp's split mode "tensor". Private to this collection. Pure functions only.

In tensor mode every device works on every block at the same time and holds a share of it, so a token takes
t = max(share_i * S * a_i) + synchronisation, with S slots and a_i ms per slot, as fitted in layer mode. The best shares
are near the ratio of the devices' speeds. llama.cpp floors shares to whole groups of attention heads (attention_units),
so there are few candidates. The mode is experimental: it may refuse, hang, crash or answer wrongly. So it is measured
after the layer split is decided, in loads that are counted apart; a failure is an answer; and before it may win, its
output is compared with layer mode's and it has to last (module split_mode_trial).

1. the predicted best shares, one load for each way to add up (NCCL, the internal one); that is all where the better
   one is far behind layer mode;
2. its neighbours on the grid;
3. confirmation against the layer split, in loads that take turns, L T T L; only these are compared, so that a drift
   cancels. More turns follow while it looks better and is not sure;
4. the trial.

Whatever failed once (shares that ran out of memory, a way to add up that crashed or hung) cannot win any more.
"""

from __future__ import annotations

import itertools
import math
import statistics
import typing as t

from .._base import stats
from .._split import cost_model, layer_split, memory_plan
from .._split.layer_split import Layers, split_name
from .._split.measured_loads import read_loads
from .._split.split_problem import Problem
from .layer_stage import WHAT_COUNTS, Evidence

Json = dict[str, t.Any]

PURPOSE: t.Final = "tensor"
RIVAL_PURPOSE: t.Final = "against_tensor"
TRIAL_PURPOSE: t.Final = "tensor_trial"
#: Loads of tensor mode and of the layer split against it, in all, unless the problem says otherwise.
MAX_LOADS: t.Final = 10
#: Behind layer mode by more than this (relative), tensor mode is not looked at further.
FAR_BEHIND: t.Final = 0.10
#: Shares on more devices than this are only proportional and even ones.
LISTED_DEVICES: t.Final = 3
#: Loads that end without a result before the mode is given up.
MAX_FAILURES: t.Final = 3
#: Turns of one load of each mode that are needed before tensor mode may win.
TURNS: t.Final = 2
#: A load of tensor mode is ended as a hang after this many times the longest load of layer mode, and not before the
#: seconds that follow.
HANG_FACTOR: t.Final = 5
LEAST_TIMEOUT_SECONDS: t.Final = 120
#: How an allreduce is chosen, by llama.cpp's own names.
ENVIRONMENT: t.Final = "GGML_CUDA_ALLREDUCE"


def quantisation_block(file_type: str | None) -> int:
    """Return how many elements of a row one quantisation block of most of a model's tensors has, by its file type.

    256 for K and I quantisations, 32 for the older ones, 1 for floats (ggml's type table).
    """
    name = (file_type or "").upper()
    if "_K" in name or (name.startswith("IQ") and "IQ4_NL" not in name) or name.startswith("TQ"):
        return 256
    return 1 if name in ("F32", "F16", "BF16", "ALL_F32", "MOSTLY_F16", "MOSTLY_BF16") else 32


def attention_units(model: t.Mapping[str, t.Any], devices: int) -> int | None:
    """Return into how many equal parts llama.cpp can divide the attention of a block; None when that is not known.

    As in get_split_granularity of llama.cpp b11312: whole groups of query heads that share a K head, with the rows
    of a quantisation block (at least 128 where the group is wide enough) kept together. 8 for Llama 3.3 70B at Q4_K_M.
    """
    heads, kv_heads, length = (model.get(key) or 0 for key in ("head_count", "head_count_kv", "key_length"))
    if not heads or not kv_heads or not length or heads % kv_heads:
        return None
    group = heads // kv_heads * length
    block = quantisation_block(model.get("file_type"))
    while block < 128 and block * devices < group:
        block *= 2
    units, rest = divmod(heads * length, math.lcm(group, block))
    return None if rest or units < 1 else units


def candidates(problem: Problem, slot_ms: t.Sequence[float] | None) -> list[tuple[float, Layers]]:
    """Return (predicted ms per token without synchronisation, shares), the best first; shares are whole units.

    Only shares whose memory fits, and on which every device has a part. Without a fit the prediction is the largest
    share.
    """
    devices = len(problem.names)
    units = attention_units(problem.memory.model, devices)
    if units is None or units < devices:
        return []
    costs = list(slot_ms) if slot_ms is not None else [1.0] * devices
    if devices <= LISTED_DEVICES:
        cuts = itertools.combinations(range(1, units), devices - 1)
        found = [tuple(b - a for a, b in itertools.pairwise((0, *cut, units))) for cut in cuts]
    else:
        found = [_rounded([1 / max(cost, 1e-9) for cost in costs], units), _rounded([1.0] * devices, units)]
    fitting = [shares for shares in dict.fromkeys(found) if headroom_mib(problem, shares)[1] >= 0]
    return sorted((_predicted_ms(problem, costs, shares, units), shares) for shares in fitting)


def _predicted_ms(problem: Problem, costs: t.Sequence[float], shares: Layers, units: int) -> float:
    return max(share / units * problem.slots * cost for share, cost in zip(shares, costs, strict=True))


def _rounded(weights: t.Sequence[float], units: int) -> Layers:
    """Return whole parts of C(units), at least one each, in proportion to C(weights) by largest remainders."""
    exact = [1 + (units - len(weights)) * weight / sum(weights) for weight in weights]
    parts = [int(value) for value in exact]
    by_rest = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    for index in by_rest[: units - sum(parts)]:
        parts[index] += 1
    return tuple(parts)


def shares_mib(problem: Problem, shares: Layers) -> list[int]:
    """Return the MiB of each device in tensor mode, an estimate: its share of weights and KV cache, a compute buffer.

    llama.cpp's dry run says nothing about single devices in this mode. The compute buffer is counted as if the device
    held the whole model, which is more than it needs.
    """
    whole = tuple(problem.slots if index == 0 else 0 for index in range(len(shares)))
    memory = problem.memory.device(whole, 0)
    part = (memory.weights + memory.kv) / sum(shares)
    return [-(-int(share * part + memory.compute) // memory_plan.MIB) for share in shares]


def headroom_mib(problem: Problem, shares: Layers) -> tuple[list[int], int]:
    """Return what is left of each device's budget, and the least of it."""
    left = memory_plan.headroom_mib(shares_mib(problem, shares), problem.budgets)
    return left, min(left)


# --- what the loads say ----------------------------------------------------------------------------------------------


class Measured:
    """The loads of tensor mode and of the layer split against it, and what they say."""

    def __init__(
        self,
        evidence: Evidence,
        layers: Layers,
        micro_batch: int,
        loads: t.Sequence[Json],
        longest_ms: float | None = None,
    ) -> None:
        """Take what the layer splits say, the chosen one with its micro-batch, all loads of the later stages, and how
        long the longest load of layer mode took (ms), where that is known."""
        self.evidence, self.layers, self.micro_batch, self.longest_ms = evidence, layers, micro_batch, longest_ms
        self.problem = evidence.problem
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
        #: (shares, way) -> objective of each load
        self.times: dict[tuple[Layers, str], list[float]] = {}
        self.rival_times: list[float] = []
        self.decode: dict[tuple[Layers, str], list[float]] = {}
        self.prefill: dict[tuple[Layers, str], list[float]] = {}
        for load in self.loads:
            if load["status"] != "ok":
                continue
            decode, prefill = self._read(load)
            value = self._objective(decode, prefill, load["purpose"] == RIVAL_PURPOSE)
            if load["purpose"] == RIVAL_PURPOSE:
                self.rival_times.append(value)
                continue
            key = (tuple(load["layers"]), way_of(load))
            self.times.setdefault(key, []).append(value)
            for known, ms in ((self.decode, decode), (self.prefill, prefill)):
                if ms is not None:
                    known.setdefault(key, []).append(ms)
        self.bad_shares = {tuple(load["layers"]) for load in self.failed if load["status"] == "out_of_memory"}
        self.bad_ways = {way_of(load) for load in self.failed if load["status"] != "out_of_memory"}
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
                    self.evidence.prefill_fit, self.layers, problem.prefill_test.n_prompt, prompt, self.micro_batch,
                    self.evidence.prefill_overlap,
                )  # fmt: skip
            total += prefill * scale
        return total

    @property
    def layer_times(self) -> list[float]:
        """The objective of each load of the layer split; those of before count while there is no other micro-batch."""
        before = []
        if self.micro_batch == self.problem.micro_batch:
            before = self.evidence.load_means("objective", self.layers)
        return [*before, *self.rival_times]

    @property
    def layer_ms(self) -> float:
        """The objective of the layer split, as far as known."""
        known = self.layer_times or self.evidence.load_means("objective", self.layers)
        return statistics.fmean(known)

    def mean(self, key: tuple[Layers, str]) -> float:
        """Return the mean objective of shares, added up in one way."""
        return statistics.fmean(self.times[key])

    @property
    def best(self) -> tuple[Layers, str] | None:
        """The fastest shares that were measured and never failed, with the way to add up."""
        sound = [key for key in self.times if key[0] not in self.bad_shares and key[1] not in self.bad_ways]
        return min(sound, key=lambda key: (self.mean(key), key), default=None)

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


def way_of(load: t.Mapping[str, t.Any]) -> str:
    """Return the way to add up that a load was measured with, empty for llama.cpp's own choice."""
    return str((load.get("environment") or {}).get(ENVIRONMENT, ""))


def wanted(problem: Problem, layers: Layers) -> str | None:
    """Return why tensor mode is not tried, or None when it is to be."""
    if "tensor" not in problem.raw["split_modes"]:
        return "it is not among the split modes that are allowed"
    if len(problem.names) < 2:
        return "there is one device alone"
    if not memory_plan.flash_attention(problem.memory.serving):
        return "it needs flash attention, which is off"
    units = attention_units(problem.memory.model, len(problem.names))
    if units is None:
        return "how llama.cpp would divide this model's attention is not known"
    if units < len(problem.names):
        return f"the model's attention divides into {units} parts, fewer than there are devices"
    if not candidates(problem, None):
        return "no shares of it fit the devices' memory"
    return None


def next_loads(state: Measured) -> list[Json]:
    """Return the next loads, in this order; an empty list when nothing more is worth measuring."""
    problem, slot_ms = state.problem, state.evidence.decode_fit
    if state.trial is not None or state.left <= 0 or _hopeless(state):
        return []
    listed = candidates(problem, slot_ms)
    ways = [way for way in state.ways if way not in state.bad_ways]
    listed = [(ms, shares) for ms, shares in listed if shares not in state.bad_shares]
    if not ways or not listed:
        return []
    first = listed[0][1]
    for way in ways:
        if not any(key[1] == way for key in state.times):
            return [_load(state, first, way)]
    best = state.best
    if best is None:
        return []
    if state.mean(best) > state.layer_ms * (1 + FAR_BEHIND):
        return []
    if fresh := _neighbour(state, best, [shares for _ms, shares in listed]):
        return [_load(state, fresh, best[1])]
    verdict = _verdict(state)
    open_turns = state.turns < TURNS and verdict != "slower"
    if state.turns >= TURNS and verdict == "inconclusive":
        result = state.compare()
        open_turns = result is not None and result.percent > 100 * problem.indifference
    if open_turns and state.left >= 2 and not state.rival_failed:
        turn = [_rival(state), _load(state, best[0], best[1])]
        return turn if state.turns % 2 == 0 else turn[::-1]
    return []


def _hopeless(state: Measured) -> bool:
    return len(state.failed) >= MAX_FAILURES or any(load["status"] == "device_lost" for load in state.failed)


def _neighbour(state: Measured, best: tuple[Layers, str], listed: t.Sequence[Layers]) -> Layers | None:
    """Return the shares one unit away from the best that are to be measured next, the better predicted first."""
    tried = {tuple(load["layers"]) for load in state.loads if load["purpose"] == PURPOSE}
    near = [shares for shares in listed if sum(abs(a - b) for a, b in zip(shares, best[0], strict=True)) == 2]
    fresh = [shares for shares in near if shares not in tried]
    # a step to each side of the first guess, no more
    return fresh[0] if fresh and len(tried) < 1 + 2 * (len(best[0]) - 1) else None


def _load(state: Measured, shares: Layers, way: str) -> Json:
    number = 1 + sum(
        1 for load in state.loads
        if load["purpose"] == PURPOSE and tuple(load["layers"]) == shares and way_of(load) == way
    )  # fmt: skip
    environment = {ENVIRONMENT: way} if way else {}
    load = {
        "label": f"tensor {split_name(shares)}{f' {way}' if way else ''} load {number}",
        "split_mode": "tensor",
        "layers": list(shares),
        "load": number,
        "purpose": PURPOSE,
        "environment": environment,
        "tests": _tests(state),
    }
    if state.longest_ms:
        load["timeout_seconds"] = max(LEAST_TIMEOUT_SECONDS, math.ceil(HANG_FACTOR * state.longest_ms / 1000))
    return load


def _rival(state: Measured) -> Json:
    number = state.evidence.next_number(state.layers) + state.numbers_taken
    return {
        "label": layer_split.load_label(state.layers, number),
        "split_mode": "layer",
        "layers": list(state.layers),
        "load": number,
        "purpose": RIVAL_PURPOSE,
        "tests": _tests(state),
    }


def _tests(state: Measured) -> list[Json]:
    tests = [dict(test) for test in state.problem.raw["tests"]]
    if state.micro_batch == state.problem.micro_batch:
        return tests
    return [{**test, "micro_batch_size": state.micro_batch} for test in tests]


def _verdict(state: Measured) -> str:
    """Return faster, slower or inconclusive for tensor mode, by the 95 % interval between loads.

    An experimental mode has to be faster by the indifference at least, with the whole interval.
    """
    result = state.compare()
    if result is None:
        return "not_usable"
    limit = 100 * state.problem.indifference
    if result.low is None or result.high is None:
        return "slower" if result.percent < -100 * FAR_BEHIND else "inconclusive"
    if result.low > limit and state.turns >= TURNS:
        return "faster"
    if result.high <= limit or result.percent < -100 * FAR_BEHIND:
        return "slower"
    return "inconclusive"


def trial(state: Measured) -> Json | None:
    """Return the trial that the mode has to pass before it may win, or None when it is not due.

    An item like a load, for the module split_mode_trial: what is tried, and the layer split as the reference.
    """
    if state.trial is not None or _verdict(state) != "faster" or state.best is None:
        return None
    shares, way = state.best
    return {
        "label": f"trial of tensor {split_name(shares)}{f' {way}' if way else ''}",
        "split_mode": "tensor",
        "layers": list(shares),
        "load": 1,
        "purpose": TRIAL_PURPOSE,
        "environment": {ENVIRONMENT: way} if way else {},
        "micro_batch_size": state.micro_batch,
        "reference": {"split_mode": "layer", "layers": list(state.layers)},
    }


def outcome(state: Measured) -> Json:
    """Return what became of the mode: {verdict, why, layers, environment, table, trial, ...}.

    C(verdict) is faster (it passed the trial and is to be served), rejected (faster, but the trial failed), slower,
    inconclusive or not_usable.
    """
    problem = state.problem
    verdict = _verdict(state)
    if verdict == "faster":
        verdict = "faster" if state.trial is not None and state.trial["status"] == "ok" else "rejected"
    result = state.compare()
    best = state.best
    return {
        "verdict": verdict,
        "why": _why(state, verdict),
        "layers": None if best is None else list(best[0]),
        "layer_split": list(state.layers),
        "environment": {ENVIRONMENT: best[1]} if best is not None and best[1] else {},
        "less_percent": None if result is None else round(result.percent, 2),
        "interval_percent": (
            None
            if result is None or result.low is None or result.high is None
            else [round(result.low, 2), round(result.high, 2)]
        ),
        "attention_units": attention_units(problem.memory.model, len(problem.names)),
        "mib": None if best is None else shares_mib(problem, best[0]),
        "headroom_mib": None if best is None else headroom_mib(problem, best[0])[0],
        "decode_tokens_per_second": _per_second(state.decode, best, 1),
        "prefill_tokens_per_second": _per_second(
            state.prefill, best, problem.prefill_test.n_prompt if problem.prefill_test else 0
        ),
        "loads": len(state.loads),
        "table": _table(state),
        "trial": state.trial,
    }


def _per_second(known: t.Mapping[t.Any, list[float]], key: t.Any, tokens: int) -> float | None:
    return round(1000 * tokens / statistics.fmean(known[key]), 3) if key in known else None


def _table(state: Measured) -> list[Json]:
    rows: dict[tuple[Layers, str], Json] = {}
    for load in state.loads:
        if load["purpose"] != PURPOSE:
            continue
        key = (tuple(load["layers"]), way_of(load))
        empty = {"layers": list(key[0]), "allreduce": key[1] or None, "loads": 0, "status": "ok", "reason": None}
        row = rows.setdefault(key, empty)
        row["loads"] += 1
        if load["status"] != "ok":
            row.update(status=load["status"], reason=load.get("reason"))
    for key, row in rows.items():
        shown = {"decode_ms_per_token": state.decode, "prefill_ms": state.prefill, "objective_ms": state.times}
        for name, known in shown.items():
            row[name] = round(statistics.fmean(known[key]), 4) if key in known else None
    return [rows[key] for key in sorted(rows)]


def _more(less_percent: float) -> str:
    return "less" if less_percent > 0 else "more"


def _why(state: Measured, verdict: str) -> str:
    what = WHAT_COUNTS[state.problem.objective]
    best, result = state.best, state.compare()
    if best is None or result is None:
        reason = next((load.get("reason") or load["status"] for load in state.failed), "nothing was measured")
        return f"tensor mode is not usable here: {reason.rstrip('.')}"
    name = f"tensor mode {split_name(best[0])}{f' with the {best[1]} allreduce' if best[1] else ''}"
    span = ""
    if result.low is not None and result.high is not None:
        span = f" (95 % interval {result.low:.1f} to {result.high:.1f} %)"
    if verdict == "slower":
        return f"{name} takes {abs(result.percent):.1f} % {_more(result.percent)} {what} than layer mode{span}"
    if verdict == "inconclusive":
        difference = f"{abs(result.percent):.1f} % {_more(result.percent)} {what}"
        return f"{name} could not be told from layer mode: {difference}{span}; layer mode is kept"
    if verdict == "rejected":
        reason = "its trial was not run"
        if state.trial is not None:
            reason = state.trial.get("reason") or state.trial["status"]
        return f"{name} takes {result.percent:.1f} % less {what}{span}, but is not trusted: {reason.rstrip('.')}"
    return f"{name} takes {result.percent:.1f} % less {what} than layer mode{span}, and passed its trial"
