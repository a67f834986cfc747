# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module with a stand-in for systemd: units are files, and what systemd does on stop is done by the stand-in.

The same steps against a real systemd are in the Molecule scenario.
"""

from __future__ import annotations

import json
import os

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.modules import measurement_lease

#: A unit is active when $UNITS/<name> exists; the lease's file holds what to start when it stops.
SYSTEMCTL = """#!/bin/sh
for unit; do :; done
case "$1" in
show)
  if [ -e "$UNITS/$unit" ]; then
    echo "LoadState=loaded"; echo "ActiveState=active"
    while read -r name; do
      echo "ExecStopPost={ path=/s ; argv[]=/s --no-block start $name ; ignore_errors=no ; pid=0 }"
    done < "$UNITS/$unit"
  else echo "LoadState=not-found"; echo "ActiveState=inactive"; fi ;;
list-jobs)
  for job in "$UNITS"/*.job; do
    [ -e "$job" ] && name=${job##*/} && echo "71 ${name%.job} start running"
  done; true ;;
cancel)
  rm "$UNITS/llama-server.service.job" ;;
stop)
  while read -r name; do : > "$UNITS/$name"; done < "$UNITS/$unit"
  rm "$UNITS/$unit" ;;
esac
"""
SYSTEMD_RUN = """#!/bin/sh
[ -e "$UNITS/refuse" ] && { echo "Access denied" >&2; exit 1; }
[ -e "$UNITS/llama-server.service.job" ] && { echo "Transaction for unit/start is destructive" >&2; exit 1; }
: > "$UNITS/mixed-gpu-lease.service"
for part; do
  case "$part" in
  Conflicts=*) rm -f "$UNITS/${part#Conflicts=}" ;;
  ExecStopPost=*start*) echo "${part##* }" >> "$UNITS/mixed-gpu-lease.service" ;;
  esac
done
"""


@pytest.fixture
def units(tmp_path, monkeypatch):
    directory = tmp_path / "units"
    directory.mkdir()
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("systemctl", SYSTEMCTL), ("systemd-run", SYSTEMD_RUN)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("UNITS", str(directory))
    return directory


@pytest.fixture
def run(units, tmp_path, capfd, monkeypatch):
    def _run(owner="A", check=False, diff=False, **arguments):
        arguments = {
            "owner": owner, "wait_seconds": 0, "lease_file": str(_run.file), "lock_file": str(_run.lock),
            **arguments, "_ansible_check_mode": check, "_ansible_diff": diff,
        }
        with patch_module_args(arguments), pytest.raises(SystemExit):
            measurement_lease.main()
        return json.loads(capfd.readouterr().out)

    _run.warnings = []
    # Where the controller's code is loaded too, as in a whole test run, warnings do not come with the result.
    monkeypatch.setattr(AnsibleModule, "warn", lambda self, warning: _run.warnings.append(warning))
    _run.file = tmp_path / "run" / "lease.json"
    _run.lock = tmp_path / "state" / ".lock"
    return _run


def there(units):
    return sorted(os.listdir(units))


def long_ago(run):
    state = json.loads(run.file.read_text())
    run.file.write_text(json.dumps({**state, "touched_at": "2020-01-01T00:00:00Z"}))


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
    assert json.loads(run.file.read_text())["touched_at"] != "2020-01-01T00:00:00Z"


def test_another_owner_is_refused_by_name(run, units):
    acquired = run()["acquired_at"]
    result = run("B", wait_seconds=1)
    assert result["failed"] and result["owner"] == "A"
    assert f"The devices are leased to A since {acquired}" in result["msg"] and "\n" not in result["msg"]
    assert json.loads(run.file.read_text())["owner"] == "A"
    left = run("B", state="absent")
    assert not left["changed"] and left["owner"] == "A" and there(units) == ["mixed-gpu-lease.service"]


def test_an_abandoned_one_is_taken_over_with_its_services(run, units):
    (units / "llama-server.service").touch()
    run()
    long_ago(run)
    result = run("B")
    assert result["changed"] and result["taken_over_from"] == "A" and result["restart"] == ["llama-server.service"]
    assert there(units) == ["mixed-gpu-lease.service"]
    run("B", state="absent")
    assert there(units) == ["llama-server.service"]


def test_one_that_measures_is_not_abandoned(run):
    run()
    long_ago(run)
    lock = json_file.take_lock(str(run.lock), 0)
    assert run("B")["failed"]
    assert "A measurement still runs under this lease" in run(state="absent")["msg"]
    json_file.release_lock(lock)
    assert run("B")["taken_over_from"] == "A"


def test_a_damaged_state_is_replaced_and_the_unit_tells_the_services(run, units):
    (units / "llama-server.service").touch()
    run()
    run.file.write_text("{")
    result = run("B")
    assert result["taken_over_from"] == "unknown" and result["restart"] == ["llama-server.service"]
    assert len(run.warnings) == 1 and f"{run.file} is damaged: it holds no JSON" in run.warnings[0]


def test_an_expired_one_is_free(run, units):
    run()
    (units / "mixed-gpu-lease.service").unlink()
    assert run("B")["changed"] and run("B")["taken_over_from"] is None
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
