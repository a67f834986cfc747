# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a revalidation does with each family of engines. Private to this collection. Pure functions only.

Verdicts, statistics and order of the steps are the same for all (campaign.py).
"""

from __future__ import annotations

import typing as t

from .._base.steps import Step
from .._base.types import Json, Mapping
from .._split import engines, exl_split, link_changes
from .campaign_settings import Settings

#: What a restarted server is asked: it has to answer, how fast does not matter.
AGAIN_TESTS: t.Final = ({"name": "again", "prompt_tokens": 16, "generated_tokens": 8, "repetitions": 1},)


class Looked(t.Protocol):
    """What the steps of an engine need of an observation."""

    settings: Settings

    @property
    def entry(self) -> Mapping: ...

    def result(self, name: str) -> Mapping | None: ...


class Family(t.Protocol):
    """What an engine family says of a revalidation."""

    def server(self) -> Json:
        """Return the arguments of llama_server_info."""

    def client(self) -> Json:
        """Return where the server is, and the file of its key."""

    def served(self, name: str, tests: t.Sequence[Mapping]) -> Step:
        """Return the step that measures completions of the server."""

    def environment(self) -> Json:
        """Return environment variables of the engine, beside those that the record has."""

    def before_loads(self, environment: Mapping) -> list[Step]:
        """Return the steps under the lease that the loads need, in their order."""

    def bench(self) -> Json:
        """Return the arguments of split_benchmark that only this engine has."""

    def load(self) -> Json:
        """Return what a load of the recorded split says that only this engine has."""


class LlamaCpp:
    """llama.cpp."""

    def __init__(self, looked: Looked) -> None:
        self.looked = looked
        self.settings = looked.settings

    def client(self) -> Json:
        return {"url": self.settings.server_url, "api_key_file": self.settings.api_key_file}

    def server(self) -> Json:
        return {"url": self.settings.server_url}

    def served(self, name: str, tests: t.Sequence[Mapping]) -> Step:
        arguments = {**self.client(), "tests": list(tests)}
        return Step(name, "llama_server_benchmark", arguments, "measure completions of the server", 20, tolerated=True)

    def environment(self) -> Json:
        return {}

    @property
    def _program(self) -> Json:
        return {"llama_bench": f"{self.settings.llama_cpp}/bin/llama-bench"}

    def before_loads(self, environment: Mapping) -> list[Step]:
        entry = self.looked.entry
        arguments = {
            **self._program,
            "rpc_endpoints": entry["rpc_endpoints"],
            "environment": dict(environment),
            "expected_devices": entry["devices"],
        }
        listing = Step("devices", "llama_devices_info", arguments, "list the devices", 10, tolerated=True)
        links = link_changes.step(entry, tolerated=True)
        return [listing] if links is None else [links, listing]

    def bench(self) -> Json:
        return self._program

    def load(self) -> Json:
        return {}


class Exllama:
    """ExLlamaV2 and ExLlamaV3."""

    def __init__(self, looked: Looked) -> None:
        self.looked = looked
        self.settings = looked.settings

    @property
    def _programs(self) -> Json:
        generation = engines.of(self.looked.entry["serving"]).name.removeprefix("exllama")
        return {
            "python": f"{self.settings.exllama_root}/{generation}/venv/bin/python",
            "worker": f"{self.settings.state_dir}/exllama_worker.py",
        }

    def client(self) -> Json:
        return {"url": self.settings.exllama_url, "api_key_file": self.settings.exllama_api_key_file}

    def server(self) -> Json:
        return {"url": self.settings.exllama_url, "unit": engines.of(self.looked.entry["serving"]).unit}

    def served(self, name: str, tests: t.Sequence[Mapping]) -> Step:
        arguments = {**self.client(), "tests": list(tests)}
        label = "measure completions of the server"
        return Step(name, "exllama_server_benchmark", arguments, label, 20, tolerated=True)

    def environment(self) -> Json:
        return exl_split.environment(self.looked.entry["serving"])

    def before_loads(self, environment: Mapping) -> list[Step]:
        entry = self.looked.entry
        arguments = {
            **self._programs,
            "cuda_ids": [device["id"] for device in entry["devices"]],
            "environment": dict(environment),
            "budgets_mib": entry["fingerprint_parts"].get("budgets_mib") or {},
        }
        path = {"path": entry["model"]["path"]}
        return [
            Step("devices", "exllama_devices_info", arguments, "list the cards", 15, tolerated=True),
            Step("weigh", "exl_model_info", path, "read the headers of the model", 3, tolerated=True),
        ]

    def bench(self) -> Json:
        listed, weighed = self.looked.result("devices") or {}, self.looked.result("weigh") or {}
        reserve_mib = self.looked.entry["fingerprint_parts"].get("reserve_mib", self.settings.reserve_mib)
        own = {"model": weighed.get("model"), "devices": listed.get("devices"), "reserve_mib": reserve_mib}
        return {"exllama": {**self._programs, **own}}

    def load(self) -> Json:
        # as it is served: the worker may not look for other numbers that place the layers so
        return {"gpu_split_gb": list(self.looked.entry["gpu_split_gb"])}


def of(looked: Looked) -> Family:
    """Return what the family of the recorded engine says."""
    family = engines.of(looked.entry["serving"]).family
    return LlamaCpp(looked) if family == "llama_cpp" else Exllama(looked)
