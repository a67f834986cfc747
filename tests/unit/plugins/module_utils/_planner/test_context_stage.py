# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import context_stage

LLAMA = model_shapes.model("llama_3_3_70b_q4_k_m")
SERVING: dict[str, t.Any] = {
    "context_size": "max", "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16",
}  # fmt: skip
BUDGETS = [1000, 1000]


def devices(*free: int) -> list[dict[str, t.Any]]:
    return [{"device": f"CUDA{i}", "free_mib": mib, "budget_mib": None} for i, mib in enumerate(free)]


def search(first: int, truth: int, top: int = 131072) -> tuple[int, list[int]]:
    """Search with a dry run that fits up to C(truth) tokens; return the context and what was asked, in order."""
    model, asked = t.cast(t.Any, {**LLAMA, "context_length_train": top}), dict[int, t.Any]()
    while True:
        settled = context_stage.settle(model, first, BUDGETS, asked.get)
        if settled.ask is None:
            return settled.context, list(asked)
        assert settled.ask not in asked
        mib = 900 if settled.ask <= truth else 1001
        asked[settled.ask] = {"available": True, "devices": [{"mib": mib}, {"mib": 500}]}


@pytest.mark.parametrize(
    ("first", "truth", "found", "asked"),
    [
        (16384, 16384, 16384, [16384, 17408]),
        (16384, 18432, 18432, [16384, 17408, 18432, 19456]),
        (16384, 14336, 14336, [16384, 15360, 14336]),
        (131072, 200000, 131072, [131072]),
    ],
)
def test_the_dry_run_has_the_final_word(first: int, truth: int, found: int, asked: list[int]) -> None:
    assert search(first, truth) == (found, asked)


def test_no_answer_leaves_the_plan_as_it_is() -> None:
    settled = context_stage.settle(LLAMA, 16384, BUDGETS, lambda _context: {"available": False, "devices": []})
    assert settled == (16384, None)


def test_a_dry_run_that_refuses_every_context_is_an_error() -> None:
    with pytest.raises(ValueError, match="finds no room for a context of 1024 tokens: 1 MiB are missing"):
        search(3072, 0)


def test_the_plan_says_the_first_context_and_what_is_missing_for_the_least() -> None:
    pair = devices(23633, 23982)
    profile = context_stage.planned(LLAMA, SERVING, pair, 512)
    assert profile["context_size"] == 16384
    layers = context_stage.placed(LLAMA, profile, pair, 512)
    assert context_stage.question(16384, layers) == f"dry run of a context of 16384 as {layers[0]}/{layers[1]}"
    with pytest.raises(ValueError, match=r"is max, and not even a context of 1024 tokens fits: .* MiB are missing"):
        context_stage.planned(LLAMA, SERVING, devices(20000, 20000), 512)
