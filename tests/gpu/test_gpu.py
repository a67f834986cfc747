# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""On a real NVIDIA card: the probe against nvidia-smi, the toolkit, and, with a build of llama.cpp, a whole tuning.

MIXED_GPU_LLAMA_BIN names the directory of llama-bench and ggml-rpc-server, built with CUDA and RPC. Where there is no
card, everything is skipped and says so.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import probe_stage
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._programs import make_device_nodes
from ansible_collections.homelab.mixed_gpu.tests.gpu.conftest import module, rpc_server, tune

ROOT = pathlib.Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
SERVING = {
    "context_size": 1024, "parallel_slots": 1, "kv_unified": True, "batch_size": 512, "micro_batch_size": 64,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16", "threads": 1, "poll": 0, "load_mode": "auto",
    "gpu_layers": 99,
}
TESTS = [
    {"kind": "prefill", "n_prompt": 128, "n_gen": 0, "n_depth": 0, "repetitions": 2},
    {"kind": "decode", "n_prompt": 0, "n_gen": 16, "n_depth": 0, "repetitions": 2},
]


@pytest.fixture(scope="session")
def model_path(llama_bin, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("model") / "random.gguf")
    module(
        "random_gguf", path=path, blocks=16, embedding_length=1024, feed_forward_length=2816, type="q8_0",
        host_python=sys.executable,
    )
    return path


@pytest.fixture
def rpc_endpoint(llama_bin):
    """A second, slow device: this machine's CPU behind an RPC server."""
    with rpc_server(llama_bin, "-d", "CPU", "-t", "4") as endpoint:
        yield endpoint


def test_facts_agree_with_nvidia_smi(box):
    if shutil.which("nvidia-smi") is None:
        pytest.skip("no nvidia-smi to compare with")
    keys = ["uuid", "name", "pci.bus_id", "memory.total", "compute_cap", "power.limit", "driver_version"]
    query = ["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    ours = [
        [
            gpu["id"], gpu["name"], gpu["pci_bus_id"], str(gpu["memory_total_mib"]), gpu["compute_capability"],
            f"{gpu['power_limit_watts']:.2f}", box["driver_version"],
        ]
        for gpu in box["gpus"]
    ]
    assert ours == sorted((line.split(", ") for line in lines), key=lambda values: values[2])


def test_facts_are_plausible(box):
    for gpu in box["gpus"]:
        parts = gpu["memory_free_mib"] + gpu["memory_used_mib"] + gpu["memory_reserved_mib"]
        assert abs(gpu["memory_total_mib"] - parts) <= 3  # each is rounded down
        assert gpu["power_limit_min_watts"] <= gpu["power_limit_watts"] <= gpu["power_limit_max_watts"]
        assert 0 < gpu["temperature_celsius"] < 110
        assert gpu["architecture"] is not None
        assert 100 < gpu["memory_bandwidth_gb_per_s"] < 20000
        assert not [reason for reason in gpu["throttle_reasons"] if reason.startswith("unknown")]


def test_bus_and_module_agree_with_nvml(box):
    host = module("host_info")["host"]
    assert [address[-10:].lower() for address in host["nvidia_pci"]] == [
        gpu["pci_bus_id"][-10:].lower() for gpu in box["gpus"]
    ]
    assert host["nvidia_module_version"] == box["driver_version"]


def test_cuda_answers(box):
    assert ctypes.CDLL("libcuda.so.1").cuInit(0) == 0


#: Where no systemd runs: what matters of a server's unit, user and missing privileges; and the unit for the nodes.
STAND_INS = {
    "systemd-run": """#!/bin/bash
while [ "$1" != -- ]; do shift; done
shift
exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
""",
    "systemctl": "#!/bin/sh\necho ActiveState=active\necho UnitFileState=enabled\n",
}
HIDE_UVM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#define WRAP(name) int name(const char *path, int flags, ...) { \\
    va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \\
    if (path && strstr(path, "nvidia-uvm")) { errno = ENOENT; return -1; } \\
    return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name))(path, flags, mode); }
WRAP(open)
WRAP(open64)
"""


@pytest.fixture
def server_sandbox(monkeypatch):
    """Let the proof ask CUDA as a server would, also in a container without systemd; give the stand-ins' directory."""
    if os.path.isdir("/run/systemd/system"):
        yield None
        return
    # not tmp_path, which only root may read
    with tempfile.TemporaryDirectory() as name:
        home = pathlib.Path(name)
        home.chmod(0o755)
        for program, text in STAND_INS.items():
            (home / program).write_text(text, encoding="ascii")
            (home / program).chmod(0o755)
        monkeypatch.setenv("PATH", name, prepend=os.pathsep)
        yield home


def test_all_device_nodes_are_there(box):
    assert make_device_nodes.missing(make_device_nodes.Host()) == []


def test_the_driver_is_proved_by_its_own_checks(box, server_sandbox):
    driver = module("nvidia_driver_plan", goal="loaded")["driver"]
    print(json.dumps({key: value for key, value in driver.items() if key != "packages"}, indent=1))
    assert driver["loaded_version"] == box["driver_version"]
    module("nvidia_driver_plan", goal="proof", gpus=box, gpus_expected=[gpu["id"] for gpu in box["gpus"]])
    expected = [box["gpus"][0]["name"], "GPU-not-there"]
    with pytest.raises(AssertionError, match="wants GPU-not-there"):
        module("nvidia_driver_plan", goal="proof", gpus=box, gpus_expected=expected)


def test_cuda_without_its_node_is_said_so(box, server_sandbox):
    if server_sandbox is None or shutil.which("cc") is None:
        pytest.skip("the node is hidden by a library, which a unit of systemd does not load")
    (server_sandbox / "hide.c").write_text(HIDE_UVM, encoding="ascii")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "hide.so", "hide.c", "-ldl"], cwd=server_sandbox, check=True)
    text = STAND_INS["systemd-run"].replace("exec setpriv", f"LD_PRELOAD={server_sandbox}/hide.so exec setpriv")
    (server_sandbox / "systemd-run").write_text(text, encoding="ascii")
    with pytest.raises(AssertionError, match=re.escape("cuInit answers 999 (unknown) in the sandbox of a server")):
        module("nvidia_driver_plan", goal="proof", gpus=box)


def test_cuda_that_is_hidden_is_said_so(box, server_sandbox, monkeypatch):
    if server_sandbox is None:
        pytest.skip("a unit of systemd does not see the variables of this process")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(AssertionError, match=re.escape("cuInit answers 100 (no device)")):
        module("nvidia_driver_plan", goal="proof", gpus=box)


def play(tmp_path, role, *variables):
    """Run a role of the collection on this machine in check mode; what it printed."""
    playbook = tmp_path / "play.yml"
    text = f"- hosts: localhost\n  connection: local\n  gather_facts: false\n  roles:\n    - homelab.mixed_gpu.{role}\n"
    playbook.write_text(text, encoding="utf-8")
    command = [
        sys.executable, "-m", "ansible", "playbook", str(playbook), "-e",
        f"ansible_python_interpreter={sys.executable}",
        *(word for variable in variables for word in ("-e", variable)),
    ]
    environment = os.environ | {
        "ANSIBLE_COLLECTIONS_PATH": os.pathsep.join(filter(None, sys.path)), "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_NOCOLOR": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run([*command, "--check"], capture_output=True, text=True, check=False, env=environment)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_the_driver_role_reports_what_it_does_not_manage(box, tmp_path):
    rc, text = play(tmp_path, "nvidia_driver", '{"nvidia_driver_manage": false}')
    assert rc == 0, text
    assert box["driver_version"] in text and box["gpus"][0]["name"] in text


def test_the_driver_role_in_check_mode_changes_nothing_and_ends_in_one_sentence(box, tmp_path):
    branch = box["driver_version"].split(".")[0]
    rc, text = play(tmp_path, "nvidia_driver", json.dumps({"nvidia_driver_branch": branch}))
    print(text[-2000:])
    # in a container, or with a branch at its end, it refuses; on a machine of its own it says what it would do, or
    # leaves the driver alone
    known = ("is a container", "is end of life", "it is left as it is", "Would install", "PLAY RECAP")
    assert "Traceback" not in text and any(words in text for words in known), text
    assert module("nvidia_driver_plan", goal="loaded")["driver"]["loaded_version"] == box["driver_version"]
    assert rc == (2 if "is a container" in text or "is end of life" in text else 0), text
    ended = {"nvidia_driver_branch": "560", "__nvidia_driver_stand_in": True}
    rc, text = play(tmp_path, "nvidia_driver", json.dumps(ended))
    assert rc == 2 and "Driver branch 560 is end of life" in text, text


@pytest.mark.skipif(not os.access(NVCC, os.X_OK), reason="no nvcc on this machine")
def test_the_toolkit_role_finds_what_is_there_and_what_fits(box, tmp_path):
    root = str(pathlib.Path(NVCC).resolve().parents[1])
    rc, text = play(tmp_path, "cuda_toolkit", f"cuda_toolkit_root={root}")
    assert rc == 0, text
    rc, text = play(tmp_path, "cuda_toolkit", "cuda_toolkit_root=/nowhere", "cuda_toolkit_source=existing")
    assert rc == 2 and "correct cuda_toolkit_root" in text, text


@pytest.mark.skipif(not os.access(NVCC, os.X_OK), reason="no nvcc on this machine")
def test_a_compiled_program_runs(box, tmp_path):
    source = ROOT / "roles/cuda_toolkit/files/check.cu"
    subprocess.run([NVCC, "-o", str(tmp_path / "check"), str(source)], check=True)
    subprocess.run([str(tmp_path / "check")], check=True)


def test_llama_cpp_sees_the_cards_of_the_facts(box, llama_bin, environment):
    uuids = [gpu["id"] for gpu in box["gpus"]]
    listed = module(
        "llama_devices_info", llama_bench=f"{llama_bin}/llama-bench", environment=environment, cuda_ids=uuids
    )
    assert [device["id"] for device in listed["devices"]] == uuids
    assert [device["description"] for device in listed["devices"]] == [gpu["name"] for gpu in box["gpus"]]
    assert {device["backend"] for device in listed["devices"]} == {"CUDA"}


def test_a_random_model_is_tuned_between_card_and_cpu(box, llama_bin, environment, model_path, rpc_endpoint, tmp_path):
    environment = environment | {"CUDA_VISIBLE_DEVICES": box["gpus"][0]["id"]}
    devices = module(
        "llama_devices_info", llama_bench=f"{llama_bin}/llama-bench", environment=environment,
        cuda_ids=[box["gpus"][0]["id"]], rpc_endpoints=[rpc_endpoint],
    )["devices"]
    model = module("gguf_info", path=model_path, cache_dir=str(tmp_path))["model"]
    assert sorted(device["backend"] for device in devices) == ["CUDA", "RPC"]
    card = next(number for number, device in enumerate(devices) if device["backend"] == "CUDA")
    devices[card]["budget_mib"] = 320  # or the whole model would go there
    problem = {
        "schema": 1, "devices": devices, "model": model, "serving": SERVING, "reserve_mib": 16,
        "split_modes": ["layer"],
        "objective": {"name": "request", "prompt_tokens": 128, "generated_tokens": 64}, "tests": TESTS,
        "indifference": 0.01, "max_loads": 7,
    }
    plan, _loads = tune(
        llama_bin, problem, model_path, tmp_path / "loads", endpoints=[rpc_endpoint], environment=environment
    )
    decision = plan["decision"]
    print(json.dumps(decision, indent=1))
    assert decision is not None, plan["why"]
    assert sum(decision["layers"]) == model["block_count"] + 1
    assert decision["layers"][card] == max(split["layers"][card] for split in plan["feasible"])


def test_the_default_device_probe_reads_weights_at_the_speed_of_the_card(box, llama_bin, environment, tmp_path):
    defaults = yaml.safe_load((ROOT / "roles/split_tuning/defaults/main.yml").read_text(encoding="utf-8"))
    default = {key.removeprefix("split_tuning_probe_"): value for key, value in defaults.items() if "_probe_" in key}
    path = str(tmp_path / "probe.gguf")
    shape = ("blocks", "embedding_length", "feed_forward_length", "head_count", "head_count_kv", "type")
    module("random_gguf", path=path, host_python=sys.executable, **{key: default[key] for key in shape})
    model = module("gguf_info", path=path, cache_dir=str(tmp_path))["model"]
    uuids = [gpu["id"] for gpu in box["gpus"]]
    devices = module(
        "llama_devices_info", llama_bench=f"{llama_bin}/llama-bench", environment=environment, cuda_ids=uuids,
    )["devices"]
    serving = SERVING | {"batch_size": 2048, "micro_batch_size": 512}
    tests = [
        {"kind": "prefill", "n_prompt": default["prompt_tokens"], "n_gen": 0},
        {"kind": "decode", "n_prompt": 0, "n_gen": default["generated_tokens"]},
    ]
    tests = [test | {"n_depth": 0, "repetitions": default["repetitions"]} for test in tests]
    loads = [
        module(
            "split_benchmark", llama_bench=f"{llama_bin}/llama-bench", model_path=path, load=load,
            devices=[device["device"] for device in devices], serving=serving, environment=environment,
            campaign="gpu-test", fingerprint="1" * 64, state_dir=str(tmp_path / "loads"), lease_unit="",
            timeout_seconds=default["timeout_seconds"],
        )["load"]
        for load in probe_stage.loads(devices, model, tests, 512)
    ]
    probed = probe_stage.assess(loads, devices, model, 512, box["gpus"])
    print(json.dumps(probed, indent=1))
    assert probed["failure"] is None
    for row in probed["devices"]:
        assert row["theoretical_bandwidth_gb_per_s"] is not None
        assert 0 < row["bandwidth_gb_per_s"] <= 1.1 * row["theoretical_bandwidth_gb_per_s"]


def test_the_plan_agrees_with_the_dry_run_on_the_card(box, llama_bin, environment, model_path, rpc_endpoint, tmp_path):
    environment = environment | {"CUDA_VISIBLE_DEVICES": box["gpus"][0]["id"]}
    devices = module(
        "llama_devices_info", llama_bench=f"{llama_bin}/llama-bench", environment=environment,
        cuda_ids=[box["gpus"][0]["id"]], rpc_endpoints=[rpc_endpoint],
    )["devices"]
    model = module("gguf_info", path=model_path, cache_dir=str(tmp_path))["model"]
    answer = module(
        "llama_fit_params_info", program=f"{llama_bin}/llama-fit-params", model_path=model_path,
        devices=[device["device"] for device in devices], layers=[9, 8], serving=SERVING, rpc_endpoints=[rpc_endpoint],
        environment=environment, model=model,
    )
    print(json.dumps(answer, indent=1))
    assert answer["available"], answer["reason"]
    dry = answer["dry_run"]
    assert all(abs(more) <= max(256, 0.05 * mib) for more, mib in zip(dry["difference_mib"], dry["mib"], strict=True))
