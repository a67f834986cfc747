# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module with the real nvidia-ml-py, in a process of its own, against a libnvidia-ml.so.1 compiled for the test."""

from __future__ import annotations

import os
import subprocess

import pytest
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml.build import HERE, environment

SLOW = "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa"


def wanted(watts, clocks=None):
    entry = {"id": SLOW, "power_limit_watts": watts, "locked_clocks_mhz": clocks, "persistence_mode": True}
    return {"schema": 1, "cards": [entry]}


@pytest.fixture
def run(library, tmp_path, start_module):
    text = (HERE / "profiles" / "rtx4090_rtx3090.txt").read_text() + f"system.state_file={tmp_path}/state\n"

    def _run(check=False, profile=text, path="", **arguments):
        arguments |= {"_ansible_check_mode": check, "_ansible_diff": True, "record": str(tmp_path / "record.json")}
        _run.variables = environment(library, None, profile) | {"PATH": f"{path}:{os.environ['PATH']}"}
        return start_module("gpu_power", arguments, _run.variables)

    return _run


def test_check_mode_says_what_would_change_and_changes_nothing(run, tmp_path):
    result = run(check=True, settings=wanted(280, [210, 1700]))
    assert result["changed"] and len(result["deviations"]) == 3
    assert "is 350 W, not 280 W" in result["diff"]["before"]
    assert not (tmp_path / "state").exists() and not (tmp_path / "record.json").exists()


def test_the_second_time_nothing_changes(run):
    assert run(settings=wanted(280, [210, 1700]))["changed"]
    again = run(settings=wanted(280, [210, 1700]))
    assert not again["changed"] and again["deviations"] == []


def test_a_driver_that_was_loaded_anew_is_noticed(run, tmp_path):
    run(settings=wanted(350, [210, 1700]))
    (tmp_path / "state").unlink()
    assert "persistence mode" in run(check=True, settings=wanted(350, [210, 1700]))["deviations"][0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"limits_watts": {SLOW: 90}}, "from 100 to 366 W, and 90 W was asked for: choose one between. Nothing was"),
        ({"locked_clocks_mhz": {SLOW: [1700, 210]}}, "lower one first"),
        ({"settings": {"cards": []}}, "not of schema 1"),
        ({"settings": {"schema": 1}}, "not of schema 1"),
    ],
)
def test_senseless_settings_are_refused(run, arguments, words):
    result = run(**arguments)
    assert result["failed"] and words in result["msg"]


def test_limits_by_name_are_resolved_on_the_host(run):
    result = run(check=True, limits_by_name_watts={"RTX 3090": 280})
    assert result["settings"] == wanted(280)
    assert run(check=True)["settings"] == {"schema": 1, "cards": []}


def test_what_was_found_brings_the_limits_back(run):
    found = run(limits_watts={SLOW: 280})["found"]
    assert run(settings=found)["changed"]
    assert not run(check=True, settings=found)["changed"]


def test_cards_that_cannot_be_asked_fail_where_they_are_required(run):
    result = run(profile="system.init_error=18\n", limits_watts={SLOW: 280})
    assert result["failed"] and "NVML error 18" in result["msg"]
    result = run(profile="system.init_error=18\n", limits_watts={SLOW: 280}, required=False)
    assert not result["available"] and "NVML error 18" in result["reason"] and result["settings"]["cards"] == []


@pytest.fixture
def systemd(tmp_path):
    """A folder with programs that do as if systemd started a unit; `unit` holds the arguments of the one that runs."""
    folder, unit = tmp_path / "bin", tmp_path / "unit"
    folder.mkdir()
    show = f"[ -e {unit} ] && echo ActiveState=active || echo ActiveState=inactive"
    start = f'[ -e {tmp_path}/broken ] && {{ echo Unit x not found >&2; exit 1; }}; printf "%s\\n" "$@" > {unit}'
    for name, text in (("systemctl", show), ("systemd-run", start)):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def test_a_unit_restores_what_the_first_call_found(run, tmp_path, systemd):
    options = {"until_unit": "x.service", "runtime_dir": str(tmp_path / "run"), "path": systemd}
    assert run(check=True, limits_watts={SLOW: 280}, **options)["changed"]
    assert not (tmp_path / "unit").exists()
    run(limits_watts={SLOW: 280}, **options)
    run(limits_watts={SLOW: 200}, **options)
    words = (tmp_path / "unit").read_text().splitlines()
    assert "--property=BindsTo=x.service" in words and "--property=After=x.service" in words
    (restore,) = [word for word in words if word.startswith("--property=ExecStopPost=")]
    assert "280000" not in (tmp_path / "state").read_text()
    command = restore.removeprefix("--property=ExecStopPost=").split()
    done = subprocess.run(command, env=run.variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not run(check=True, limits_watts={SLOW: 350}, persistence=False)["changed"]


def test_nothing_is_changed_when_the_limits_could_not_be_restored(run, tmp_path, systemd):
    (tmp_path / "broken").write_text("")
    result = run(limits_watts={SLOW: 280}, until_unit="x.service", runtime_dir=str(tmp_path / "run"), path=systemd)
    assert result["failed"] and "Unit x not found" in result["msg"] and "nothing was changed" in result["msg"]
    assert not (tmp_path / "state").exists()
