# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The steps in which the engines differ while they are tuned. Private to this collection. Pure functions only.

What an engine has at all is in the table of engines (_split/engines.py); planner, store, lease and record are the same.
"""

from __future__ import annotations

import typing as t

from .._base.steps import Step
from .._base.types import Json, Mapping
from .._split import allreduce, engines, exl_split
from .tuning_settings import Settings

#: Always more than the model's blocks, so that no block stays on the CPU.
GPU_LAYERS: t.Final = 99
#: Fields of a serving profile that are variables of the role.
SERVED: t.Final = (
    "context_size", "parallel_slots", "kv_unified", "batch_size", "micro_batch_size", "flash_attention",
    "cache_type_k", "cache_type_v", "threads", "poll", "load_mode",
)  # fmt: skip


class Family(t.Protocol):
    """What an engine family says of a tuning."""

    #: Whether the headers of the model belong to the fingerprint, and are read before it is known what to do.
    headers_first: bool

    def root(self) -> str:
        """Return the directory that the table's build_file is below."""

    def look(self) -> Json:
        """Return further arguments of split_tuning_info."""

    def weigh(self) -> Step:
        """Return the step that reads the model's headers."""

    def cure(self) -> str:
        """Return what to do where a file is missing."""

    def serving(self, look: Mapping) -> Json:
        """Return the serving profile. Raises ValueError for settings that the engine does not have."""

    def gpus(self, look: Mapping) -> list[Json]:
        """Return the cards to use, in the order of the devices. Raises ValueError for cards that are not there."""

    def environment(self, look: Mapping) -> Json:
        """Return environment variables of the engine, beside those that choose cards."""

    def devices(self, ids: t.Sequence[str], environment: Mapping) -> Step:
        """Return the step that lists the devices as the engine sees them."""

    def bench(self, model: Mapping, devices: t.Sequence[Mapping]) -> Json:
        """Return the arguments of split_benchmark that only this engine has."""

    def ways(self, look: Mapping, devices: t.Sequence[Mapping]) -> list[str]:
        """Return the all-reduces that split mode tensor is tried with; empty where there is nothing to choose."""

    def draft_sizes(self, path: str) -> tuple[str, Json]:
        """Return the module that reads the headers of a draft, and its arguments."""

    def answering(self) -> tuple[str, Json]:
        """Return the module that has a private server answer texts, and its arguments that only this engine has."""


class LlamaCpp:
    """llama.cpp."""

    headers_first = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def root(self) -> str:
        return self.settings.llama_cpp

    def look(self) -> Json:
        if "tensor" not in self.settings.modes:
            return {}
        return {"cuda_library": f"{self.settings.llama_cpp}/bin/libggml-cuda.so"}

    def weigh(self) -> Step:
        arguments = {
            "path": self.settings.model_path,
            "cache_dir": f"{self.settings.state_dir}/gguf_cache",
        }
        return Step("weigh", "gguf_info", arguments, "read the layer sizes of the model", 10)

    def cure(self) -> str:
        return (
            "Run the llama_cpp and llm_models roles first, or correct split_tuning_model_path and"
            " split_tuning_llama_cpp."
        )

    def serving(self, look: Mapping) -> Json:
        return {**{name: getattr(self.settings, name) for name in SERVED}, "gpu_layers": GPU_LAYERS}

    def gpus(self, look: Mapping) -> list[Json]:
        return list(look["gpus"]["gpus"])

    def environment(self, look: Mapping) -> Json:
        return {}

    def devices(self, ids: t.Sequence[str], environment: Mapping) -> Step:
        arguments = {
            "llama_bench": f"{self.settings.llama_cpp}/bin/llama-bench",
            "rpc_endpoints": self.settings.rpc_endpoints,
            "cuda_ids": list(ids),
            "environment": dict(environment),
            "budgets_mib": self.settings.device_budget_mib,
        }
        return Step("devices", "llama_devices_info", arguments, "list the devices", 5)

    def bench(self, model: Mapping, devices: t.Sequence[Mapping]) -> Json:
        return {"llama_bench": f"{self.settings.llama_cpp}/bin/llama-bench"}

    def ways(self, look: Mapping, devices: t.Sequence[Mapping]) -> list[str]:
        asked = [way for way in self.settings.tensor_allreduce if way in allreduce.OF_LLAMA_CPP]
        if asked:
            return asked
        if not devices or any(device["backend"] != "CUDA" for device in devices):
            return []
        found = ["nccl"] if look["nccl"] else []
        return [*found, *(["internal"] if len(devices) == 2 else [])] or ["none"]

    def draft_sizes(self, path: str) -> tuple[str, Json]:
        return "gguf_info", {"path": path, "cache_dir": f"{self.settings.state_dir}/gguf_cache", "draft": True}

    def answering(self) -> tuple[str, Json]:
        return "speculation_benchmark", {"llama_server": f"{self.settings.llama_cpp}/bin/llama-server"}


class Exllama:
    """ExLlamaV2 and ExLlamaV3."""

    headers_first = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._environment_dir = f"{settings.exllama_root}/{settings.engine.removeprefix('exllama')}/venv"

    def root(self) -> str:
        return self.settings.exllama_root

    def look(self) -> Json:
        return {"site_packages": f"{self._environment_dir}/lib"}

    def weigh(self) -> Step:
        return Step("weigh", "exl_model_info", {"path": self.settings.model_path}, "read the headers of the model", 3)

    def cure(self) -> str:
        return (
            "Run the exllamav2 and llm_models roles first, or correct split_tuning_model_path (the folder of an EXL2"
            " or EXL3 model) and split_tuning_exllama_root."
        )

    def serving(self, look: Mapping) -> Json:
        settings = self.settings
        return exl_split.serving_profile(
            settings.engine, int(settings.context_size), settings.exllama_cache_mode,
            flash_attention=bool(look.get("flash_attention")),
        )  # fmt: skip

    def gpus(self, look: Mapping) -> list[Json]:
        found = list(look["gpus"]["gpus"])
        by_id = {gpu["id"]: gpu for gpu in found}
        strange = [card_id for card_id in self.settings.exllama_gpus if card_id not in by_id]
        if strange:
            raise ValueError(
                f"split_tuning_exllama_gpus (of site: exllamav2_gpus) names {', '.join(strange)}, and this host has"
                f" {', '.join(by_id) or 'no card'}: correct it"
            )
        return [by_id[card_id] for card_id in self.settings.exllama_gpus] or found

    def environment(self, look: Mapping) -> Json:
        return exl_split.environment(self.serving(look))

    @property
    def _programs(self) -> Json:
        return {
            "python": f"{self._environment_dir}/bin/python",
            "worker": f"{self.settings.state_dir}/exllama_worker.py",
        }

    def devices(self, ids: t.Sequence[str], environment: Mapping) -> Step:
        arguments = {
            **self._programs,
            "cuda_ids": list(ids),
            "environment": dict(environment),
            "budgets_mib": self.settings.device_budget_mib,
        }
        return Step("devices", "exllama_devices_info", arguments, "list the cards", 15)

    def bench(self, model: Mapping, devices: t.Sequence[Mapping]) -> Json:
        listed = [dict(device) for device in devices]
        own = {"model": dict(model), "devices": listed, "reserve_mib": self.settings.reserve_mib}
        return {"exllama": {**self._programs, **own}}

    def ways(self, look: Mapping, devices: t.Sequence[Mapping]) -> list[str]:
        asked = [way for way in self.settings.tensor_allreduce if way in allreduce.OF_EXLLAMA]
        return asked or list(allreduce.OF_EXLLAMA)

    def draft_sizes(self, path: str) -> tuple[str, Json]:
        return "exl_model_info", {"path": path}

    def answering(self) -> tuple[str, Json]:
        return "exllama_draft_benchmark", {"exllama_root": self.settings.exllama_root}


def of(settings: Settings) -> Family:
    """Return what the family of the chosen engine says."""
    return LlamaCpp(settings) if engines.named(settings.engine).family == "llama_cpp" else Exllama(settings)
