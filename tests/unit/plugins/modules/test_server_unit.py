# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""systemctl, ss and journalctl are stood in for by programs that print what a test says; files and clock are real."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import cards
from ansible_collections.homelab.mixed_gpu.plugins.modules import server_unit

UNIT, OTHER, LEASE = "exllama-server.service", "llama-server.service", "mixed-gpu-lease.service"
RESTART = ["reset-failed", "daemon-reload", "restart"]
CARD = {"device": "CUDA0", "id": "GPU-1", "backend": "CUDA", "description": "RTX 4090"}
ENTRY = {
    "model": {}, "serving": {}, "split_mode": "layer", "rpc_endpoints": [], "decision": {"mib": [9]},
    "devices": [CARD], "placement": [{"id": "GPU-1", "layers": 9}],
}  # fmt: skip
SYSTEMCTL = """#!/bin/sh
eval unit=\\${$#}
case "$1" in
  show) cat {dir}/$unit 2>/dev/null || echo LoadState=not-found;;
  *) echo "$@" >> {dir}/done; [ "$1" != restart ] || [ ! -f {dir}/broken ] || {{ echo Job failed. >&2; exit 1; }};;
esac
"""
PROGRAMS = {
    "systemctl": SYSTEMCTL.replace("{$#}", "{{$#}}"),
    "ss": "#!/bin/sh\ncat {dir}/listeners\n",
    "journalctl": "#!/bin/sh\necho no such file\n",
}


class Host:
    """What the programs print, and what systemctl was told to do."""

    def __init__(self, directory):
        self.directory = directory
        for name, text in PROGRAMS.items():
            (directory / name).write_text(text.format(dir=directory))
            (directory / name).chmod(0o755)
        self.listens("")
        self.unit(UNIT, started=time.monotonic() + 60)

    def unit(self, name, active="active", started=0.0, enabled="enabled", more=""):
        (self.directory / name).write_text(
            f"LoadState=loaded\nActiveState={active}\nSubState=running\nNeedDaemonReload=no\nMainPID=9\n"
            f"UnitFileState={enabled}\nActiveEnterTimestampMonotonic={round(started * 1e6)}\n{more}"
        )

    def listens(self, text):
        (self.directory / "listeners").write_text(text)

    def commands(self):
        path = self.directory / "done"
        return path.read_text().splitlines() if path.exists() else []

    def verbs(self):
        return [line.split()[0] for line in self.commands()]


@pytest.fixture
def host(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    return Host(tmp_path / "bin")


@pytest.fixture
def run(tmp_path, call_module):
    """Call the module for a unit with a file of settings and one with a key."""

    def _run(key="a secret", **more):
        arguments = {
            "unit": UNIT,
            "unit_text": "[Service]\n",
            "files": [
                {"path": str(tmp_path / "etc/server.yml"), "content": "{}\n"},
                {"path": str(tmp_path / "etc/server.key"), "content": key},
            ],
            "port": 5000,
            "conflicting_units": [OTHER],
            "host_python": sys.executable,
            "unit_dir": str(tmp_path / "units"),
        }
        return call_module(server_unit, arguments | more)

    return _run


def test_files_are_written_and_the_server_is_restarted_once(host, run, tmp_path):
    first = run()
    assert first["changed"] and first["restarted"] and first["diff"]["after"] == "[Service]\n"
    assert first["due"] == f"{tmp_path}/etc/server.yml changes" and host.verbs() == RESTART
    key = tmp_path / "etc/server.key"
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("a secret", 0o600)
    assert (tmp_path / "units" / UNIT).stat().st_mode & 0o777 == 0o644
    again = run()
    assert not again["changed"] and again["due"] is None and host.verbs() == RESTART
    assert run(key="another")["restarted"]
    assert run(key="")["restarted"] and not key.exists()


def test_a_key_is_generated_once_and_shown_nowhere(host, run, tmp_path):
    path = tmp_path / "etc/generated.key"
    option = {"path": str(path), "wanted": True, "given": ""}
    foreseen = run(api_key=option, _ansible_check_mode=True, _ansible_diff=True)
    assert foreseen["changed"] and not path.exists()
    first = run(api_key=option, _ansible_diff=True)
    key = path.read_text().strip()
    assert first["restarted"] and len(key) == 64 and path.stat().st_mode & 0o777 == 0o600
    again = run(api_key=option)
    assert not again["changed"] and path.read_text().strip() == key
    given = run(api_key={**option, "given": "a-key-that-is-given"})
    assert given["due"] == f"{path} changes" and path.read_text() == "a-key-that-is-given\n"
    # what is there is a key, so it stays
    assert not run(api_key=option)["changed"]
    shown = json.dumps([first, again, given]) + " ".join(host.commands())
    assert key not in shown and "a-key-that-is-given" not in shown
    assert run(api_key={**option, "wanted": False})["restarted"] and not path.exists()
    assert not run(api_key={**option, "wanted": False})["changed"]


def test_check_mode_writes_nothing(host, run, tmp_path):
    assert run(_ansible_check_mode=True)["changed"]
    assert not (tmp_path / "units").exists() and host.commands() == []


def test_a_file_newer_than_the_start_makes_up_for_a_run_that_died(host, run):
    run()
    host.unit(UNIT, started=time.monotonic() - 60)
    assert run()["due"].endswith("was written after the start of the server")


def test_a_stopped_server_is_started_and_enabled_alone(host, run):
    run()
    host.unit(UNIT, active="inactive", enabled="disabled")
    host.unit(OTHER)
    assert run()["restarted"]
    assert host.commands()[3] == f"disable {OTHER}" and f"enable {UNIT}" in host.commands()


def test_a_unit_that_does_not_exist_is_written_and_started(host, run):
    (host.directory / UNIT).unlink()
    assert run()["due"] == "the unit does not exist yet" and host.verbs()[-1] == "restart"


def test_another_engine_that_starts_at_boot_is_a_change_without_a_restart(host, run):
    run()
    host.unit(OTHER)
    done = run()
    assert done["changed"] and not done["restarted"] and host.commands()[-1] == f"disable {OTHER}"


def test_all_that_is_in_the_way_is_said_before_anything_is_written(host, run, tmp_path, monkeypatch):
    host.unit(LEASE)
    host.listens(
        'LISTEN 0 5 127.0.0.1:5000 0.0.0.0:* users:(("python3",pid=71,fd=3)) cgroup:/system.slice/squatter.service\n'
        'LISTEN 0 5 [::1]:5000 [::]:* users:(("x",pid=9,fd=3)) cgroup:/system.slice/llama-server.service\n'
    )
    monkeypatch.setattr(cards, "read", lambda _python: {"available": False, "reason": "No driver."})
    failed = run(entry=ENTRY)
    assert failed["failed"] and "systemctl stop mixed-gpu-lease.service" in failed["msg"]
    assert "Port 5000 is taken by python3 (pid 71) of squatter.service: stop it" in failed["msg"]
    assert "The free memory of the cards is unknown: No driver." in failed["msg"]
    assert "left as it is; a restart is due, since" in failed["msg"] and "a secret" not in failed["msg"]
    assert not (tmp_path / "units").exists() and host.commands() == []


def test_memory_that_the_old_server_holds_counts_as_free(host, run, monkeypatch):
    gpu = {"id": "GPU-1", "memory_free_mib": 1, "processes": [{"pid": 9, "name": "old", "memory_mib": 20}]}
    monkeypatch.setattr(cards, "read", lambda _python: {"available": True, "gpus": [gpu]})
    assert run(entry=ENTRY)["restarted"]


def test_a_server_that_need_not_be_restarted_is_left_alone_whoever_is_in_the_way(host, run):
    run()
    host.listens("LISTEN 0 5 127.0.0.1:5000 0.0.0.0:*\n")
    host.unit(LEASE)
    assert not run(entry=ENTRY)["changed"]


def test_a_measurement_is_not_in_the_way_where_the_lease_is_not_checked(host, run):
    host.unit(LEASE)
    assert run(check_lease=False)["restarted"]


def test_a_server_that_does_not_start_fails_with_the_end_of_its_journal(host, run):
    (host.directory / "broken").write_text("")
    assert run()["msg"] == f"{UNIT} did not start (Job failed.); the end of its journal:\nno such file"
    host.unit(UNIT, active="failed")
    assert run(must_start=False)["restarted"]


def test_an_entry_that_is_not_complete_is_one_sentence(host, run):
    failed = run(entry={"model": {}})
    assert failed["failed"] and "is not complete ('devices'): run the tuning play again" in failed["msg"]


def test_a_server_without_the_node_of_its_cards_says_so(host, run):
    (host.directory / "broken").write_text("")
    host.unit(UNIT, active="inactive", more="AssertResult=no\nAssertTimestampMonotonic=5\n")
    message = run()["msg"]
    assert "/dev/nvidia-uvm is missing" in message and "systemctl status mixed-gpu-nodes.service" in message
