# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pathlib
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.modules import llama_devices_info

FAKE = pathlib.Path(__file__).parents[2] / "fixtures_bench" / "fake_llama_bench.py"
PAIR = "Available devices:\n  RPC0: a:1 (24105 MiB, 24105 MiB free)\n  RPC1: b:2 (24105 MiB, 20000 MiB free)"
CARDS = """Available devices:
  CUDA0: NVIDIA GeForce RTX 4090 (24080 MiB, 23660 MiB free)
  CUDA1: NVIDIA GeForce RTX 3090 (24124 MiB, 24000 MiB free)"""


@pytest.fixture
def run(tmp_path, call_module):
    program = tmp_path / "llama-bench"
    program.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
    program.chmod(0o755)

    def _run(devices=PAIR, mode="ok", **arguments):
        environment = {"FAKE_MODE": mode, "FAKE_LOG": str(tmp_path / "log"), "FAKE_DEVICES": devices}
        arguments = {"llama_bench": str(program), "environment": environment, **arguments}
        return call_module(llama_devices_info, arguments)

    _run.log = tmp_path / "log"
    return _run


def rpc(*endpoints):
    return [{"id": one, "backend": "RPC", "device": f"RPC{index}"} for index, one in enumerate(endpoints)]


def test_devices_come_in_order_with_id_and_budget(run):
    expected = rpc("a:1", "b:2")
    result = run(rpc_endpoints=["a:1", "b:2"], budgets_mib={"b:2": 166, "RPC0": "251"}, expected_devices=expected)
    assert not result["changed"]
    assert result["devices"] == [
        {"device": "RPC0", "id": "a:1", "backend": "RPC", "description": "a:1", "total_mib": 24105, "free_mib": 24105,
         "budget_mib": 251},
        {"device": "RPC1", "id": "b:2", "backend": "RPC", "description": "b:2", "total_mib": 24105, "free_mib": 20000,
         "budget_mib": 166},
    ]
    assert run.log.read_text() == "--rpc a:1,b:2 --list-devices\n"


def test_cards_are_known_by_their_uuid(run):
    result = run(CARDS, cuda_ids=["GPU-4090", "GPU-3090"])
    assert [(device["id"], device["device"], device["free_mib"]) for device in result["devices"]] == [
        ("GPU-4090", "CUDA0", 23660), ("GPU-3090", "CUDA1", 24000),
    ]


def test_the_cards_of_a_record_are_shown_again(run):
    shown = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-4090,GPU-3090"}
    first = run(CARDS, cuda_ids=["GPU-4090", "GPU-3090"])
    assert first["environment"].items() >= shown.items() and first["environment"]["FAKE_MODE"] == "ok"
    again = run(CARDS, expected_devices=first["devices"])
    assert (again["devices"], again["environment"]) == (first["devices"], first["environment"])
    assert not run(CARDS)["environment"].keys() & shown.keys()


def test_no_device_is_an_answer(run):
    assert run("Available devices:\n  (none)")["devices"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "lost", "rpc_endpoints": ["a:1"]},
         "The devices cannot be listed: the RPC endpoint 127.0.0.1:50059 does not answer (Failed to connect to"
         " 127.0.0.1:50059): start the ggml-rpc-server there"),
        ({"mode": "hang", "rpc_endpoints": ["a:1"], "timeout_seconds": 1},
         "did not list the devices within 1 seconds: an RPC server serves one client at a time, so stop whatever uses"
         " a:1 (a llama-server?), then run this again."),
        ({"mode": "hang", "timeout_seconds": 1}, "did not list the devices within 1 seconds: look at the kernel's"),
        ({"mode": "odd"}, "cannot be read: the device line 'something new here' has an unknown form; install the"),
        ({"rpc_endpoints": ["a:1", "c:3"]}, "The RPC endpoint c:3 answers but offers no device"),
        ({"rpc_endpoints": ["a:1", "a:1"]}, "rpc_endpoints names a:1 more than once"),
        ({"expected_devices": rpc("b:2", "a:1")}, "found a:1, b:2, expected b:2, a:1"),
        ({"expected_devices": rpc("a:1")}, "found a:1, b:2, expected a:1"),
        ({"expected_devices": [{"id": "a:1"}]}, "expected_devices has a device without 'backend'"),
        ({"budgets_mib": {"GPU-1": 5}}, "names GPU-1, which is none of the devices here: RPC0 (a:1), RPC1 (b:2)"),
        ({"devices": CARDS, "cuda_ids": ["GPU-1"]}, "names 1 cards (GPU-1) but llama.cpp sees 2 CUDA devices"),
        ({"llama_bench": "/nowhere/llama-bench"}, "There is no program /nowhere/llama-bench: install llama.cpp"),
        ({"timeout_seconds": 0}, "timeout_seconds is 0"),
    ],
)
def test_what_is_wrong_is_one_sentence(run, arguments, words):
    result = run(**arguments)
    assert result["failed"] and words in result["msg"] and "\n" not in result["msg"]
