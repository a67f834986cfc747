# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import os
import platform
import shutil

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.homelab.mixed_gpu.plugins.modules import (
    nvidia_driver_info,
    nvidia_driver_record,
)


@pytest.fixture
def run(capsys):
    def _run(module, **arguments):
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)

    return _run


@pytest.fixture
def record(run, tmp_path):
    def _record(action, version="", **arguments):
        packages = {"nvidia-dkms-open": {"version": version, "source": "", "held": True}} if version else {}
        driver = {"packages": packages, "kernel_next": "6.8.0-90-generic"}
        return run(
            nvidia_driver_record, action=action, driver=driver, path=str(tmp_path / "driver/record.json"),
            pin_path=str(tmp_path / "pin"), **arguments,
        )  # fmt: skip

    return _record


def test_this_machine(run):
    wanted = {"cuda": True, "policies": ["coreutils"], "kept_dir": "/nowhere"}
    driver = run(nvidia_driver_info, **wanted, _ansible_check_mode=True)["driver"]
    assert driver["kernel_running"] == platform.release()
    assert driver["kernel_next"] in [*driver["kernels"], platform.release()]
    assert set(driver["modules"]) == {driver["kernel_running"], driver["kernel_next"]}
    assert driver["loaded_version"] == "" or driver["loaded_version"][0].isdigit()
    assert driver["cuinit"]["result"] is not None or driver["cuinit"]["detail"]
    if shutil.which("apt-cache"):
        assert driver["policies"]["coreutils"]["installed"]


def test_kept_package_files_are_found_by_version(run, tmp_path):
    (tmp_path / "580.95.05").mkdir()
    (tmp_path / "580.95.05" / "libcuda1_1%3a580.95.05-1_amd64.deb").touch()
    (tmp_path / "580.95.05" / "partial").touch()
    kept = run(nvidia_driver_info, kept_dir=str(tmp_path))["driver"]["kept"]
    assert kept == {"libcuda1": {"1:580.95.05-1": str(tmp_path / "580.95.05" / "libcuda1_1%3a580.95.05-1_amd64.deb")}}


def test_a_driver_is_recorded_once_and_atomically(record, tmp_path):
    path = tmp_path / "driver/record.json"
    assert record("record", "580.65.06-1", _ansible_check_mode=True)["changed"]
    assert not path.exists()
    assert record("record", "580.65.06-1", main="nvidia-dkms-open", reason="installed")["changed"]
    assert not record("record", "580.65.06-1", main="nvidia-dkms-open", reason="installed")["changed"]
    assert (path.stat().st_mode & 0o777, sorted(os.listdir(path.parent))) == (0o644, ["lock", "record.json"])
    assert record("read")["ours"] == ["nvidia-dkms-open"]
    shown = record("record", "580.95.05-1", _ansible_diff=True, _ansible_check_mode=True)["diff"]
    assert "580.95.05-1" in shown["after"] and "580.95.05-1" not in shown["before"]


def test_there_and_back(record):
    record("record", "580.65.06-1", main="nvidia-dkms-open", reason="installed")
    begun = record("begin", "580.95.05-1")
    assert begun["target"]["version"] == "580.65.06-1"
    assert begun["record"]["rollback"]["finished_at"] is None
    record("record", "580.65.06-1", main="nvidia-dkms-open", reason="rolled back")
    assert record("finish")["record"]["rollback"]["finished_at"]
    again = record("begin", "580.65.06-1")
    assert (again["changed"], again["target"], again["state"]["version"]) == (False, None, "580.65.06-1")
    named = record("begin", "580.65.06-1", to="570.1")
    assert named["failed"] and "version 570.1 was not recorded" in named["msg"]


def test_a_rollback_that_was_broken_off_is_not_gone_on_with_past_what_was_installed_meanwhile(record):
    for version in ("580.65.06-1", "580.95.05-1"):
        record("record", version, main="nvidia-dkms-open", reason="installed")
    assert record("begin", "580.95.05-1")["target"]["version"] == "580.65.06-1"
    # what it left half done is no driver that the role installed
    assert record("record", "580.65.06-1", main="", reason="rolled back")["record"]["rollback"] is not None
    assert record("record", "580.105.08-1", main="nvidia-dkms-open", reason="installed")["record"]["rollback"] is None
    assert record("begin", "580.105.08-1", to="580.95.05")["target"]["version"] == "580.95.05-1"


def test_nothing_to_go_back_to(record):
    assert "There is no driver to go back to" in record("begin", "580.65.06-1")["msg"]


@pytest.mark.parametrize("text", ["{", '{"schema": 9}', '{"schema": 1, "states": 3, "rollback": null}'])
def test_a_record_that_cannot_be_used_stays_as_it_is(record, tmp_path, text):
    path = tmp_path / "driver/record.json"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    for action in ("read", "record", "begin"):
        answer = record(action, "580.65.06-1")
        assert answer["failed"] and str(path) in answer["msg"] and "move it away" in answer["msg"]
    assert path.read_text(encoding="utf-8") == text
