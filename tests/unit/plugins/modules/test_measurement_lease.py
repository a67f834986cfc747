# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module with a stand-in for systemd. The same steps against a real systemd are in the Molecule scenario."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.modules import measurement_lease
from ansible_collections.homelab.mixed_gpu.tests.unit.fixtures_bench import fake_systemd


@pytest.fixture
def units(tmp_path, monkeypatch):
    for name, value in fake_systemd.install(tmp_path).items():
        monkeypatch.setenv(name, value)
    yield tmp_path / "units"
    fake_systemd.end(tmp_path / "units")


@pytest.fixture
def run(units, tmp_path, call_module, monkeypatch):
    def _run(owner="A", check=False, diff=False, **arguments):
        arguments = {
            "owner": owner, "wait_seconds": 0, "lease_file": str(_run.file), "lock_file": str(_run.lock),
            **arguments, "_ansible_check_mode": check, "_ansible_diff": diff,
        }
        return call_module(measurement_lease, arguments)

    _run.warnings = []
    # Where the controller's code is loaded too, as in a whole test run, warnings do not come with the result.
    monkeypatch.setattr(AnsibleModule, "warn", lambda self, warning: _run.warnings.append(warning))
    _run.file = tmp_path / "run" / "lease.json"
    _run.lock = tmp_path / "state" / ".lock"
    return _run


def there(units):
    return sorted(name for name in os.listdir(units) if not name.startswith("."))


def long_ago(run):
    os.utime(run.file, (0, 0))


def test_a_running_server_stops_and_comes_back(run, units):
    (units / "llama-server.service").touch()
    taken = run(diff=True)
    assert taken["changed"] and taken["restart"] == ["llama-server.service"] and taken["owner"] == "A"
    assert taken["diff"] == {"before": {"owner": None}, "after": {"owner": "A"}}
    assert there(units) == ["mixed-gpu-lease.service"]
    released = run(state="absent")
    assert released["changed"] and released["owner"] is None and released["restart"] == ["llama-server.service"]
    assert there(units) == ["llama-server.service"] and not run.file.exists()
    assert not run(state="absent")["changed"]


def test_a_server_that_was_about_to_start_is_stopped_and_comes_back(run, units):
    (units / "llama-server.service.job").touch()
    assert run()["restart"] == ["llama-server.service"]
    assert there(units) == ["mixed-gpu-lease.service"]
    run(state="absent")
    assert there(units) == ["llama-server.service"]


def test_a_stopped_or_missing_server_stays_so(run, units):
    assert run()["restart"] == []
    run(state="absent")
    assert there(units) == []


def test_the_same_owner_touches_it(run):
    acquired = run()["acquired_at"]
    long_ago(run)
    again = run()
    assert not again["changed"] and again["acquired_at"] == acquired
    assert run.file.stat().st_mtime > 0


def test_another_owner_is_refused_by_name(run, units):
    acquired = run()["acquired_at"]
    result = run("B", wait_seconds=1)
    assert result["failed"] and result["owner"] == "A"
    assert f"The devices are leased to A since {acquired}" in result["msg"] and "\n" not in result["msg"]
    assert json.loads(run.file.read_text())["owner"] == "A"
    left = run("B", state="absent")
    assert not left["changed"] and left["owner"] == "A" and there(units) == ["mixed-gpu-lease.service"]


def test_an_abandoned_one_is_waited_for(run, units):
    (units / "llama-server.service").touch()
    run()
    long_ago(run)
    assert run("B")["failed"]
    threading.Timer(1, (units / "mixed-gpu-lease.service").unlink).start()
    assert run("B", wait_seconds=120)["changed"] and json.loads(run.file.read_text())["owner"] == "B"


def test_the_unit_runs_the_program_that_watches_the_lease(run, units):
    run(idle_seconds=7)
    command = (units / ".command").read_text().split()
    assert command == [sys.executable, str(run.file.parent / "hold_lease.py"), str(run.file), str(run.lock), "7"]
    assert subprocess.run([command[0], "-m", "py_compile", command[1]], check=False).returncode == 0


def test_a_lease_that_nobody_touches_ends_and_the_server_comes_back(run, units):
    (units / "llama-server.service").touch()
    run(idle_seconds=1)
    deadline = time.monotonic() + 120
    while there(units) != ["llama-server.service"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert there(units) == ["llama-server.service"]


def test_a_lease_under_which_something_measures_is_not_released(run):
    run()
    lock = json_file.take_lock(str(run.lock), 0)
    assert "A measurement still runs under this lease" in run(state="absent")["msg"]
    json_file.release_lock(lock)
    assert run(state="absent")["changed"]


def test_a_lease_with_a_damaged_state_is_waited_for(run):
    run()
    run.file.write_text("{")
    assert "leased to somebody unknown" in run("B")["msg"]
    assert len(run.warnings) == 1 and f"{run.file} is damaged: it holds no JSON" in run.warnings[0]


def test_an_expired_one_is_free(run, units):
    run()
    (units / "mixed-gpu-lease.service").unlink()
    assert run("B")["changed"] and not run("B")["changed"]
    (units / "mixed-gpu-lease.service").unlink()
    assert not run("B", state="absent")["changed"] and not run.file.exists()


def test_check_mode_changes_nothing(run, units):
    (units / "llama-server.service").touch()
    assert run(check=True)["changed"] and there(units) == ["llama-server.service"] and not run.file.parent.exists()
    run()
    assert not run(check=True)["changed"] and run("B", check=True)["changed"]
    assert run(state="absent", check=True)["changed"] and there(units) == ["mixed-gpu-lease.service"]


def test_a_refusal_of_systemd_leaves_nothing_behind(run, units):
    (units / "refuse").touch()
    result = run()
    assert "systemd did not start the lease mixed-gpu-lease.service (Access denied)" in result["msg"]
    assert not run.file.exists() and there(units) == ["refuse"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"owner": " "}, "owner is empty"),
        ({"max_seconds": 0}, "max_seconds is 0"),
        ({"idle_seconds": -1}, "idle_seconds is -1"),
    ],
)
def test_misuse_is_one_sentence(run, arguments, words):
    result = run(**arguments)
    assert result["failed"] and words in result["msg"]
