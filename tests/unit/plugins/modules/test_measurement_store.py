# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import os

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import store
from ansible_collections.homelab.mixed_gpu.plugins.modules import measurement_store

LOAD = {"split_mode": "layer", "layers": [20, 13], "load": 1, "status": "ok", "results": [{"kind": "decode"}]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "measurements").mkdir()
    return tmp_path / "measurements"


@pytest.fixture
def run(tmp_path, call_module, monkeypatch):
    """Run the module; its result has its warnings."""

    def _run(keep=1, check=False):
        warnings = []
        monkeypatch.setattr(AnsibleModule, "warn", lambda _self, text: warnings.append(text))
        arguments = {
            "state_dir": str(tmp_path / "measurements"), "baselines_dir": str(tmp_path / "baselines"),
            "fact_file": str(tmp_path / "fact"), "keep_campaigns": keep, "_ansible_check_mode": check,
        }  # fmt: skip
        return {**call_module(measurement_store, arguments), "warnings": warnings}

    return _run


def keep(folder, campaign, age, number=1, fingerprint="f"):
    """Store a load as split_benchmark does, so many seconds ago; return the name of its file."""
    load = {**LOAD, "load": number}
    key = store.load_key(fingerprint, campaign, load)
    path = folder / store.file_name(key)
    path.write_text(json_file.to_text(store.stored_form(key, load, "b1", [], [])))
    os.utime(path, (2e9 - age, 2e9 - age))
    return path.name


def test_check_mode_tells_what_a_run_removes(run, folder):
    old = [keep(folder, "a", 30, 1), keep(folder, "a", 29, 2), keep(folder, "b", 20)]
    new = keep(folder, "c", 10)
    (folder / "notes.txt").write_text("x")
    told = run(check=True)
    assert told["changed"] and told["removed"] == sorted(old)
    assert told["diff"] == {"before": "".join(f"{name}\n" for name in sorted(old)), "after": ""}
    assert sorted(os.listdir(folder)) == sorted([*old, new, "notes.txt"])
    assert run()["removed"] == sorted(old)
    assert sorted(os.listdir(folder)) == sorted([".lock", new, "notes.txt"])
    assert not run()["changed"]


def test_damaged_files_go_too(run, folder):
    (folder / "x.json").write_text("[" * 100_000)
    (folder / "y.json.damaged-17").write_text("{")
    for name in ("x.json", "y.json.damaged-17"):
        os.utime(folder / name, (1, 1))
    keep(folder, "a", 1)
    assert run()["removed"] == ["x.json", "y.json.damaged-17"]


def test_nothing_is_removed_while_something_measures(run, folder):
    keep(folder, "a", 2)
    keep(folder, "b", 1)
    lock = json_file.take_lock(str(folder / ".lock"), 0)
    assert not run()["changed"]
    json_file.release_lock(lock)
    assert len(run()["removed"]) == 1


@pytest.mark.parametrize("damaged", ["fact", "baselines/a.json"])
def test_nothing_is_removed_where_it_is_unknown_what_is_referred_to(run, folder, tmp_path, damaged):
    keep(folder, "a", 2)
    keep(folder, "b", 1)
    (tmp_path / "baselines").mkdir()
    (tmp_path / damaged).write_text("{")
    result = run()
    assert not result["changed"] and len(list(folder.glob("*.json"))) == 2
    assert result["warnings"][0].startswith(f"No measurement is removed: {tmp_path / damaged} cannot be used: it holds")


def test_a_host_that_never_measured_has_nothing_to_remove(run, folder):
    folder.rmdir()
    assert run()["removed"] == []
    assert "keep_campaigns is 0: give at least 1" in run(keep=0)["msg"]
