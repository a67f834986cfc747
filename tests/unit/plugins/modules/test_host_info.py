# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import os
import shutil
import socket

import pytest
from ansible.module_utils.testing import patch_module_args
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
