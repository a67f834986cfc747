# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""systemctl and ss are stood in for by programs that print what the real ones printed; files and clock are real."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.homelab.mixed_gpu.plugins.modules import server_restart_info

CARD = {"device": "CUDA0", "id": "GPU-1", "backend": "CUDA", "description": "RTX 4090"}
ENTRY = {
    "model": {}, "serving": {}, "split_mode": "layer", "rpc_endpoints": [], "decision": {"mib": [9]},
    "devices": [CARD], "placement": [{"id": "GPU-1", "layers": 9}],
}  # fmt: skip
SYSTEMCTL = """#!/bin/sh
eval unit=\\${$#}
cat '%s'/"$unit" 2>/dev/null || echo LoadState=not-found
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Return a function that runs the module for a unit that was written, then started."""
    path = tmp_path / "s.service"
    for name, text in (("systemctl", SYSTEMCTL % tmp_path), ("ss", f"#!/bin/sh\ncat {tmp_path}/listening\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def properties(unit, active="active", started=None, enabled="disabled"):
        started = time.monotonic() if started is None else started
        (tmp_path / unit).write_text(
            f"LoadState=loaded\nActiveState={active}\nSubState=running\nNeedDaemonReload=no\nMainPID=9\n"
            f"UnitFileState={enabled}\nActiveEnterTimestampMonotonic={round(started * 1e6)}\n"
        )

    def _run(content="text", key="", **arguments):
        given = {
            "unit": "server", "conflicting_units": ["other.service"], "port": 8080, "host_python": sys.executable,
            "files": [{"path": str(path), "content": content}, {"path": str(tmp_path / "key"), "content": key}],
        }  # fmt: skip
        with patch_module_args(given | arguments), pytest.raises(SystemExit):
            server_restart_info.main()
        return json.loads(capfd.readouterr().out)

    _run.properties, _run.path, _run.listening = properties, path, tmp_path / "listening"
    path.write_text("text")
    os.utime(path, (time.time() - 5, time.time() - 5))
    _run.listening.write_text("")
    properties("server.service")
    return _run


def test_an_unchanged_server_is_left_alone_whoever_is_in_the_way(run):
    run.listening.write_text("LISTEN 0 5 127.0.0.1:8080 0.0.0.0:*\n")
    result = run(entry=ENTRY)
    assert (result["due"], result["obstacles"], result["starting_at_boot"]) == (None, [], [])
    assert not result["changed"]


def test_a_file_that_was_written_after_the_start_needs_a_restart(run):
    os.utime(run.path)
    run.properties("server.service", started=time.monotonic() - 60)
    assert "s.service was written after the start" in run()["due"]


def test_what_is_in_the_way_of_a_restart_is_told_at_once(run):
    run.properties("mixed-gpu-lease.service")
    run.properties("other.service", enabled="enabled")
    run.listening.write_text(
        'LISTEN 0 5 127.0.0.1:8080 0.0.0.0:* users:(("python3",pid=71,fd=3)) cgroup:/system.slice/squatter.service\n'
        'LISTEN 0 5 [::1]:8080 [::]:* users:(("x",pid=9,fd=3)) cgroup:/system.slice/other.service\n'
    )
    result = run("changed", "secret\n", entry=ENTRY)
    measurement, port, memory = result["obstacles"]
    assert result["due"].endswith("s.service changes") and result["starting_at_boot"] == ["other.service"]
    assert "systemctl stop mixed-gpu-lease.service" in measurement
    assert "taken by python3 (pid 71) of squatter.service" in port and "other.service" not in port
    assert memory.startswith("The free memory of the cards is unknown: ")  # this machine has no driver
    assert "secret" not in json.dumps(result)


def test_a_unit_that_does_not_exist_is_due_and_an_incomplete_entry_is_one_sentence(run):
    result = run(unit="new", entry={**ENTRY, "devices": []})
    assert result["due"] == "the unit does not exist yet" and result["obstacles"] == []
    failed = run("changed", entry={"model": {}})
    assert failed["failed"] and "is not complete ('devices'): run the tuning play again" in failed["msg"]
