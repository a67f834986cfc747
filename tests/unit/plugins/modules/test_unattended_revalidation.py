# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a run of the timer asks and leaves; the run itself is in the Molecule scenario default."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import due
from ansible_collections.homelab.mixed_gpu.plugins.modules import unattended_revalidation

RESULT = {
    "verdict": "regressed", "accepted": False, "measured": True, "deployment": "m-c512", "summary": "decode is slower",
    "driver_version": None, "advice": [], "checks": [{"name": "decode", "change_percent": 8.3}, {"name": "cards"}],
}  # fmt: skip
TIMER = "mixed-gpu-revalidate.timer"


@pytest.fixture
def run(tmp_path, call_module, monkeypatch):
    """Run the module; what it told the journal is in C(run.told)."""

    def _run(action, check=False, **arguments):
        given = {
            "action": action, "host": "box", "state_dir": str(tmp_path / "unattended"),
            "metrics_path": str(tmp_path / "mixed_gpu.prom"), **arguments, "_ansible_check_mode": check,
        }  # fmt: skip
        result = call_module(unattended_revalidation, given)
        assert result.get("failed") or result["changed"] is False
        return result

    _run.told = []
    monkeypatch.setattr(unattended_revalidation, "tell", lambda *line: _run.told.append(line))
    monkeypatch.setattr(due, "of_host", lambda: due.compare("580.95.05", "580.105.08", None))
    return _run


def test_a_finished_revalidation_is_a_line_a_state_and_a_metric(run, tmp_path):
    assert run("finish", revalidation=RESULT)["line"] == "box (m-c512): regressed: decode is slower"
    assert run.told == [(3, "box (m-c512): regressed: decode is slower")]
    state = tmp_path / "unattended/state.json"
    assert json.loads(state.read_text())["outcome"]["change_percent"] == {"decode": 8.3}
    metric = tmp_path / "mixed_gpu.prom"
    assert "mixed_gpu_needs_revalidation 1.0\n" in metric.read_text()
    assert state.stat().st_mode & 0o777 == metric.stat().st_mode & 0o777 == 0o644


def test_a_host_in_use_is_a_notice_and_the_verdict_of_before_stays(run, tmp_path):
    run("finish", revalidation=RESULT)
    before = (tmp_path / "unattended/state.json").read_text()
    run("skip", why="llama-server is answering 1 request in 4 slots")
    assert run.told[1] == (
        5,
        "box: skipped: llama-server is answering 1 request in 4 slots; the timer tries again later",
    )
    assert (tmp_path / "unattended/state.json").read_text() == before
    assert 'mixed_gpu_revalidation_verdict="regressed"} 1.0\n' in (tmp_path / "mixed_gpu.prom").read_text()


def test_the_timer_waits_until_it_is_due_and_a_person_does_not(run):
    assert run("due", every_hours=156, trigger=TIMER)["due"]
    run("finish", revalidation={**RESULT, "driver_version": "580.105.08"})
    assert not run("due", every_hours=156, trigger=TIMER)["due"]
    by_hand = run("due", every_hours=156)
    assert by_hand["due"] and by_hand["why"] == "it was started by hand"
    run("finish", revalidation={**RESULT, "driver_version": "580.95.05"})
    found = run("due", every_hours=156, trigger=TIMER)
    assert found["due"] and "580.105.08 is loaded" in found["why"]


def test_a_metric_that_cannot_be_written_is_told_and_ends_nothing(run, tmp_path):
    path = str(tmp_path / "none/mixed_gpu.prom")
    run("finish", revalidation=RESULT, metrics_path=path)
    assert run.told[1][0] == 3 and f"{path} cannot be written" in run.told[1][1]
    assert (tmp_path / "unattended/state.json").exists() and not (tmp_path / "none").exists()


def test_check_mode_leaves_nothing(run, tmp_path):
    assert run("finish", check=True, revalidation=RESULT)["line"] and not run.told and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage", [{"deployment": None}, {"accepted": "yes"}, {"change_percent": []}, {"links": [None]}, {"measured": None}]
)
def test_a_state_with_fields_of_other_types_is_none(run, tmp_path, damage):
    run("finish", revalidation=RESULT)
    state = tmp_path / "unattended/state.json"
    found = json.loads(state.read_text())
    found["outcome"].update(damage)
    state.write_text(json.dumps(found))
    assert run("due", every_hours=156, trigger=TIMER)["why"] == "no revalidation was recorded"
    run("skip", why="a game runs")
    assert "verdict" not in (tmp_path / "mixed_gpu.prom").read_text()
