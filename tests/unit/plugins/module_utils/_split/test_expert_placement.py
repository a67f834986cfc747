# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import dataclasses
import re

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment, expert_placement, memory_plan

MODEL = model_shapes.model("qwen3_30b_a3b_q4_k_m")
DENSE = model_shapes.model("llama_3_1_8b_q4_k_m")
#: LLM_FFN_EXPS_REGEX of llama.cpp's common/common.h, as --n-cpu-moe uses it for one block
NCMOE = "blk\\.{}\\.ffn_(up|down|gate|gate_up)_(ch|)exps"
#: LLM_FFN_DENSE_REGEX, as --n-cpu-ffn does
NCFFN = "blk\\.{}\\.ffn_(up|down|gate)\\."
NAMES = [tensor.name for tensor in model_shapes.tensors(model_shapes.SHAPES["qwen3_30b_a3b_q4_k_m"])]
SERVING = {
    "context_size": 8192, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16", "threads": 1, "load_mode": "mmap",
}  # fmt: skip


def moved(value: str, separator: str, names: list[str] = NAMES) -> set[str]:
    """Return the tensors that llama.cpp would move to the CPU by an -ot."""
    patterns = [part.rpartition("=") for part in value.split(separator)]
    assert all(buffer == "CPU" for _pattern, _equals, buffer in patterns)
    return {name for name in names if any(re.search(pattern, name) for pattern, _equals, _buffer in patterns)}


@pytest.mark.parametrize("program", ["llama_bench", "llama_fit_params", "llama_server"])
def test_an_override_moves_what_n_cpu_moe_moves(program: str) -> None:
    placement = expert_placement.on_first_device(MODEL, (30, 19), 12)
    value = expert_placement.render(placement, program)
    assert moved(value, expert_placement.SEPARATORS[program]) == {
        name for name in NAMES if any(re.search(NCMOE.format(block), name) for block in range(12))
    }
    assert "\\" not in value and not re.search(r"[\s,;]", value)


@pytest.mark.parametrize("program", ["llama_bench", "llama_fit_params", "llama_server"])
@pytest.mark.parametrize("name", ["llama_3_1_8b_q4_k_m", "qwen3_5_27b_q4_k_m"])
def test_of_a_dense_model_an_override_moves_what_n_cpu_ffn_moves(name: str, program: str) -> None:
    model, tensors = model_shapes.model(name), model_shapes.tensors(model_shapes.SHAPES[name])
    placement = expert_placement.on_first_device(model, (20, model["block_count"] - 19), 12)
    assert placement.kind == expert_placement.FFN
    value = expert_placement.render(placement, program)
    found = moved(value, expert_placement.SEPARATORS[program], [tensor.name for tensor in tensors])
    assert found == {
        tensor.name for tensor in tensors if any(re.search(NCFFN.format(block), tensor.name) for block in range(12))
    }
    assert len(found) == 36 and "\\" not in value and not re.search(r"[\s,;]", value)
    sizes = {tensor.name: tensor.n_bytes for tensor in tensors}
    assert sum(expert_placement.block_ram_bytes(model, placement)) == sum(sizes[own] for own in found)
    part = expert_placement.place(model, placement.layers, [0, 1], (0, ("down",)))
    value = expert_placement.render(part, program)
    assert moved(value, expert_placement.SEPARATORS[program], list(sizes)) == {
        "blk.0.ffn_down.weight", *(f"blk.20.ffn_{part}.weight" for part in ("up", "gate", "down")),
    }  # fmt: skip
    assert expert_placement.from_json(part.layers, expert_placement.as_json(part)) == part


@pytest.mark.parametrize("program", ["llama_bench", "llama_fit_params", "llama_server"])
def test_a_part_of_a_block_is_the_last_in_one_override(program: str) -> None:
    placement = expert_placement.place(MODEL, (30, 19), [2, 1], (0, ("up", "gate")))
    assert placement.blocks == (0, 1, 30)
    value = expert_placement.render(placement, program)
    parts = {f"blk.2.ffn_{part}_exps.weight" for part in ("up", "gate")}
    whole = {f"blk.{block}.ffn_{part}_exps.weight" for block in (0, 1, 30) for part in ("up", "gate", "down")}
    assert moved(value, expert_placement.SEPARATORS[program]) == parts | whole


def test_bytes_in_ram_are_those_of_the_tensors_that_move() -> None:
    placement = expert_placement.place(MODEL, (30, 19), [2, 1], (0, ("down",)))
    names = moved(expert_placement.render(placement, "llama_server"), ",")
    sizes = {t.name: t.n_bytes for t in model_shapes.tensors(model_shapes.SHAPES["qwen3_30b_a3b_q4_k_m"])}
    wanted = sum(sizes[name] for name in names)
    assert sum(expert_placement.block_ram_bytes(MODEL, placement)) == wanted
    assert expert_placement.ram_bytes(MODEL, placement) == wanted + sizes["token_embd.weight"]
    without = memory_plan.MemoryPlan(MODEL, SERVING).devices((30, 19))
    beside = memory_plan.MemoryPlan(MODEL, SERVING, experts=placement, copied=False).devices((30, 19))
    assert sum(one.weights - other.weights for one, other in zip(without, beside, strict=True)) == wanted
    # no pipelining any more: what comes in exists once
    assert all(one.compute > other.compute for one, other in zip(without, beside, strict=True))


def test_a_device_without_enough_experts_and_an_unknown_part_are_refused() -> None:
    with pytest.raises(ValueError, match="31 blocks of device 0 .* 30 blocks with experts"):
        expert_placement.place(MODEL, (30, 19), [31, 0])
    with pytest.raises(ValueError, match="19 blocks of device 1 .* 18 blocks"):  # the output layer has none
        expert_placement.place(MODEL, (30, 19), [0, 18], (1, ("up",)))
    with pytest.raises(ValueError, match="up, gate, down, not gate_up"):
        expert_placement.place(MODEL, (30, 19), [0, 0], (0, ("gate_up",)))
    with pytest.raises(ValueError, match="13 blocks of device 1 .* 12 blocks with FFN weights"):
        expert_placement.place(DENSE, (20, 13), [0, 13])
    with pytest.raises(ValueError, match="0 blocks with FFN weights"):
        expert_placement.place({**DENSE, "block_ffn_bytes": {}}, (20, 13), [1, 0])


@pytest.mark.parametrize(
    ("count", "parts", "words"),
    [(1, None, "1 block"), (12, (), "12 blocks"), (2, ("up", "gate"), "2 blocks and up and gate of another"),
     (0, ["down"], "a part of one block (down)")],
)  # fmt: skip
def test_blocks_in_words(count: int, parts: list[str] | None, words: str) -> None:
    assert expert_placement.blocks_in_words(count, parts) == words


def test_the_first_device_in_use_holds_the_layers_of_experts_in_ram() -> None:
    assert expert_placement.on_first_device(MODEL, (0, 30, 19), 2).blocks == (0, 1)


def test_a_placement_survives_json_and_what_cannot_be_is_refused() -> None:
    placement = dataclasses.replace(
        expert_placement.place(MODEL, (30, 19), [2, 1], (0, ("up",))), threads=8, no_host=True
    )
    assert expert_placement.from_json([30, 19], expert_placement.as_json(placement)) == placement
    assert expert_placement.as_json(expert_placement.place(MODEL, (30, 19), [0, 0])) is None
    assert expert_placement.from_json([30, 19], None) is None
    good = expert_placement.as_json(placement)
    for wrong in (
        {"kind": "attention"},
        {"blocks": [48]}, {"blocks": "0"}, {"partial": {"block": 2, "parts": ["router"]}}, {"threads": -1},
        {"partial": {"block": 2, "parts": []}}, {"override": "a b"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"experts_in_ram.{next(iter(wrong))}"):
            expert_placement.from_json([30, 19], {**good, **wrong})


def test_an_override_of_llama_cpps_own_fit_is_passed_on_as_it_is() -> None:
    placement = expert_placement.ExpertPlacement((30, 19), (1,), override="blk[.]0[.]a=CPU,blk[.]1[.]b=CUDA1")
    assert expert_placement.render(placement, "llama_bench") == "blk[.]0[.]a=CPU;blk[.]1[.]b=CUDA1"
    assert expert_placement.render(placement, "llama_server") == placement.override


def test_an_entry_holds_the_experts_with_the_threads_that_compute_them() -> None:
    placement = dataclasses.replace(expert_placement.on_first_device(MODEL, (30, 19), 2), threads=8)
    devices = [{"id": "a", "device": "RPC0", "backend": "RPC"}, {"id": "b", "device": "RPC1", "backend": "RPC"}]
    tuning = {
        "model": {"id": "m", "path": "/m.gguf", "sha256": "5a"},
        "problem": {"devices": devices, "model": MODEL, "serving": SERVING},
        "plan": {
            "decision": {
                "layers": [30, 19], "split_mode": "layer", "micro_batch_size": 4096,
                "experts_in_ram": expert_placement.as_json(placement),
            },
            "feasible": [],
        },
        "loads": [], "rpc_endpoints": ["a", "b"], "dry_run": None, "device_probe": None, "probe_settings": None,
        "fingerprint_parts": {}, "campaign": "c1",
    }  # fmt: skip
    entry = deployment.build(tuning)
    assert (entry["serving"]["threads"], entry["serving"]["load_mode"]) == (8, "none")
    # a micro-batch is never larger than a batch
    assert (entry["serving"]["micro_batch_size"], entry["serving"]["batch_size"]) == (4096, 4096)
    assert entry["experts_in_ram"]["ram_bytes"] == expert_placement.ram_bytes(MODEL, placement)
    assert "experts_in_ram" not in entry["decision"]
    assert expert_placement.from_json(deployment.layers(entry), entry["experts_in_ram"]) == placement
    assert deployment.expand(entry)["decision"]["experts_in_ram"] == entry["experts_in_ram"]


def test_the_profile_of_a_decision_has_a_batch_for_its_micro_batch_only_with_weights_in_ram() -> None:
    serving = {"batch_size": 2048, "micro_batch_size": 512, "threads": 1, "load_mode": "auto"}
    experts = expert_placement.as_json(expert_placement.ExpertPlacement((25,), (0,), threads=8))
    decision = {"layers": [25], "micro_batch_size": 4096, "experts_in_ram": experts}
    assert expert_placement.of_decision(serving, decision) == {
        "batch_size": 4096, "micro_batch_size": 4096, "threads": 8, "load_mode": "none",
    }  # fmt: skip
    small = expert_placement.of_decision(serving, {**decision, "micro_batch_size": 256})
    assert (small["batch_size"], small["micro_batch_size"]) == (2048, 256)
    plain = {"layers": [25], "micro_batch_size": 1024}
    assert expert_placement.of_decision(serving, plain) == {**serving, "micro_batch_size": 1024}


def test_swap_is_no_room_for_experts_and_the_host_keeps_some() -> None:
    needed = 40 * 1024 * expert_placement.MIB
    assert expert_placement.ram_missing_mib(needed, 41 * 1024) == 0
    assert expert_placement.ram_missing_mib(needed + 1, 41 * 1024) == 1
    assert expert_placement.ram_missing_mib(needed, 30 * 1024) == 11 * 1024
