# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import yaml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import made_by


def read(entry: dict[str, t.Any]) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", yaml.safe_load("\n".join(made_by.variables(entry))))


def test_the_variables_are_those_that_were_asked_for(mixed: dict[str, t.Any]) -> None:
    entry = mixed["entry"]
    entry["serving"] = {**entry["serving"], "micro_batch_size": 1024}  # found to be faster
    found = read(entry)
    assert found["split_tuning_model_id"] == "llama-3.3-70b-instruct-q4_k_m"
    assert (found["split_tuning_micro_batch_size"], found["split_tuning_flash_attention"]) == (512, "on")
    assert (found["split_tuning_objective"], found["split_tuning_modes"]) == ("request", ["layer"])
    assert found["split_tuning_reserve_mib"] == 512 and "split_tuning_device_budget_mib" not in found


def test_what_a_model_calls_itself_stays_a_text(mixed: dict[str, t.Any]) -> None:
    name = "a\nsplit_tuning_active: false # {{ x }}"
    found = read({**mixed["entry"], "model": {**mixed["entry"]["model"], "id": name}})
    assert found["split_tuning_model_id"] == name and "split_tuning_active" not in found


def test_budgets_are_by_device(sandbox: dict[str, t.Any]) -> None:
    found = read(sandbox["entry"])
    budgets = {device["id"]: device["budget_mib"] for device in sandbox["entry"]["devices"]}
    assert found["split_tuning_device_budget_mib"] == budgets


def test_what_was_set_about_later_stages_is_among_them(mixed: dict[str, t.Any]) -> None:
    parts = {
        **mixed["entry"]["fingerprint_parts"],
        "experts_in_ram": {"mode": "12", "threads": [4, 8], "ram_mib": 0},
        "speculation": {"kinds": ["draft", "mtp"], "drafts": {}, "texts": [[], {}], "tokens": 96},
        "tensor_allreduce": ["nccl"],
    }
    found = read({**mixed["entry"], "fingerprint_parts": parts})
    assert (found["split_tuning_experts_in_ram"], found["split_tuning_expert_threads"]) == ("12", [4, 8])
    assert (found["split_tuning_speculation"], found["split_tuning_speculation_tokens"]) == (["draft", "mtp"], 96)
    assert found["split_tuning_tensor_allreduce"] == ["nccl"]
    usual = read(mixed["entry"])
    assert "split_tuning_experts_in_ram" not in usual and "split_tuning_tensor_allreduce" not in usual


def test_an_exllama_has_its_own_variables(mixed: dict[str, t.Any]) -> None:
    serving = {"engine": "exllamav3", "context_size": 4096, "cache_mode": "8,8"}
    found = read({**mixed["entry"], "serving": serving, "fingerprint_parts": {}})
    shown = ("mixed_gpu_engine", "exllamav2_engine", "exllamav2_context_size", "exllamav2_cache_mode")
    assert [found[name] for name in shown] == ["exllamav2", "v3", 4096, "8,8"]
