# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment, exl_split, model_weights

FAST, SLOW = "GPU-4090", "GPU-3090"
DEVICES = [
    {"id": FAST, "device": "CUDA0", "backend": "CUDA"},
    {"id": SLOW, "device": "CUDA1", "backend": "CUDA"},
    {"id": "127.0.0.1:50052", "device": "RPC0", "backend": "RPC"},
]
PARTS = {"llama_cpp": "b1", "driver_version": "580.95", "gpus": [], "extra": {"x": 1}}


def tuning(layers=(40, 30, 11), serving=None, **decision):
    return {
        "model": {"id": "m", "path": "/m.gguf", "sha256": "5a"},
        "problem": {
            "devices": DEVICES[: len(layers)],
            "model": {
                "size_bytes": 9, "block_count": 80, "architecture": "llama", "file_type": "Q8_0", "expert_count": 0,
                "block_bytes": [1],
            },
            "serving": {"context_size": 8192, "micro_batch_size": 512, **(serving or {})},
        },
        "plan": {
            "decision": {"layers": list(layers), "split_mode": "layer", "micro_batch_size": 256, **decision},
            "feasible": [{"layers": list(layers)}],
        },
        "loads": [],
        "rpc_endpoints": ["127.0.0.1:50052"],
        "dry_run": None,
        "device_probe": {"order": "confirmed"},
        "probe_settings": {"model_path": "/probe.gguf"},
        "fingerprint_parts": PARTS,
        "campaign": "c1",
    }


def test_an_entry_holds_the_split_once_and_gives_it_back():
    entry = deployment.build(tuning(why="it is faster"))
    assert entry["placement"] == [
        {"id": FAST, "layers": 40}, {"id": SLOW, "layers": 30}, {"id": "127.0.0.1:50052", "layers": 11},
    ]  # fmt: skip
    assert entry["decision"] == {"why": "it is faster"} and entry["serving"]["micro_batch_size"] == 256
    blocks = model_weights.blocks_fingerprint(tuning()["problem"]["model"])
    assert entry["model"].pop("blocks_fingerprint") == blocks
    assert entry["model"] == {
        "id": "m", "path": "/m.gguf", "sha256": "5a", "size_bytes": 9, "block_count": 80, "architecture": "llama",
        "file_type": "Q8_0", "expert_count": 0,
    }  # fmt: skip
    assert entry["device_probe"] == {"order": "confirmed", "model_path": "/probe.gguf"}
    assert deployment.layers(entry) == [40, 30, 11]
    expanded = deployment.expand(entry)
    decision = {"why": "it is faster", "layers": [40, 30, 11], "split_mode": "layer", "micro_batch_size": 256}
    assert expanded["decision"] == decision and deployment.expand(expanded) == expanded


def test_the_environment_shows_the_cards_in_order_and_has_what_the_decision_adds():
    entry = deployment.build(tuning(environment={"GGML_CUDA_ALLREDUCE": "nccl"}))
    assert entry["environment"] == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": f"{FAST},{SLOW}",
        "GGML_CUDA_ALLREDUCE": "nccl",
    }


def load(layers, number, status="ok", mode="layer", **environment):
    placed = {"gpu_split_gb": [20.0 + number, 23.0], "loaded": [{}, {}]} if status == "ok" else {}
    more = {"split_mode": mode, "environment": environment}
    return {**more, "layers": layers, "load": number, "status": status, **placed}


def test_an_exllama_records_what_placed_the_chosen_layers_last():
    done = tuning((44, 37), exl_split.serving_profile("exllamav2", 8192, "Q8"))
    done["loads"] = [load([44, 37], 1), load([40, 41], 1), load([44, 37], 2), load([44, 37], 3, "crashed")]
    entry = deployment.build(done)
    assert (entry["gpu_split_gb"], entry["loaded"], entry["tensor_parallel"]) == ([22.0, 23.0], [{}, {}], "")
    assert "gpu_split_gb" not in deployment.build({**done, "problem": tuning((44, 37))["problem"]})


def test_an_exllama_that_shares_layers_records_the_load_that_shared_them_so():
    native, nccl = ({"MIXED_GPU_EXLLAMA_ALLREDUCE": way} for way in ("native", "nccl"))
    serving = exl_split.serving_profile("exllamav3", 8192, "Q8")
    done = tuning((5, 3), serving, split_mode="tensor", environment=native)
    done["loads"] = [
        load([5, 3], 1, mode="tensor", **native), load([5, 3], 2, mode="tensor", **nccl), load([5, 3], 3),
    ]  # fmt: skip
    entry = deployment.build(done)
    assert (entry["gpu_split_gb"], entry["tensor_parallel"]) == ([21.0, 23.0], "native")
    assert entry["environment"]["MIXED_GPU_EXLLAMA_ALLREDUCE"] == "native"


def test_a_choice_that_no_load_of_exllama_placed_cannot_be_recorded():
    done = tuning((44, 37), exl_split.serving_profile("exllamav2", 8192, "Q8"))
    with pytest.raises(ValueError, match=r"no load placed the layers \[44, 37\], so its gpu_split is not known"):
        deployment.build({**done, "loads": [load([44, 37], 1, "out_of_memory")]})


@pytest.mark.parametrize(
    ("extra", "probe", "wanted_extra", "order"),
    [({}, None, {"x": 1}, "confirmed"), ({"y": 2}, {"order": "contradicted"}, {"y": 2}, "contradicted")],
)
def test_a_renewed_entry_keeps_the_split_and_follows_the_host(extra, probe, wanted_extra, order):
    entry = {**deployment.build(tuning()), "recorded_at": "2026-11-24T04:40:00Z"}
    gpu = {"id": FAST, "pci_bus_id": "0:1", "power_limit_watts": 400, "name": "RTX 4090"}
    cards = {"driver_version": "580.105", "gpus": [gpu]}
    renewed = deployment.renew(entry, {"build": "b2", "gpus": cards, "extra": extra, "device_probe": probe})
    assert renewed["fingerprint_parts"] == {
        "llama_cpp": "b2", "driver_version": "580.105", "extra": wanted_extra,
        "gpus": [{"id": FAST, "pci_bus_id": "0:1", "power_limit_watts": 400}],
    }  # fmt: skip
    assert renewed["fingerprint"] != entry["fingerprint"] and "recorded_at" not in renewed
    assert renewed["device_probe"] == {"order": order, "model_path": "/probe.gguf"}
    assert renewed["placement"] == entry["placement"]
