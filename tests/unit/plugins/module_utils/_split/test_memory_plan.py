# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import itertools
import json
import pathlib
import typing as t

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import expert_placement, memory_plan

RECORDED = json.loads(
    (pathlib.Path(__file__).parents[4] / "fixtures" / "dry_run" / "b11312.json").read_text(encoding="utf-8")
)


def recorded_model(name: str) -> dict[str, t.Any]:
    """Return a recorded model as C(model) of docs/data_formats.md."""
    model = dict(RECORDED["models"][name])
    runs, elements = model.pop("block_bytes_runs"), model.pop("kv_elements_per_token")
    model["path"] = f"/srv/models/{name}.gguf"
    model["block_bytes"] = list(itertools.chain.from_iterable([size] * count for count, size in runs))
    for key in ("kv_k_elements_per_token", "kv_v_elements_per_token"):
        model[key] = [elements] * model["block_count"]
    return model


def serving(**changes: t.Any) -> dict[str, t.Any]:
    return {
        "context_size": 8192,
        "parallel_slots": 1,
        "kv_unified": True,
        "batch_size": 2048,
        "micro_batch_size": 512,
        "flash_attention": "on",
        "cache_type_k": "f16",
        "cache_type_v": "f16",
        **changes,
    }


def row_id(row: dict[str, t.Any]) -> str:
    keys = ("model", "layers", "context_size", "micro_batch_size", "flash_attention", "cache_type")
    return "-".join(str(row[key]) for key in keys)


@pytest.mark.parametrize("row", RECORDED["rows"], ids=row_id)
def test_agrees_with_the_dry_run(row: dict[str, t.Any]) -> None:
    profile = serving(
        context_size=row["context_size"],
        micro_batch_size=row["micro_batch_size"],
        flash_attention=row["flash_attention"],
        cache_type_k=row["cache_type"],
        cache_type_v=row["cache_type"],
    )
    planned = memory_plan.MemoryPlan(recorded_model(row["model"]), profile).devices(row["layers"])
    for memory, (weights, kv, compute) in zip(planned, row["mib"], strict=True):
        # the dry run prints whole MiB, rounded down
        assert weights <= memory.weights / memory_plan.MIB < weights + 1
        assert kv <= memory.kv / memory_plan.MIB < kv + 1
        total = weights + kv + compute
        assert abs(memory.mib - total) <= max(0.03 * total, 4)


@pytest.mark.parametrize(
    ("name", "mib"),
    [("f32", 4096), ("f16", 2048), ("bf16", 2048), ("q8_0", 1088), ("q4_0", 576), ("q4_1", 640), ("iq4_nl", 576),
     ("q5_0", 704), ("q5_1", 768)],
)
def test_cache_of_each_type(name: str, mib: int) -> None:
    """1024 elements of K, none of V, 16 blocks, 65536 tokens: 2^30 elements of the type, by ggml's block arithmetic."""
    model = recorded_model("llama-1b-q4_k_m")
    model["kv_k_elements_per_token"] = [1024] * 16
    model["kv_v_elements_per_token"] = [0] * 16
    plan = memory_plan.MemoryPlan(model, serving(context_size=65536, cache_type_k=name))
    assert sum(memory.kv for memory in plan.devices((9, 8))) == mib * memory_plan.MIB


def test_k_and_v_have_types_of_their_own() -> None:
    model = recorded_model("llama-1b-q4_k_m")
    both = [
        sum(m.kv for m in memory_plan.MemoryPlan(model, serving(cache_type_k=k, cache_type_v=v)).devices((10, 7)))
        for k, v in (("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "f16"))
    ]
    assert both[2] * 2 == both[0] + both[1]


def test_a_state_counts_beside_a_cache_and_instead_of_the_cache_of_a_window() -> None:
    model = {
        "block_count": 3, "block_bytes": [1, 1, 1], "output_bytes": 1, "kv_k_elements_per_token": [256, 0, 256],
        "kv_v_elements_per_token": [256, 0, 256], "window_tokens": [0, 0, 128], "block_state_bytes": [0, 5000, 7000],
    }  # fmt: skip
    whole = 4096 * 2 * 256 * 2
    assert memory_plan.kv_bytes(model, serving(context_size=4096)) == [whole, 5000, 7000]
    assert memory_plan.MemoryPlan(model, serving(context_size=4096)).slot_bytes(1) == 5001


def test_slots_share_or_divide_the_context() -> None:
    """As llama-server b11312 logs them for np 4: KV of the whole context both times, masks by what one slot sees."""
    assert memory_plan.context_cells(serving(parallel_slots=4, kv_unified=True)) == (8192, 8192)
    assert memory_plan.context_cells(serving(parallel_slots=4, kv_unified=False)) == (2048, 8192)
    assert memory_plan.context_cells(serving(context_size=1000, parallel_slots=3, kv_unified=False)) == (512, 1536)
    assert memory_plan.context_cells(serving(context_size=1000)) == (1024, 1024)
    model = recorded_model("sandbox-q8_0")
    for unified, compute in ((True, 62.54), (False, 38.54)):
        plan = memory_plan.MemoryPlan(model, serving(parallel_slots=4, kv_unified=unified))
        assert plan.devices((20, 13))[0].compute / memory_plan.MIB == pytest.approx(compute, abs=0.2)


def test_weights_go_where_the_layers_are() -> None:
    model = recorded_model("llama-70b-q4_k_m")
    plan = memory_plan.MemoryPlan(model, serving())
    everything = sum(model["block_bytes"]) + model["output_bytes"]
    for layers in ((44, 37), (81, 0), (0, 81), (80, 1), (30, 30, 21)):
        devices = plan.devices(layers)
        assert sum(memory.weights for memory in devices) == everything
        assert [memory.mib == 0 for memory in devices] == [count == 0 for count in layers]
    assert plan.devices((80, 1))[1].weights == model["output_bytes"]
    assert plan.devices((80, 1))[1].kv == 0


def test_budgets() -> None:
    devices = [
        {"free_mib": 23660, "budget_mib": None},
        {"free_mib": 24020, "budget_mib": 20000},
        {"free_mib": 300, "budget_mib": 20000},
        {"free_mib": 24020},
    ]
    assert memory_plan.budgets_mib(devices, 512) == [23148, 19488, 0, 23508]
    assert memory_plan.headroom_mib([23000, 20000], [23148, 19488]) == [148, -512]


def nothing_fits(free: tuple[int, int], **changes: t.Any) -> str:
    model = recorded_model("llama-70b-q4_k_m")
    devices = [{"device": f"CUDA{i}", "free_mib": mib, "budget_mib": None} for i, mib in enumerate(free)]
    splits = [(first, 81 - first) for first in range(1, 81)]
    return memory_plan.why_nothing_fits(devices, model, serving(**changes), splits, free, 0)


def test_what_is_missing_and_what_would_help() -> None:
    text = nothing_fits((23500, 23500), context_size=32768)
    assert text.startswith("llama-70b-q4_k_m does not fit: ")
    for part in (
        "MiB are missing in the split that comes nearest",
        "a q8_0 KV cache (split_tuning_cache_type_k and split_tuning_cache_type_v)",
        "a context of 16384 tokens instead of 32768",
        "a smaller quantisation (weights on the devices of at most",
    ):
        assert part in text
    # what is offered is true
    plan = memory_plan.MemoryPlan(recorded_model("llama-70b-q4_k_m"), serving(context_size=16384))
    assert memory_plan.fits(plan, [(first, 81 - first) for first in range(1, 81)], (23500, 23500))
    already = nothing_fits((22000, 22000), context_size=32768, cache_type_k="q8_0", cache_type_v="q8_0")
    assert "a q8_0 KV cache" not in already and "a q4_0 KV cache" in already


def test_the_missing_memory_is_that_of_the_nearest_split() -> None:
    plan = memory_plan.MemoryPlan(recorded_model("llama-70b-q4_k_m"), serving())
    nearest = min(
        sum(max(0, used - 20000) for used in plan.mib((first, 81 - first))) for first in range(1, 81)
    )
    assert f"fit: {nearest} MiB are missing" in nothing_fits((20000, 20000))


def test_nothing_helps() -> None:
    assert "take a smaller model or more devices" in nothing_fits((100, 100))


def test_experts_in_ram_are_a_cure_where_they_are_one() -> None:
    model = model_shapes.model("qwen3_30b_a3b_q4_k_m")
    devices = [{"device": f"CUDA{i}", "free_mib": 8000, "budget_mib": None} for i in range(2)]
    splits = [(first, 49 - first) for first in range(1, 49)]
    cure = "some of its experts in RAM (split_tuning_experts_in_ram: auto"
    assert cure in memory_plan.why_nothing_fits(devices, model, serving(), splits, (8000, 8000), 0)
    assert cure not in memory_plan.why_nothing_fits(devices, model, serving(), splits, (700, 700), 0)


def test_of_a_dense_model_the_feed_forward_part_in_ram_is_the_last_cure() -> None:
    model = model_shapes.model("llama_3_3_70b_q4_k_m")
    devices = [{"device": f"CUDA{i}", "free_mib": 22000, "budget_mib": None} for i in range(2)]
    splits = [(first, 81 - first) for first in range(1, 81)]
    asked = serving(context_size=32768)
    text = memory_plan.why_nothing_fits(devices, model, asked, splits, (22000, 22000), 0)
    assert text.endswith(", or with some of its FFN weights in RAM (split_tuning_experts_in_ram: auto, with a named"
                         " context)")  # fmt: skip
    assert "a smaller quantisation" in text
    without = {**model, "block_ffn_bytes": {}}
    assert "in RAM" not in memory_plan.why_nothing_fits(devices, without, asked, splits, (22000, 22000), 0)


DEFAULTS = pathlib.Path(memory_plan.__file__).parents[3] / "roles" / "split_tuning" / "defaults" / "main.yml"
CUDA_ROWS = json.loads(
    (pathlib.Path(__file__).parents[4] / "fixtures" / "dry_run" / "cuda_b11312.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(
    "row", CUDA_ROWS, ids=lambda row: f"{row['model']}-{row['blocks_in_ram']}-{row['micro_batch_size']}"
)
def test_the_reserve_covers_what_cuda_asks_for_beyond_the_plan(row: dict[str, t.Any]) -> None:
    """The dry run of CUDA0 and CUDA1; its fused sums of experts keep tensors that other devices let go."""
    model = model_shapes.model(row["model"])
    slots = model["block_count"] + 1
    layers = [slots * 2 // 3, slots - slots * 2 // 3]
    experts = expert_placement.on_first_device(model, tuple(layers), row["blocks_in_ram"])
    profile = serving(context_size=4096, micro_batch_size=row["micro_batch_size"])
    planned = memory_plan.MemoryPlan(model, profile, experts=experts).mib(layers)
    largest = max((max(sizes) for sizes in (model.get("block_ffn_bytes") or {}).values()), default=0) >> 20
    missing = 32 if row["blocks_in_ram"] else yaml.safe_load(DEFAULTS.read_text())["split_tuning_reserve_mib"]
    for ours, theirs in zip(planned, row["mib"], strict=True):
        assert -missing <= ours - theirs <= max(64, 0.025 * theirs) + largest
