# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""On a real NVIDIA card: what it does at work, what tokens cost in energy, and what limits it takes. Sets nothing."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import power_sweep
from ansible_collections.homelab.mixed_gpu.tests.gpu.conftest import module

ROOT = pathlib.Path(__file__).resolve().parents[2]
SERVING = {
    "gpu_layers": 99, "batch_size": 2048, "micro_batch_size": 512, "flash_attention": "on", "cache_type_k": "f16",
    "cache_type_v": "f16", "threads": 1, "poll": 0, "load_mode": "auto",
}
NO_SERVER = {"url": "http://127.0.0.1:9", "lease_unit": "", "host_python": sys.executable, "seconds": 2}


@pytest.fixture(scope="module")
def model_path(llama_bin, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("model") / "random.gguf")
    module(
        "random_gguf", path=path, blocks=16, embedding_length=1024, feed_forward_length=2816, type="q8_0",
        host_python=sys.executable,
    )
    return path


def test_links_and_memory_correction_are_answers(box):
    pairs = [(pair["a"], pair["b"]) for pair in box["p2p"]]
    uuids = [gpu["id"] for gpu in box["gpus"]]
    assert pairs == [(one, other) for number, one in enumerate(uuids) for other in uuids[number + 1 :]]
    for pair in box["p2p"]:
        assert {pair[name] for name in ("read", "write", "nvlink", "atomics", "pci")} <= {
            None, "ok", "chipset_not_supported", "gpu_not_supported", "ioh_topology_not_supported",
            "disabled_by_regkey", "not_supported", "unknown",
        }  # fmt: skip
    for gpu in box["gpus"]:
        assert gpu["ecc_enabled"] in (None, True, False) and gpu["sampled"] is None
        assert gpu["power_limit_enforced_watts"] <= gpu["power_limit_watts"] + 1
        assert all(set(link) == {"link", "active"} for link in gpu["nvlink"] or [])


def test_a_card_at_work_looks_different_from_one_at_rest(box, llama_bin, environment, model_path):
    rest = module("gpu_facts", host_python=sys.executable, sample_seconds=1)["ansible_facts"]["mixed_gpu_gpus"]
    free = module("llama_server_busy_info", **NO_SERVER)
    load = subprocess.Popen(
        [f"{llama_bin}/llama-bench", "-m", model_path, "-ngl", "99", "-p", "512", "-n", "256", "-r", "400"],
        env=os.environ | environment | {"CUDA_VISIBLE_DEVICES": box["gpus"][0]["id"]},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while True:  # it loads CUDA and the model first
            work = module("gpu_facts", host_python=sys.executable, sample_seconds=4)["ansible_facts"]["mixed_gpu_gpus"]
            if work["gpus"][0]["sampled"]["utilization_gpu_percent"]["mean"] > 30 or time.monotonic() > deadline:
                break
        used = module("llama_server_busy_info", **NO_SERVER)
        assert load.poll() is None, "llama-bench ended"
    finally:
        load.kill()
        load.wait()
    idle, busy = rest["gpus"][0]["sampled"], work["gpus"][0]["sampled"]
    print(json.dumps({"rest": idle, "work": busy}, indent=1))
    assert busy["count"] >= 8 and busy["seconds"] >= 4
    assert busy["utilization_gpu_percent"]["mean"] > 30
    assert busy["power_draw_watts"]["mean"] > idle["power_draw_watts"]["mean"]
    assert busy["power_draw_watts"]["max"] <= 1.2 * box["gpus"][0]["power_limit_watts"]
    for name in ("pcie_generation", "pcie_width"):
        if busy[name] is not None:
            assert busy[name]["max"] <= box["gpus"][0][f"{name}_max"]
    assert work["xid_events"] in ([], None)
    # whoever uses a card, unattended measuring leaves it alone
    assert (used["busy"], used["source"]) == (True, "cards") and box["gpus"][0]["id"] in used["why"]
    assert free["source"] == "cards" and box["gpus"][0]["id"] not in free["why"]


def test_the_energy_of_generated_tokens_is_measured(box, llama_bin, environment, model_path, tmp_path):
    card = box["gpus"][0]
    environment = environment | {"CUDA_VISIBLE_DEVICES": card["id"]}
    tests = [
        {"kind": "prefill", "n_prompt": 2048, "n_gen": 0, "n_depth": 0, "repetitions": 20},
        {"kind": "decode", "n_prompt": 0, "n_gen": 512, "n_depth": 0, "repetitions": 20},
    ]
    load = module(
        "split_benchmark", llama_bench=f"{llama_bin}/llama-bench", model_path=model_path, devices=["CUDA0"],
        load={"label": "energy", "split_mode": "layer", "layers": [17], "load": 1, "purpose": "power", "tests": tests},
        serving=SERVING, environment=environment, campaign="gpu-test",
        fingerprint="2" * 64, state_dir=str(tmp_path / "loads"), lease_unit="", timeout_seconds=300,
        wrapper=[sys.executable, str(ROOT / "roles/power_sweep/files/energy_meter.py")],
    )["load"]
    assert load["status"] == "ok", load["reason"]
    row = power_sweep.row({"label": "energy", "limits_watts": {card["id"]: 0}, "loads": [load]})
    print(json.dumps(row, indent=1))
    watts = row["decode"]["watts"][card["id"]]
    assert 10 < watts <= 1.1 * card["power_limit_watts"]
    assert row["decode"]["source"] in ("counter", "power") and row["prefill"]["joules_per_token"] > 0


def test_power_settings_are_checked_against_the_card_and_nothing_is_set(box):
    card = box["gpus"][0]

    def wanted(watts):
        entry = {"id": card["id"], "power_limit_watts": watts, "locked_clocks_mhz": None, "persistence_mode": None}
        return {"schema": 1, "cards": [entry]}

    def ask(watts):
        return module("gpu_power", settings=wanted(watts), host_python=sys.executable, _ansible_check_mode=True)

    same, other = ask(card["power_limit_watts"]), ask(card["power_limit_min_watts"])
    print(json.dumps([same, other], indent=1))
    assert same["changed"] is False
    assert other["changed"] is (card["power_limit_min_watts"] != card["power_limit_watts"])
    with pytest.raises(AssertionError, match="takes power limits from"):
        ask(100000)
    after = module("gpu_facts", host_python=sys.executable)["ansible_facts"]["mixed_gpu_gpus"]["gpus"][0]
    assert after["power_limit_watts"] == card["power_limit_watts"]
    assert after["persistence_mode"] == card["persistence_mode"]
