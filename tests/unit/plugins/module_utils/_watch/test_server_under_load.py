# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Cards of the compiled stand-in for NVML, behind a server that answers as llama-server does in the shape of recorded
answers: there is no llama-server with cards here. RPC devices are watched for real in the Molecule scenario."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._diagnosis import diagnosis
from ansible_collections.homelab.mixed_gpu.tests import local_server
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml import build

FAST, SLOW = "GPU-11111111-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa"
DEVICES = [{"device": "CUDA0", "id": FAST, "backend": "CUDA"}, {"device": "CUDA1", "id": SLOW, "backend": "CUDA"}]
PHASES = [
    {"kind": "decode", "prompt_tokens": 1, "generated_tokens": 8},
    {"kind": "prefill", "prompt_tokens": 64, "generated_tokens": 1},
]
MS_PER_REQUEST = 50
RUN = """
import importlib, json, shutil, subprocess, sys
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.llama_client import Client, ServerError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watch import server_under_load, watched_devices

class Module:
    get_bin_path = staticmethod(shutil.which)

    def run_command(self, command):
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

given = json.loads(sys.argv[1])
server_under_load.QUEUED_MS = 1e9  # a slow machine is no queue: other requests show in the slots
url, devices = given.pop("url"), given.pop("devices")
tools = watched_devices.Tools(Module(), importlib.import_module("pynvml"))
try:
    print(json.dumps(server_under_load.watch(Client(url, None, 10), devices, server_under_load.Asked(**given), tools)))
except ServerError as error:
    print(json.dumps({"failed": True, "msg": str(error)}))
"""


class Handler(local_server.Handler):
    def do_GET(self):
        server = self.server
        server.looks += self.path == "/slots"
        busy = server.looks <= server.busy_looks or server.looks in server.busy_at
        self.reply(
            200,
            {
                "/props": {"default_generation_settings": {"n_ctx": 2048}},
                "/v1/models": {"data": [{"meta": {"n_vocab": 512}}]},
                "/slots": [{"id": 0, "is_processing": busy}],
            }[self.path],
        )

    def do_POST(self):
        body = self.body()
        self.server.asked.append(body)
        if len(self.server.asked) > self.server.dies_after:
            self.close_connection = True
            return
        time.sleep(MS_PER_REQUEST / 1000)
        generated = body["n_predict"]
        took = {"prompt_ms": MS_PER_REQUEST / 2, "predicted_ms": MS_PER_REQUEST / 2}
        timings = {"cache_n": 0, "prompt_n": len(body["prompt"]), "predicted_n": generated, **took}
        self.reply(200, {"timings": timings})


@pytest.fixture
def watch(library):
    def run(profile, server=None, fails=False, text=None, **arguments):
        said = {"asked": [], "looks": 0, "busy_looks": 0, "busy_at": (), "dies_after": 10**6, **(server or {})}
        with local_server.serving(Handler, **said) as own:
            usual = {
                "url": own.url, "devices": DEVICES, "phases": PHASES, "seconds": 1.2,
                "blocks": 3, "wait_seconds": 30, "journal_days": 0, "sample_interval_ms": 20,
            }  # fmt: skip
            variables = build.environment(library, profile, text) | {
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path))
            }
            done = subprocess.run(
                [sys.executable, "-c", RUN, json.dumps(usual | arguments)],
                env=variables,
                capture_output=True,
                text=True,
                check=False,
            )
            assert "Traceback" not in done.stderr, done.stderr
            result = json.loads(done.stdout)
            assert bool(result.get("failed")) is fails, result
            return result, own

    return run


@pytest.fixture
def pair():
    """The pair at work, where the utilisation of both cards is told."""
    text = (build.HERE / "profiles" / "under_load.txt").read_text(encoding="utf-8")
    return f"{text}1.utilization_memory_percent=30\n"


def test_cards_are_watched_while_the_server_works(watch, pair):
    result, server = watch(None, text=pair)
    assert [device["seen"] for device in result["devices"]] == ["nvml", "nvml"]
    decode, prefill = result["phases"]
    for phase in (decode, prefill):
        assert len(phase["blocks"]) >= 2 and phase["skipped_reason"] is None and phase["overlapped"] == 0
        for block in phase["blocks"]:
            assert block["ms"] == pytest.approx(MS_PER_REQUEST * block["requests"])
            # the RTX 3090 of this profile is at 50 % all the time
            assert block["devices"][SLOW]["busy_ms"] == pytest.approx(block["wall_ms"] / 2, rel=0.01)
            assert 0.4 <= block["devices"][FAST]["busy_ms"] / block["wall_ms"] <= 0.61
    assert decode["cards"][SLOW]["throttled_percent"] == {"sw_power_cap": 100.0}
    assert decode["cards"][FAST]["sampled"]["pcie_generation"]["max"] == 4
    assert {len(body["prompt"]) for body in server.asked} == {1, 64}
    assert all(body["cache_prompt"] is False and body["ignore_eos"] is True for body in server.asked)
    # the same prompt again and again, and the same in every run
    assert len({tuple(body["prompt"]) for body in server.asked}) == 2


def test_the_diagnosis_of_these_cards(watch, pair):
    path = pathlib.Path(__file__).resolve().parents[4] / "fixtures" / "report" / "mixed_70b.json"
    entry = json.loads(path.read_text(encoding="utf-8"))["entry"]
    watched, _server = watch(None, text=pair)
    result = diagnosis.diagnose(entry, watched, {"state": "ready", "deviations": []}, "", 10.0, (), "")
    kinds = {(one["subject"], one["kind"], one["severity"]) for one in result["findings"]}
    assert ("CUDA1 (RTX 3090)", "throttle", "note") in kinds
    assert ("CUDA0 (RTX 4090)", "link", "ok") in kinds


def test_xid_errors_that_come_meanwhile_are_kept(watch):
    result, _server = watch("xid_events", phases=PHASES[:1])
    assert {(event["id"], event["xid"]) for event in result["xid_events"]} == {(SLOW, 31), (FAST, 79)}


def test_a_card_that_is_lost_meanwhile_is_said_and_the_rest_is_kept(watch):
    result, _server = watch("lost_under_load", phases=PHASES[:1])
    assert result["phases"][0]["blocks"]
    assert SLOW not in result["phases"][0]["blocks"][0]["devices"]
    assert (SLOW, 79) in {(event["id"], event["xid"]) for event in result["xid_events"]}


def test_a_busy_server_is_waited_for_and_then_left_alone(watch):
    result, server = watch("one_card", server={"busy_looks": 10**6}, wait_seconds=1)
    assert "was busy with 1 other request for 1 s, so nothing was sent" in result["busy"]
    assert {phase["skipped_reason"] for phase in result["phases"]} == {result["busy"]}
    assert server.asked == []
    result, _server = watch("no_card", server={"busy_looks": 1}, wait_seconds=5)
    assert result["busy"] is None and result["phases"][0]["blocks"]


def test_parts_that_overlap_with_other_requests_are_left_out(watch):
    result, _server = watch("no_card", server={"busy_at": [2]}, phases=PHASES[:1])
    assert result["phases"][0]["overlapped"] == 1
    assert len(result["phases"][0]["blocks"]) >= 2


def test_a_server_that_dies_is_said_by_phase(watch):
    result, _server = watch("no_card", server={"dies_after": 2})
    assert all("broke off" in phase["skipped_reason"] for phase in result["phases"])


def test_what_cannot_be_seen_says_why(watch):
    devices = [
        {"device": "RPC0", "id": "192.0.2.1:50052", "backend": "RPC"},
        {"device": "RPC1", "id": "127.0.0.1:1", "backend": "RPC"},
        {"device": "Vulkan0", "id": "Vulkan0", "backend": "Vulkan"},
        {"device": "CUDA3", "id": "GPU-other", "backend": "CUDA"},
    ]
    result, _server = watch("one_card", devices=devices, phases=[])
    assert [device["seen"] for device in result["devices"]] == [None] * 4
    reasons = [device["reason"] for device in result["devices"]]
    assert reasons[0] == "it is on another host"
    assert "no process of this host" in reasons[1]
    assert "Vulkan" in reasons[2] and "no card with this UUID" in reasons[3]


def test_a_prompt_that_does_not_fit_is_skipped(watch):
    result, server = watch("no_card", phases=[{"kind": "prefill", "prompt_tokens": 4096, "generated_tokens": 1}])
    assert "a slot of this server has 2048" in result["phases"][0]["skipped_reason"]
    assert server.asked == []


def test_a_server_that_is_not_there_is_one_sentence(watch):
    result, _server = watch("no_card", fails=True, url="http://127.0.0.1:1")
    assert "cannot be reached" in result["msg"]
