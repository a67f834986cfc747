# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import re

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import host_hardware
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import restart_check

RUNNING = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "NeedDaemonReload": "no"}
UNIT = restart_check.File("/u.service", "same", "same", 50.0)
KEY = restart_check.File("/key", None, None, 0.0)
CUDA = {"backend": "CUDA", "total_mib": 24080}
ENTRY = {
    "model": {}, "serving": {}, "split_mode": "layer", "rpc_endpoints": [],
    "devices": [
        {**CUDA, "device": "CUDA0", "id": "GPU-aaaa", "description": "RTX 4090"},
        {**CUDA, "device": "CUDA1", "id": "GPU-bbbb", "description": "RTX 3090"},
        {"backend": "RPC", "device": "RPC0", "id": "10.0.0.2:50052", "description": "10.0.0.2:50052"},
    ],
    "placement": [
        {"id": "GPU-aaaa", "layers": 44}, {"id": "GPU-bbbb", "layers": 30}, {"id": "10.0.0.2:50052", "layers": 7},
    ],
    "decision": {"mib": [23197, 20079, 4000]},
}  # fmt: skip


def test_a_running_server_whose_files_stay_needs_no_restart():
    assert restart_check.due(RUNNING, 100.0, [UNIT, KEY]) is None


@pytest.mark.parametrize(
    ("unit", "files", "words"),
    [
        ({**RUNNING, "LoadState": "not-found"}, [UNIT], "does not exist yet"),
        ({**RUNNING, "ActiveState": "inactive", "SubState": "dead"}, [UNIT], "does not run (dead)"),
        ({**RUNNING, "ActiveState": "failed", "SubState": "failed"}, [UNIT], "does not run (failed)"),
        ({**RUNNING, "ActiveState": "activating", "SubState": "auto-restart"}, [UNIT], "(auto-restart)"),
        (RUNNING, [UNIT._replace(wanted="other")], "/u.service changes"),
        (RUNNING, [UNIT, KEY._replace(wanted="secret\n")], "/key changes"),
        (RUNNING, [UNIT, KEY._replace(now="secret\n", written_at=1.0)], "/key changes"),
        # a play died between writing and restarting
        (RUNNING, [UNIT._replace(written_at=100.5)], "/u.service was written after the start"),
        ({**RUNNING, "NeedDaemonReload": "yes"}, [UNIT], "systemd has not read the unit again"),
    ],
)
def test_a_restart_is_due_for_a_reason(unit, files, words):
    assert words in restart_check.due(unit, 100.0, files)


def test_a_server_that_is_still_loading_runs():
    assert restart_check.due({**RUNNING, "ActiveState": "activating", "SubState": "start"}, 100.0, [UNIT]) is None


@pytest.mark.parametrize(("state", "found"), [("active", 1), ("activating", 1), ("inactive", 0), ("", 0)])
def test_a_measurement_is_left_alone(state, found):
    sentences = restart_check.measurement("mixed-gpu-lease.service", state)
    assert len(sentences) == found and all("systemctl stop mixed-gpu-lease.service" in one for one in sentences)


def test_the_port_is_free_where_only_what_is_stopped_listens():
    listening = """
LISTEN 0 5 127.0.0.1:8080 0.0.0.0:* users:(("python3",pid=71,fd=3)) cgroup:/system.slice/squatter.service
LISTEN 0 5 [::1]:8080 [::]:* users:(("llama-server",pid=9,fd=3)) cgroup:/system.slice/llama-server.service
LISTEN 0 5 10.0.0.1:8080 0.0.0.0:* cgroup:/user.slice
""".strip()
    listeners = host_hardware.listeners(listening)
    (sentence,) = restart_check.port(8080, listeners, ["llama-server.service"])
    assert sentence.startswith("Port 8080 is taken by a process, python3 (pid 71) of squatter.service: stop it, or")
    assert restart_check.port(8080, listeners[1:2], ["llama-server.service"]) == []


def gpus(first_free, second_free, processes=()):
    return [
        {"id": "GPU-aaaa", "memory_free_mib": first_free, "processes": list(processes)},
        {"id": "GPU-bbbb", "memory_free_mib": second_free, "processes": None},
        {"id": "GPU-cccc", "memory_free_mib": 0, "processes": []},
    ]


def test_cards_with_room_for_the_plan_are_not_in_the_way():
    assert restart_check.memory(ENTRY, gpus(23197, 20079), []) == []
    assert restart_check.memory({**ENTRY, "decision": {}}, gpus(0, 0), []) == []  # the plan is not known
    assert restart_check.memory(ENTRY, gpus(None, None), []) == []


def test_a_card_without_room_is_named_with_the_process_on_it():
    blender = {"pid": 71, "name": "/usr/bin/blender", "memory_mib": 3000}
    nameless = {"pid": 72, "name": None, "memory_mib": None}
    (sentence,) = restart_check.memory(ENTRY, gpus(20660, 24000, [blender, nameless]), [])
    assert sentence.startswith(
        "RTX 4090 (GPU-aaaa) has 20660 MiB free and the plan needs 23197 MiB: 2537 MiB are missing; in the way:"
        " /usr/bin/blender (pid 71, 3000 MiB), process (pid 72, unknown)."
    )


def test_memory_of_what_is_stopped_counts_as_free():
    own = {"pid": 5, "name": "llama-server", "memory_mib": 23100}
    assert restart_check.memory(ENTRY, gpus(560, 24000, [own]), [5]) == []
    assert len(restart_check.memory(ENTRY, gpus(560, 24000, [own]), [])) == 1
    # what cannot be known is not held against the plan
    assert restart_check.memory(ENTRY, gpus(560, 24000, [{**own, "memory_mib": None}]), [5]) == []


def test_an_absent_card_is_in_the_way():
    (sentence,) = restart_check.memory(ENTRY, gpus(24000, 24000)[:1], [])
    assert "RTX 3090 (GPU-bbbb) is part of the recorded placement" in sentence and "does not list it" in sentence


@pytest.mark.parametrize(
    ("available", "total", "leaves", "words"),
    [
        (41 * 1024, 64 * 1024, False, None),
        (41 * 1024 - 1, 64 * 1024, False, "41983 MiB of RAM available, .* 40960 MiB .* 1024 MiB to spare: 1 MiB are"),
        (5 * 1024, 64 * 1024, True, None),  # the server that leaves holds the rest
        (5 * 1024, 32 * 1024, True, "32768 MiB of RAM in all, .*: 9216 MiB are missing"),
    ],
)
def test_experts_need_room_in_ram(available, total, leaves, words):
    found = restart_check.ram({"experts_in_ram": {"ram_bytes": 40 << 30}}, available, total, leaves)
    assert (not found) if words is None else re.search(words, found[0])
    # a draft keeps its token embedding there, where more than that is planned
    half = {"experts_in_ram": {"ram_bytes": 20 << 30}, "speculation": {"ram_bytes": 20 << 30}}
    assert restart_check.ram(half, available, total, leaves) == found
    assert restart_check.ram({"speculation": {"kind": "ngram-mod"}}, 0, 0, False) == []
    assert restart_check.ram({}, 0, 0, False) == []
