# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import os
import shutil
import socket

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import host_hardware
from ansible_collections.homelab.mixed_gpu.plugins.modules import host_info


@pytest.fixture
def run(capsys):
    def _run(**arguments):
        with patch_module_args(arguments), pytest.raises(SystemExit):
            host_info.main()
        result = json.loads(capsys.readouterr().out)
        assert not result.get("failed") and result["changed"] is False
        return result["host"]

    return _run


def test_this_machine(run, tmp_path):
    (tmp_path / "held").mkdir()
    (tmp_path / "held/file").write_bytes(os.urandom(3 << 20))
    host = run(paths=[str(tmp_path / "held"), str(tmp_path / "not/there/yet")], _ansible_check_mode=True)
    assert host["machine"] == os.uname().machine
    assert host["uid"] == os.geteuid()
    assert host["os"]["id"]
    assert host["init"]
    assert 0 < host["memory_available_mib"] <= host["memory_total_mib"]
    assert [disk["held_mib"] for disk in host["disks"]] == [3, 0]
    for disk in host["disks"]:
        assert os.path.ismount(disk["mount_point"])
        assert str(tmp_path).startswith(disk["mount_point"])
        assert disk["free_mib"] == pytest.approx(shutil.disk_usage(tmp_path).free >> 20, rel=0.2)
        assert disk["total_mib"] == pytest.approx(shutil.disk_usage(tmp_path).total >> 20, rel=0.1)
        assert disk["medium"] in ("nvme", "ssd", "disk", None)
    assert host["listeners"] is None
    assert host["kernel"] == os.uname().release and host["kernel_version"] == os.uname().version
    assert host["revalidation"]["needed"] is False
    assert [device["address"] for device in host["nvidia_devices"]] == host["nvidia_pci"]


def test_files(run, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"x" * 1234)
    asked = [str(tmp_path / "x.gguf"), str(tmp_path), str(tmp_path / "none")]
    assert [file["size_bytes"] for file in run(files=asked)["files"]] == [1234, None, None]


@pytest.mark.skipif(shutil.which("ss") is None, reason="needs ss (iproute2)")
def test_who_listens(run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (listener,) = run(port=port)["listeners"]
    assert listener["pid"] == os.getpid()
    assert run(port=port)["listeners"] == []


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
    assert host_info.operating_system(text) == expected
    assert host_info.operating_system("ID=arch\n") == {"id": "arch", "version_id": None, "pretty_name": None}
    assert host_info.operating_system("")["id"] is None


def test_memory():
    text = "MemTotal:  2097152 kB\nMemAvailable: 1048576 kB\nSwapTotal: 4096 kB\nSwapFree: 1024 kB\nHugePages: 0\n"
    assert host_info.memory(text) == {
        "memory_total_mib": 2048, "memory_available_mib": 1024, "swap_total_mib": 4, "swap_used_mib": 3
    }
