# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.modules import revalidation_record
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.described_pair import (
    ENTRY,
    load,
    measured,
    served,
    server,
)


@pytest.fixture
def run(tmp_path, call_module):
    def _run(check=False, diff=False, **arguments):
        arguments = {
            "deployment": "d", "state_dir": str(tmp_path), **arguments,
            "_ansible_check_mode": check, "_ansible_diff": diff,
        }  # fmt: skip
        return call_module(revalidation_record, arguments)

    return _run


def test_without_a_baseline_there_is_none(run, tmp_path):
    result = run()
    assert not result["changed"] and result["baseline"] is None and not list(tmp_path.iterdir())


def test_a_baseline_is_written_once(run, tmp_path):
    assert run(measured=measured(), check=True)["changed"] and not list(tmp_path.iterdir())
    first = run(measured=measured(), diff=True)
    assert first["changed"] and first["diff"]["before"] == "" and first["history_file"] is None
    file = tmp_path / "baselines" / "d.json"
    assert json.loads(file.read_text()) == first["baseline"] == run()["baseline"]
    assert file.stat().st_mode & 0o777 == 0o644
    assert not run(measured=measured())["changed"]


def test_a_replaced_baseline_is_kept_and_the_oldest_go(run, tmp_path):
    for number in range(5):
        result = run(measured=measured(recorded_at=f"2026-11-2{number}T10:00:00Z"), keep=2)
    assert result["history_file"].endswith("d@20261123T100000Z-000.json")
    kept = sorted((tmp_path / "baselines" / "history").iterdir())
    assert [json.loads(file.read_text())["recorded_at"][:10] for file in kept] == ["2026-11-22", "2026-11-23"]


def test_what_the_loaded_server_says_completes_it_once(run):
    run(measured=measured())
    completion = {"entry": ENTRY, "server": server()["server"], "completions": {"tests": served(), "answer": "21"}}
    result = run(completion=completion)
    assert result["changed"] and result["history_file"] is None
    assert result["baseline"]["memory"][0]["loaded_mib"] == 22880.0 and len(result["baseline"]["served"]) == 2
    later = {**completion, "server": server(loaded=(1.0, 1.0))["server"]}
    assert not run(completion=later)["changed"]


def test_timings_beside_something_else_complete_nothing(run):
    run(measured=measured())
    seen = {
        "seconds": 9.0, "cpus": 2, "others_percent": 50.0, "top": {"name": "stress", "cpus": 1.0}, "cards": {},
        "unseen_percent": 0.0, "steal_percent": 0.0, "cpu_waiting_percent": 50.0, "memory_stalled_percent": 0.0,
    }  # fmt: skip
    asked = {"tests": served(), "contention": seen}
    completion = {"entry": ENTRY, "server": server()["server"], "completions": asked}
    result = run(completion=completion)
    assert result["baseline"]["served"] is None and result["incomplete"]
    assert len(run(completion={**completion, "ignore_contention": True})["baseline"]["served"]) == 2


def test_a_damaged_baseline_is_an_error_until_it_is_replaced(run, tmp_path):
    file = tmp_path / "baselines" / "d.json"
    run(measured=measured())
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    result = run()
    assert result["failed"] and "holds no JSON" in result["msg"] and "-e accept=true" in result["msg"]
    assert file.read_text() == text[: len(text) // 2]
    assert run(measured=measured())["changed"] and file.read_text() == text
    assert [name for name in file.parent.iterdir() if ".damaged-" in name.name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"measured": {**measured(), "entry": {}}}, "missing"),
        ({"measured": measured([{"status": "ok", "results": []}])}, "loads[0].layers is missing"),
        ({"deployment": "../x"}, "no usable id"),
    ],
)
def test_what_is_none_is_refused(run, tmp_path, arguments, words):
    result = run(**arguments)
    assert result["failed"] and words in result["msg"] and not list(tmp_path.iterdir())


def test_revalidations_are_appended_and_pruned_and_are_no_change(run, tmp_path):
    for number in range(4):
        result = run(revalidation={"schema": 1, "verdict": "ok", "number": number}, keep=3)
    assert not result["changed"]
    kept = sorted((tmp_path / "revalidations").iterdir())
    assert [json.loads(file.read_text())["number"] for file in kept] == [1, 2, 3]
    run(revalidation={"schema": 1}, check=True)
    assert sorted((tmp_path / "revalidations").iterdir()) == kept


def test_a_new_baseline_says_how_the_speed_changed(run):
    assert run(measured=measured())["comparison"] is None
    slower = [load(number, decode=1.06) for number in (1, 2, 3)]
    result = run(measured=measured(slower, recorded_at="2026-11-24T10:00:00Z"))
    assert "decode takes 6.1 % more time" in result["comparison"]
    assert run()["comparison"] is None
