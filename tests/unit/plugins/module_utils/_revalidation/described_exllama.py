# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The described pair with a deployment of ExLlama: its loads, record, baseline, and a host that answers every step."""

from __future__ import annotations

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import baselines
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.described_pair import (
    DECODE,
    ENTRY,
    FAST,
    GPUS,
    HOST,
    PREFILL,
    SLOW,
    load,
    served,
    server,
)
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.test_campaign import Host

VERSIONS = {"exllamav2": "0.3.2", "pytorch": "2.11.0", "tabbyapi": "79126f9"}
SPLIT_GB = [21.5, 19.25]
MODEL = {"id": "m", "path": "/srv/models/m-exl2", "sha256": "a" * 64}
EXLLAMA_ENTRY = {
    **ENTRY, "model": MODEL, "device_probe": None, "gpu_split_gb": SPLIT_GB, "tensor_parallel": "",
    "serving": {"engine": "exllamav2", "context_size": 8192, "cache_mode": "Q8", "flash_attention": "off",
                "micro_batch_size": 2048},
    "environment": {"CUDA_VISIBLE_DEVICES": f"{FAST},{SLOW}"},
    "fingerprint_parts": {
        "engine": "exllamav2", "engine_build": "k1", "model_headers_sha256": "e" * 64, "reserve_mib": 256,
        "budgets_mib": {SLOW: 20000}, "tests": [PREFILL, DECODE], "environment": {"FAKE": "1"},
        "gpus": [{"id": FAST}, {"id": SLOW}],
    },
}  # fmt: skip


def answers(nats=1.25, tokens=(7, 8, 9)):
    return {"text": "t1", "judged_tokens": 95, "nats_per_token": nats, "tokens": list(tokens)}


def exllama_load(number, nats=1.25, used=(22000, 19000), **more):
    """One load as the worker of ExLlama makes it."""
    return {
        **load(number, **more), "answers": answers(nats), "gpu_split_gb": SPLIT_GB,
        "loaded": [
            {"id": card, "layers": layers, "used_mib": mib, "peak_mib": mib - 300, "free_mib": 24000}
            for card, layers, mib in zip((FAST, SLOW), (44, 37), used, strict=True)
        ],
    }  # fmt: skip


def exllama_baseline(**more):
    loads = [exllama_load(number) for number in range(1, 5)]
    made = baselines.make("d", EXLLAMA_ENTRY, "k1", GPUS, HOST, loads, "tuned", 6, versions=VERSIONS)
    return {**baselines.complete(made, None, served(), " 21, 22", None), **more}


def exllama_server(**more):
    return server(server={"complete": None, "devices": []}, **more)


class ExllamaHost(Host):
    """A host that serves with ExLlama; C(nats) is how unlikely its loads find the text, C(said) what it answers."""

    def __init__(self, nats=1.25, said=" 21, 22", decode=1.0, **modules):
        super().__init__(EXLLAMA_ENTRY, **modules)
        self.nats, self.said, self.decode = nats, said, decode
        self.steps = []

    def run(self, step):
        self.steps.append(step)
        return super().run(step)

    def _revalidation_info(self, step):
        model = {"path": MODEL["path"], "exists": True, "sha256": "a" * 64, "headers_sha256": "e" * 64}
        found = super()._revalidation_info(step)
        return {**found, "baseline": exllama_baseline(), "build": "k1", "versions": VERSIONS, "model": model}

    def _llama_server_info(self, _step):
        return exllama_server()

    def _exllama_server_benchmark(self, _step):
        return {"tests": served(), "answer": self.said}

    def _exllama_devices_info(self, _step):
        return {"devices": [{**device, "free_mib": 24000} for device in ENTRY["devices"]]}

    def _exl_model_info(self, _step):
        return {"model": {"path": MODEL["path"], "size_bytes": 1}}

    def _split_benchmark(self, step):
        number = step.args["load"]["load"]
        return {"load": {**exllama_load(number, self.nats, decode=self.decode), **step.args["load"]}}
