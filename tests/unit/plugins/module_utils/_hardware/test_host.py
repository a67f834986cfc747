# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import host, host_hardware


def test_listener_lines():
    ours = 'LISTEN 0 512 127.0.0.1:8080 0.0.0.0:* users:(("llama-server",pid=71,fd=3)) cgroup:/system.slice/x-y.service'
    shell = 'LISTEN 0 5 0.0.0.0:8080 0.0.0.0:* users:(("python3",pid=9,fd=3)) cgroup:/user.slice/session-2.scope'
    hidden = "LISTEN 0 5 *:8080 *:* cgroup:unreachable:1a2"
    assert host_hardware.listeners("\n".join([ours, ours.replace("127.0.0.1", "[::1]"), shell, hidden])) == [
        {"pid": 71, "process": "llama-server", "unit": "x-y.service"},
        {"pid": 9, "process": "python3", "unit": "session-2.scope"},
        {"pid": None, "process": None, "unit": None},
    ]


def test_os_release():
    text = '# a comment\nID=ubuntu\nVERSION_ID="24.04"\n\nPRETTY_NAME=\'Ubuntu 24.04.3 LTS\'\n'
    expected = {"id": "ubuntu", "version_id": "24.04", "pretty_name": "Ubuntu 24.04.3 LTS"}
    assert host.operating_system(text) == expected
    assert host.operating_system("ID=arch\n") == {"id": "arch", "version_id": None, "pretty_name": None}
    assert host.operating_system("")["id"] is None


def test_memory():
    text = "MemTotal:  2097152 kB\nMemAvailable: 1048576 kB\nSwapTotal: 4096 kB\nSwapFree: 1024 kB\nHugePages: 0\n"
    assert host.memory(text) == {
        "memory_total_mib": 2048, "memory_available_mib": 1024, "swap_total_mib": 4, "swap_used_mib": 3
    }


def test_cores_are_counted_once_however_many_threads_they_run(monkeypatch):
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    monkeypatch.setattr(host.host_hardware, "siblings", lambda thread: {0: "0,2", 2: "0,2", 1: "1,3", 3: "1,3"}[thread])
    assert host.processor() == {"physical_cores": 2, "threads": 4}
    # a container may not say which threads share a core
    monkeypatch.setattr(host.host_hardware, "siblings", lambda _thread: None)
    assert host.processor() == {"physical_cores": 4, "threads": 4}
