# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A described pair of cards: loads, probes, the record, the baseline, and what is seen of the host today."""

from __future__ import annotations

import copy

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import baselines

FAST, SLOW = "GPU-1111", "GPU-2222"
PREFILL = {"kind": "prefill", "n_prompt": 1024, "n_gen": 0, "n_depth": 0, "repetitions": 3}
DECODE = {"kind": "decode", "n_prompt": 0, "n_gen": 64, "n_depth": 0, "repetitions": 3}
NAMED = ("kind", "n_prompt", "n_gen", "n_depth")
SETTINGS = {"tolerance_percent": 3.0, "reserve_mib": 512, "accept": ["ok", "improved"]}
LIMITS = {"tolerance_percent": 3.0, "least_loads": 2, "most_loads": 6, "baseline": False}


def load(number, decode=1.0, prefill=1.0, **more):
    """One load; C(decode) and C(prefill) are factors on the usual times."""
    wobble = (0.0, 0.002, -0.001, 0.001, -0.002, 0.0015)[number % 6]

    def samples(ms):
        return [ms * (1 + wobble + jitter) for jitter in (0.0, 0.001, -0.001)]

    return {
        "label": f"44/37 load {number}", "split_mode": "layer", "layers": [44, 37], "load": number,
        "purpose": "confirm",
        "environment": {}, "status": "ok", "reason": None,
        "results": [
            {**{key: PREFILL[key] for key in NAMED}, "samples_ms": samples(2000 * prefill)},
            {**{key: DECODE[key] for key in NAMED}, "samples_ms": samples(3600 * decode)},
        ],
        "conditions": {
            uuid: {
                "pcie_generation": {"min": 1, "mean": 3, "max": 4}, "pcie_width": {"min": 8, "mean": 8, "max": 8},
                "temperature_celsius": {"min": 40, "mean": 60, "max": 66}, "throttle_reasons": ["sw_power_cap"],
            }
            for uuid in (FAST, SLOW)
        },
        **more,
    }  # fmt: skip


def probe(fast=1.0, slow=1.0):
    def row(device, uuid, ms):
        return {
            "device": device, "id": uuid, "status": "ok", "reason": None,
            "decode_ms_per_token": {"median": ms, "low": ms * 0.998, "high": ms * 1.002},
            "prefill_tokens_per_second": 9000 / ms,
        }  # fmt: skip

    return {"devices": [row("CUDA0", FAST, 1.3 * fast), row("CUDA1", SLOW, 1.5 * slow)]}


ENTRY = {
    "model": {"id": "m", "path": "/srv/models/m.gguf", "sha256": "a" * 64},
    "serving": {"context_size": 8192, "micro_batch_size": 512},
    "devices": [
        {"device": "CUDA0", "id": FAST, "backend": "CUDA", "description": "NVIDIA GeForce RTX 4090"},
        {"device": "CUDA1", "id": SLOW, "backend": "CUDA", "description": "NVIDIA GeForce RTX 3090"},
    ],
    "placement": [{"id": FAST, "layers": 44}, {"id": SLOW, "layers": 37}],
    "split_mode": "layer", "environment": {}, "rpc_endpoints": [],
    "decision": {"layers": [44, 37], "mib": [22900, 20100], "micro_batch_size": 512, "fit": None, "table": []},
    "fingerprint": "f", "fingerprint_parts": {"tests": [PREFILL, DECODE], "environment": {}}, "campaign": "c",
    "recorded_at": "2026-11-20T10:00:00Z", "device_probe": probe(),
}  # fmt: skip
GPUS = {
    "available": True, "reason": None, "driver_version": "580.95.05", "cuda_driver_version": "13.0",
    "gpus": [
        {"id": FAST, "name": "NVIDIA GeForce RTX 4090", "pci_bus_id": "01", "power_limit_watts": 450.0,
         "pcie_generation_max": 4, "pcie_width": 8, "memory_total_mib": 24564},
        {"id": SLOW, "name": "NVIDIA GeForce RTX 3090", "pci_bus_id": "02", "power_limit_watts": 350.0,
         "pcie_generation_max": 4, "pcie_width": 8, "memory_total_mib": 24576},
    ],
}  # fmt: skip
HOST = {"kernel": "6.8.0-90-generic", "firmware": "F12"}


def server(loaded=(22880.0, 20080.0), free=(23700, 23900), **more):
    devices = [
        {"device": f"CUDA{place}", "id": f"CUDA{place}", "total_mib": mib, "free_mib": left}
        for place, (mib, left) in enumerate(zip(loaded, free, strict=True))
    ]
    return {
        "state": "ready", "needs_reload": False, "automatic_restarts": 0, "reason": "",
        "last_lines": ["listening"], "deviations": [],
        "server": {"complete": True, "devices": devices}, **more,
    }  # fmt: skip


def served(decode=1.0, prefill=1.0):
    prompt = [{"prompt_tokens_per_second": 500 / prefill, "decode_tokens_per_second": None}] * 3
    generation = [{"prompt_tokens_per_second": 90, "decode_tokens_per_second": 17.8 / decode}] * 3
    return [{"name": "prompt", "samples": prompt}, {"name": "generation", "samples": generation}]


def measured(loads=None, **more):
    """What a new baseline is made of, as the module revalidation_record takes it."""
    return {
        "entry": {**ENTRY, **more}, "build": "b1", "gpus": GPUS, "host": HOST,
        "loads": [load(number) for number in range(1, 5)] if loads is None else loads,
        "reason": "tuned", "most_loads": 6,
    }  # fmt: skip


def baseline(loads=None, **more):
    made = baselines.make("d", **measured(loads))
    return {**baselines.complete(made, baselines.memory(ENTRY, server()["server"]), served(), None, None), **more}


def observed_host():
    """A host on which all is as it was."""
    return copy.deepcopy({
        "at": "2026-11-25T10:00:00Z", "host": "box", "deployment": "d", "entry": ENTRY, "baseline": baseline(),
        "configuration": baselines.configuration(ENTRY, "b1", GPUS, HOST), "gpus": GPUS, "server": server(),
        "completion": {"ok": True, "detail": "fine"}, "served": served(), "busy": {"busy": False, "why": ""},
        "model": {"path": ENTRY["model"]["path"], "exists": True, "sha256": "a" * 64,
                  "headers_sha256": None}, "loads": [],
        "device_probe": None, "answers": None, "acceptance": None, "failure": None, "links": {},
        "unseen_lenders": {},
        "contention": {"served": None, "probe": []},
    })  # fmt: skip


def problem(**more):
    return {"tests": [PREFILL, DECODE], "serving": {"micro_batch_size": 512}, **more}
