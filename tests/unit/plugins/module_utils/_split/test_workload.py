# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pathlib
import typing as t

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split.workload import plan as workload

ROLE = pathlib.Path(__file__).parents[5] / "roles" / "split_tuning"
BENCH = {"prompt_tokens": 2048, "generated_tokens": 128, "repetitions": 3}


def serving(context_size: int = 8192, **changes: t.Any) -> dict[str, t.Any]:
    return {
        "context_size": context_size, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048,
        "micro_batch_size": 512, "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16", **changes,
    }


def asked(name: str = "request", depth: int = 0, prompt: int = 1024, generated: int = 256) -> dict[str, t.Any]:
    return {"name": name, "prompt_tokens": prompt, "generated_tokens": generated, "depth_tokens": depth}


def test_tests_run_at_the_depth_of_the_objective() -> None:
    result = workload(asked("ttft", 4096), BENCH, serving())
    assert result["objective"] == asked("ttft", 4096)
    assert result["tests"] == [
        {"kind": "prefill", "n_prompt": 2048, "n_gen": 0, "n_depth": 4096, "repetitions": 3},
        {"kind": "decode", "n_prompt": 0, "n_gen": 128, "n_depth": 4096, "repetitions": 3},
    ]


def test_the_agent_is_a_preset_whose_depth_may_be_another() -> None:
    result = workload(asked("agent"), BENCH, serving(16384))
    assert result["objective"] == asked("agent", 8192, 0, 512)
    assert [test["n_depth"] for test in result["tests"]] == [8192, 8192]
    assert workload(asked("agent", 4096), BENCH, serving())["objective"] == asked("agent", 4096, 0, 512)


@pytest.mark.parametrize(
    ("objective", "profile", "words"),
    [
        (asked("agent"), serving(), "needs a context of 8704 tokens, but a request can have 8192"),
        (asked(depth=7000), serving(), "7000 with 1024 prompt and 256 generated tokens needs a context of 8280"),
        (asked(depth=6500), serving(), "the longest test needs a context of 8548 tokens"),
        (asked(depth=4096), serving(8192, parallel_slots=2, kv_unified=False), "a request can have 4096"),
        (asked(depth=-1), serving(), "objective.depth_tokens must be at least 0"),
        (asked("latency"), serving(), "objective.name must be one of decode, prefill, ttft, request, agent"),
        (asked("prefill", prompt=0), serving(), "objective.prompt_tokens must be at least 1"),
    ],
)
def test_what_does_not_fit_is_told_with_the_remedy(
    objective: dict[str, t.Any], profile: dict[str, t.Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        workload(objective, BENCH, profile)


def test_without_a_depth_a_prompt_may_be_longer_than_the_context() -> None:
    assert workload(asked(prompt=20000), BENCH, serving())["objective"]["prompt_tokens"] == 20000


def test_the_defaults_of_the_role_make_a_workload() -> None:
    """The names that the role offers are those that the code knows, and its defaults fit together."""
    specs = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8"))
    for name in specs["main"]["options"]["split_tuning_objective"]["choices"]:
        workload(
            asked(
                name, defaults["split_tuning_depth"], defaults["split_tuning_prompt_tokens"],
                defaults["split_tuning_generated_tokens"],
            ),
            {
                "prompt_tokens": defaults["split_tuning_bench_prompt_tokens"],
                "generated_tokens": defaults["split_tuning_bench_generated_tokens"],
                "repetitions": defaults["split_tuning_bench_repetitions"],
            },
            serving(defaults["split_tuning_context_size"] * (2 if name == "agent" else 1)),
        )
    assert defaults["split_tuning_objective"] == "request"
