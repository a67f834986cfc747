# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The planner on real cards: an unequal pair against an exhaustive sweep, and split mode tensor between CUDA devices.

The unequal pair is two ggml-rpc-servers, the second with a share of its card's processors (CUDA MPS), on two cards or
on one. Two CUDA devices are two cards, or one that llama.cpp shows twice (GGML_CUDA_DEVICES=2).
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import probe_stage, stages
from ansible_collections.homelab.mixed_gpu.tests.gpu.conftest import module, rpc_server, tune

ROOT = pathlib.Path(__file__).resolve().parents[2]
SERVING = {
    "context_size": 4096, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16", "threads": 1, "poll": 0, "load_mode": "auto",
    "gpu_layers": 99,
}
TESTS = [
    {"kind": "prefill", "n_prompt": 2048, "n_gen": 0, "n_depth": 0, "repetitions": 2},
    {"kind": "decode", "n_prompt": 0, "n_gen": 32, "n_depth": 0, "repetitions": 3},
]
BLOCKS = 16
#: Share of the second server's processors, percent.
SLOW_PERCENT = 25


@pytest.fixture(scope="module")
def model_path(llama_bin, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("model") / "random.gguf")
    module(
        "random_gguf", path=path, blocks=BLOCKS, embedding_length=4096, feed_forward_length=11008, head_count=32,
        head_count_kv=8, type="q8_0", host_python=sys.executable,
    )
    return path


@pytest.fixture(scope="module")
def model(model_path, tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    return module("gguf_info", path=model_path, cache_dir=cache)["model"]


@pytest.fixture
def mps(tmp_path):
    """Run the MPS daemon in a directory of its own; the environment that reaches it."""
    program = shutil.which("nvidia-cuda-mps-control")
    if program is None:
        pytest.skip("no nvidia-cuda-mps-control on this machine")
    own = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "pipe"), "CUDA_MPS_LOG_DIRECTORY": str(tmp_path / "log")}
    for path in own.values():
        os.makedirs(path)
    started = subprocess.run([program, "-d"], env=os.environ | own, capture_output=True, text=True, check=False)
    if started.returncode != 0:
        pytest.skip(f"the MPS daemon does not start: {started.stdout}{started.stderr}")
    yield own
    subprocess.run([program], input="quit\n", text=True, env=os.environ | own, capture_output=True, check=False)


def problem_of(devices, model, objective, **more):
    return {
        "schema": 1, "devices": devices, "model": model, "serving": SERVING, "reserve_mib": 64,
        "split_modes": ["layer"], "objective": objective, "tests": TESTS, "indifference": 0.01, "max_loads": 7, **more,
    }


def times(load):
    """Return (ms per token, ms per prompt) of a load."""
    by_kind = {result["kind"]: statistics.median(result["samples_ms"]) for result in load["results"]}
    return by_kind["decode"] / TESTS[1]["n_gen"], by_kind["prefill"]


def test_an_unequal_pair_against_every_split(box, llama_bin, model_path, model, mps, tmp_path):
    """As in the recorded pair: the planner's choice beside all splits that fit, each measured once more."""
    cards = [gpu["id"] for gpu in box["gpus"]]
    with contextlib.ExitStack() as stack:
        endpoints = [
            stack.enter_context(
                rpc_server(
                    llama_bin, "-d", "CUDA0",
                    environment=mps | {
                        "CUDA_VISIBLE_DEVICES": cards[number % len(cards)],
                        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(percent),
                    },
                )
            )
            for number, percent in enumerate((100, SLOW_PERCENT))
        ]
        environment = {"CUDA_VISIBLE_DEVICES": ""}  # the client itself needs no card
        devices = module(
            "llama_devices_info", llama_bench=f"{llama_bin}/llama-bench", environment=environment,
            rpc_endpoints=endpoints,
        )["devices"]
        weights = sum(model["block_bytes"]) >> 20
        for device in devices:
            device["budget_mib"] = int(0.75 * weights) + 512  # neither holds the model alone
        probe = [
            module(
                "split_benchmark", llama_bench=f"{llama_bin}/llama-bench", model_path=model_path, load=load,
                devices=[device["device"] for device in devices], rpc_endpoints=endpoints, serving=SERVING,
                environment=environment, campaign="probe", fingerprint="1" * 64, state_dir=str(tmp_path / "probe"),
                lease_unit="", timeout_seconds=300,
            )["load"]
            for load in probe_stage.loads([{**d, "budget_mib": None} for d in devices], model, TESTS, 64)
        ]
        probed = probe_stage.assess(probe, [{**d, "budget_mib": None} for d in devices], model, 64, [])
        print(probed["summary"])
        objective = {"name": "request", "prompt_tokens": 2048, "generated_tokens": 256}
        problem = problem_of(devices, model, objective, micro_batches=[256, 1024], device_probe=probed)
        plan, loads = tune(llama_bin, problem, model_path, tmp_path / "loads", endpoints=endpoints,
                           environment=environment)
        decision = plan["decision"]
        assert decision is not None, plan["why"]
        sweep = {}
        for row in stages.plan(problem, [])["feasible"]:
            load = {
                "label": str(row["layers"]), "split_mode": "layer", "layers": row["layers"], "load": 1, "tests": TESTS
            }
            measured = module(
                "split_benchmark", llama_bench=f"{llama_bin}/llama-bench", model_path=model_path, load=load,
                devices=[device["device"] for device in devices], rpc_endpoints=endpoints, serving=SERVING,
                environment=environment, campaign="sweep", fingerprint="2" * 64, state_dir=str(tmp_path / "sweep"),
                lease_unit="", timeout_seconds=300,
            )["load"]
            sweep[tuple(row["layers"])] = times(measured)
    table = {layers: decode * 256 + prefill for layers, (decode, prefill) in sweep.items()}
    best = min(table, key=lambda layers: table[layers])
    print("| split | decode tok/s | prefill tok/s | request s | |\n|---|---|---|---|---|")
    for layers, (decode, prefill) in sorted(sweep.items()):
        marks = {tuple(decision["layers"]): "chosen", best: "best", tuple(plan["default_layers"]): "default"}
        print(f"| {'/'.join(map(str, layers))} | {1000 / decode:.1f} | {2048000 / prefill:.0f} |"
              f" {table[layers] / 1000:.3f} | {marks.get(layers, '')} |")
    ratio = table[best] / table[tuple(decision["layers"])]
    print(f"chosen {decision['layers']} after {decision['loads_used']} loads; {ratio:.3f} of the best's speed;"
          f" micro-batch {decision['micro_batch_size']}; fit {json.dumps(decision['fit'])}")
    print(json.dumps(decision["micro_batches"]))
    assert decision["loads_used"] <= 7
    assert sum(decision["layers"]) == BLOCKS + 1


def test_tensor_mode_between_two_cuda_devices(box, llama_bin, model_path, model, tmp_path):
    """A whole campaign with both modes on CUDA; whichever wins, tensor mode wins only with its trial passed."""
    uuids = [gpu["id"] for gpu in box["gpus"]][:2]
    environment = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(uuids)}
    if len(uuids) < 2:
        environment["GGML_CUDA_DEVICES"] = "2"
    devices = module(
        "llama_devices_info", llama_bench=f"{llama_bin}/llama-bench", environment=environment,
        cuda_ids=uuids if len(uuids) == 2 else [],
    )["devices"]
    assert [device["device"] for device in devices] == ["CUDA0", "CUDA1"]
    weights = sum(model["block_bytes"]) >> 20
    for device in devices:
        device["budget_mib"] = int(0.75 * weights) + 1024
    linked = subprocess.run(["ldd", f"{llama_bin}/libggml-cuda.so"], capture_output=True, text=True, check=False).stdout
    ways = ["nccl", "internal"] if "libnccl" in linked and len(uuids) == 2 else ["internal"]
    objective = {"name": "decode", "prompt_tokens": 2048, "generated_tokens": 256}
    problem = problem_of(devices, model, objective, split_modes=["layer", "tensor"], tensor={"allreduce": ways})
    plan, loads = tune(llama_bin, problem, model_path, tmp_path / "loads", environment=environment)
    decision = plan["decision"]
    assert decision is not None, plan["why"]
    print(json.dumps(decision["tensor"], indent=1))
    assert decision["tensor"]["verdict"] in ("faster", "slower", "inconclusive", "rejected")
    layer, *arms = decision["tensor"]["table"]
    assert (layer["mode"], layer["layers"]) == ("layer", decision["tensor"]["layer_split"])
    measured = [row for row in arms if row["status"] == "ok"]
    assert measured and all(row["decode_ms_per_token"] > 0 for row in measured)
    for row in measured if len(uuids) == 2 else []:
        # what really ran is known of each arm, and of NCCL what it went through
        assert row["allreduce"] in ("nccl", "internal", "none")
        assert row["allreduce"] in row["asked"] or row["fallback"]
        assert row["allreduce"] != "nccl" or row["transport"] in ("P2P", "SHM", "NET")
    if decision["split_mode"] == "tensor":
        assert decision["tensor"]["trial"]["status"] == "ok"


def test_the_trial_of_tensor_mode_on_cuda(box, llama_bin, model_path, tmp_path):
    """The trial itself, also where tensor mode would lose: same tokens likely, same answer every time."""
    uuids = [gpu["id"] for gpu in box["gpus"]][:2]
    environment = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(uuids)}
    if len(uuids) < 2:
        environment["GGML_CUDA_DEVICES"] = "2"
    devices = module(
        "llama_devices_info", llama_bench=f"{llama_bin}/llama-bench", environment=environment,
        cuda_ids=uuids if len(uuids) == 2 else [],
    )["devices"]
    trial = {
        "label": "trial of tensor 5/3", "split_mode": "tensor", "layers": [5, 3], "load": 1, "purpose": "tensor_trial",
        "environment": {"GGML_CUDA_ALLREDUCE": "internal"},
        "reference": {"split_mode": "layer", "layers": [10, BLOCKS + 1 - 10]},
    }
    tried = module(
        "split_mode_trial", llama_server=f"{llama_bin}/llama-server",
        model_path=model_path, trial=trial, devices=devices, serving=SERVING, environment=environment,
        soak_seconds=15, load_timeout_seconds=180, request_timeout_seconds=60,
        campaign="trial", fingerprint="3" * 64, state_dir=str(tmp_path / "trial"), lease_unit="",
    )["load"]
    print(json.dumps(tried, indent=1))
    assert (tried["status"], tried["reason"]) == ("ok", None)
    assert tried["results"][0]["answers"]["difference_percent"] < 10  # 15 % are tolerated
