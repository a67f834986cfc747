# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Corrections by the dry run, with answers of llama.cpp b11312 about models of known shapes."""

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import estimate_stage
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import memory_plan
from ansible_collections.homelab.mixed_gpu.tests.fixtures.dry_run import record

RECORDED = json.loads((pathlib.Path(__file__).parents[4] / "fixtures/dry_run/shapes_b11312.json").read_text())
BASE = {**record.BASE}


def test_one_device_is_asked_about_all_of_it():
    assert estimate_stage.splits(20, 1) == [[21]]


@pytest.mark.parametrize("devices", [2, 3])
def test_two_devices_are_asked_about_cuts_too(devices):
    asked = estimate_stage.splits(60, devices)
    assert [layers[0] for layers in asked] == [61, 10, 20, 30, 40, 50]
    assert {sum(layers) for layers in asked} == {61} and {len(layers) for layers in asked} == {devices}


@pytest.mark.parametrize("blocks", [1, 2, 3, 5])
def test_small_models_are_asked_about_no_split_twice(blocks):
    asked = estimate_stage.splits(blocks, 2)
    assert len({tuple(layers) for layers in asked}) == len(asked)
    assert all(0 < layers[0] <= blocks + 1 and min(layers) >= 0 for layers in asked)


def on_cards(name: str) -> dict[tuple[int, ...], t.Any]:
    """Return what the dry run said of each split of a model that lies on the devices as a whole."""
    return {
        tuple(row["layers"]): row["mib"]
        for row in RECORDED
        if row["shape"] == name and not row["serving"] and "experts_in_ram" not in row
    }


def answer(mib: t.Sequence[t.Sequence[int]]) -> dict[str, t.Any]:
    devices = [dict(zip(("model_mib", "kv_mib", "compute_mib"), row, strict=True)) for row in mib]
    return {"available": True, "devices": devices}


def misjudged(name: str, **wrong: t.Any) -> t.Any:
    """A known model as it would be described if it were not modelled."""
    return {**model_shapes.model(name), "estimated": True, **wrong}


def test_windows_that_nobody_knew_of_are_found(monkeypatch):
    """Gemma 3 described as plain attention: the cache is counted six times too large, and the dry run says so."""
    name = "gemma_3_27b_it_q4_k_m"
    rows = on_cards(name)
    asked = [(63, 0), (12, 51), (32, 31), (50, 13)]
    monkeypatch.setattr(estimate_stage, "splits", lambda _blocks, _devices: [list(layers) for layers in asked])
    model = misjudged(name, window_tokens=[0] * 62)
    before = memory_plan.MemoryPlan(model, BASE)
    after = memory_plan.MemoryPlan(estimate_stage.corrected(model, BASE, [answer(rows[each]) for each in asked]), BASE)
    for layers, told in rows.items():
        theirs = sum(map(sum, told))
        assert sum(before.mib(layers)) - theirs > 2000
        for ours, device in zip(after.mib(layers), told, strict=True):
            assert -16 <= ours - sum(device) <= max(0.03 * sum(device), 120)


def test_another_profile_is_planned_for_in_proportion(monkeypatch):
    name = "gemma_3_27b_it_q4_k_m"
    rows = on_cards(name)
    model = misjudged(name)
    monkeypatch.setattr(estimate_stage, "splits", lambda _blocks, _devices: [[63, 0]])
    corrected = estimate_stage.corrected(model, BASE, [answer(rows[63, 0])])
    small = {**BASE, "context_size": 1024}
    plan = memory_plan.MemoryPlan(corrected, small)
    assert sum(plan.cache_bytes) == pytest.approx(sum(memory_plan.MemoryPlan(model, small).cache_bytes), rel=0.01)


def test_a_state_that_was_not_counted_at_all_is_shared_evenly():
    model = misjudged("llama_3_1_8b_q4_k_m", kv_k_elements_per_token=[0] * 32, kv_v_elements_per_token=[0] * 32)
    corrected = estimate_stage.corrected(model, BASE, [answer([[4700, 639, 300]])])
    cache = memory_plan.MemoryPlan(corrected, BASE).cache_bytes
    assert set(cache) == {20 * memory_plan.MIB}


def test_without_an_answer_the_model_stays_as_it_is():
    model = misjudged("llama_3_1_8b_q4_k_m")
    nothing = {"available": False, "reason": "x.", "devices": []}
    assert estimate_stage.corrected(model, BASE, []) is model
    assert estimate_stage.corrected(model, BASE, [nothing, nothing]) is model


def test_a_first_question_without_answer_leaves_nothing_to_compare_with():
    model = misjudged("llama_3_1_8b_q4_k_m")
    nothing = {"available": False, "reason": "x.", "devices": []}
    assert estimate_stage.corrected(model, BASE, [nothing, answer([[1, 1, 1], [1, 1, 1]])]) is model


@pytest.mark.live
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gemma_3_27b_it_q4_k_m", {"window_tokens": [0] * 62}),
        ("qwen3_30b_a3b_q4_k_m", {"kv_k_elements_per_token": [0] * 48, "kv_v_elements_per_token": [0] * 48}),
    ],
)
def test_the_real_engine_corrects_what_was_counted_wrongly(
    llama_bin: pathlib.Path, tmp_path: pathlib.Path, name: str, wrong: dict[str, t.Any]
) -> None:
    model = misjudged(name, **wrong)
    path = tmp_path / "m.gguf"
    record.header_only(path, name)
    with record.rpc_servers(llama_bin, 2) as endpoints:
        blocks = model["block_count"]
        splits = estimate_stage.splits(blocks, 2)
        asked = [answer(record.ask(llama_bin, path, layers, BASE, endpoints)[0]) for layers in splits]
        plan = memory_plan.MemoryPlan(estimate_stage.corrected(model, BASE, asked), BASE)
        for first in (blocks // 3, blocks // 2 + 3, blocks - 4):
            layers = [first, blocks + 1 - first]
            told = [sum(parts) for parts in record.ask(llama_bin, path, layers, BASE, endpoints)[0]]
            for ours, theirs in zip(plan.mib(layers), told, strict=True):
                assert abs(ours - theirs) <= max(0.01 * theirs, 24)
