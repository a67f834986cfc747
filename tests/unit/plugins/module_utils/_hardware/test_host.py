# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os
import shutil
import socket
import subprocess

import pytest
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


def test_the_room_at_a_path_counts_what_lies_there(tmp_path):
    (tmp_path / "held").mkdir()
    (tmp_path / "held/file").write_bytes(os.urandom(3 << 20))
    disks = [host.disk(str(tmp_path / name)) for name in ("held", "not/there/yet")]
    assert [disk["held_mib"] for disk in disks] == [3, 0]
    for disk in disks:
        assert os.path.ismount(disk["mount_point"])
        assert str(tmp_path).startswith(disk["mount_point"])
        assert disk["free_mib"] == pytest.approx(shutil.disk_usage(tmp_path).free >> 20, rel=0.2)
        assert disk["total_mib"] == pytest.approx(shutil.disk_usage(tmp_path).total >> 20, rel=0.1)
        assert disk["medium"] in ("nvme", "ssd", "disk", None)


def test_only_a_file_has_a_size(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"x" * 1234)
    assert [host.size_bytes(str(tmp_path / name)) for name in ("x.gguf", "", "none")] == [1234, None, None]


@pytest.mark.skipif(shutil.which("ss") is None, reason="needs ss (iproute2)")
def test_who_listens():
    def run(command):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (listener,) = host.listening(port, shutil.which("ss"), run)
    assert listener["pid"] == os.getpid()
    assert host.listening(port, shutil.which("ss"), run) == []
    assert host.listening(None, shutil.which("ss"), run) is None and host.listening(port, None, run) is None
