# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The catalogue of shapes, and our memory plan against llama.cpp's dry run on header-only GGUFs of those shapes."""

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import gguf_model, model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import expert_placement, memory_plan
from ansible_collections.homelab.mixed_gpu.tests.fixtures.dry_run import record

RECORDED = json.loads(
    (pathlib.Path(__file__).parents[4] / "fixtures" / "dry_run" / "shapes_b11312.json").read_text(encoding="utf-8")
)
COPIED = json.loads(
    (pathlib.Path(__file__).parents[4] / "fixtures" / "dry_run" / "copied_b11312.json").read_text(encoding="utf-8")
)

#: Weights in 10^9, as llama.cpp prints them for the published files (110.47 B of a GLM 4.5 Air with its last block).
PUBLISHED_WEIGHTS: dict[str, float] = {
    "qwen3_5_27b_q4_k_m": 26.90,
    "gpt_oss_20b_mxfp4": 20.91,
    "gpt_oss_120b_mxfp4": 116.83,
    "glm_4_5_air_q4_k_m": 110.47,
    "qwen3_next_80b_a3b_q4_k_m": 79.67,
    "qwen3_5_122b_a10b_q4_k_m": 122.11,
}


@pytest.mark.parametrize("name", sorted(model_shapes.PUBLISHED_GB))
def test_has_the_size_of_the_published_file(name: str) -> None:
    model = model_shapes.model(name)
    assert model["size_bytes"] / 1e9 == pytest.approx(model_shapes.PUBLISHED_GB[name], rel=0.003)
    assert model["file_type"] == "Q4_K_M"


@pytest.mark.parametrize("name", sorted(PUBLISHED_WEIGHTS))
def test_has_the_weights_of_the_published_model(name: str) -> None:
    weights = sum(tensor.elements for tensor in model_shapes.tensors(model_shapes.SHAPES[name]))
    assert round(weights / 1e9, 2) == PUBLISHED_WEIGHTS[name]


@pytest.mark.parametrize("name", model_shapes.known())
def test_what_is_published_and_modelled_is_known_of_every_shape(name: str) -> None:
    assert name in {*model_shapes.PUBLISHED_GB, *PUBLISHED_WEIGHTS}
    model = model_shapes.model(name)
    assert model["notes"] == [] and not model["estimated"]


def test_a_block_that_is_not_loaded_has_neither_weights_nor_a_cache() -> None:
    model = model_shapes.model("glm_4_5_air_q4_k_m")
    for name in ("block_bytes", "block_read_bytes", "kv_k_elements_per_token", "kv_v_elements_per_token"):
        assert model[name][-1] == 0 < min(model[name][:-1])
    # the first block is dense, and has no experts to move
    assert [bool(size) for size in model["block_ffn_bytes"]["up"]] == [False, *[True] * 45, False]


def test_three_of_four_blocks_of_a_delta_net_keep_a_state_and_no_cache() -> None:
    model = model_shapes.model("qwen3_next_80b_a3b_q4_k_m")
    full = [block for block, count in enumerate(model["kv_k_elements_per_token"]) if count]
    assert full == list(range(3, 48, 4))
    # n_embd_r: 3 x (4096 + 2 x 16 x 128), n_embd_s: 128 x 4096, in float32
    assert {model["block_sequence_bytes"][block] for block in range(48) if block not in full} == {2195456}


def test_an_unknown_shape_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no model shape 'gpt-9'; known are gemma_3_27b_it_q4_k_m, glm_4_5_air_q4_k_m"):
        model_shapes.model("gpt-9")


@pytest.mark.parametrize("name", model_shapes.known())
def test_the_file_reads_as_the_shape_says(name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.gguf"
    record.header_only(path, name)
    assert path.stat().st_blocks * 512 < 1_000_000
    read = gguf_model.read(gguf_model.files_of(str(path)))
    expected = model_shapes.model(name)
    del read["vocabulary"]  # a shape has no words
    for apart in ("path", "shards", "size_bytes"):
        del read[apart], expected[apart]
    assert read == expected


def test_experts_count_by_their_use() -> None:
    model = model_shapes.model("qwen3_30b_a3b_q4_k_m")
    active = sum(model["block_weights"]) + model["output_weights"]
    assert active == pytest.approx(3.0e9, rel=0.02)              # the model card: 3.3 billion with the token embedding
    assert sum(model["block_read_bytes"]) < 0.1 * sum(model["block_bytes"])


def test_every_sixth_block_of_gemma_3_sees_everything() -> None:
    windows = model_shapes.model("gemma_3_27b_it_q4_k_m")["window_tokens"]
    assert [index for index, window in enumerate(windows) if not window] == list(range(5, 62, 6))
    assert set(windows) == {0, 1024}


def compare(row: dict[str, t.Any]) -> None:
    serving, model = {**record.BASE, **row["serving"]}, model_shapes.model(row["shape"])
    experts = expert_placement.from_json(row["layers"], row.get("experts_in_ram"))
    planned = memory_plan.MemoryPlan(model, serving, experts=experts, copied=False).devices(row["layers"])
    for memory, (weights, kv, compute) in zip(planned, row["mib"], strict=True):
        # the dry run prints whole MiB, rounded down
        assert weights <= memory.weights / memory_plan.MIB < weights + 1
        assert kv <= memory.kv / memory_plan.MIB < kv + 1
        total = weights + kv + compute
        assert abs(memory.mib - total) <= max(0.01 * total, 4)
    in_ram = sum(expert_placement.block_ram_bytes(model, experts)) + model["token_embedding_bytes"]
    assert row["host_mib"] <= in_ram / memory_plan.MIB < row["host_mib"] + 1


def row_id(row: dict[str, t.Any]) -> str:
    blocks = (row.get("experts_in_ram") or {}).get("blocks", [])
    return "-".join([row["shape"], *map(str, row["layers"]), *map(str, row["serving"].values()), f"n{len(blocks)}"])


@pytest.mark.parametrize("row", RECORDED, ids=row_id)
def test_the_plan_agrees_with_the_recorded_dry_run(row: dict[str, t.Any]) -> None:
    compare(row)


@pytest.mark.parametrize("row", COPIED, ids=row_id)
def test_the_first_device_has_room_for_the_experts_that_it_copies(row: dict[str, t.Any]) -> None:
    serving, model = {**record.BASE, **row["serving"]}, model_shapes.model(row["shape"])
    experts = expert_placement.from_json(row["layers"], row["experts_in_ram"])
    plan = memory_plan.MemoryPlan(model, serving, experts=experts)
    largest = max(max(sizes) for sizes in model["block_ffn_bytes"].values()) / memory_plan.MIB
    # the recorded device copies experts as a card does, and does not fuse their sum as CUDA does
    fused = 8 * model["expert_used_count"] * model["embedding_length"] * serving["micro_batch_size"]
    for memory, (_weights, _kv, compute) in zip(plan.devices(row["layers"]), row["mib"], strict=True):
        # an upper bound but for what the output layer needs, and at most one tensor too large
        most = 1.1 * compute + largest + fused / memory_plan.MIB
        assert compute - max(0.03 * compute, 4) <= memory.compute / memory_plan.MIB <= most
    without = memory_plan.MemoryPlan(model, serving, experts=experts, copied=False)
    plain = [memory.compute for memory in without.devices(row["layers"])]
    more = [memory.compute - other for memory, other in zip(plan.devices(row["layers"]), plain, strict=True)]
    assert more[0] >= 0 and 0 <= sum(more[1:]) <= fused


def test_what_is_recorded_is_what_is_asked() -> None:
    asked = [{name: value for name, value in row.items() if name not in ("mib", "host_mib")} for row in RECORDED]
    assert asked == list(record.questions())


@pytest.mark.live
def test_the_plan_agrees_with_the_real_dry_run(llama_bin: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with record.rpc_servers(llama_bin, 2) as endpoints:
        for row in record.questions():
            compare(record.answer(llama_bin, tmp_path, row, endpoints))
