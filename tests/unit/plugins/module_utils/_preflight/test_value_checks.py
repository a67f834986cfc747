# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pathlib

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import value_checks

ROOT = pathlib.Path(__file__).parents[5]
BUDGET = "split_tuning_device_budget_mib"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"mixed_gpu_engine": "exllama"}, "mixed_gpu_engine is 'exllama', and must be llama_cpp or exllamav2."),
        ({"mixed_gpu_engine": "vllm_ray"}, "mixed_gpu_engine is 'vllm_ray', and must be llama_cpp or exllamav2."),
        ({"llama_server_port": 99999}, "llama_server_port is 99999, and must be a port from 1 to 65535."),
        ({"exllamav2_port": "0"}, "exllamav2_port is '0', and must be a port from 1 to 65535."),
        ({"split_tuning_parallel_slots": 0}, "split_tuning_parallel_slots is 0, and must be at least 1."),
        ({"split_tuning_parallel_slots": 257}, "split_tuning_parallel_slots is 257, and must be at most 256."),
        ({"split_tuning_prompt_tokens": 2**70}, f"split_tuning_prompt_tokens is {2**70}, and must be at most"),
        ({"split_tuning_prompt_tokens": 10**400}, "split_tuning_prompt_tokens is 1000"),
        ({"split_tuning_cache_type_v": "q8"}, "split_tuning_cache_type_v is 'q8', and must be one of f32, f16,"),
        ({BUDGET: {"CUDA0": 8000, "CUDA1": "much"}}, f"{BUDGET} gives 'CUDA1' the budget 'much', and must give"),
        ({BUDGET: {"CUDA1": -5}}, f"{BUDGET} gives 'CUDA1' the budget -5, and must give it a number of MiB"),
    ],
)
def test_what_no_role_can_use_is_one_sentence(values, sentence):
    (found,) = value_checks.problems(values)
    assert found.startswith(sentence) and found.endswith(".") and "\n" not in found


@pytest.mark.parametrize(
    "values",
    [
        {}, {"split_tuning_prompt_tokens": 0},
        {"mixed_gpu_engine": "vllm_ray", "split_tuning_start_engine": "vllm_ray"},    # of the playbook plan
        {"llama_server_port": "8080"}, {"split_tuning_parallel_slots": "2"}, {BUDGET: {"CUDA0": "8000"}},
        # text that looks like a number: a key must not be shown, a commit may be all digits
        {"llama_server_api_key": "12345678901234567890"}, {"llama_server_alias": "infinity"},
        {"llama_cpp_git_version": "12345e678"}, {"split_tuning_model_id": "20251130112233445566"},
        # of another type, which variable_checks says
        {"llama_server_port": "http"}, {BUDGET: 22000},
        {"split_tuning_cache_type_k": ["q8_0"]}, {"split_tuning_parallel_slots": float("nan")},
    ],
)  # fmt: skip
def test_what_can_be_used_or_has_another_type_is_left_alone(values):
    assert value_checks.problems(values) == []


@pytest.mark.parametrize(
    "path",
    sorted([*ROOT.glob("roles/*/defaults/main.yml"), *ROOT.glob("inventories/*/group_vars/**/*.yml")]),
    ids=lambda path: "/".join(path.parts[-4:]),
)
def test_the_values_of_the_collection_are_right(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert value_checks.problems({name: value for name, value in values.items() if "{{" not in str(value)}) == []
