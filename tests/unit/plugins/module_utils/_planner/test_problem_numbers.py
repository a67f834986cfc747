# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Fields of a problem that cannot be."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import stages

BLOCKS = 32


def make_problem() -> dict[str, t.Any]:
    return {
        "schema": 1,
        "devices": [{"device": name, "id": name, "free_mib": 400, "budget_mib": None} for name in ("RPC0", "RPC1")],
        "model": {
            "path": "/srv/models/sandbox.gguf", "name": "sandbox", "block_count": BLOCKS,
            "block_bytes": [12 * 2**20] * BLOCKS, "output_bytes": 2**20, "embedding_length": 1024,
            "vocabulary_size": 512, "feed_forward_length": 2816, "head_count": 8,
            "kv_k_elements_per_token": [512] * BLOCKS, "kv_v_elements_per_token": [512] * BLOCKS,
        },
        "serving": {
            "context_size": 2048, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
            "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16",
        },
        "reserve_mib": 0,
        "split_modes": ["layer"],
        "objective": {"name": "decode", "prompt_tokens": 0, "generated_tokens": 64},
        "tests": [{"kind": "decode", "n_prompt": 0, "n_gen": 64, "n_depth": 0, "repetitions": 3}],
        "indifference": 0.01,
        "max_loads": 7,
    }


def test_a_wrong_field_is_named() -> None:
    problem = make_problem()
    problem["devices"][1]["free_mib"] = "much"
    with pytest.raises(UserError, match=r"^problem.devices\[1\].free_mib must be a whole number"):
        stages.plan(problem, [])
    with pytest.raises(UserError, match=r"^loads\[0\].split_mode is missing"):
        stages.plan(make_problem(), [{}])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("devices", 0, "free_mib"), "devices[0].free_mib must be at most 1073741824, not 1180591620717411303424"),
        (("devices", 0, "budget_mib"), "devices[0].budget_mib must be at most 1073741824"),
        (("model", "block_count"), "model.block_count must be at most 4096"),
        (("model", "block_bytes", 0), "model.block_bytes must hold whole numbers from 0 to 1125899906842624"),
        (("model", "vocabulary_size"), "model.vocabulary_size must be at most"),
        (("model", "embedding_length"), "model.embedding_length must be at most"),
        (("serving", "context_size"), "serving.context_size must be at most 16777216"),
        (("serving", "parallel_slots"), "serving.parallel_slots must be at most 256"),
        (("serving", "micro_batch_size"), "serving.micro_batch_size must be at most 16777216"),
        (("objective", "generated_tokens"), "objective.generated_tokens must be at most 16777216"),
        (("tests", 0, "n_gen"), "tests[0].n_gen must be at most 16777216"),
        (("reserve_mib",), "reserve_mib must be at most 1073741824"),
        (("max_loads",), "max_loads must be at most 1000"),
        (("indifference",), "indifference must be at most"),
    ],
)  # fmt: skip
def test_a_number_that_cannot_be_is_one_sentence(path: tuple[t.Any, ...], words: str) -> None:
    problem = make_problem()
    holder: t.Any = problem
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = 2**70
    with pytest.raises(UserError) as caught:
        stages.plan(problem, [])
    assert f"problem.{words}" in str(caught.value)
    holder[path[-1]] = float("nan")
    with pytest.raises(UserError, match=f"problem.{path[0]}"):
        stages.plan(problem, [])
