# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The variables that made a deployment, from what was recorded. Private to this collection. Pure functions only."""

from __future__ import annotations

import json

from .._base.types import Mapping
from .._planner import tuning_engines
from .._split import engines


def variables(entry: Mapping) -> list[str]:
    """Return lines of YAML; each value is JSON, so that what a model or a card calls itself stays a text.

    The serving profile is the one that was asked for: the micro-batch that was found may be another one.
    """
    parts = entry.get("fingerprint_parts") or {}
    serving = parts.get("serving") or entry["serving"]
    drafting, experts = parts.get("speculation") or {}, parts.get("experts_in_ram") or {}
    engine, objective = engines.of(entry["serving"]), entry["decision"]["objective"]
    if engine.family == "llama_cpp":
        found = {"split_tuning_model_id": entry["model"]["id"]}
        found |= {f"split_tuning_{name}": serving.get(name) for name in tuning_engines.SERVED}
        modes = "split_tuning_modes"
    else:
        found = {
            "mixed_gpu_engine": engine.site_engine,
            "exllamav2_engine": engine.name.removeprefix("exllama"),
            "exllamav2_model_id": entry["model"]["id"],
            "exllamav2_context_size": serving.get("context_size"),
            "exllamav2_cache_mode": serving.get("cache_mode"),
        }
        modes = "split_tuning_exllama_modes"
    found |= {
        "split_tuning_objective": objective["name"],
        "split_tuning_prompt_tokens": objective.get("prompt_tokens"),
        "split_tuning_generated_tokens": objective.get("generated_tokens"),
        "split_tuning_depth": objective.get("depth_tokens") or None,
        modes: parts.get("split_modes"),
        "split_tuning_micro_batches": parts.get("micro_batches") if "micro_batch" in engine.stages else None,
        "split_tuning_tensor_allreduce": parts.get("tensor_allreduce") or None,
        "split_tuning_speculation": drafting.get("kinds"),
        "split_tuning_speculation_tokens": drafting.get("tokens"),
        # recorded where they are not the defaults
        "split_tuning_experts_in_ram": experts.get("mode"),
        "split_tuning_expert_threads": experts.get("threads"),
        "split_tuning_ram_mib": experts.get("ram_mib"),
        "split_tuning_reserve_mib": parts.get("reserve_mib"),
        "split_tuning_device_budget_mib": {
            device["id"]: device["budget_mib"] for device in entry["devices"] if device.get("budget_mib") is not None
        } or None,
        "split_tuning_environment": parts.get("environment") or None,
    }  # fmt: skip
    return [f"{name}: {json.dumps(value)}" for name, value in found.items() if value is not None]
