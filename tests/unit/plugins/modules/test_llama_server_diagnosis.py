# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module around _watch and _diagnosis: cards of the compiled stand-in for NVML, and no server that answers."""

from __future__ import annotations

import json
import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml import build

FIXTURES = pathlib.Path(__file__).resolve().parents[3] / "fixtures"
ENTRY = json.loads((FIXTURES / "report" / "mixed_70b.json").read_text(encoding="utf-8"))["entry"]
READY = {"state": "ready", "deviations": [], "last_lines": [], "reason": ""}


@pytest.fixture
def diagnose(library, tmp_path, start_module):
    def run(fails=False, **arguments):
        usual = {
            "url": "http://127.0.0.1:1", "deployment": "mixed", "entry": ENTRY, "server": READY, "journal_days": 0,
            "state_dir": str(tmp_path),
        }  # fmt: skip
        text = (build.HERE / "profiles" / "under_load.txt").read_text(encoding="utf-8")
        result = start_module("llama_server_diagnosis", usual | arguments, build.environment(library, None, text))
        assert bool(result.get("failed")) is fails, result
        return result

    return run


def test_without_load_cards_and_baseline_are_judged(diagnose, tmp_path):
    baseline = tmp_path / "baselines" / "mixed.json"
    baseline.parent.mkdir()
    baseline.write_text("{broken")
    result = diagnose(load=False)
    found = {(one["subject"], one["kind"]) for one in result["diagnosis"]["findings"]}
    assert ("baseline", "baseline") in found
    assert result["diagnosis"]["verdict"] == "not_measured"
    assert result["diagnosis"]["deployment"] == "mixed" and result["diagnosis"]["at"].endswith("Z")
    assert result["lines"][0] == "not measured: nothing was measured"


def test_a_server_that_does_not_run_is_not_loaded(diagnose):
    result = diagnose(server={"state": "failed", "last_lines": ["out of memory"], "reason": ""})
    assert result["diagnosis"]["verdict"] == "problem" and result["diagnosis"]["phases"] == []
    assert "llama-server is failed, so nothing was sent: out of memory" in " ".join(result["lines"][0].split())
    assert result["failure"].startswith("llama-server is failed, so nothing was sent: out of memory (journalctl")
    assert diagnose(load=False)["failure"] is None


def test_check_mode_sends_nothing_and_shows_what_it_would_send(diagnose):
    result = diagnose(_ansible_check_mode=True)
    assert result["diagnosis"] is None
    assert result["lines"][0] == "Would send to http://127.0.0.1:1 for about 8 s each, again and again:"
    assert "decode (1 tokens of prompt, 35 generated), prefill (1024 tokens of prompt, 1" in result["lines"][1]
    assert "CUDA0 and CUDA1" in result["lines"][-1]
    nothing = diagnose(_ansible_check_mode=True, load=False)["lines"]
    assert nothing[0].startswith("Would send nothing, and read the cards of CUDA0 and CUDA1")


def test_failures_are_one_sentence(diagnose):
    assert diagnose(fails=True, blocks=1)["msg"].startswith("seconds must be more than 0")
    assert "cannot be reached" in diagnose(fails=True)["msg"]
    assert "mixed is not complete (KeyError('devices')): run the tuning play again" in diagnose(
        fails=True, load=False, entry={"decision": {}}
    )["msg"]
