# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import collections
import copy
import json
import math
import pathlib
import random
import re
import types
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import (
    choice,
    failed_loads,
    layer_stage,
    remaining_splits,
    stages,
    why,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner.evidence import Evidence
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    cost_model,
    layer_weights,
    measured_loads,
    memory_plan,
    split_cost,
    split_problem,
)

Json = dict[str, t.Any]

TESTS: list[Json] = [
    {"kind": "prefill", "n_prompt": 1024, "n_gen": 0, "n_depth": 0, "repetitions": 2},
    {"kind": "decode", "n_prompt": 0, "n_gen": 64, "n_depth": 0, "repetitions": 3},
]


TEST_KEYS = ("kind", "n_prompt", "n_gen", "n_depth")


def make_problem(
    free: t.Sequence[int] = (24000, 24000),
    budget: t.Sequence[int | None] | None = None,
    objective: str = "request",
    prompt_tokens: int = 1024,
    **changes: t.Any,
) -> Json:
    """Return the problem of a small model, 32 equal blocks of 12 MiB, on devices with C(free) MiB."""
    blocks = changes.pop("blocks", 32)
    return {
        "schema": 1,
        "devices": [
            {"device": f"RPC{i}", "id": f"127.0.0.1:{50052 + i}", "backend": "RPC", "description": "", "total_mib": mib,
             "free_mib": mib, "budget_mib": (budget or [None] * len(free))[i]}
            for i, mib in enumerate(free)
        ],
        "model": {
            "path": "/srv/models/sandbox.gguf", "name": "sandbox", "block_count": blocks,
            "block_bytes": [12 * 2**20] * blocks, "output_bytes": 2**20, "embedding_length": 1024,
            "vocabulary_size": 512, "feed_forward_length": 2816, "head_count": 8,
            "kv_k_elements_per_token": [512] * blocks, "kv_v_elements_per_token": [512] * blocks,
        },
        "serving": {
            "context_size": 2048, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
            "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16", "threads": 1, "poll": 0,
            "load_mode": "auto", "gpu_layers": 99,
        },
        "reserve_mib": 0,
        "split_modes": ["layer"],
        "objective": {"name": objective, "prompt_tokens": prompt_tokens, "generated_tokens": 256},
        "tests": copy.deepcopy(TESTS),
        "indifference": 0.01,
        "max_loads": 7,
        **changes,
    }


class Pair:
    """Devices of known speed: decoding is a sum with a hop, prefill a pipeline, and every load has its own luck."""

    def __init__(
        self, decode: t.Sequence[float], prefill: t.Sequence[float], noise: float = 0.0, seed: int = 0, hop: float = 0.0
    ) -> None:
        self.decode, self.prefill, self.noise, self.hop = decode, prefill, noise, hop
        self.random = random.Random(seed)
        #: How heavy layers are; all equal, the output layer among them, where it is None.
        self.weights: layer_weights.LayerWeights | None = None

    def amounts(self, kind: str, layers: t.Sequence[int]) -> tuple[float, ...]:
        return (self.weights or layer_weights.equal(sum(layers))).amounts(kind, layers)

    def decode_ms(self, layers: t.Sequence[int]) -> float:
        hops = sum(1 for count in layers if count) - 1
        return cost_model.decode_ms(self.decode, self.amounts("decode", layers)) + self.hop * hops

    def prefill_ms(self, layers: t.Sequence[int], tokens: int) -> float:
        return self.overlapping(layers, cost_model.micro_batches(tokens, 512), 1.0)

    def overlapping(self, layers: t.Sequence[int], batches: int, overlap: float) -> float:
        return cost_model.prefill_ms(self.prefill, self.amounts("prefill", layers), batches, overlap)

    def objective_ms(self, problem: Json, layers: t.Sequence[int]) -> float:
        wanted = problem["objective"]
        total = 0.0
        if wanted["name"] != "prefill":
            total += self.decode_ms(layers) * wanted["generated_tokens"]
        if wanted["name"] != "decode":
            total += self.prefill_ms(layers, wanted["prompt_tokens"])
        return total

    def luck(self, size: float) -> float:
        return math.exp(self.random.gauss(0, size))

    def measure(self, load: Json) -> Json:
        results = []
        for test in load["tests"]:
            if test["kind"] == "decode":
                ms = self.decode_ms(load["layers"]) * test["n_gen"]
            else:
                ms = self.prefill_ms(load["layers"], test["n_prompt"])
            ms *= self.luck(self.noise)
            samples = [ms * self.luck(self.noise / 3) for _repetition in range(test["repetitions"])]
            results.append({key: test[key] for key in TEST_KEYS} | {"samples_ms": samples})
        return {**load, "status": "ok", "reason": None, "results": results}


def campaign(
    problem: Json, pair: Pair, fate: t.Callable[[Json], str | None] = lambda load: None
) -> tuple[Json, list[Json], list[Json]]:
    """Plan and measure in rounds as the role does; return the last plan, all loads and all plans."""
    loads: list[Json] = []
    plans: list[Json] = []
    # where memory runs out on a device there are two loads more
    for _round in range(problem["max_loads"] + 2 * len(problem["devices"]) + 1):
        plans.append(stages.plan(problem, loads))
        if plans[-1]["done"]:
            return plans[-1], loads, plans
        for load in plans[-1]["loads"]:
            status = fate(load)
            loads.append(pair.measure(load) if status is None else failed(load, status))
    raise AssertionError("the planner never came to an end")


def replayed(problem: Json, loads: t.Sequence[Json]) -> Json:
    """Plan as another process does, which knows no step of the campaign."""
    layer_stage.known_steps.cache_clear()
    return stages.plan(problem, loads)


def failed(load: Json, status: str) -> Json:
    return {**load, "status": status, "reason": f"it was {status}", "results": []}


def exhaustive(problem: Json, pair: Pair, plan: Json) -> float:
    return min(pair.objective_ms(problem, row["layers"]) for row in plan["feasible"])


def labels(plan: Json) -> list[str]:
    return [load["label"] for load in plan["loads"]]


# --- the normal way --------------------------------------------------------------------------------------------------


def test_the_first_loads_are_the_ends_of_what_memory_allows() -> None:
    plan = stages.plan(make_problem(budget=(400, 300)), [])
    assert (plan["done"], plan["stage"], plan["fit"], plan["decision"]) == (False, "anchor", None, None)
    assert labels(plan) == ["22/11 load 1", "17/16 load 1"]
    assert [row["layers"] for row in plan["feasible"]] == [[n, 33 - n] for n in range(17, 23)]
    assert plan["default_layers"] == [17, 16]
    for row in plan["feasible"]:
        assert [mib + left for mib, left in zip(row["mib"], row["headroom_mib"], strict=True)] == [400, 300]
        assert min(row["headroom_mib"]) >= 0
    assert plan["loads"][0] == {
        "label": "22/11 load 1", "split_mode": "layer", "layers": [22, 11], "load": 1, "purpose": "anchor",
        "tests": TESTS,
    }


def test_memory_decides_at_the_bound() -> None:
    problem = make_problem(budget=(400, 400), objective="decode")
    plan, loads, plans = campaign(problem, Pair((0.45, 0.86), (4, 9), noise=0.005))
    decision = plan["decision"]
    assert plan["stage"] == "decided" and decision["layers"] == [22, 11]
    assert decision["verdict"] == "faster"
    assert "the most that fits on RPC0, one layer more would exceed its 400 MiB by 7 MiB" in decision["why"]
    assert "less time per generated token than llama.cpp's default 17/16" in decision["why"]
    low, high = decision["gain_interval_percent"]
    true_gain = 100 * (1 - (22 * 0.45 + 11 * 0.86) / (17 * 0.45 + 16 * 0.86))
    assert low < true_gain < high and low < decision["gain_over_default_percent"] < high
    # A B B A: the winner is an anchor, so its first load is there already
    assert [load["label"] for load in loads] == [
        "22/11 load 1", "10/23 load 1", "17/16 load 1", "17/16 load 2", "22/11 load 2"
    ]
    assert [p["stage"] for p in plans] == ["anchor", "confirm", "confirm", "decided"]
    assert all(p["decision"] is None for p in plans[:-1]) and plan["loads"] == []


def test_prompts_decide_at_the_balance_point() -> None:
    problem = make_problem(objective="prefill", prompt_tokens=4096)
    pair = Pair((0.45, 0.86), (4, 9), noise=0.005)
    plan, _loads, _plans = campaign(problem, pair)
    assert plan["decision"]["layers"] in ([22, 11], [23, 10])
    assert "take equally long over a micro-batch" in plan["decision"]["why"]
    # an answer of 256 tokens outweighs the prompt, one of a single token does not
    best = plan["decision"]["best_by_objective"]
    assert (best["decode"], best["request"]) == ([33, 0], [33, 0])
    assert best["prefill"] == best["ttft"] and best["prefill"] in ([22, 11], [23, 10])


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("objective", ["decode", "prefill", "request"])
def test_reaches_the_exhaustive_optimum(objective: str, noise: float) -> None:
    """Twenty pairs at random, some unlike, some alike, with memory from plenty to tight."""
    tried = 0
    for seed in range(20):
        chance = random.Random(seed)
        pair = Pair(
            [chance.uniform(0.3, 1.5) for _device in range(2)],
            [chance.uniform(3, 12) for _device in range(2)],
            noise,
            seed,
        )
        problem = make_problem(
            [chance.randint(250, 700) for _device in range(2)],
            objective=objective,
            prompt_tokens=chance.choice([512, 1024, 4096]),
        )
        plan, loads, _plans = campaign(problem, pair)
        if plan["decision"] is None:
            continue
        tried += 1
        chosen = plan["decision"]["layers"]
        assert len(loads) <= problem["max_loads"]
        assert chosen in [row["layers"] for row in plan["feasible"]]
        assert min(plan["decision"]["headroom_mib"]) >= 0
        # within the indifference that buys room, and what two loads of such noise can hide
        assert pair.objective_ms(problem, chosen) <= exhaustive(problem, pair, plan) * (1.0101 + 2 * noise), seed
    assert tried > 15


def test_no_load_is_measured_twice_and_none_beyond_the_limit() -> None:
    for seed in range(8):
        for most in (2, 3, 5, 7):
            problem = make_problem(budget=(400, 400), max_loads=most)
            _plan, loads, _plans = campaign(problem, Pair((0.6, 0.62), (4, 4.2), noise=0.05, seed=seed))
            assert len(loads) <= most
            assert len({load["label"] for load in loads}) == len(loads)
            counted = collections.Counter(tuple(load["layers"]) for load in loads)
            assert {(tuple(load["layers"]), load["load"]) for load in loads} == {
                (layers, number + 1) for layers, count in counted.items() for number in range(count)
            }


@pytest.mark.parametrize("seed", range(8))
def test_any_first_part_of_a_campaign_gives_its_continuation(seed: int) -> None:
    problem = make_problem(budget=(450, 450))
    pair = Pair((0.5, 0.7), (4, 9), noise=0.04, seed=seed)
    fate = (lambda load: "out_of_memory" if load["layers"][0] >= 25 else None) if seed % 2 else (lambda load: None)
    _plan, loads, plans = campaign(problem, pair, fate)
    asked = [load for plan in plans for load in plan["loads"]]
    assert [load["label"] for load in asked] == [load["label"] for load in loads]
    done = 0
    for plan in plans:
        for count in range(len(plan["loads"])):
            before = loads[: done + count]
            rest = plan["loads"][count:]
            if any(load["status"] != "ok" for load in before[done:]):
                rows = replayed(problem, before)["feasible"]
                rest = [load for load in rest if load["layers"] in [row["layers"] for row in rows]]
            assert not rest or replayed(problem, before)["loads"] == rest
        done += len(plan["loads"])
        assert replayed(problem, loads[: done - len(plan["loads"])]) == plan


def test_the_plan_is_json_and_leaves_its_input_alone() -> None:
    problem = make_problem(budget=(400, 400))
    before = copy.deepcopy(problem)
    plan, loads, _plans = campaign(problem, Pair((0.45, 0.86), (4, 9), noise=0.01))
    kept = copy.deepcopy(loads)
    assert json.loads(json.dumps(stages.plan(problem, loads))) == plan
    assert (problem, loads) == (before, kept)
    # nor does the next plan see what somebody does to this one
    first = copy.deepcopy(plan)
    plan["decision"].clear()
    assert stages.plan(problem, loads) == first


def test_every_field_of_the_decision() -> None:
    problem = make_problem(budget=(400, 400))
    plan, loads, _plans = campaign(problem, Pair((0.45, 0.86), (4, 9), noise=0.01))
    decision = plan["decision"]
    assert set(decision) == {
        "layers", "split_mode", "single_device", "verdict", "why", "objective", "default_layers",
        "gain_over_default_percent", "gain_interval_percent", "decode_tokens_per_second", "prefill_tokens_per_second",
        "best_by_objective", "range_percent", "advice", "mib", "headroom_mib", "loads_used", "fit", "table",
        "micro_batch_size", "micro_batches", "environment", "tensor",
    }
    assert set(plan) == {"done", "stage", "why", "loads", "trials", "feasible", "default_layers", "fit", "decision"}
    assert decision["loads_used"] == len(loads)
    assert decision["decode_tokens_per_second"] == pytest.approx(1000 / (22 * 0.45 + 11 * 0.86), rel=0.05)
    assert decision["fit"]["decode_ms_per_layer"] == pytest.approx([0.45, 0.86], rel=0.15)
    assert decision["fit"]["prefill_ms_per_layer"] == pytest.approx([4, 9], rel=0.15)
    assert decision["fit"]["decode_residual_percent"] < 5
    rows = decision["table"]
    assert [row["layers"] for row in rows] == [[10, 23], [17, 16], [22, 11]]
    assert sum(row["loads"] for row in rows) == len(loads)
    for row in rows:
        for key in ("decode_ms_per_token", "prefill_ms", "objective_ms"):
            assert row[key]["low"] <= row[key]["mean"] <= row[key]["high"]
            assert row[key]["predicted"] == pytest.approx(row[key]["mean"], rel=0.1)
    by_hand = rows[2]["prefill_ms"]["mean"] + 256 * rows[2]["decode_ms_per_token"]["mean"]
    assert rows[2]["objective_ms"]["mean"] == pytest.approx(by_hand)


# --- objectives ------------------------------------------------------------------------------------------------------


def test_the_first_token_is_a_prompt_and_one_token() -> None:
    problem = make_problem(budget=(400, 400), objective="ttft", prompt_tokens=1024)
    plan, _loads, _plans = campaign(problem, Pair((0.45, 0.86), (4, 9), noise=0.005))
    decision = plan["decision"]
    for row in decision["table"]:
        by_hand = row["prefill_ms"]["mean"] + row["decode_ms_per_token"]["mean"]
        assert row["objective_ms"]["mean"] == pytest.approx(by_hand, rel=1e-4)
    assert decision["layers"] == decision["best_by_objective"]["ttft"]
    assert "time to the first token" in decision["why"]


def test_the_best_split_of_every_objective_is_shown() -> None:
    """Decoding is quicker on the first device, prompts on the second: each objective has its own best split."""
    pair = Pair((0.4, 0.9), (9, 4), noise=0.002)
    problem = make_problem(budget=(400, 400), objective="request", prompt_tokens=4096)
    plan, _loads, _plans = campaign(problem, pair)
    shown = plan["decision"]["best_by_objective"]
    assert list(shown) == ["decode", "prefill", "ttft", "request"]
    splits = [row["layers"] for row in plan["feasible"]]
    cost: dict[str, t.Callable[[Json], float]] = {
        "decode": pair.decode_ms,
        "prefill": lambda layers: pair.prefill_ms(layers, 4096),
        "ttft": lambda layers: pair.prefill_ms(layers, 4096) + pair.decode_ms(layers),
        "request": lambda layers: pair.prefill_ms(layers, 4096) + 256 * pair.decode_ms(layers),
    }
    for name, ms in cost.items():
        assert ms(shown[name]) <= 1.01 * min(map(ms, splits)), name
    assert shown["decode"] == [22, 11] and shown["prefill"][0] < 15
    for objective in cost:
        asked = make_problem(budget=(400, 400), objective=objective, prompt_tokens=4096)
        other, _loads, _plans = campaign(asked, Pair((0.4, 0.9), (9, 4)))
        assert cost[objective](other["decision"]["layers"]) <= 1.011 * min(map(cost[objective], splits)), objective


def test_what_was_not_measured_has_no_best_split() -> None:
    problem = make_problem(budget=(400, 400), objective="decode", tests=[TESTS[1]])
    plan, _loads, _plans = campaign(problem, Pair((0.45, 0.86), (4, 9)))
    assert plan["decision"]["best_by_objective"] == {
        "decode": [22, 11], "prefill": None, "ttft": None, "request": None
    }


def at_depth(depth: int, context_size: int, name: str = "agent") -> Json:
    problem = make_problem(budget=(1600, 1600), objective=name)
    problem["serving"]["context_size"] = context_size
    problem["objective"] |= {"depth_tokens": depth, "prompt_tokens": 0, "generated_tokens": 512}
    problem["tests"] = [test | {"n_depth": depth} for test in TESTS]
    return problem


def test_an_agent_decodes_at_depth() -> None:
    plan, loads, _plans = campaign(at_depth(8192, 16384), Pair((0.45, 0.86), (4, 9), noise=0.002))
    assert {test["n_depth"] for load in loads for test in load["tests"]} == {8192}
    decision = plan["decision"]
    assert decision["objective"] == {
        "name": "agent", "prompt_tokens": 0, "generated_tokens": 512, "depth_tokens": 8192
    }
    row = next(row for row in decision["table"] if row["layers"] == decision["layers"])
    assert row["objective_ms"]["mean"] == pytest.approx(512 * row["decode_ms_per_token"]["mean"], rel=1e-4)
    # a prompt is not asked for, so the tested one stands in its place
    assert decision["best_by_objective"]["ttft"] is not None


def test_the_test_nearest_to_the_depth_counts() -> None:
    problem = at_depth(8192, 16384)
    problem["tests"] = [*TESTS, *(test | {"n_depth": 8192} for test in TESTS)]
    deep = Pair((0.45, 0.86), (4, 9))
    deep.weights = split_problem.read_problem(problem).weights

    def measure(load: Json) -> Json:
        done = deep.measure(load)
        for result in done["results"]:
            if result["n_depth"]:
                result["samples_ms"] = [3 * ms for ms in result["samples_ms"]]
        return done

    plan = stages.plan(problem, [])
    fit = stages.plan(problem, [measure(load) for load in plan["loads"]])["fit"]
    assert fit["decode_ms_per_layer"] == pytest.approx([3 * 0.45, 3 * 0.86], rel=1e-3)


@pytest.mark.parametrize(
    ("depth", "context_size", "words"),
    [
        (8192, 8192, "8192 with 0 prompt and 512 generated tokens needs a context of 8704 tokens"),
        (8192, 9000, "the longest test needs a context of 9216 tokens"),
    ],
)
def test_a_depth_must_fit_the_context(depth: int, context_size: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        stages.plan(at_depth(depth, context_size), [])


def test_it_says_so_when_the_choice_barely_matters() -> None:
    problem = make_problem(budget=(400, 400), objective="decode")
    plan, _loads, _plans = campaign(problem, Pair((0.60, 0.603), (4, 4), noise=0.0005))
    decision = plan["decision"]
    count = len(plan["feasible"])
    true_range = 100 * ((10 * 0.6 + 23 * 0.603) / (22 * 0.6 + 11 * 0.603) - 1)
    assert decision["range_percent"] == pytest.approx(true_range, abs=0.3)
    assert f"the choice barely matters: all {count} splits that fit are within 0." in decision["why"]
    plan, _loads, _plans = campaign(problem, Pair((0.45, 0.86), (4, 9), noise=0.0005))
    assert "barely matters" not in plan["decision"]["why"] and plan["decision"]["range_percent"] > 20


# --- disturbed loads -------------------------------------------------------------------------------------------------


class Disturbed(Pair):
    """A neighbour slows some repetitions of the given loads (label -> factor per repetition)."""

    def __init__(self, slow: dict[str, t.Sequence[float]], noise: float = 0.01, seed: int = 3) -> None:
        super().__init__((0.45, 0.86), (4, 9), noise, seed)
        self.slow = slow

    def measure(self, load: Json) -> Json:
        done = super().measure(load)
        for result in done["results"]:
            factors = self.slow.get(load["label"], (1.0, 1.0, 1.0))
            result["samples_ms"] = [ms * f for ms, f in zip(result["samples_ms"], factors, strict=False)]
        return done


def test_a_load_with_scattering_repetitions_is_measured_again_and_set_aside() -> None:
    problem = make_problem(budget=(400, 400), objective="decode")
    plan, loads, plans = campaign(problem, Disturbed({"17/16 load 1": (1.0, 1.9, 1.6)}))
    repeats = [load["label"] for load in loads if load["purpose"] == "repeat"]
    assert repeats == ["17/16 load 2"]
    step = next(step for step in plans if step["stage"] == "repeat")
    assert "17/16 load 1 looks disturbed: its repetitions scatter by" in step["why"]
    decision = plan["decision"]
    row = next(row for row in decision["table"] if row["layers"] == [17, 16])
    assert (row["disturbed"], row["disturbed_loads"], row["loads"]) == (True, [1], 3)
    assert "load 1 was set aside: its repetitions scatter" in row["reason"]
    assert row["decode_ms_per_token"]["mean"] == pytest.approx(17 * 0.45 + 16 * 0.86, rel=0.03)
    assert all(not other["disturbed"] and other["reason"] is None for other in decision["table"] if other is not row)
    assert decision["layers"] == [22, 11] and decision["loads_used"] == len(loads) <= 7


def test_a_load_far_from_its_twin_gets_a_third_to_judge_by() -> None:
    problem = make_problem(budget=(400, 400), objective="decode")
    plan, loads, plans = campaign(problem, Disturbed({"22/11 load 2": (1.6, 1.6, 1.6)}, noise=0.003))
    assert "slower than its twin" in next(step for step in plans if step["stage"] == "repeat")["why"]
    row = next(row for row in plan["decision"]["table"] if row["layers"] == [22, 11])
    assert (row["disturbed_loads"], row["loads"]) == ([2], 3)
    assert "slower than its 2 twins" in row["reason"]
    assert row["decode_ms_per_token"]["mean"] == pytest.approx(22 * 0.45 + 11 * 0.86, rel=0.02)


def test_two_of_three_slow_loads_are_kept() -> None:
    """The third load agrees with the slow one: then the device is slow, and nothing is set aside."""
    slow = {"22/11 load 2": (1.6,) * 3, "22/11 load 3": (1.6,) * 3}
    plan, loads, _plans = campaign(
        make_problem(budget=(400, 400), objective="decode"), Disturbed(slow, noise=0.003)
    )
    assert [load["label"] for load in loads if load["purpose"] == "repeat"] == ["22/11 load 3"]
    assert all(not row["disturbed"] for row in plan["decision"]["table"])


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_no_more_loads_are_repeated_than_allowed(allowed: int) -> None:
    slow = {f"17/16 load {n}": (1.0, 1.9, 1.6) for n in range(1, allowed + 2)}
    problem = make_problem(budget=(400, 400), objective="decode", repeat_disturbed=allowed, max_loads=12)
    plan, loads, _plans = campaign(problem, Disturbed(slow))
    assert sum(load["purpose"] == "repeat" for load in loads) <= allowed
    rows = plan["decision"]["table"]
    assert sum(len(row["disturbed_loads"]) for row in rows) <= allowed
    assert all(row["decode_ms_per_token"] is not None for row in rows)
    if not allowed:
        assert any("looks disturbed, but counts" in (row["reason"] or "") for row in rows)


def test_a_repeat_stays_within_the_limit_of_loads() -> None:
    for most in (3, 4, 5):
        problem = make_problem(budget=(400, 400), objective="decode", max_loads=most)
        _plan, loads, _plans = campaign(problem, Disturbed({"17/16 load 1": (1.0, 1.9, 1.6)}))
        assert len(loads) <= most


def test_steady_noise_seldom_costs_a_load() -> None:
    """False alarms of whole campaigns: 1 of 40 here; in 200 each, 0 to 3 % at noise from 0.2 to 10 % between loads."""
    repeats = 0
    for seed in range(40):
        _plan, loads, _plans = campaign(make_problem(budget=(400, 400)), Pair((0.5, 0.9), (4, 7), 0.03, seed))
        repeats += any(load["purpose"] == "repeat" for load in loads)
    assert repeats <= 3


# --- one device alone ------------------------------------------------------------------------------------------------


def test_one_device_alone_is_no_point_of_the_fit() -> None:
    """It makes no hop: a fit that took it for an anchor would get the costs of the others wrong."""
    problem = make_problem(objective="decode")
    pair = Pair((0.45, 0.60), (4, 6), hop=4.0)
    pair.weights = split_problem.read_problem(problem).weights
    plan, loads, plans = campaign(problem, pair)
    assert all(all(load["layers"]) for load in plans[0]["loads"])
    assert [33, 0] in [load["layers"] for load in loads]
    fit = plan["decision"]["fit"]
    for layers in ((32, 1), (17, 16), (1, 32)):
        predicted = cost_model.decode_ms(fit["decode_ms_per_layer"], pair.amounts("decode", layers))
        assert predicted == pytest.approx(pair.decode_ms(layers), rel=1e-3)
    row = next(row for row in plan["decision"]["table"] if row["layers"] == [33, 0])
    # what is said of it from the others contains a hop that it does not make
    assert row["decode_ms_per_token"]["predicted"] - row["decode_ms_per_token"]["mean"] == pytest.approx(4.0, abs=0.01)
    assert plan["decision"]["layers"] == [33, 0]
    assert plan["decision"]["advice"] == [
        "the whole model fits RPC0 alone and is best there: what else the host has is free for other work"
    ]


def test_one_device_alone_is_a_candidate_and_said_to_be_one() -> None:
    """Prompts want both devices; that the first one would do alone is said, with what it costs."""
    problem = make_problem(objective="prefill", prompt_tokens=4096)
    plan, _loads, _plans = campaign(problem, Pair((0.45, 0.86), (4, 6), noise=0.002))
    assert [33, 0] in [row["layers"] for row in plan["feasible"]]
    assert not plan["decision"]["single_device"]
    (advice,) = plan["decision"]["advice"]
    assert "the whole model also fits RPC0 alone" in advice and "% more time per prompt" in advice
    assert "a hop that one device does not make" in advice


def test_without_room_on_one_device_there_is_no_such_advice() -> None:
    plan, _loads, _plans = campaign(make_problem(budget=(400, 400)), Pair((0.45, 0.86), (4, 9)))
    assert plan["decision"]["advice"] == []


# --- verdicts --------------------------------------------------------------------------------------------------------


def probed(pair: Pair) -> Json:
    """Return what the device probe says of a pair, 10 % off for the first device."""
    off = [1.1, *[1.0] * (len(pair.decode) - 1)]
    return {
        "devices": [
            {
                "status": "ok",
                "decode_ms_per_token": {"median": decode * factor},
                "prefill_tokens_per_second": 1000 / (prefill * factor),
            }
            for decode, prefill, factor in zip(pair.decode, pair.prefill, off, strict=True)
        ]
    }


def test_the_device_probe_tells_what_two_anchors_cannot() -> None:
    """Stages that do not overlap: two anchors alone look like a pipeline, whose best split is another one."""

    class Serial(Pair):
        def prefill_ms(self, layers: t.Sequence[int], tokens: int) -> float:
            return self.overlapping(layers, cost_model.micro_batches(tokens, 512), 0.0)

    pair = Serial((0.5, 0.6), (10.0, 11.5), noise=0.002)
    problem = make_problem((480, 260), objective="prefill", prompt_tokens=4096)
    problem["tests"][0]["n_prompt"] = 4096
    _plan, _loads, plans = campaign(problem, pair)
    assert plans[1]["fit"]["prefill_form"] == "pipeline"
    plan, _loads, plans = campaign({**problem, "device_probe": probed(pair)}, pair)
    after_anchors = plans[1]
    assert after_anchors["fit"]["prefill_form"] == "serial"
    assert pair.objective_ms(problem, plan["decision"]["layers"]) <= 1.005 * exhaustive(problem, pair, plan)


def test_the_device_probe_stands_in_for_anchors_of_many_devices() -> None:
    """Eight devices, seven loads: four anchors leave coefficients open, which the probe fills in."""
    problem, pair = many(8, 3, "decode")
    pair.noise = 0.0
    without, with_probe = (
        campaign(each, pair)[0]["decision"]["layers"] for each in (problem, {**problem, "device_probe": probed(pair)})
    )
    least = least_ms(problem, pair)
    assert pair.objective_ms(problem, with_probe) <= 1.02 * least
    assert pair.objective_ms(problem, with_probe) <= 1.001 * pair.objective_ms(problem, without)


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ({"devices": []}, "one entry per device, 2, not 0"),
        ({"devices": [{"status": "ok"}, {}]}, "status is missing"),
    ],
)
def test_a_device_probe_of_other_devices_is_refused(probe: Json, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        stages.plan(make_problem(device_probe=probe), [])


def test_a_device_that_was_not_probed_leaves_the_plan_without_a_prior() -> None:
    pair = Pair((0.5, 1.0), (10.0, 20.0))
    probe = probed(pair)
    probe["devices"][1] = {"status": "skipped"}
    problem = make_problem((300, 300))
    assert campaign({**problem, "device_probe": probe}, pair)[0] == campaign(problem, pair)[0]


def test_one_device_alone_is_tried_where_only_its_hop_speaks_against_it() -> None:
    """The fit counts a hop for CUDA0 alone and prefers 32/1; measured once, the device alone is taken."""
    pair = Pair((0.5, 0.52), (10.0, 10.0), hop=0.4)
    plan, loads, _plans = campaign(make_problem(objective="decode"), pair)
    assert plan["decision"]["single_device"]
    assert len(loads) <= 7


@pytest.mark.parametrize(
    ("told", "words"),
    [(9.5, "33/0 should be the best, "), (12.5, "33/0 may be faster than the "), (None, "33/0 should be the best of ")],
)
def test_what_takes_longer_by_the_fit_is_not_said_to_be_the_best(told: float | None, words: str) -> None:
    """One device alone is measured although the fit, which counts a hop for it, says that the default is faster."""
    problem = split_problem.read_problem(make_problem(objective="decode"))
    values = {(33, 0): told, problem.default: 10.5}
    evidence: t.Any = types.SimpleNamespace(candidates=[], value=lambda _what, layers: values[layers])
    single, default = (t.cast(t.Any, problem.candidate(layers)) for layers in values)
    said = why.confirm(problem, evidence, single, default)
    assert said.startswith(words) and "confirm it against llama.cpp's default 17/16" in said


@pytest.mark.parametrize(
    ("decode", "prefill"),
    [((0.31, 0.55, 0.55), (3.6, 7.2, 7.2)), ((0.5, 0.5, 0.5), (4.0, 4.0, 4.0))],
)
@pytest.mark.parametrize("hop", [1.2, 2.0])
def test_a_device_whose_hop_costs_more_than_it_saves_is_left_out(
    decode: tuple[float, ...], prefill: tuple[float, ...], hop: float
) -> None:
    """Two of three devices hold the model; the third one helps prompts, and what it saves is less than its hop."""
    pair = Pair(decode, prefill, hop=hop)
    problem = make_problem((330, 330, 330), prompt_tokens=2048)
    plan, loads, _plans = campaign(problem, pair)
    layers = plan["decision"]["layers"]
    assert sum(1 for count in layers if count) == 2
    fits = split_problem.read_problem(problem).search.fits
    every = [(a, b, 33 - a - b) for a in range(34) for b in range(34 - a)]
    least = min(pair.objective_ms(problem, split) for split in every if fits(split))
    assert pair.objective_ms(problem, layers) <= 1.01 * least
    assert len(loads) <= split_problem.read_problem(problem).max_loads


def test_a_measured_hop_that_costs_nothing_leaves_no_device_out() -> None:
    """Before, a hop may be worth a load; a split with one less that took what the fit says ends that."""
    problem = make_problem((420, 420, 420), objective="decode")
    checked = split_problem.read_problem(problem)
    pair = Pair((0.5, 0.505, 0.51), (4.0, 4.0, 4.0))

    def evidence_of(*splits: list[int]) -> Evidence:
        loads = [pair.measure({
            "label": str(layers), "split_mode": "layer", "layers": layers, "load": 1, "purpose": "anchor",
            "tests": problem["tests"],
        }) for layers in splits]  # fmt: skip
        return Evidence(checked, measured_loads.read_loads(checked, loads))

    before = evidence_of([20, 10, 3], [10, 20, 3], [3, 10, 20])
    whole = checked.candidate((20, 10, 3))
    assert whole is not None
    fewer = choice.fewer_devices(before, whole)
    assert fewer is not None and sum(1 for count in fewer.layers if count) == 2
    after = evidence_of([20, 10, 3], [10, 20, 3], [3, 10, 20], [10, 0, 23])
    best = choice.best(after, [c for c in after.candidates if all(c.layers)])
    assert choice.fewer_devices(after, best) is None


def test_a_default_as_good_as_the_best_ends_after_three_loads() -> None:
    """Splits differ by more than the indifference end to end, but llama.cpp's own is as good as the best."""
    pair = Pair((0.5, 0.56), (10.0, 11.0), noise=0.001)
    problem = make_problem((300, 420), objective="decode")
    plan, loads, _plans = campaign(problem, pair)
    decision = plan["decision"]
    assert decision["verdict"] == "no_difference"
    assert len(loads) == 3
    assert decision["range_percent"] > 1
    assert "by the fit, which 3 loads bear out" in decision["why"]
    assert pair.objective_ms(problem, decision["layers"]) <= 1.01 * exhaustive(problem, pair, plan)


def test_equal_devices_get_the_roomier_split() -> None:
    problem = make_problem((520, 420), objective="decode")
    plan, _loads, _plans = campaign(problem, Pair((0.6, 0.6), (4, 4), noise=0.0005))
    decision = plan["decision"]
    assert decision["verdict"] == "no_difference"
    rooms = {tuple(row["layers"]): min(row["headroom_mib"]) for row in plan["feasible"] if all(row["layers"])}
    assert min(decision["headroom_mib"]) == max(rooms.values())
    assert abs(decision["gain_over_default_percent"]) < 1


def test_noise_is_called_noise() -> None:
    verdicts: collections.Counter[str] = collections.Counter()
    for seed in range(20):
        plan, loads, _plans = campaign(
            make_problem(budget=(400, 400), objective="decode"), Pair((0.6, 0.62), (4, 4), noise=0.1, seed=seed)
        )
        verdicts[plan["decision"]["verdict"]] += 1
        if plan["decision"]["verdict"] == "inconclusive":
            assert "the smallest effect visible was" in plan["decision"]["why"]
            # what loads are left are used before giving up
            assert len(loads) >= 6
    assert verdicts["inconclusive"] >= 15


def test_when_the_default_is_the_best_it_is_taken() -> None:
    """The fit's winner loses against the default in both loads, whatever the fit says."""
    problem = make_problem(objective="decode", budget=(600, 600))

    class Odd(Pair):
        def decode_ms(self, layers: t.Sequence[int]) -> float:
            return 10.0 if tuple(layers) == (17, 16) else super().decode_ms(layers)

    plan, _loads, _plans = campaign(problem, Odd((0.45, 0.86), (4, 9), noise=0.002))
    decision = plan["decision"]
    assert decision["layers"] == [17, 16] == decision["default_layers"]
    assert (decision["gain_over_default_percent"], decision["gain_interval_percent"]) == (0.0, [0.0, 0.0])
    assert "llama.cpp's own default" in decision["why"]


def test_where_one_device_alone_disappoints_the_best_other_that_was_measured_is_taken() -> None:
    """The fit favours it, and its only load took twice as long: an anchor was faster than the engine's default, too."""
    problem = make_problem(objective="decode", max_loads=5)

    class Throttled(Pair):
        def decode_ms(self, layers: t.Sequence[int]) -> float:
            return 30.0 if tuple(layers) == (33, 0) else super().decode_ms(layers)

    pair = Throttled((0.45, 1.2), (4, 9), noise=0.002)
    plan, loads, _plans = campaign(problem, pair)
    decision = plan["decision"]
    assert [load["layers"] for load in loads].count([33, 0]) == 1 and decision["layers"] != [33, 0]
    assert pair.decode_ms(decision["layers"]) <= 1.02 * pair.decode_ms([32, 1])
    assert decision["verdict"] == "faster"
    gain = decision["gain_over_default_percent"]
    assert gain == pytest.approx(100 * (1 - pair.decode_ms([32, 1]) / pair.decode_ms([17, 16])), abs=1)
    assert f"{gain:.1f} % less time per generated token than llama.cpp's default 17/16 (95 %" in decision["why"]
    (note,) = decision["advice"]
    more = re.search(r"RPC0 alone: ([\d.]+) % more time per generated token \(measured\)", note)
    assert more and float(more[1]) == pytest.approx(100 * (30 / pair.decode_ms([32, 1]) - 1), abs=3)


@pytest.mark.parametrize("objective", ["decode", "prefill", "request"])
def test_what_loads_show_to_be_better_is_taken_whatever_the_fit_says(objective: str) -> None:
    """Each split has a speed of its own, which no fit explains; differences are 50 times the noise and more."""

    class Wild(Pair):
        def wild(self, layers: t.Sequence[int]) -> float:
            return math.exp(random.Random(f"{self.hop} {list(layers)}").gauss(0, 0.7))

        def decode_ms(self, layers: t.Sequence[int]) -> float:
            return super().decode_ms(layers) * self.wild(layers)

        def overlapping(self, layers: t.Sequence[int], batches: int, overlap: float) -> float:
            return super().overlapping(layers, batches, overlap) * self.wild(layers)

    for seed in range(12):
        devices = 2 + seed % 2
        problem = make_problem((24000,) * devices, objective=objective, max_loads=3 + seed % 3, blocks=8)
        pair = Wild((0.4, 0.9, 0.6)[:devices], (4, 9, 6)[:devices], noise=0.002, seed=seed, hop=seed / 1000)
        plan, loads, _plans = campaign(problem, pair)
        best = min(pair.objective_ms(problem, load["layers"]) for load in loads)
        assert pair.objective_ms(problem, plan["decision"]["layers"]) <= 1.1 * best, seed


def test_where_nothing_is_too_small_to_count_there_is_a_plan() -> None:
    """Loads without any scatter, of which the fit would take each digit for granted."""
    problem = make_problem((24000,) * 3, objective="request", indifference=0.0, max_loads=9)
    plan, _loads, _plans = campaign(problem, Pair((0.45, 0.86, 0.6), (4, 9, 5)))
    assert plan["decision"]["layers"]


def long_prompts() -> Json:
    """Four micro-batches are tested and eight asked for: one layer beside 19/14, the balance point, costs 3 to 5 %."""
    problem = make_problem(objective="prefill", prompt_tokens=4096)
    problem["serving"]["context_size"] = 8192
    problem["tests"][0]["n_prompt"] = 2048
    return problem


BALANCED = ((0.5, 0.9), (8.0, 11.5))


@pytest.mark.parametrize(
    ("ends", "favoured"), [((1.04, 0.95), [18, 15]), ((1.08, 1.0), [18, 15]), ((0.93, 1.07), [20, 13])]
)
def test_a_neighbour_that_may_be_better_is_measured_before_the_decision(
    ends: tuple[float, float], favoured: list[int]
) -> None:
    """The loads of both anchors were slow or fast by luck, so the fit favours a split beside the best."""
    luck = dict(zip(((32, 1), (1, 32)), ends, strict=True))

    class Misleading(Pair):
        def measure(self, load: Json) -> Json:
            done = super().measure(load)
            for result in done["results"]:
                result["samples_ms"] = [ms * luck.get(tuple(load["layers"]), 1.0) for ms in result["samples_ms"]]
            return done

    plan, loads, _plans = campaign(long_prompts(), Misleading(*BALANCED))
    assert favoured in [load["layers"] for load in loads if load["purpose"] == "confirm"]
    assert [load["layers"] for load in loads if load["purpose"] == "neighbour"] == [[19, 14]]
    assert plan["decision"]["layers"] == [19, 14]


def test_no_campaign_ends_with_a_load_left_for_a_split_that_may_be_better() -> None:
    """Loads scatter by 3 %: what the decision misses is their luck, and one layer at most."""
    beside = []
    for seed in range(16):
        problem, pair = long_prompts(), Pair(*BALANCED, noise=0.03, seed=seed)
        plan, loads, _plans = campaign(problem, pair)
        read = split_problem.read_problem(problem)
        evidence = Evidence(read, measured_loads.read_loads(read, loads))
        chosen = evidence.by_layers[tuple(plan["decision"]["layers"])]
        assert evidence.left >= 0 and choice.may_be_better(evidence, chosen) is None
        assert pair.objective_ms(problem, chosen.layers) <= 1.05 * exhaustive(problem, pair, plan)
        own = [tuple(load["layers"]) for load in loads if load["purpose"] == "neighbour"]
        assert len(own) == len(set(own)), "once measured, it is confirmed or not, and no neighbour any more"
        beside += own
    assert beside


def test_a_fit_that_misses_gets_one_more_anchor() -> None:
    """Prefill that does not overlap, and is worst in the middle: the planner looks between its points."""
    problem = make_problem(objective="prefill", prompt_tokens=1024, budget=(450, 450))

    class Serial(Pair):
        def prefill_ms(self, layers: t.Sequence[int], tokens: int) -> float:
            m = cost_model.micro_batches(tokens, 512)
            bump = 1.25 if 15 <= layers[0] <= 19 else 1.0
            return bump * m * sum(c * n for c, n in zip(self.prefill, layers, strict=True))

    plan, loads, plans = campaign(problem, Serial((0.5, 0.6), (4, 6), noise=0.002))
    assert [load["purpose"] for load in loads].count("anchor") == 3
    assert any("the fit misses a measured split by" in step["why"] for step in plans)
    assert plan["decision"]["fit"]["prefill_residual_percent"] > 5
    assert len(loads) <= 7


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_failed_anchor_is_replaced() -> None:
    problem = make_problem(budget=(400, 400), objective="decode")
    plan, loads, plans = campaign(
        problem, Pair((0.45, 0.86), (4, 9)), lambda load: "out_of_memory" if load["layers"][0] > 20 else None
    )
    assert plan["decision"]["layers"] == [20, 13]
    assert [load["label"] for load in loads][:3] == ["22/11 load 1", "10/23 load 1", "16/17 load 1"]
    assert all(row["layers"][0] <= 20 for row in plan["feasible"])
    row = next(row for row in plan["decision"]["table"] if row["layers"] == [22, 11])
    assert (row["status"], row["reason"], row["decode_ms_per_token"]) == ("out_of_memory", "it was out_of_memory", None)
    assert "the most that works" in plan["decision"]["why"]
    assert any("22/11 load 1 ended as out_of_memory" in step["why"] for step in plans)


@pytest.mark.parametrize("status", ["crashed", "timed_out", "unreadable"])
def test_other_failures_rule_out_one_split(status: str) -> None:
    problem = make_problem(budget=(400, 400), objective="decode")
    plan, _loads, _plans = campaign(
        problem, Pair((0.45, 0.86), (4, 9)), lambda load: status if load["layers"] == [22, 11] else None
    )
    assert plan["decision"]["layers"] == [21, 12]
    assert [22, 11] not in [row["layers"] for row in plan["feasible"]]
    assert [10, 23] in [row["layers"] for row in plan["feasible"]]


def test_a_winner_that_fails_its_second_load_is_dropped() -> None:
    problem = make_problem(budget=(400, 400), objective="decode")
    plan, loads, _plans = campaign(
        problem,
        Pair((0.45, 0.86), (4, 9)),
        lambda load: "crashed" if load["layers"] == [22, 11] and load["load"] >= 2 else None,
    )
    decision = plan["decision"]
    assert decision["layers"] == [21, 12]
    assert len(loads) <= 7
    row = next(row for row in decision["table"] if row["layers"] == [22, 11])
    assert (row["status"], row["loads"]) == ("crashed", 3)
    assert row["decode_ms_per_token"] is not None


@pytest.mark.parametrize("status", ["crashed", "timed_out", "unreadable"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_failure_that_does_not_come_again_costs_one_load(status: str, number: int) -> None:
    problem = make_problem(budget=(400, 400), objective="decode")
    plan, loads, plans = campaign(
        problem,
        Pair((0.45, 0.86), (4, 9)),
        lambda load: status if load["layers"] == [22, 11] and load["load"] == number else None,
    )
    assert plan["decision"]["layers"] == [22, 11]
    assert [load["label"] for load in loads if load["purpose"] == "retry"] == [f"22/11 load {number + 1}"]
    assert any("measure this split once more" in step["why"] for step in plans)
    row = next(row for row in plan["decision"]["table"] if row["layers"] == [22, 11])
    assert row["status"] == "ok" and f"load {number} ended as {status}" in row["reason"]


def test_failures_alike_on_all_splits_end_the_run() -> None:
    """What has loaded before tells whether they are about splits: it is measured again, and fails as well."""
    problem = make_problem(budget=(400, 400))
    plan, loads, _plans = campaign(
        problem, Pair((0.45, 0.86), (4, 9)), lambda load: None if load["label"] == "22/11 load 1" else "crashed"
    )
    assert (plan["done"], plan["stage"], plan["decision"]) == (True, "impossible", None)
    assert [load["status"] for load in loads] == ["ok", "crashed", "crashed", "crashed", "crashed"]
    assert loads[-1]["label"] == "22/11 load 2"
    assert "whatever the placement" in plan["why"] and "run again" in plan["why"]


def test_failures_alike_of_all_other_splits_leave_the_one_that_loads() -> None:
    problem = make_problem(budget=(400, 400))
    plan, loads, plans = campaign(
        problem, Pair((0.45, 0.86), (4, 9)), lambda load: None if load["layers"] == [22, 11] else "crashed"
    )
    assert plan["decision"]["layers"] == [22, 11] and len(loads) <= problem["max_loads"]
    assert any("measure 22/11 again, which has loaded before" in plan["why"] for plan in plans)


def test_a_split_whose_last_load_failed_once_may_be_taken() -> None:
    """No load is left to tell whether it was the split."""
    problem = make_problem(budget=(400, 400), objective="decode", max_loads=5)
    _plan, loads, _plans = campaign(problem, Pair((0.45, 0.86), (4, 9)))
    assert loads[-1]["label"] == "22/11 load 2"
    plan = stages.plan(problem, [*loads[:-1], failed(loads[-1], "timed_out")])
    assert plan["decision"]["layers"] == [22, 11]


# --- out of memory ---------------------------------------------------------------------------------------------------


def test_a_device_that_held_more_is_not_blamed() -> None:
    """20 layers on the first device and 13 on the second load, and no more on the second."""
    problem = make_problem(budget=(400, 400), objective="decode")
    least_second = 20
    plan, _loads, _plans = campaign(
        problem,
        Pair((0.45, 0.86), (4, 9)),
        lambda load: "out_of_memory" if load["layers"][1] > 33 - least_second else None,
    )
    assert plan["decision"]["layers"] == [22, 11]


@pytest.mark.parametrize("most", range(1, 33))
@pytest.mark.parametrize("named", [False, True])
def test_a_device_with_far_less_memory_than_planned(most: int, named: bool) -> None:
    """Whatever the first device really holds, the split is no worse than the engine's own where that loads.

    What it holds is one more unknown, so there are two loads more.
    """
    problem = make_problem(objective="decode")
    pair = Pair((0.45, 0.86), (4, 9))
    loads: list[Json] = []
    while not (plan := stages.plan(problem, loads))["done"]:
        for load in plan["loads"]:
            if load["layers"][0] <= most:
                loads.append(pair.measure(load))
            else:
                reason = "out of memory: 16 MiB more were wanted on RPC0[127.0.0.1:50052]" if named else "it is full"
                loads.append(failed(load, "out_of_memory") | {"reason": reason})
    layers = plan["decision"]["layers"]
    assert layers[0] <= most and len(loads) <= 9
    if most >= 17:
        assert pair.decode_ms(layers) <= pair.decode_ms(plan["default_layers"])
    best = pair.decode_ms([most, 33 - most])
    assert pair.decode_ms(layers) <= 1.08 * best


def test_one_device_that_explains_all_is_blamed_where_no_message_names_one() -> None:
    """The first of three devices holds 8 layers: whatever looked tightest in each load, it is the one in common."""
    problem = make_problem((300, 260, 280), objective="decode")
    pair = Pair((0.9, 0.6, 0.5), (9, 6, 5))
    plan, loads, _plans = campaign(problem, pair, lambda load: "out_of_memory" if load["layers"][0] > 8 else None)
    assert plan["stage"] == "decided" and plan["decision"]["layers"][0] <= 8
    ok = [load["layers"] for load in loads if load["status"] == "ok"]
    checked = split_problem.read_problem(problem)
    found = failed_loads.out_of_memory(checked, measured_loads.read_loads(checked, loads))
    assert ok and len(loads) <= 11
    assert {failure.device for failure in found} <= {0}


def test_the_engines_own_split_is_tried_before_all_is_impossible() -> None:
    """Each device holds 17 layers: only two splits load, and no message says which device was full."""
    problem = make_problem(budget=(400, 400))
    plan, loads, _plans = campaign(
        problem, Pair((0.45, 0.86), (4, 9)), lambda load: "out_of_memory" if max(load["layers"]) > 17 else None
    )
    assert max(plan["decision"]["layers"]) <= 17
    assert [load["layers"] for load in loads if load["status"] == "ok"]


def test_when_everything_fails_it_says_so() -> None:
    problem = make_problem(budget=(400, 400))
    plan, loads, _plans = campaign(problem, Pair((0.45, 0.86), (4, 9)), lambda load: "crashed")
    assert (plan["done"], plan["stage"], plan["decision"]) == (True, "impossible", None)
    assert len(loads) == 3 and "whatever the placement" in plan["why"] and "it was crashed" in plan["why"]


def test_a_lost_device_ends_the_run() -> None:
    problem = make_problem(budget=(400, 400))
    first = stages.plan(problem, [])["loads"][0]
    lost = failed(first, "device_lost") | {"reason": "RPC1 (127.0.0.1:50053) no longer answers"}
    plan = stages.plan(problem, [lost])
    assert (plan["done"], plan["stage"], plan["decision"], plan["loads"]) == (True, "impossible", None, [])
    assert "RPC1 (127.0.0.1:50053) no longer answers" in plan["why"] and "run again" in plan["why"]


def test_an_ok_load_without_its_result_is_unreadable() -> None:
    problem = make_problem(budget=(400, 400))
    load = Pair((0.45, 0.86), (4, 9)).measure(stages.plan(problem, [])["loads"][0])
    load["results"] = [result for result in load["results"] if result["kind"] == "prefill"]
    plan = stages.plan(problem, [load])
    other = Pair((0.45, 0.86), (4, 9)).measure(plan["loads"][0])
    plan = stages.plan(problem, [load, other])
    assert "holds no decode result" in plan["why"] and [wanted["purpose"] for wanted in plan["loads"]] == ["retry"]
    plan = stages.plan(problem, [load, other, {**load, "load": 2}])
    assert load["layers"] not in [row["layers"] for row in plan["feasible"]]


# --- nothing to choose -----------------------------------------------------------------------------------------------


def test_a_single_device_is_measured_once() -> None:
    problem = make_problem((24000,))
    plan, loads, _plans = campaign(problem, Pair((0.45,), (4,)))
    assert [(load["label"], load["purpose"]) for load in loads] == [("33 load 1", "single")]
    decision = plan["decision"]
    assert (decision["verdict"], decision["single_device"], decision["layers"]) == ("only_choice", True, [33])
    assert decision["decode_tokens_per_second"] == pytest.approx(1000 / (33 * 0.45), abs=0.001)
    assert "the only device" in decision["why"]


def test_one_split_that_fits_is_the_only_choice() -> None:
    problem = make_problem(budget=(400, 215))
    plan, loads, _plans = campaign(problem, Pair((0.45, 0.86), (4, 9)))
    assert [(load["layers"], load["purpose"]) for load in loads] == [([22, 11], "single")]
    assert plan["decision"]["verdict"] == "only_choice"
    assert plan["decision"]["default_layers"] is None and plan["decision"]["gain_over_default_percent"] is None


def test_a_model_that_fits_one_device_may_stay_there() -> None:
    problem = make_problem(objective="decode")
    plan, _loads, _plans = campaign(problem, Pair((0.45, 0.86), (4, 9), hop=1.0))
    assert plan["decision"]["layers"] == [33, 0] and plan["decision"]["single_device"] is True
    assert "all 33 layers on RPC0" in plan["decision"]["why"]


def test_a_model_that_does_not_fit() -> None:
    plan = stages.plan(make_problem((300, 200), reserve_mib=10), [])
    assert (plan["done"], plan["stage"], plan["decision"], plan["loads"]) == (True, "impossible", None, [])
    assert "MiB are missing in the split that comes nearest" in plan["why"]
    assert "it would fit with" in plan["why"]
    assert plan["feasible"] == [] and plan["default_layers"] == [20, 13]


# --- more than two ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["decode", "prefill", "request"])
def test_three_devices(objective: str) -> None:
    for seed in range(4):
        problem = make_problem((300, 260, 280), objective=objective)
        pair = Pair((0.4, 0.6, 0.9), (4, 6, 9), noise=0.002, seed=seed)
        pair.weights = split_problem.read_problem(problem).weights
        plan, loads, plans = campaign(problem, pair)
        assert len(plans[0]["loads"]) == 3 and len(loads) <= 7
        assert pair.objective_ms(problem, plan["decision"]["layers"]) <= 1.03 * exhaustive(problem, pair, plan)
        assert plan["decision"]["fit"]["decode_ms_per_layer"] == pytest.approx([0.4, 0.6, 0.9], rel=0.03)


def many(devices: int, seed: int, objective: str, **changes: t.Any) -> tuple[Json, Pair]:
    """Return the problem of unequal blocks that fit tightly on many devices of unequal speed and size, and these."""
    luck = random.Random(seed)
    problem = make_problem([0] * devices, objective=objective, blocks=64, max_loads=devices + 4, **changes)
    problem["model"]["block_bytes"] = [luck.randrange(8, 30) * 2**20 for _block in range(64)]
    need = memory_plan.MemoryPlan(problem["model"], problem["serving"]).mib((65,))[0] / devices
    for device in problem["devices"]:
        device["free_mib"] = device["total_mib"] = int(need * luck.uniform(0.9, 2.2)) + 60
    decode = [luck.uniform(0.3, 1.5) for _device in range(devices)]
    pair = Pair(decode, [speed * luck.uniform(5, 20) for speed in decode], noise=0.0005, seed=seed)
    pair.weights = split_problem.read_problem(problem).weights
    return problem, pair


def least_ms(problem: Json, pair: Pair) -> float:
    """Return the true optimum among all splits: each range of each device, and for prefill each longest stage."""
    checked = split_problem.read_problem(problem)
    wanted = problem["objective"]
    batches = cost_model.micro_batches(wanted["prompt_tokens"], 512)
    generated = wanted["generated_tokens"] if wanted["name"] != "prefill" else 0
    prefill = [own if wanted["name"] != "decode" else 0.0 for own in pair.prefill]
    cost = split_cost.Cost(
        tuple(generated * own for own in pair.decode),
        tuple(prefill),
        tuple((batches - 1) * own for own in prefill),
        pair.weights,
    )
    best = checked.search.best(cost)
    assert best is not None and cost.ms(best) == pytest.approx(pair.objective_ms(problem, best))
    return cost.ms(best)


@pytest.mark.parametrize("objective", ["decode", "prefill", "request"])
@pytest.mark.parametrize("devices", [3, 5, 8])
def test_many_devices_end_at_the_true_optimum(devices: int, objective: str) -> None:
    """The best of up to 10^9 splits, few of which are listed; C(least_ms) is checked by test_layer_search."""
    problem, pair = many(devices, seed=devices, objective=objective, indifference=0.0)
    plan, loads, plans = campaign(problem, pair)
    assert plan["stage"] == "decided" and len(loads) <= problem["max_loads"]
    assert pair.objective_ms(problem, plan["decision"]["layers"]) <= 1.005 * least_ms(problem, pair)
    memory = split_problem.read_problem(problem)
    for load in loads:
        assert memory.candidate(tuple(load["layers"])) is not None
    # the listed splits alone would have missed it, or it is one of them
    listed = {tuple(row["layers"]) for row in plans[0]["feasible"]}
    assert all(sum(layers) == 65 for layers in listed)


def test_what_is_searched_for_is_not_in_the_first_list() -> None:
    problem, pair = many(6, seed=6, objective="decode", indifference=0.0)
    plan, _loads, plans = campaign(problem, pair)
    listed = [row["layers"] for row in plans[0]["feasible"]]
    assert plan["decision"]["layers"] not in listed
    assert min(pair.objective_ms(problem, layers) for layers in listed) > 1.005 * least_ms(problem, pair)


def test_among_practically_equal_splits_the_roomiest_of_all_is_taken() -> None:
    problem, pair = many(4, seed=11, objective="decode", indifference=0.05)
    plan, _loads, _plans = campaign(problem, pair)
    decision = plan["decision"]
    assert pair.objective_ms(problem, decision["layers"]) <= 1.06 * least_ms(problem, pair)
    search = split_problem.read_problem(problem).search
    cost = split_cost.Cost(tuple(pair.decode), (0.0,) * 4, (0.0,) * 4, pair.weights)
    best = search.best(cost)
    assert best is not None
    # half of the indifference may go for room, the rest is for the fit's error
    roomiest = search.roomiest(cost, 1.02 * cost.ms(best))
    assert roomiest is not None
    used = [left for left, count in zip(decision["headroom_mib"], decision["layers"], strict=True) if count]
    room = split_problem.read_problem(problem).candidate(roomiest)
    assert room is not None
    assert min(used) >= min(left for left, n in zip(room.headroom, roomiest, strict=True) if n)


def test_budgets_that_allow_no_split_hide_no_roomier_one() -> None:
    checked = split_problem.read_problem(make_problem((400, 300, 300)))
    cost = split_cost.Cost((1.0,) * 3, (0.0,) * 3, (0.0,) * 3)
    roomiest = checked.search.roomiest(cost, cost.ms(checked.default))
    for nothing in ([], [(1, 1, 1)]):
        splits = remaining_splits.RemainingSplits(checked, [], True)
        splits.boxes = [*nothing, tuple(checked.budgets)]
        assert roomiest in splits.near_best(cost, []) and roomiest != splits.best(cost)


def test_one_split_of_many_devices_that_fits_is_found() -> None:
    """So tight that no point of a coarse grid fits."""
    problem = make_problem([0] * 6, blocks=64)
    layers = (5, 17, 8, 13, 9, 13)
    for device, mib in zip(
        problem["devices"], memory_plan.MemoryPlan(problem["model"], problem["serving"]).mib(layers), strict=True
    ):
        device["free_mib"] = mib
    plan = stages.plan(problem, [])
    assert [row["layers"] for row in plan["feasible"]] == [list(layers)]
    assert (plan["stage"], labels(plan)) == ("anchor", ["5/17/8/13/9/13 load 1"])
    problem["devices"][3]["free_mib"] -= 1
    plan = stages.plan(problem, [])
    assert plan["stage"] == "impossible"
    assert "1 MiB are missing in the split that comes nearest" in plan["why"]


def test_many_devices_where_memory_runs_out() -> None:
    problem, pair = many(4, seed=3, objective="decode", indifference=0.0)
    first = campaign(problem, pair)[0]["decision"]["layers"]
    plan, loads, _plans = campaign(
        problem, pair, lambda load: "out_of_memory" if load["layers"] == first and load["load"] == 1 else None
    )
    assert plan["stage"] == "decided" and plan["decision"]["layers"] != first
    failed_loads = [load for load in loads if load["status"] != "ok"]
    assert [load["layers"] for load in failed_loads] == [first]


@pytest.mark.parametrize("objective", ["decode", "prefill", "ttft", "request"])
def test_what_is_searched_is_what_is_predicted(objective: str) -> None:
    problem, pair = many(4, seed=5, objective=objective, prompt_tokens=1500)
    _plan, loads, _plans = campaign(problem, pair)
    checked = split_problem.read_problem(problem)
    evidence = Evidence(checked, measured_loads.read_loads(checked, loads))
    cost = evidence.cost("objective")
    assert cost is not None
    for layers in ((20, 15, 14, 16), (1, 1, 1, 62), (0, 33, 32, 0), (65, 0, 0, 0)):
        assert cost.ms(layers) == pytest.approx(evidence.predicted("objective", layers))


def test_more_devices_than_loads_still_end() -> None:
    problem, pair = many(8, seed=4, objective="request")
    problem["max_loads"] = 7
    plan, loads, plans = campaign(problem, pair)
    assert len(plans[0]["loads"]) == 8 and len(loads) <= 7 + 2 * 6
    anchors = [pair.objective_ms(problem, load["layers"]) for load in loads[:8]]
    assert pair.objective_ms(problem, plan["decision"]["layers"]) <= min(anchors)


@pytest.mark.parametrize("seed", range(6))
def test_the_best_split_for_the_objective_is_the_chosen_one(seed: int) -> None:
    """What the fit prefers to it by more than is nothing is named with the reason why it was not taken."""
    problem = make_problem(budget=(400, 400), max_loads=4, indifference=0.005)
    plan, _loads, _plans = campaign(problem, Pair((0.45, 0.86), (4, 9), noise=0.06, seed=seed))
    decision = plan["decision"]
    assert decision["best_by_objective"]["request"] == decision["layers"]
    checked = split_problem.read_problem(problem)
    evidence = Evidence(checked, measured_loads.read_loads(checked, _loads))
    fastest = min(evidence.candidates, key=lambda c: evidence.objective(c.layers))
    here, there = evidence.objective(tuple(decision["layers"])), evidence.objective(fastest.layers)
    preferred = here / there - 1 > 0.005
    assert any(f"{'/'.join(map(str, fastest.layers))} would take" in line for line in decision["advice"]) == preferred


def test_another_split_of_a_fit_without_residual_is_measured_before_all_are_equal() -> None:
    """Blocks that get lighter: a form with three coefficients fits three loads exactly, and says nothing."""
    problem = make_problem(objective="prefill", prompt_tokens=4096, blocks=64, indifference=0.02)
    problem["model"]["block_bytes"] = [(130 - block) * 2**17 for block in range(64)]
    pair = Pair((1.0, 1.6), (10.0, 16.0), noise=0.002)
    pair.weights = split_problem.read_problem(problem).weights
    plan, loads, _plans = campaign(problem, pair)
    if plan["decision"]["verdict"] == "no_difference":
        assert plan["decision"]["fit"]["prefill_residual_percent"] is not None
    assert pair.objective_ms(problem, plan["decision"]["layers"]) <= 1.01 * exhaustive(problem, pair, plan)


# --- costs of an earlier tuning ---------------------------------------------------------------------------------------


def known(fit: Json) -> Json:
    return {
        "deployment": "sandbox-2k", "error": 0.05, "decode": fit["decode_ms_per_layer"],
        "prefill": fit["prefill_ms_per_layer"], "overlap": fit["prefill_overlap"], "spread": fit["spread"],
    }  # fmt: skip


@pytest.mark.parametrize("objective", ["decode", "prefill", "request"])
def test_a_longer_context_is_planned_with_the_costs_of_the_shorter_one(objective: str) -> None:
    """No anchors: the best by the known costs and the engine's own split get two loads each."""
    pair = Pair((0.45, 0.86), (4, 9), noise=0.003)
    first, loads, _plans = campaign(make_problem(budget=(400, 400), objective=objective), pair)
    longer = make_problem(budget=(400, 400), objective=objective, known_costs=known(first["decision"]["fit"]))
    longer["serving"]["context_size"] = 2560
    second, fewer, plans = campaign(longer, pair)
    assert len(fewer) <= 4 and len(fewer) < len(loads)
    assert "what layers cost in the tuning of sandbox-2k" in plans[0]["why"]
    best = exhaustive(longer, pair, second)
    assert pair.objective_ms(longer, second["decision"]["layers"]) <= 1.01 * best
    assert second["decision"]["verdict"] in ("faster", "no_difference")


@pytest.mark.parametrize("faster_first", [True, False])
def test_two_loads_tell_where_the_costs_and_the_scatter_of_loads_are_known(faster_first: bool) -> None:
    pair = Pair((0.45, 0.86) if faster_first else (0.86, 0.45), (4, 9), noise=0.002)
    first, loads, _plans = campaign(make_problem(budget=(400, 400), objective="decode"), pair)
    before = known(first["decision"]["fit"])
    assert before["spread"]["decode"][1] > 0
    second, fewer, _plans = campaign(make_problem(budget=(390, 390), objective="decode", known_costs=before), pair)
    assert len(fewer) == 2 < len(loads) and second["decision"]["verdict"] == "faster"
    # without the scatter it takes turns to tell
    alone = {**before, "spread": {}}
    _third, more, _plans = campaign(make_problem(budget=(390, 390), objective="decode", known_costs=alone), pair)
    assert len(more) > 2


def test_known_costs_count_no_more_once_a_load_has_failed() -> None:
    first, _loads, _plans = campaign(make_problem(budget=(400, 400), objective="decode"), Pair((0.45, 0.86), (4, 9)))
    problem = make_problem(budget=(400, 400), objective="decode", known_costs=known(first["decision"]["fit"]))
    favoured = stages.plan(problem, [])
    assert len(labels(favoured)) == 1 and "in the tuning of sandbox-2k" in favoured["why"]
    plan = stages.plan(problem, [failed(favoured["loads"][0], "out_of_memory")])
    assert len(labels(plan)) == 2 and "as far apart as memory allows" in plan["why"]


def test_where_the_own_split_is_the_best_another_is_measured_to_compare_it_with() -> None:
    equal = {"deployment": "d", "error": 0.05, "decode": [0.5, 0.5001], "prefill": [4.0, 4.0], "overlap": 1.0,
             "spread": {}}  # fmt: skip
    problem = make_problem(budget=(400, 400), objective="decode", known_costs=equal)
    default = stages.plan(problem, [])["default_layers"]
    # memory allows nothing with more layers on the faster device than the engine's own split has
    budgets = [next(row["mib"] for row in stages.plan(problem, [])["feasible"] if row["layers"] == default)[0], 400]
    for device, mib in zip(problem["devices"], budgets, strict=True):
        device["budget_mib"] = mib + problem["reserve_mib"]
    plan = stages.plan(problem, [])
    wanted = [load["layers"] for load in plan["loads"]]
    assert plan["default_layers"] in wanted and len(wanted) == 2


def test_costs_that_have_changed_are_found_by_the_loads() -> None:
    """The first device has become twice as slow, which no fingerprint shows."""
    wrong = {"deployment": "d", "error": 0.05, "decode": [0.45, 0.86], "prefill": [4.0, 9.0], "overlap": 1.0,
             "spread": {}}  # fmt: skip
    problem = make_problem(budget=(400, 400), objective="decode", known_costs=wrong)
    pair = Pair((1.2, 0.86), (4, 9), noise=0.003)
    plan, _loads, _plans = campaign(problem, pair)
    assert pair.objective_ms(problem, plan["decision"]["layers"]) <= 1.02 * exhaustive(problem, pair, plan)


def test_after_costs_that_have_changed_all_devices_are_measured_anew() -> None:
    """Of three devices the last was throttled then. A split without it is measured at once, and is no anchor."""
    wrong = {"deployment": "d", "error": 0.05, "decode": [0.3, 0.9, 2.0], "prefill": [4.0] * 3, "overlap": 1.0,
             "spread": {}}  # fmt: skip
    problem = make_problem((24000,) * 3, (350, 300, 300), "decode", known_costs=wrong)
    pair = Pair((0.3, 0.9, 0.6), (4, 4, 4), noise=0.003)
    plan, loads, plans = campaign(problem, pair)
    assert not all(loads[1]["layers"])
    assert any("as far apart as memory allows" in plan["why"] for plan in plans)
    assert pair.objective_ms(problem, plan["decision"]["layers"]) <= 1.02 * exhaustive(problem, pair, plan)


def test_a_device_that_slows_all_that_was_measured_alike_is_found() -> None:
    """The second device was throttled. The best by the known costs has as many layers there as llama.cpp's own."""
    before = {"deployment": "d", "error": 0.05, "decode": [0.9, 0.4, 0.8], "prefill": [4.0] * 3, "overlap": 1.0,
              "spread": {"decode": [0.003, 4]}}  # fmt: skip
    problem = make_problem((24000,) * 3, (300, 230, 300), "decode", known_costs=before)
    pair = Pair((0.9, 1.2, 0.8), (4, 4, 4), noise=0.003)
    plan, loads, _plans = campaign(problem, pair)
    assert pair.objective_ms(problem, plan["decision"]["layers"]) <= 1.02 * exhaustive(problem, pair, plan)
    assert sum(all(load["layers"]) for load in loads) >= 3


def test_known_costs_of_other_devices_are_refused() -> None:
    wrong = {"deployment": "d", "error": 0.05, "decode": [0.45], "prefill": None, "overlap": 1.0, "spread": {}}
    with pytest.raises(ValueError, match="known_costs must have one positive number per device, 2"):
        stages.plan(make_problem(known_costs=wrong), [])


# --- a recorded pair -------------------------------------------------------------------------------------------------


def test_replay_of_a_recorded_pair() -> None:
    """The recorded H200 pair (21B, 24 blocks); between recorded splits it is interpolated, and memory ends
    where the recording ends. The planner takes what was the fastest of all recorded splits."""
    recorded: dict[int, dict[int, list[float]]] = collections.defaultdict(dict)
    path = pathlib.Path(__file__).parents[4] / "fixtures" / "llama_bench" / "h200_mps_pair.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        first = round(float(row["tensor_split"].split("/")[0]))
        recorded[row["n_prompt"]][first] = [ns / 1e6 for ns in row["samples_ns"]]

    def measure(load: Json) -> Json:
        first = load["layers"][0]
        results = []
        for test in load["tests"]:
            known = recorded[test["n_prompt"]]
            low = max(n for n in known if n <= first)
            high = min(n for n in known if n >= first)
            weight = (first - low) / (high - low) if high > low else 0.0
            samples = [a + weight * (b - a) for a, b in zip(known[low], known[high], strict=True)]
            results.append({key: test[key] for key in TEST_KEYS} | {"samples_ms": samples})
        return {**load, "status": "ok", "reason": None, "results": results}

    problem = make_problem((400, 380), blocks=24, tests=[
        {"kind": "prefill", "n_prompt": 2048, "n_gen": 0, "n_depth": 0, "repetitions": 2},
        {"kind": "decode", "n_prompt": 0, "n_gen": 32, "n_depth": 0, "repetitions": 2},
    ])
    loads: list[Json] = []
    while not (plan := stages.plan(problem, loads))["done"]:
        loads += [measure(load) for load in plan["loads"]]
    feasible = [row["layers"][0] for row in plan["feasible"] if all(row["layers"])]
    assert min(feasible) >= 4 and max(feasible) == 22
    decision = plan["decision"]
    assert (decision["layers"], decision["verdict"]) == ([22, 3], "faster")
    assert decision["fit"]["decode_residual_percent"] <= 4
    assert (decision["fit"]["prefill_form"], decision["fit"]["prefill_overlap"]) == ("pipeline", 1.0)
    assert decision["fit"]["prefill_residual_percent"] < 1
    assert decision["best_by_objective"] == dict.fromkeys(("decode", "prefill", "ttft", "request"), [22, 3])


# --- wrong input -----------------------------------------------------------------------------------------------------


def put(problem: Json, path: str, value: t.Any) -> None:
    *parents, last = path.split(".")
    holder: t.Any = problem
    for key in parents:
        holder = holder[int(key)] if key.isdigit() else holder[key]
    if value is ...:
        del holder[last]
    else:
        holder[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("schema", 2, "problem.schema"),
        ("devices", [], "problem.devices"),
        ("devices.1.free_mib", "24000", r"problem.devices\[1\].free_mib"),
        ("devices.0.budget_mib", -1, r"problem.devices\[0\].budget_mib"),
        ("devices.0", "RPC0", r"problem.devices\[0\]"),
        ("model.block_bytes", [1, 2], "problem.model.block_bytes"),
        ("model.kv_k_elements_per_token", ..., "problem.model.kv_k_elements_per_token"),
        ("model.block_count", True, "problem.model.block_count"),
        ("model.embedding_length", 0, "problem.model.embedding_length"),
        ("serving.context_size", 0, "problem.serving.context_size"),
        ("serving.kv_unified", "yes", "problem.serving.kv_unified"),
        ("serving.flash_attention", True, "problem.serving.flash_attention"),
        ("serving.cache_type_v", "q3_0", "problem.serving.cache_type_v"),
        ("reserve_mib", 1.5, "problem.reserve_mib"),
        ("split_modes", ["tensor"], "problem.split_modes"),
        ("objective.name", "latency", "problem.objective.name"),
        ("objective.generated_tokens", 0, "problem.objective.generated_tokens"),
        ("objective.depth_tokens", -1, "problem.objective.depth_tokens"),
        ("repeat_disturbed", -1, "problem.repeat_disturbed"),
        ("tests", [], "problem.tests"),
        ("tests.0.kind", "pp", r"problem.tests\[0\].kind"),
        ("tests.1.n_gen", 0, r"problem.tests\[1\].n_gen"),
        ("indifference", -0.1, "problem.indifference"),
        ("max_loads", 0, "problem.max_loads"),
    ],
)
def test_a_wrong_problem_is_told_by_its_field(path: str, value: t.Any, field: str) -> None:
    problem = make_problem()
    put(problem, path, value)
    with pytest.raises(ValueError, match=field):
        stages.plan(problem, [])


@pytest.mark.parametrize("problem", [None, [], "x", 3])
def test_a_problem_is_a_dict(problem: t.Any) -> None:
    with pytest.raises(ValueError, match="problem must be a dict"):
        stages.plan(problem, [])


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("layers", [20, 14], r"loads\[0\].layers"),
        ("layers", [33], r"loads\[0\].layers"),
        ("status", "fine", r"loads\[0\].status"),
        ("status", ..., r"loads\[0\].status"),
        ("load", 0, r"loads\[0\].load"),
        ("results.0.samples_ms", [0.0], r"loads\[0\].results\[0\].samples_ms"),
        ("results.1.samples_ms", 5, r"loads\[0\].results\[1\].samples_ms"),
        ("split_mode", "tensor", r"loads\[0\].split_mode"),
    ],
)
def test_a_wrong_load_is_told_by_its_field(path: str, value: t.Any, field: str) -> None:
    problem = make_problem(budget=(400, 400))
    load = Pair((0.45, 0.86), (4, 9)).measure(stages.plan(problem, [])["loads"][0])
    put(load, path, value)
    with pytest.raises(ValueError, match=field):
        stages.plan(problem, [load])
    with pytest.raises(ValueError, match="loads must be a list"):
        stages.plan(problem, load)


# --- what may be better, and what is taken ----------------------------------------------------------------------------


def evidence_of(problem: Json, loads: t.Sequence[Json]) -> Evidence:
    checked = split_problem.read_problem(problem)
    return Evidence(checked, measured_loads.read_loads(checked, loads))


def test_after_memory_ran_out_the_next_split_is_not_one_layer_less() -> None:
    """Where a device ends is not known: a layer less most likely fails again, halfway tells twice as much."""
    problem = make_problem(budget=(500, 400), objective="decode")
    plan, loads, _plans = campaign(
        problem, Pair((0.45, 0.86), (4, 9), 0.003), lambda load: "out_of_memory" if load["layers"][0] > 20 else None
    )
    tried = [load["layers"][0] for load in loads if load["status"] != "ok"]
    assert len(tried) > 1 and tried[0] - tried[1] > 1
    assert plan["decision"]["layers"][0] >= 19


def test_how_likely_a_split_loads_falls_from_what_was_held_to_what_failed() -> None:
    problem = make_problem(budget=(400, 400))
    pair = Pair((0.45, 0.86), (4, 9))
    wanted = stages.plan(problem, [])["loads"]
    splits = evidence_of(problem, [failed(wanted[0], "out_of_memory"), pair.measure(wanted[1])]).splits
    end, held = wanted[0]["layers"][0], wanted[1]["layers"][0]
    likely = [splits.chance((count, 33 - count)) for count in range(held, end + 1)]
    assert (likely[0], likely[-1]) == (1.0, 0.0) and likely == sorted(likely, reverse=True)
    assert 0.3 < likely[len(likely) // 2] < 0.7


def test_one_lucky_load_of_a_split_is_not_taken_for_what_it_seems() -> None:
    """Where the fit was wrong, one load counts as much as the fit, and two count for more."""
    problem = make_problem(objective="decode")
    pair = Pair((0.45, 0.46), (4, 4))
    tests = [dict(test) for test in problem["tests"]]

    def load(first: int, number: int, factor: float) -> Json:
        measured = pair.measure({
            "label": "", "split_mode": "layer", "layers": [first, 33 - first], "load": number, "purpose": "anchor",
            "tests": tests,
        })
        for result in measured["results"]:
            result["samples_ms"] = [factor * value for value in result["samples_ms"]]
        return measured

    loads = [load(first, 1, 1.0) for first in (32, 1, 17)]
    loads += [load(10, 1, 0.93), load(20, 1, 0.97), load(20, 2, 0.97)]
    evidence = evidence_of(problem, loads)
    once, twice = (choice.measured_and_expected(evidence, layers) for layers in ((10, 23), (20, 13)))
    assert evidence.measured("objective", (10, 23)) < once < choice.expected(evidence, (10, 23))
    gap = [
        math.log(shown / evidence.measured("objective", layers))
        / math.log(choice.expected(evidence, layers) / evidence.measured("objective", layers))
        for shown, layers in ((once, (10, 23)), (twice, (20, 13)))
    ]
    assert gap == pytest.approx([1 / 2, 1 / 3])


def test_a_rival_that_is_plainly_slower_is_measured_once() -> None:
    problem = make_problem(budget=(600, 600), objective="decode")
    plan, loads, _plans = campaign(problem, Pair((0.2, 2.0), (4, 9), noise=0.001))
    default = plan["decision"]["default_layers"]
    assert sum(load["layers"] == default for load in loads) == 1
    assert plan["decision"]["verdict"] == "faster"
    assert sum(load["layers"] == plan["decision"]["layers"] for load in loads) >= 2


def test_what_is_taken_for_the_winner_is_compared_with_what_was_measured() -> None:
    """Three loads leave none for the default, and some forms of the fit favour another split than the winner."""
    for seed in range(25):
        problem = make_problem(budget=(400, 400), objective="prefill", max_loads=3)
        plan, loads, _plans = campaign(problem, Pair((0.45, 0.8), (5, 9), noise=0.03, seed=seed))
        measured = [load["layers"] for load in loads]
        assert plan["decision"]["layers"] in measured and len(measured) == 3


def test_a_device_that_seems_to_take_no_time_tells_nothing_of_prompts() -> None:
    """Noise lets it look as if decoding got faster with each layer there."""
    problem = make_problem((24000,) * 3, (300, 260, 280))
    loads = [Pair((-0.05, 0.6, 0.9), (4, 6, 9)).measure(load) for load in stages.plan(problem, [])["loads"]]
    evidence = evidence_of(problem, loads)
    assert evidence.decode_fit is not None and min(evidence.decode_fit) < 0.001 * max(evidence.decode_fit)
    assert evidence.prior("prefill") is None
    assert evidence.prefill_fit is not None and min(evidence.prefill_fit) == pytest.approx(4, rel=0.05)


def test_what_more_than_two_devices_may_cost_is_walked_through() -> None:
    problem = make_problem((24000,) * 3, (300, 260, 280), "prefill")
    pair = Pair((0.4, 0.6, 0.9), (4, 6, 9), noise=0.03)
    _plan, loads, _plans = campaign(problem, pair)
    evidence = evidence_of(problem, loads[:5])
    drawn = evidence.drawn_costs["prefill"]
    assert drawn == evidence_of(problem, loads[:5]).drawn_costs["prefill"]
    # no two of them mirror each other around the fit
    (fitted, *_others), pairs = evidence.prefill_fit or [], zip(drawn[::2], drawn[1::2], strict=True)
    apart = [one.costs[0] * two.costs[0] / fitted**2 for one, two in pairs]
    assert max(apart) > 1.01 and min(apart) < 0.99
