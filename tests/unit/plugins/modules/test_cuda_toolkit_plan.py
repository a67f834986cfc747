# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module with a compiler that answers as nvcc does; the real one is in Molecule and in tests/gpu."""

from __future__ import annotations

import os

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_host
from ansible_collections.homelab.mixed_gpu.plugins.modules import cuda_toolkit_plan

NO_CARD = {"available": False, "reason": "None."}
CARD = {"available": True, "driver_version": "580.95.05", "gpus": [{"compute_capability": "8.9"}]}
NVCC = """\
if [ "$1" = --version ]; then echo 'Cuda compilation tools, release 13.0, V13.0.88'; exit 0; fi
echo "$*" > {home}/asked
cat "$3" > {home}/program
{compile}
printf '#!/bin/sh\\n%s\\n' "{run}" > "$2" && chmod +x "$2"
"""


def program(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An Ubuntu 24.04 with gcc 13 and glibc 2.39, without a toolkit."""
    program(tmp_path / "bin/c++", "echo 13")
    program(tmp_path / "bin/getconf", "echo glibc 2.39")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(driver_host, "system", lambda: "Ubuntu 24.04")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


@pytest.fixture
def plan(home, call_module):
    def _plan(goal="choice", **arguments):
        arguments = {"root": str(home / "cuda"), "wheels_dir": str(home / "wheels"), "gpus": NO_CARD, **arguments}
        return call_module(cuda_toolkit_plan, {"goal": goal, **arguments})

    return _plan


@pytest.fixture
def nvcc(home):
    return lambda compile_script="", run="": program(
        home / "cuda/bin/nvcc", NVCC.format(home=home, compile=compile_script, run=run)
    )


def test_a_toolkit_is_planned_for_a_host_without_one(plan, home):
    answer = plan()
    assert answer["toolkit"] == {
        "present": False, "root": str(home / "cuda"), "nvcc": f"{home}/cuda/bin/nvcc", "source": "nvidia",
        "version": "13.0", "nccl_root": "",
    }  # fmt: skip
    assert answer["packages"] == ["cuda-toolkit-13-0", "g++"] and "cuda_toolkit_version" in answer["cure_unknown"]


def test_a_toolkit_that_is_there_is_taken(plan, nvcc):
    nvcc()
    toolkit = plan()["toolkit"]
    assert (toolkit["present"], toolkit["source"], toolkit["version"]) == (True, "existing", "13.0")


def test_compiler_library_and_driver_of_the_host_decide(plan, home):
    program(home / "bin/c++", "echo 16")
    answer = plan(source="wheels")
    assert answer["failed"] and "takes gcc up to 15, and this system has gcc 16" in answer["msg"]
    program(home / "bin/c++", "echo 14.2.0")
    program(home / "bin/getconf", "echo glibc 2.42")
    assert "glibc 2.42" in plan(source="wheels")["msg"]
    program(home / "bin/getconf", "echo glibc 2.39")
    old = {**CARD, "driver_version": "570.1"}
    assert "needs driver 580 or later, and 570.1 is loaded" in plan(source="wheels", gpus=old)["msg"]


def test_without_a_wish_nothing_is_a_failure(plan):
    answer = plan(manage=False, source="existing")
    assert (answer["toolkit"]["present"], answer["toolkit"]["source"], answer["packages"]) == (False, "none", [])


@pytest.mark.parametrize("check_mode", [True, False])
def test_installing_needs_root_and_room(plan, nvcc, monkeypatch, check_mode):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    answer = plan(_ansible_check_mode=check_mode)
    assert bool(answer.get("failed")) is not check_mode
    if not check_mode:
        assert "set become to true" in answer["msg"]
    monkeypatch.setattr(cuda_toolkit_plan.shutil, "disk_usage", lambda _path: type("", (), {"free": 1 << 30}))
    full = plan(_ansible_check_mode=True)
    assert full["failed"] and "has 1024 MiB free" in full["msg"]
    nvcc()
    assert plan()["toolkit"]["present"]


def test_the_proof_compiles_and_runs_a_program(plan, nvcc, home):
    nvcc()
    answer = plan("proof", program="int main() {}\n", gpus=CARD)
    assert answer["message"] == f"CUDA release 13.0 at {home}/cuda compiles a program that runs on this host."
    assert (home / "program").read_text() == "int main() {}\n"
    assert "-gencode=arch=compute_89,code=sm_89" in (home / "asked").read_text()
    assert "no card is there to run it on" in plan("proof", program="x")["message"]


@pytest.mark.parametrize(
    ("script", "run", "words"),
    [
        ("echo check.cu: fatal error: no such header >&2; exit 1", "", "(check.cu: fatal error: no such header)"),
        ("exit 1", "", "does not compile a small program (no message)"),
        ("", "echo CUDA error 35 >&2; exit 1", "does not run on this host's cards (CUDA error 35)"),
    ],
)
def test_a_toolkit_that_does_not_work_fails_the_proof(plan, nvcc, script, run, words):
    nvcc(script, run)
    answer = plan("proof", program="x", gpus=CARD)
    assert answer["failed"] and words in answer["msg"]


def test_a_toolkit_that_is_missing_fails_the_proof(plan):
    answer = plan("proof", program="x")
    assert answer["failed"] and "nvcc does not run (No such file or directory): run the role" in answer["msg"]


def test_the_cards_choose_the_release_before_there_is_a_driver(plan, monkeypatch):
    ids = ["0x1b06", "0x2204"]
    devices = [{"address": f"0000:0{place}:00.0", "device_id": number} for place, number in enumerate(ids)]
    monkeypatch.setattr(cuda_toolkit_plan.host_hardware, "nvidia_devices", lambda: devices)
    chosen = plan()
    assert chosen["packages"][0] == "cuda-toolkit-12-8"
    refused = plan(source="nvidia", version="13.0")
    assert refused["failed"] and "no target for compute capability 6.1" in refused["msg"]
    left_out = plan(source="nvidia", version="13.0", slots_left_out=["0000:00:00.0"])
    assert left_out["packages"][0] == "cuda-toolkit-13-0"


def test_an_unknown_system_is_refused_or_tried_as_another(plan, monkeypatch):
    monkeypatch.setattr(driver_host, "system", lambda: "Debian 14")
    refused = plan()
    assert refused["failed"] and "Debian 14 is not known" in refused["msg"] and "cuda_toolkit_system" in refused["msg"]
    assert "cuda_toolkit_system" in plan(source="nvidia")["msg"]
    assert plan(system="Ubuntu 24.04")["packages"][0] == "cuda-toolkit-13-0"
