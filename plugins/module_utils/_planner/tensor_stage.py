# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The guarded trial of split mode "tensor". Private to this collection. Pure functions only.

In tensor mode every device works on every block at the same time and holds a share of it, so a token takes
t = max(share_i * S * a_i) + synchronisation, with S layers and a_i ms per layer, as fitted in layer mode. The best
shares are near the ratio of the devices' speeds, and there are few of them (tensor_shares.py). The mode is
experimental: it may refuse, hang, crash or answer wrongly. So it is measured after the layer split is decided, in loads
that are counted apart. A failure is an answer. Before the mode may win, its output is compared with that of layer mode,
and it has to last (module split_mode_trial; of ExLlamaV3, whose loads all answer a fixed text, a load with a soak).

1. the predicted best shares, one load for each all-reduce that was built in (NCCL, the internal or native one), unless
   it already ran in place of another; that is all where the better one is far behind layer mode;
2. the neighbours of these shares on the grid;
3. confirmation against the layer split, in loads that take turns, L T T L; only these are compared, so that a drift
   cancels. More turns follow while tensor mode looks better and that is not sure;
4. the trial.

Whatever failed once (shares that ran out of memory, an all-reduce that crashed or hung) cannot win any more. An arm is
named by the all-reduce that ran, as the log tells it, and not by the one that was asked for.
"""

from __future__ import annotations

import math
import statistics
import typing as t

from .._base.fields import is_whole
from .._base.types import Json
from .._split import allreduce, engines, layer_split, memory_plan, network_links
from .._split.layer_split import Layers, split_name
from .._split.split_problem import Problem
from . import mode_table, tensor_shares, why
from .evidence import Evidence
from .tensor_loads import MAX_LOADS, PURPOSE, RIVAL_PURPOSE, TRIAL_PURPOSE, TURNS, TensorLoads

#: Behind layer mode by more than this (relative), tensor mode is not looked at further.
FAR_BEHIND: t.Final = 0.10
#: Loads that end without a result before the mode is given up.
MAX_FAILURES: t.Final = 3
#: A load of tensor mode is ended as a hang after this many times the longest load of layer mode, and not before the
#: seconds that follow.
HANG_FACTOR: t.Final = 5
LEAST_TIMEOUT_SECONDS: t.Final = 120


def check(settings: t.Any) -> None:
    """Raise ValueError, naming the field, for settings of tensor mode that are none."""
    if settings is None:
        return
    if not isinstance(settings, t.Mapping):
        raise ValueError(f"problem.tensor must be a dict, not {type(settings).__name__}")
    ways, most = settings.get("allreduce", []), settings.get("max_loads", MAX_LOADS)
    if not isinstance(ways, list) or not all(isinstance(way, str) for way in ways):
        raise ValueError(f"problem.tensor.allreduce must be a list of names, not {ways!r}")
    if not is_whole(most, 1):
        raise ValueError(f"problem.tensor.max_loads must be a whole number of at least 1, not {most!r}")


def plan(found: Json, evidence: Evidence, later: t.Sequence[Json], longest_ms: float) -> Json:
    """Return the plan with what tensor mode asks for, or with its outcome in the decision.

    C(found) is the plan of the stages before, C(later) the loads of the stages after the layer split, C(longest_ms) how
    long the longest load of layer mode took.
    """
    decision = found["decision"]
    if decision is None:
        return found
    layers: Layers = tuple(decision["layers"])
    why_not = wanted(evidence.problem, layers)
    if why_not is not None:
        asked = "tensor" in evidence.problem.raw["split_modes"]
        tried = {"verdict": "not_tried", "why": f"tensor mode was not tried: {why_not}"} if asked else None
        return {**found, "decision": {**decision, "environment": {}, "tensor": tried}}
    state = TensorLoads(evidence, layers, decision["micro_batch_size"], later, longest_ms)
    loads = next_loads(state)
    next_trial = None if loads else trial(state)
    trials = [next_trial] if next_trial is not None else []
    if loads or trials:
        labels = ", ".join(item["label"] for item in [*loads, *trials])
        return {
            **found,
            "done": False,
            "stage": "tensor" if loads else "tensor_trial",
            "why": f"{split_name(layers)} is settled in layer mode; now split mode tensor: {labels}",
            "loads": loads,
            "trials": trials,
            "decision": None,
        }
    decision = _settled(decision, outcome(state))
    decision["advice"] = [*decision["advice"], *why.tensor_advice(state)]
    return {**found, "decision": decision, "why": decision["why"]}


def _settled(decision: Json, found: Json) -> Json:
    """Return the decision with the outcome of tensor mode; where the mode won, it is what is served."""
    decision = {**decision, "environment": {}, "tensor": found}
    if found["verdict"] != "faster":
        return {**decision, "why": f"{decision['why']}; {found['why']}"}
    taken = (
        "layers", "environment", "mib", "headroom_mib", "decode_tokens_per_second", "prefill_tokens_per_second",
    )  # fmt: skip
    return {
        **decision,
        **{name: found[name] for name in taken},
        "split_mode": "tensor",
        "single_device": False,
        # what was said of layer splits holds for layer splits alone
        "verdict": "faster",
        "advice": [],
        "best_by_objective": {},
        "range_percent": None,
        "gain_over_default_percent": _gain(decision["gain_over_default_percent"], found["less_percent"]),
        "gain_interval_percent": None,
        "why": f"{found['why']}. The best in layer mode: {decision['why']}",
    }


def _gain(layer_percent: float | None, tensor_percent: float) -> float | None:
    """Return how much less tensor mode takes than llama.cpp's default: layer mode's gain, and that over layer mode."""
    if layer_percent is None:
        return None
    return round(100 - (100 - layer_percent) * (100 - tensor_percent) / 100, 2)


def wanted(problem: Problem, layers: Layers) -> str | None:
    """Return why tensor mode is not tried, or None when it is to be."""
    if "tensor" not in problem.raw["split_modes"]:
        return "it is not among the split modes that are allowed"
    engine = engines.of(problem.memory.serving)
    if "mode" not in engine.stages:
        return f"{engine.display} is measured by layer alone"
    if len(problem.names) < 2:
        return "there is one device alone"
    if far := _on_another_host(problem):
        return f"{far} is on another host, and each layer would wait for the network twice"
    if not memory_plan.flash_attention(problem.memory.serving):
        return "it needs flash attention, which is off"
    units = tensor_shares.units_of(problem)
    if units is None:
        return f"how {engine.display} would divide this model's attention is not known"
    if units < len(problem.names):
        return f"the model's attention divides into {units} parts, fewer than there are devices"
    if not tensor_shares.candidates(problem, None):
        return "no shares of it fit the devices' memory"
    return (problem.raw.get("tensor") or {}).get("refused")


def _on_another_host(problem: Problem) -> str | None:
    """Return the first device that is reached over a network, None where there is none."""
    for device in problem.raw["devices"]:
        if device["backend"] == "RPC" and network_links.remote([str(device["id"])]):
            return f"{device['device']} ({device['id']})"
    return None


def next_loads(state: TensorLoads) -> list[Json]:
    """Return the next loads, in this order; an empty list when nothing more is worth measuring."""
    problem, slot_ms = state.problem, state.evidence.decode_fit
    if state.trial is not None or state.left <= 0 or _hopeless(state):
        return []
    listed = tensor_shares.candidates(problem, slot_ms)
    ways = [way for way in state.ways if way not in state.bad_ways]
    listed = [(ms, shares) for ms, shares in listed if shares not in state.bad_shares]
    if not ways or not listed:
        return []
    first = listed[0][1]
    for way in ways:
        if way not in state.tried_ways:
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
    if open_turns and not state.rival_failed:
        return _turn(state, best)
    return []


def _turn(state: TensorLoads, best: tuple[Layers, str]) -> list[Json]:
    """Return a load of each mode, the other one first in each next turn, or the load that a begun turn lacks."""
    own, rivals = len(state.times[best]) - 1, len(state.rival_times)
    turn = [_rival(state), _load(state, best[0], best[1])]
    if own != rivals:
        return turn[1:] if own < rivals else turn[:1]
    if state.left < len(turn):
        return []
    return turn if own % 2 == 0 else turn[::-1]


def _hopeless(state: TensorLoads) -> bool:
    return len(state.failed) >= MAX_FAILURES or any(load["status"] == "device_lost" for load in state.failed)


def _neighbour(state: TensorLoads, best: tuple[Layers, str], listed: t.Sequence[Layers]) -> Layers | None:
    """Return the shares one unit away from the best that are to be measured next, the better predicted first."""
    tried = {tuple(load["layers"]) for load in state.loads if load["purpose"] == PURPOSE}
    near = [shares for shares in listed if sum(abs(a - b) for a, b in zip(shares, best[0], strict=True)) == 2]
    fresh = [shares for shares in near if shares not in tried]
    # a step to each side of the first guess, no more
    return fresh[0] if fresh and len(tried) < 1 + 2 * (len(best[0]) - 1) else None


def _load(state: TensorLoads, shares: Layers, way: str) -> Json:
    number = 1 + sum(
        1 for load in state.loads
        if load["purpose"] == PURPOSE and tuple(load["layers"]) == shares and allreduce.asked(load) == way
    )  # fmt: skip
    load = {
        "label": f"tensor {split_name(shares)}{f' {way}' if way else ''} load {number}",
        "split_mode": "tensor",
        "layers": list(shares),
        "load": number,
        "purpose": PURPOSE,
        "environment": allreduce.environment(way, state.family),
        "tests": _tests(state),
    }
    if state.longest_ms:
        load["timeout_seconds"] = max(LEAST_TIMEOUT_SECONDS, math.ceil(HANG_FACTOR * state.longest_ms / 1000))
    return load


def _rival(state: TensorLoads) -> Json:
    number = state.evidence.next_number(state.layers) + state.numbers_taken
    return {
        "label": layer_split.load_label(state.layers, number),
        "split_mode": "layer",
        "layers": list(state.layers),
        "load": number,
        "purpose": RIVAL_PURPOSE,
        "tests": _tests(state),
    }


def _tests(state: TensorLoads) -> list[Json]:
    tests = [dict(test) for test in state.problem.raw["tests"]]
    if state.micro_batch == state.problem.micro_batch:
        return tests
    return [{**test, "micro_batch_size": state.micro_batch} for test in tests]


def _verdict(state: TensorLoads) -> str:
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


def trial(state: TensorLoads) -> Json | None:
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
        "environment": allreduce.environment(way, state.family),
        "micro_batch_size": state.micro_batch,
        "reference": {"split_mode": "layer", "layers": list(state.layers)},
    }


def outcome(state: TensorLoads) -> Json:
    """Return what became of the mode: {verdict, why, layers, environment, table, trial, ...}.

    C(verdict) is faster (it passed the trial and is to be served), rejected (faster, but the trial failed), slower,
    inconclusive or not_usable.
    """
    problem = state.problem
    verdict = _verdict(state)
    if verdict == "faster":
        verdict = "rejected" if state.distrust else "faster"
    result = state.compare()
    best = state.best
    return {
        "verdict": verdict,
        "why": why.tensor_mode(state, verdict),
        "layers": None if best is None else list(best[0]),
        "layer_split": list(state.layers),
        "environment": allreduce.environment(best[1], state.family) if best is not None else {},
        "allreduce": _allreduce(state),
        "less_percent": None if result is None else round(result.percent, 2),
        "interval_percent": (
            None
            if result is None or result.low is None or result.high is None
            else [round(result.low, 2), round(result.high, 2)]
        ),
        "attention_units": tensor_shares.units_of(problem),
        "mib": None if best is None else tensor_shares.shares_mib(problem.memory, best[0]),
        "headroom_mib": None if best is None else tensor_shares.headroom_mib(problem, best[0])[0],
        "decode_tokens_per_second": _per_second(state.decode, best, 1),
        "prefill_tokens_per_second": _per_second(
            state.prefill, best, problem.prefill_test.n_prompt if problem.prefill_test else 0
        ),
        "loads": len(state.loads),
        "table": mode_table.rows(state, verdict),
        "trial": state.trial,
    }


def _allreduce(state: TensorLoads) -> Json | None:
    """Return what ran in the best of tensor mode, as the trial's server or the last load that tells says."""
    return None if state.best is None else next(
        (found for found in reversed(state.seen) if found["ran"] == state.best[1]), None
    )


def _per_second(known: t.Mapping[t.Any, list[float]], key: t.Any, tokens: int) -> float | None:
    return round(1000 * tokens / statistics.fmean(known[key]), 3) if key in known else None
