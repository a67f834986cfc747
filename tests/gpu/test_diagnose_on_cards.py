# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The diagnosis on real cards: a random model is tuned and served, and its devices are watched while it works.

With two cards they share it; with one, this machine's CPU behind an RPC server is the second device.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.filter.llama_cpp import llama_server_command
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.llama_client import Client, ServerError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment
from ansible_collections.homelab.mixed_gpu.tests.gpu.conftest import module, rpc_server, tune

SERVING = {
    "context_size": 4096,
    "parallel_slots": 1,
    "kv_unified": True,
    "batch_size": 2048,
    "micro_batch_size": 512,
    "flash_attention": "on",
    "cache_type_k": "f16",
    "cache_type_v": "f16",
    "threads": 1,
    "poll": 0,
    "load_mode": "auto",
    "gpu_layers": 99,
}
TESTS = [
    {"kind": "prefill", "n_prompt": 2048, "n_gen": 0, "n_depth": 0, "repetitions": 2},
    {"kind": "decode", "n_prompt": 0, "n_gen": 64, "n_depth": 0, "repetitions": 3},
]
OBJECTIVE = {"name": "request", "prompt_tokens": 2048, "generated_tokens": 256}


def model_of(tmp_path, **shape):
    """Write a random model; its path and what gguf_info says of it."""
    path = str(tmp_path / "random.gguf")
    module("random_gguf", path=path, type="q8_0", host_python=sys.executable, **shape)
    return path, module("gguf_info", path=path, cache_dir=str(tmp_path))["model"]


def tuned(llama_bin, path, model, devices, environment, tmp_path, tests=tuple(TESTS), endpoints=(), objective=None):
    """Tune and return the entry that the role would record."""
    problem = {
        "schema": 1,
        "devices": devices,
        "model": model,
        "serving": SERVING,
        "reserve_mib": 16,
        "split_modes": ["layer"],
        "objective": objective or OBJECTIVE,
        "tests": list(tests),
        "indifference": 0.01,
        "max_loads": 7,
    }
    plan, loads = tune(llama_bin, problem, path, tmp_path / "loads", endpoints=endpoints, environment=environment)
    assert plan["decision"] is not None, plan["why"]
    return deployment.build(
        {
            "model": {"path": path, "id": "random", "sha256": "0"},
            "problem": problem,
            "plan": plan,
            "loads": loads,
            "rpc_endpoints": list(endpoints),
            "dry_run": None,
            "device_probe": None,
            "probe_settings": None,
            "fingerprint_parts": {"tests": list(tests)},
            "campaign": "test",
        }
    )


@contextlib.contextmanager
def served(llama_bin, entry):
    """Serve an entry as the role does, without its unit; give the URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    call = llama_server_command(
        entry,
        {"host": "127.0.0.1", "port": port, "alias": "random", "cache_ram_mib": 0, "cors_origins": "localhost",
         "log_verbosity": 4, "extra_arguments": [], "allowed_networks": [], "load_timeout_seconds": 900},
    )  # fmt: skip
    server = subprocess.Popen(
        [f"{llama_bin}/llama-server", *call["arguments"]],
        env=os.environ | call["environment"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        client = Client(call["url"], None, 5)
        for _attempt in range(240):
            assert server.poll() is None, "llama-server ended"
            with contextlib.suppress(ServerError):
                client.ask("/health")
                break
            time.sleep(0.5)
        yield call["url"]
    finally:
        server.terminate()
        server.wait(timeout=30)


def diagnosed(url, entry, seconds=8):
    """Watch and judge as the role does; print what its user sees."""
    done = module(
        "llama_server_diagnosis",
        url=url,
        deployment="random",
        entry=entry,
        server={"state": "ready", "deviations": [], "last_lines": []},
        seconds=seconds,
        journal_days=0,
        host_python=sys.executable,
    )
    print("\n".join(done["lines"]))
    return done["diagnosis"]


def rows(result, kind):
    (phase,) = [phase for phase in result["phases"] if phase["kind"] == kind]
    return phase["devices"]


def test_two_cards_take_turns_at_a_token_as_the_record_expects(box, llama_bin, environment, tmp_path):
    if len(box["gpus"]) < 2:
        pytest.skip("one card only")
    uuids = [gpu["id"] for gpu in box["gpus"][:2]]
    environment = environment | {"CUDA_VISIBLE_DEVICES": ",".join(uuids)}
    path, model = model_of(
        tmp_path, blocks=24, embedding_length=4096, feed_forward_length=11008, head_count=32, head_count_kv=8
    )
    devices = module(
        "llama_devices_info", llama_bench=f"{llama_bin}/llama-bench", environment=environment, cuda_ids=uuids
    )["devices"]
    weights = (sum(model["block_bytes"]) + model["output_bytes"]) >> 20
    for device in devices:
        device["budget_mib"] = int(0.75 * weights) + 512  # neither holds the model alone
    entry = tuned(llama_bin, path, model, devices, environment, tmp_path)
    with served(llama_bin, entry) as url:
        result = diagnosed(url, entry)
    assert [device["seen"] for device in result["devices"]] == ["nvml", "nvml"]
    decode = rows(result, "decode")
    # turns: together about one card's worth, each about its share
    together = sum(row["utilisation_percent"] for row in decode)
    assert 40 < together < 125
    for row in decode:
        assert abs(row["share_percent"] - row["expected_share_percent"]) < 12
        assert row["verdict"] != "slower"
    # a prompt of four micro-batches keeps both at work at the same time
    assert sum(row["utilisation_percent"] for row in rows(result, "prefill")) > together
    for uuid in uuids:
        seen = result["cards"]["decode"][uuid]["sampled"]
        assert seen["power_draw_watts"]["mean"] > 30 and seen["pcie_generation"]["max"] >= 1
    assert [one for one in result["findings"] if one["kind"] == "xid"] == []
    advised = result["advice"]["layers"]
    assert advised is None or advised in [row["layers"] for row in entry["feasible"]]


def test_one_card_and_a_slow_device(box, llama_bin, environment, tmp_path):
    if shutil.which("ss") is None:
        pytest.skip("which process listens on a port is asked of ss, which is not there")
    uuid = box["gpus"][0]["id"]
    environment = environment | {"CUDA_VISIBLE_DEVICES": uuid}
    path, model = model_of(tmp_path, blocks=16, embedding_length=1024, feed_forward_length=2816)
    tests = [TESTS[0] | {"n_prompt": 128}, TESTS[1] | {"n_gen": 16}]
    with rpc_server(llama_bin, "-d", "CPU", "-t", "4") as endpoint:
        devices = module(
            "llama_devices_info",
            llama_bench=f"{llama_bin}/llama-bench",
            environment=environment,
            cuda_ids=[uuid],
            rpc_endpoints=[endpoint],
        )["devices"]
        card = next(number for number, device in enumerate(devices) if device["backend"] == "CUDA")
        devices[card]["budget_mib"] = 320  # or the whole model would go there
        objective = OBJECTIVE | {"prompt_tokens": 128, "generated_tokens": 64}
        entry = tuned(llama_bin, path, model, devices, environment, tmp_path, tests, [endpoint], objective)
        with served(llama_bin, entry) as url:
            result = diagnosed(url, entry, seconds=6)
    assert {device["id"]: device["seen"] for device in result["devices"]} == {uuid: "nvml", endpoint: "process"}
    decode = {row["id"]: row for row in rows(result, "decode")}
    assert decode[endpoint]["ms_per_layer"] > decode[uuid]["ms_per_layer"]
    # the card waits for the CPU nearly all the time
    assert decode[uuid]["utilisation_percent"] < 50 < decode[endpoint]["utilisation_percent"]
