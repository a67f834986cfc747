# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the tests on a card share: modules in processes of their own, the card, a build of llama.cpp."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import stages

RUN = """
import importlib, json, sys
from ansible.module_utils.testing import patch_module_args
module = importlib.import_module(f"ansible_collections.homelab.mixed_gpu.plugins.modules.{sys.argv[1]}")
with patch_module_args(json.load(sys.stdin)):
    module.main()
"""


def module(name, **arguments):
    """Run a module of the collection in a process of its own; what it returns."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, name], input=json.dumps(arguments), capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert "Traceback" not in done.stderr, done.stderr
    result = json.loads(done.stdout)
    assert not result.get("failed"), result["msg"]
    return result


@contextlib.contextmanager
def rpc_server(llama_bin, *options, environment=None):
    """Run a ggml-rpc-server on a free port of loopback, and give its endpoint."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [f"{llama_bin}/ggml-rpc-server", "-H", "127.0.0.1", "-p", str(port), *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | (environment or {}),
    )
    try:
        # looked for in the table of listening sockets: a connection would occupy the server
        for _attempt in range(300):
            if f":{port:04X} 00000000:0000 0A" in pathlib.Path("/proc/net/tcp").read_text(encoding="ascii"):
                break
            assert server.poll() is None, "ggml-rpc-server ended"
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def tune(llama_bin, problem, path, state_dir, *, endpoints=(), environment=None, soak_seconds=20):
    """Plan, measure and try in rounds as the role does; return the last plan and everything measured."""
    devices = problem["devices"]
    shared = {
        "model_path": path, "rpc_endpoints": list(endpoints), "serving": problem["serving"],
        "environment": environment or {}, "campaign": "gpu-test", "fingerprint": "0" * 64, "state_dir": str(state_dir),
        "lease_unit": "",
    }
    done: list[dict] = []
    plan = stages.plan(problem, done)
    while not plan["done"]:
        print(f"{plan['stage']}: {plan['why']}", flush=True)
        for load in plan["loads"]:
            measured = module(
                "split_benchmark", llama_bench=f"{llama_bin}/llama-bench", load=load,
                devices=[device["device"] for device in devices], timeout_seconds=300, **shared,
            )["load"]
            print(f"  {measured['label']}: {measured['status']} {measured['reason'] or ''} {measured['wall_ms']} ms",
                  flush=True)
            done.append(measured)
        for trial in plan["trials"]:
            tried = module(
                "split_mode_trial", llama_server=f"{llama_bin}/llama-server", trial=trial, devices=devices,
                soak_seconds=soak_seconds, load_timeout_seconds=180,
                request_timeout_seconds=60, **shared,
            )["load"]
            print(f"  {tried['label']}: {tried['status']} {tried['reason'] or ''} {json.dumps(tried['results'])}",
                  flush=True)
            done.append(tried)
        plan = stages.plan(problem, done)
    print(f"{plan['stage']}: {plan['why']}", flush=True)
    return plan, done


@pytest.fixture(scope="session")
def box():
    facts = module("gpu_facts", host_python=sys.executable)["ansible_facts"]["mixed_gpu_gpus"]
    if not facts["available"]:
        pytest.skip(f"no NVIDIA card to test on: {facts['reason']}")
    print(json.dumps(facts, indent=1))
    return facts


@pytest.fixture(scope="session")
def llama_bin(box):
    path = os.environ.get("MIXED_GPU_LLAMA_BIN", "")
    if not path:
        pytest.skip("MIXED_GPU_LLAMA_BIN names no build of llama.cpp")
    return path


@pytest.fixture
def environment(box):
    uuids = ",".join(gpu["id"] for gpu in box["gpus"])
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": uuids}


@pytest.fixture(scope="session")
def pair(box):
    """The environment in which llama.cpp sees two CUDA devices."""
    uuids = [gpu["id"] for gpu in box["gpus"]][:2]
    found = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(uuids)}
    return found if len(uuids) == 2 else {**found, "GGML_CUDA_DEVICES": "2"}
