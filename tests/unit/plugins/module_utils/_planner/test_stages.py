# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whole campaigns on simulated devices: layer split, micro-batch, tensor mode."""

from __future__ import annotations

import copy
import math
import random
import re
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import store
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import (
    layer_stage,
    micro_batch_stage,
    stages,
    tensor_shares,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    allreduce,
    cost_model,
    layer_weights,
    measured_loads,
    memory_plan,
    split_problem,
)

Json = dict[str, t.Any]

BLOCKS = 32
TEST_KEYS = ("kind", "n_prompt", "n_gen", "n_depth", "micro_batch_size")


def make_problem(objective: str = "request", modes: t.Sequence[str] = ("layer",), **changes: t.Any) -> Json:
    """Return the problem of a small model with 8 groups of heads on two devices that hold it together only."""
    return {
        "schema": 1,
        "devices": [
            {"device": f"CUDA{i}", "id": f"GPU-{i}", "backend": "CUDA", "description": "", "total_mib": 520,
             "free_mib": 520, "budget_mib": None}
            for i in range(2)
        ],
        "model": {
            "path": "/srv/models/m.gguf", "name": "m", "file_type": "Q4_K_M", "block_count": BLOCKS,
            "block_bytes": [12 * 2**20] * BLOCKS, "output_bytes": 2**20, "embedding_length": 1024,
            "vocabulary_size": 512, "feed_forward_length": 2816, "head_count": 16, "head_count_kv": 8,
            "key_length": 128, "kv_k_elements_per_token": [1024] * BLOCKS, "kv_v_elements_per_token": [1024] * BLOCKS,
        },
        "serving": {
            "context_size": 2048, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
            "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16", "threads": 1, "poll": 0,
            "load_mode": "auto", "gpu_layers": 99,
        },
        "reserve_mib": 0,
        "split_modes": list(modes),
        "objective": {"name": objective, "prompt_tokens": 2048, "generated_tokens": 64},
        "tests": [
            {"kind": "prefill", "n_prompt": 2048, "n_gen": 0, "n_depth": 0, "repetitions": 2},
            {"kind": "decode", "n_prompt": 0, "n_gen": 64, "n_depth": 0, "repetitions": 3},
        ],
        "indifference": 0.01,
        "max_loads": 7,
        "tensor": {"allreduce": ["nccl", "internal"], "max_loads": 10},
        **changes,
    }  # fmt: skip


class Devices:
    """Two devices of known speed in both modes, with a cost of each micro-batch and of each way to add up."""

    def __init__(self, noise: float = 0.002, seed: int = 1) -> None:
        self.decode = (0.5, 0.6)
        self.prefill = (1.0, 1.6)  # ms per block and 512 tokens
        #: how much longer a token of a prompt takes at a size
        self.size_factor = {256: 1.05, 512: 1.0, 1024: 1.02}
        #: ms per block and token that adding up costs
        self.sync = {"nccl": 0.02, "internal": 0.05, "": 0.02}
        self.noise, self.random = noise, random.Random(seed)

    def luck(self, size: float) -> float:
        return math.exp(self.random.gauss(0, size))

    def test_ms(self, load: Json, test: Json) -> float:
        size = test.get("micro_batch_size", 512)
        tokens = test["n_prompt"] or test["n_gen"]
        if load["split_mode"] == "tensor":
            shares = [share / sum(load["layers"]) for share in load["layers"]]
            way = load["environment"].get("GGML_CUDA_ALLREDUCE", "")
            per_token = BLOCKS * (max(s * c for s, c in zip(shares, self.decode, strict=True)) + self.sync[way])
            return per_token * tokens if test["kind"] == "decode" else per_token * tokens / 20
        if test["kind"] == "decode":
            return cost_model.decode_ms(self.decode, load["layers"]) * tokens
        per_batch = [cost * size / 512 * self.size_factor[size] for cost in self.prefill]
        blocks = layer_weights.equal(BLOCKS + 1).amounts("prefill", load["layers"])
        return cost_model.prefill_ms(per_batch, blocks, cost_model.micro_batches(tokens, size), 1.0)

    def measure(self, load: Json) -> Json:
        common = self.luck(self.noise)
        results = [
            {key: test[key] for key in TEST_KEYS if key in test}
            | {"samples_ms": [self.test_ms(load, test) * common * self.luck(self.noise / 3) for dummy in range(3)]}
            for test in load["tests"]
        ]
        return {**load, "status": "ok", "reason": None, "results": results}


def campaign(
    problem: Json, devices: Devices, fate: t.Callable[[Json], str | None] = lambda item: None
) -> tuple[Json, list[Json], list[Json]]:
    """Plan and measure in rounds as the role does; return the last plan, everything measured, and all plans."""
    done: list[Json] = []
    plans: list[Json] = []
    for _round in range(30):
        plans.append(stages.plan(problem, done))
        if plans[-1]["done"]:
            return plans[-1], done, plans
        assert plans[-1]["loads"] or plans[-1]["trials"]
        for load in plans[-1]["loads"]:
            status = fate(load)
            bad = {**load, "status": status, "reason": f"it was {status}", "results": []}
            done.append(devices.measure(load) if status is None else bad)
        for trial in plans[-1]["trials"]:
            status = fate(trial) or "ok"
            done.append({**trial, "status": status, "reason": None if status == "ok" else f"it was {status}",
                         "results": [{"kind": "trial"}]})  # fmt: skip
    raise AssertionError("the campaign does not end")


def purposes(loads: t.Sequence[Json]) -> list[str]:
    return [load["purpose"] for load in loads]


def failing(purpose: str, status: str) -> t.Callable[[Json], str | None]:
    """Return the fate of loads of which those of one purpose fail."""
    return lambda load: status if load["purpose"] == purpose else None


# --- micro-batch -----------------------------------------------------------------------------------------------------


def test_without_other_sizes_the_plan_is_that_of_layer_splits() -> None:
    problem = make_problem()
    plan, loads, _plans = campaign(problem, Devices())
    checked = split_problem.read_problem(problem)
    bare, _evidence = layer_stage.plan(checked, measured_loads.read_loads(checked, loads))
    assert plan["decision"]["layers"] == bare["decision"]["layers"]
    assert plan["decision"]["why"] == bare["decision"]["why"]
    assert (plan["decision"]["micro_batch_size"], plan["decision"]["tensor"], plan["trials"]) == (512, None, [])


def test_a_faster_micro_batch_is_taken_after_two_loads_in_opposite_orders() -> None:
    problem = make_problem("prefill", micro_batches=[256, 512, 1024])
    plan, loads, _plans = campaign(problem, Devices())
    own = [load for load in loads if load["purpose"] == "micro_batch"]
    orders = [[test["micro_batch_size"] for test in load["tests"]] for load in own]
    assert orders == [[256, 512, 1024], [1024, 512, 256]]
    assert all(load["layers"] == plan["decision"]["layers"] for load in own)
    assert plan["decision"]["micro_batch_size"] == 256
    assert "a micro-batch of 256 instead of 512 takes" in plan["decision"]["why"]
    assert plan["decision"]["micro_batches"]["loads"] == 2
    serving = {**problem["serving"], "micro_batch_size": 256}
    mib = memory_plan.MemoryPlan(problem["model"], serving).mib(plan["decision"]["layers"])
    assert plan["decision"]["mib"] == mib


def test_sizes_that_do_not_pay_cost_one_load() -> None:
    devices = Devices()
    devices.size_factor = {256: 1.4, 512: 1.0, 1024: 1.3}
    plan, loads, _plans = campaign(make_problem("prefill", micro_batches=[256, 1024]), devices)
    assert purposes(loads).count("micro_batch") == 1
    assert plan["decision"]["micro_batch_size"] == 512
    rows = plan["decision"]["micro_batches"]["sizes"]
    assert [row["micro_batch_size"] for row in rows] == [256, 512, 1024]
    assert all(row["less_percent"][0] < 0 for row in rows if row["micro_batch_size"] != 512)


def test_a_gain_in_one_load_alone_is_none() -> None:
    class Lucky(Devices):
        def test_ms(self, load: Json, test: Json) -> float:
            first = load["purpose"] == "micro_batch" and load["tests"][0]["micro_batch_size"] == 256
            factor = 0.9 if first and test.get("micro_batch_size") == 256 else 1.0
            return super().test_ms(load, test) * factor

    devices = Lucky()
    devices.size_factor = {256: 1.2, 512: 1.0, 1024: 1.3}
    plan, loads, _plans = campaign(make_problem("prefill", micro_batches=[256]), devices)
    assert purposes(loads).count("micro_batch") == 2
    assert plan["decision"]["micro_batch_size"] == 512


def test_only_sizes_that_fit_are_tried() -> None:
    problem = make_problem("prefill", micro_batches=[256, 1024, 2048, 4096])
    plan, loads, _plans = campaign(problem, Devices())
    reasons = {row["micro_batch_size"]: row["reason"] for row in plan["decision"]["micro_batches"]["sizes"]}
    assert "makes no 2 of it" in reasons[2048]
    assert "the batch has 2048 tokens" in reasons[4096]
    assert reasons[256] is None
    tried = {test["micro_batch_size"] for load in loads if load["purpose"] == "micro_batch" for test in load["tests"]}
    assert tried == {256, 512, 1024}


def test_the_sizes_run_the_test_that_counts() -> None:
    """Two prompts of one length at two depths: the objective is about the deeper one, which stands second."""
    problem = make_problem("prefill", micro_batches=[256])
    problem["serving"]["context_size"] = 4096
    problem["objective"]["depth_tokens"] = 1024
    problem["tests"].insert(1, {**problem["tests"][0], "n_depth": 1024})
    for device in problem["devices"]:
        device["free_mib"] = 640
    _plan, loads, _plans = campaign(problem, Devices())
    own = [load for load in loads if load["purpose"] == "micro_batch"]
    assert own
    assert {test["n_depth"] for load in own for test in load["tests"]} == {1024}


def test_a_size_without_memory_is_not_tried() -> None:
    problem = make_problem("prefill", micro_batches=[1024])
    free = max(stages.plan(problem, [])["feasible"], key=lambda row: row["layers"][0])["mib"]
    problem["devices"][0]["free_mib"] = free[0]
    problem["devices"][1]["free_mib"] = free[1] + 200
    evidence = layer_stage.plan(split_problem.read_problem(problem), [])[1]
    layers = tuple(max(evidence.candidates, key=lambda c: c.layers[0]).layers)
    sizes = micro_batch_stage.sizes(evidence, layers)
    assert sizes.usable == [512]
    assert "MiB are missing on CUDA0" in sizes.refused[1024]


def test_nothing_is_tried_where_no_prompt_counts() -> None:
    _plan, loads, _plans = campaign(make_problem("decode", micro_batches=[256, 1024]), Devices())
    assert "micro_batch" not in purposes(loads)


def test_a_load_that_fails_goes_on_without_its_largest_size() -> None:
    def fate(load: Json) -> str | None:
        return "out_of_memory" if any(test.get("micro_batch_size") == 1024 for test in load["tests"]) else None

    plan, loads, _plans = campaign(make_problem("prefill", micro_batches=[256, 1024]), Devices(), fate)
    sizes = [[test["micro_batch_size"] for test in load["tests"]] for load in loads if load["purpose"] == "micro_batch"]
    assert sizes == [[256, 512, 1024], [256, 512], [512, 256]]
    assert plan["decision"]["micro_batch_size"] == 256
    rows = {row["micro_batch_size"]: row["reason"] for row in plan["decision"]["micro_batches"]["sizes"]}
    assert "out_of_memory" in rows[1024]


@pytest.mark.parametrize("wrong", [512, ["512"], [0], [True]])
def test_wrong_micro_batches_are_named(wrong: t.Any) -> None:
    with pytest.raises(ValueError, match=r"problem\.micro_batches"):
        campaign(make_problem("prefill", micro_batches=wrong), Devices())


# --- tensor mode -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "units"),
    [
        # Llama 3.3 70B: 8 groups of 8 heads of 128; Qwen2.5 32B: 5 heads a group, so pairs of groups with 256 blocks
        ({"head_count": 64, "head_count_kv": 8, "key_length": 128, "file_type": "Q4_K_M"}, 8),
        ({"head_count": 40, "head_count_kv": 8, "key_length": 128, "file_type": "Q4_K_M"}, 4),
        ({"head_count": 40, "head_count_kv": 8, "key_length": 128, "file_type": "Q8_0"}, 8),
        ({"head_count": 32, "head_count_kv": 32, "key_length": 128, "file_type": "F16"}, 32),
        ({"head_count": 0, "head_count_kv": 0, "key_length": 0, "file_type": "F16"}, None),
        ({"head_count": 64, "file_type": "Q4_K_M"}, None),
    ],
)
def test_attention_divides_as_llama_cpp_divides_it(model: Json, units: int | None) -> None:
    assert tensor_shares.attention_units(model, 2) == units


def test_tensor_mode_wins_after_confirmation_and_trial() -> None:
    plan, loads, plans = campaign(make_problem("decode", ("layer", "tensor")), Devices())
    decision = plan["decision"]
    assert decision["split_mode"] == "tensor"
    assert decision["layers"] == [4, 4]
    assert decision["environment"] == {"GGML_CUDA_ALLREDUCE": "nccl"}
    assert decision["tensor"]["verdict"] == "faster"
    assert decision["tensor"]["trial"]["status"] == "ok"
    assert decision["tensor"]["interval_percent"][0] > 0
    assert "passed its trial" in decision["why"]
    order = [purpose for purpose in purposes(loads) if purpose not in ("anchor", "confirm", "single")]
    assert order[-1] == "tensor_trial"
    assert order.count("against_tensor") >= 1
    assert purposes(loads).count("tensor") + order.count("against_tensor") <= 10
    assert [plan["stage"] for plan in plans][-2:] == ["tensor_trial", "decided"]
    # both ways of adding up, and neighbours on the grid of eighths
    tried = {(tuple(load["layers"]), allreduce.asked(load)) for load in loads if load["purpose"] == "tensor"}
    assert {((4, 4), "nccl"), ((4, 4), "internal")} <= tried
    assert all(sum(layers) == 8 for layers, _way in tried)


@pytest.mark.parametrize("status", ["hung", "different", "unstable", "crashed", "reference_failed"])
def test_a_failed_trial_keeps_layer_mode(status: str) -> None:
    problem = make_problem("decode", ("layer", "tensor"))
    plan, _loads, _plans = campaign(problem, Devices(), failing("tensor_trial", status))
    decision = plan["decision"]
    assert (decision["split_mode"], decision["tensor"]["verdict"]) == ("layer", "rejected")
    assert sum(decision["layers"]) == BLOCKS + 1
    assert f"is not trusted: it was {status}" in decision["why"]
    if status == "reference_failed":
        assert "look at this before you rely on it" in decision["advice"][-1]


def test_far_behind_layer_mode_it_takes_one_load_for_each_way() -> None:
    devices = Devices(noise=0.001)
    devices.sync = {"nccl": 2.0, "internal": 3.0}
    plan, loads, _plans = campaign(make_problem("decode", ("layer", "tensor")), devices)
    assert purposes(loads).count("tensor") == 2
    assert "against_tensor" not in purposes(loads)
    assert plan["decision"]["split_mode"] == "layer"
    assert plan["decision"]["tensor"]["verdict"] == "slower"
    said = r"takes ([\d.]+) % more time per generated token than layer mode \(95 % interval ([\d.]+) to ([\d.]+) %\)"
    more = re.search(said, plan["decision"]["why"])
    assert more is not None and float(more[2]) <= float(more[1]) <= float(more[3])


def test_no_difference_is_no_reason_for_an_experimental_mode() -> None:
    devices = Devices(noise=0.01)
    layer_ms = 25 * 0.5 + 8 * 0.6
    devices.sync = {"nccl": layer_ms / BLOCKS - 0.3, "internal": 1.0}
    plan, loads, _plans = campaign(make_problem("decode", ("layer", "tensor")), devices)
    assert plan["decision"]["split_mode"] == "layer"
    assert plan["decision"]["tensor"]["verdict"] in ("slower", "inconclusive")
    assert "tensor_trial" not in purposes(loads)


@pytest.mark.parametrize("status", ["crashed", "timed_out", "unreadable"])
def test_a_way_that_fails_is_recorded_and_the_other_goes_on(status: str) -> None:
    def fate(item: Json) -> str | None:
        return status if item["purpose"] == "tensor" and allreduce.asked(item) == "nccl" else None

    plan, loads, _plans = campaign(make_problem("decode", ("layer", "tensor")), Devices(), fate)
    assert purposes(loads).count("tensor") > 2
    failed = [row for row in plan["decision"]["tensor"]["table"] if row["status"] != "ok"]
    assert [(row["allreduce"], row["reason"]) for row in failed] == [("nccl", f"it was {status}")]
    assert plan["decision"]["environment"] == {"GGML_CUDA_ALLREDUCE": "internal"}


def test_an_all_reduce_that_stood_in_for_another_is_called_by_its_name() -> None:
    """NCCL that cannot start is llama.cpp's internal one, said only in the log: no arm of its own, and never NCCL."""

    class FallingBack(Devices):
        def test_ms(self, load: Json, test: Json) -> float:
            environment = {"GGML_CUDA_ALLREDUCE": "internal"} if load["split_mode"] == "tensor" else {}
            return super().test_ms({**load, "environment": environment}, test)

        def measure(self, load: Json) -> Json:
            asked = allreduce.asked(load)
            said = {"asked": asked, "ran": "internal", "transport": None,
                    "fallback": "NCCL init failed (x)" if asked == "nccl" else None}  # fmt: skip
            return {**super().measure(load), **({"allreduce": said} if load["split_mode"] == "tensor" else {})}

    plan, loads, _plans = campaign(make_problem("decode", ("layer", "tensor")), FallingBack())
    first = [load for load in loads if load["purpose"] == "tensor" and load["layers"] == [4, 4]]
    assert [allreduce.asked(load) for load in first] == ["nccl"] + ["internal"] * (len(first) - 1)
    decision = plan["decision"]
    assert decision["environment"] == {"GGML_CUDA_ALLREDUCE": "internal"}
    assert decision["tensor"]["allreduce"]["ran"] == "internal"
    assert "with llama.cpp's internal all-reduce takes" in decision["tensor"]["why"]
    assert "NCCL init failed (x), so tensor mode ran with llama.cpp's internal all-reduce" in decision["advice"]
    assert {row["allreduce"] for row in decision["tensor"]["table"][1:]} == {"internal"}
    (even,) = [row for row in decision["tensor"]["table"] if row["layers"] == [4, 4]]
    assert "nccl" in even["asked"] and even["fallback"] == "NCCL init failed (x)"
    keys = [store.file_name(store.load_key("f", "c", load)) for load in loads]
    assert len(set(keys)) == len(keys)


def test_sockets_are_said_to_be_slow() -> None:
    class Sockets(Devices):
        def measure(self, load: Json) -> Json:
            said = {"asked": "nccl", "ran": "nccl", "transport": "NET", "fallback": None}
            tensor = load["split_mode"] == "tensor" and allreduce.asked(load) == "nccl"
            return {**super().measure(load), **({"allreduce": said} if tensor else {})}

    plan, _loads, _plans = campaign(make_problem("decode", ("layer", "tensor")), Sockets())
    assert any("through network sockets" in advice for advice in plan["decision"]["advice"])
    rows = {row["allreduce"]: row["transport"] for row in plan["decision"]["tensor"]["table"][1:]}
    assert rows == {"nccl": "NET", "internal": None}


@pytest.mark.parametrize(
    ("purpose", "status", "count", "verdict"),
    [
        ("tensor", "crashed", 2, "not_usable"),
        # a device that tensor mode brings down speaks against tensor mode at once
        ("tensor", "device_lost", 1, "not_usable"),
        ("against_tensor", "crashed", 1, "inconclusive"),
    ],
)
def test_a_mode_that_never_works_or_cannot_be_compared_is_left(
    purpose: str, status: str, count: int, verdict: str
) -> None:
    problem = make_problem("decode", ("layer", "tensor"))
    plan, loads, _plans = campaign(problem, Devices(), failing(purpose, status))
    decision = plan["decision"]
    assert purposes(loads).count(purpose) == count
    assert (decision["split_mode"], decision["tensor"]["verdict"]) == ("layer", verdict)
    assert verdict != "not_usable" or f"tensor mode is not usable here: it was {status}" in decision["why"]


def test_out_of_memory_leads_to_other_shares() -> None:
    def fate(item: Json) -> str | None:
        return "out_of_memory" if item["purpose"] == "tensor" and item["layers"] == [4, 4] else None

    _plan, loads, _plans = campaign(make_problem("decode", ("layer", "tensor")), Devices(), fate)
    tensor = [load for load in loads if load["purpose"] == "tensor"]
    assert tensor[0]["layers"] == [4, 4]
    assert tensor[1]["layers"] in ([5, 3], [3, 5])


def test_both_modes_are_in_one_table_with_what_became_of_each_arm() -> None:
    plan, loads, _plans = campaign(make_problem("decode", ("layer", "tensor")), Devices())
    decision = plan["decision"]
    assert decision["split_mode"] == "tensor"
    layer, *tensor = decision["tensor"]["table"]
    assert (layer["mode"], layer["layers"]) == ("layer", decision["tensor"]["layer_split"])
    assert (layer["verdict"], layer["less_percent"]) == ("slower", 0.0)
    assert {row["allreduce"] for row in tensor} == {"nccl", "internal"}
    assert [row["layers"] for row in tensor if row["verdict"] == "chosen"] == [decision["layers"]]
    assert {row["verdict"] for row in tensor} <= {"chosen", "slower"}
    for row in decision["tensor"]["table"]:
        assert row["decode_ms_per_token"] > 0 and row["prefill_ms"] > 0 and row["objective_ms"] > 0
        less = 100 * (1 - row["objective_ms"] / layer["objective_ms"])
        assert row["less_percent"] == pytest.approx(less, abs=0.06)
    assert sum(row["loads"] for row in tensor) == purposes(loads).count("tensor")


def test_an_arm_that_fails_says_so_beside_the_one_that_is_kept() -> None:
    def fate(item: Json) -> str | None:
        return "crashed" if item["purpose"] == "tensor" and allreduce.asked(item) == "nccl" else None

    devices = Devices()
    devices.sync = dict.fromkeys(devices.sync, 0.5)
    plan, _loads, _plans = campaign(make_problem("decode", ("layer", "tensor")), devices, fate)
    rows = plan["decision"]["tensor"]["table"]
    assert [(row["mode"], row["verdict"]) for row in rows] == [
        ("layer", "chosen"), ("tensor", "slower"), ("tensor", "failed"),
    ]  # fmt: skip
    failed = rows[-1]
    assert (failed["asked"], failed["status"], failed["reason"]) == (["nccl"], "crashed", "it was crashed")
    assert failed["decode_ms_per_token"] is None and failed["less_percent"] is None


def test_the_layer_split_is_shown_at_the_micro_batch_that_tensor_mode_has() -> None:
    class Quick(Devices):
        def test_ms(self, load: Json, test: Json) -> float:
            tensor = load["split_mode"] == "tensor" and test["kind"] == "prefill"
            return 10.0 if tensor else super().test_ms(load, test)

    devices = Quick()
    devices.size_factor[256] = 0.5
    problem = make_problem("request", ("layer", "tensor"), micro_batches=[256, 512])
    plan, loads, _plans = campaign(problem, devices)
    assert plan["decision"]["micro_batch_size"] == 256
    rivals = [load for load in loads if load["purpose"] == "against_tensor" and load["status"] == "ok"]
    layer = plan["decision"]["tensor"]["table"][0]
    prefills = [
        sum(result["samples_ms"]) / len(result["samples_ms"])
        for load in rivals for result in load["results"] if result["kind"] == "prefill"
    ]  # fmt: skip
    assert layer["loads"] == len(rivals) > 0
    assert layer["prefill_ms"] == pytest.approx(sum(prefills) / len(prefills), rel=0.001)


def test_a_device_that_is_lost_in_layer_mode_ends_the_run() -> None:
    problem = make_problem("decode", ("layer", "tensor"))
    plan, _loads, _plans = campaign(problem, Devices(), failing("against_tensor", "device_lost"))
    assert (plan["done"], plan["stage"], plan["decision"]) == (True, "impossible", None)
    assert "device was lost" in plan["why"]


@pytest.mark.parametrize("status", ["crashed", "timed_out", "out_of_memory"])
def test_what_failed_once_does_not_win(status: str) -> None:
    """The second load of the best shares fails: neither they nor, after a crash or hang, their way is served."""

    def fate(item: Json) -> str | None:
        bad = item["purpose"] == "tensor" and item["layers"] == [4, 4] and item["load"] == 2
        return status if bad and allreduce.asked(item) == "nccl" else None

    plan, loads, _plans = campaign(make_problem("decode", ("layer", "tensor")), Devices(), fate)
    decision = plan["decision"]
    if decision["split_mode"] == "tensor":
        if status == "out_of_memory":
            assert decision["layers"] != [4, 4]
        else:
            assert decision["environment"] == {"GGML_CUDA_ALLREDUCE": "internal"}
    trials = [load for load in loads if load["purpose"] == "tensor_trial"]
    assert all(allreduce.asked(load) != "nccl" or load["layers"] != [4, 4] for load in trials)


def test_a_disturbed_layer_load_does_not_make_tensor_mode_win() -> None:
    """Tensor mode is 5 % slower; one of the loads of the layer split against it takes 30 % longer."""

    class Disturbed(Devices):
        def test_ms(self, load: Json, test: Json) -> float:
            rivals[0] += load["purpose"] == "against_tensor" and test["kind"] == "decode"
            hit = load["purpose"] == "against_tensor" and rivals[0] == 1
            return super().test_ms(load, test) * (1.3 if hit else 1.0)

    rivals = [0]
    devices = Disturbed(noise=0.003)
    devices.sync = {"nccl": 0.255, "internal": 1.0}
    plan, _loads, _plans = campaign(make_problem("decode", ("layer", "tensor")), devices)
    assert plan["decision"]["split_mode"] == "layer"


def test_far_behind_with_another_micro_batch_is_slower_and_not_unusable() -> None:
    devices = Devices()
    devices.sync = {"nccl": 2.0, "internal": 3.0}
    problem = make_problem("prefill", ("layer", "tensor"), micro_batches=[256])
    plan, _loads, _plans = campaign(problem, devices)
    assert plan["decision"]["micro_batch_size"] == 256
    assert plan["decision"]["tensor"]["verdict"] == "slower"
    assert plan["decision"]["tensor"]["less_percent"] < -10


def test_the_decision_for_tensor_mode_says_nothing_of_layer_splits() -> None:
    problem = make_problem("decode", ("layer", "tensor"))
    for device in problem["devices"]:
        device["free_mib"] = 2000
    plan, _loads, _plans = campaign(problem, Devices())
    decision = plan["decision"]
    assert (decision["split_mode"], decision["verdict"]) == ("tensor", "faster")
    assert (decision["advice"], decision["best_by_objective"], decision["range_percent"]) == ([], {}, None)
    assert decision["gain_over_default_percent"] is None or decision["gain_over_default_percent"] > 30


def test_a_hang_of_tensor_mode_costs_a_multiple_of_a_layer_load() -> None:
    class Timed(Devices):
        def measure(self, load: Json) -> Json:
            return {**super().measure(load), "wall_ms": 60_000}

    _plan, loads, _plans = campaign(make_problem("decode", ("layer", "tensor")), Timed())
    assert {load["timeout_seconds"] for load in loads if load["purpose"] == "tensor"} == {300}


@pytest.mark.parametrize(
    ("tensor", "words"),
    [([1], "must be a dict"), ({"allreduce": "nccl"}, "allreduce must be"), ({"max_loads": 0}, "max_loads must be")],
)
def test_wrong_settings_of_tensor_mode_are_named(tensor: t.Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        stages.plan(make_problem("decode", ("layer", "tensor"), tensor=tensor), [])


@pytest.mark.parametrize("field", ["split_mode", "layers", "load", "status", "results", "tests"])
def test_a_wrong_later_load_is_told_by_its_field(field: str) -> None:
    problem = make_problem("request", ("layer", "tensor"), micro_batches=[256])
    _plan, loads, _plans = campaign(problem, Devices())
    place = purposes(loads).index("micro_batch")
    del loads[place][field]
    with pytest.raises(ValueError, match=rf"loads\[{place}\]\.{field}"):
        stages.plan(problem, loads)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"serving": {"flash_attention": "off"}}, "needs flash attention"),
        ({"model": {"head_count": 0}}, "is not known"),
        ({"remote": True}, "is on another host, and each layer would wait for the network twice"),
        ({"tensor": {"refused": "llama.cpp refuses it: no"}}, "tensor mode was not tried: llama.cpp refuses it: no"),
        ({"model": {"head_count": 8, "head_count_kv": 1}}, "divides into 1 parts"),
        ({"devices": 300}, "no shares of it fit"),
    ],
)
def test_it_says_why_tensor_mode_is_not_tried(changes: Json, words: str) -> None:
    problem = make_problem("decode", ("layer", "tensor"))
    for part, values in changes.items():
        if part == "remote":
            problem["devices"][1] |= {"device": "RPC0", "backend": "RPC", "id": "192.0.2.7:50052"}
        elif part == "devices":
            # whole slots fit, but not a share and the compute buffer of the whole model
            for device, free in zip(problem["devices"], (values, 520), strict=True):
                device["free_mib"] = free
            problem["model"].update(head_count=4, head_count_kv=2, kv_k_elements_per_token=[256] * BLOCKS,
                                    kv_v_elements_per_token=[256] * BLOCKS)  # fmt: skip
            problem["devices"][0]["free_mib"] = 150
        else:
            problem[part] = {**problem[part], **values}
    plan, loads, _plans = campaign(problem, Devices())
    assert "tensor" not in purposes(loads)
    assert plan["decision"]["tensor"]["verdict"] == "not_tried"
    assert words in plan["decision"]["tensor"]["why"]


def test_any_first_part_of_a_campaign_gives_its_continuation() -> None:
    problem = make_problem("request", ("layer", "tensor"), micro_batches=[256, 1024])
    _plan, loads, plans = campaign(problem, Devices())
    asked = [item["label"] for plan in plans for item in (*plan["loads"], *plan["trials"])]
    assert asked == [load["label"] for load in loads]
    for count in range(len(loads) + 1):
        layer_stage.known_steps.cache_clear()
        plan = stages.plan(problem, loads[:count])
        following = [item["label"] for item in (*plan["loads"], *plan["trials"])]
        assert following == asked[count : count + len(following)]
        assert bool(following) == (count < len(loads))


def test_no_load_is_asked_for_twice() -> None:
    """Each has a key of its own in the store, those of the micro-batch and of the layer split again too."""
    devices = Devices(noise=0.002)
    devices.sync = {"nccl": -0.2, "internal": 0.0}
    problem = make_problem("request", ("layer", "tensor"), micro_batches=[256, 1024])
    before = copy.deepcopy(problem)
    plan, loads, _plans = campaign(problem, devices)
    assert {"micro_batch", "tensor", "against_tensor", "tensor_trial"} <= set(purposes(loads))
    assert plan["decision"]["split_mode"] == "tensor"
    keys = [store.file_name(store.load_key("f", "c", load)) for load in loads]
    assert len(set(keys)) == len(keys)
    assert problem == before
