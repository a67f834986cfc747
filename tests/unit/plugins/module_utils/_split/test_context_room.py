# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import context_room, memory_plan

LLAMA = model_shapes.model("llama_3_3_70b_q4_k_m")
SERVING: dict[str, t.Any] = {
    "context_size": 8192, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16",
}  # fmt: skip
PAIR = (23633 - 512, 23982 - 512)
Q8 = {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}


@pytest.mark.parametrize("types", [{}, Q8], ids=["f16", "q8_0"])
@pytest.mark.parametrize("budgets", [PAIR, (50000,), (16000, 16000, 16000)], ids=["two", "one", "three"])
def test_the_largest_context_fits_and_the_next_step_does_not(types: dict[str, str], budgets: tuple[int, ...]) -> None:
    profile = {**SERVING, **types}
    most = context_room.largest(LLAMA, profile, budgets)
    assert most % 1024 == 0 and most >= 1024
    rooms = [
        context_room.Room(LLAMA, context_room.with_context(profile, most + more), budgets)
        for more in (0, context_room.STEP)
    ]
    assert [room.fits for room in rooms] == [True, False]
    assert min(rooms[0].left(rooms[0].roomiest())) >= 0 and rooms[0].missing() == {}
    missing = rooms[1].missing()
    assert missing and all(mib > 0 for mib in missing.values())


def test_training_bounds_the_context_and_what_does_not_fit_is_zero() -> None:
    assert context_room.largest(LLAMA, SERVING, (90000, 90000)) == 131072
    assert context_room.trained({**LLAMA, "context_length_train": 5000}) == 4096
    assert context_room.trained({**LLAMA, "context_length_train": 0}) == 131072
    assert context_room.largest(LLAMA, SERVING, (20000, 20000)) == 0


def test_a_window_costs_little_context() -> None:
    gemma = model_shapes.model("gemma_3_27b_it_q4_k_m")
    flat = {**gemma, "window_tokens": [0] * gemma["block_count"]}
    assert context_room.largest(gemma, SERVING, (23000,)) > 3 * context_room.largest(flat, SERVING, (23000,))


def test_the_types_that_engine_and_model_allow() -> None:
    assert [k for k, _v in context_room.types(LLAMA, SERVING)] == ["f16", "q8_0", "q4_0"]
    assert context_room.types(LLAMA, {**SERVING, "flash_attention": "off"}) == [("f16", "f16")]
    # blocks of 32 elements do not divide heads of 80
    odd = {
        **LLAMA, "key_length": 80, "head_count_kv": 8, "kv_k_elements_per_token": [640] * 80,
        "kv_v_elements_per_token": [640] * 80,
    }  # fmt: skip
    assert context_room.types(odd, SERVING) == [("f16", "f16")]
    mixed = {**SERVING, "cache_type_k": "q8_0"}
    assert context_room.types(LLAMA, mixed)[0] == ("q8_0", "f16")


def test_the_roomiest_split_of_two_and_of_three_devices() -> None:
    for budgets in (PAIR, (16000, 16000, 16000)):
        room = context_room.Room(LLAMA, context_room.with_context(SERVING, 4096), budgets)
        found = room.roomiest()
        plan = memory_plan.MemoryPlan(LLAMA, context_room.with_context(SERVING, 4096))
        least = min(memory_plan.headroom_mib(plan.mib(found), budgets))
        for giver in range(len(budgets)):
            for taker in range(len(budgets)):
                moved = list(found)
                moved[giver] -= 1
                moved[taker] += 1
                assert min(memory_plan.headroom_mib(plan.mib(moved), budgets)) <= least
