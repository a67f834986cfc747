# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filters on a real run, and what they say to something else."""

from __future__ import annotations

import json
import pathlib

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter.diagnosis import diagnosis
from ansible_collections.homelab.mixed_gpu.plugins.filter.diagnosis_phases import diagnosis_phases
from ansible_collections.homelab.mixed_gpu.plugins.filter.diagnosis_table import diagnosis_table

RECORDED = json.loads(
    (
        pathlib.Path(__file__).resolve().parents[3] / "fixtures" / "diagnosis" / "sandbox_on_a_busy_machine.json"
    ).read_text(encoding="utf-8")
)
READY = {"state": "ready", "deviations": []}


def test_a_real_run_becomes_text():
    lines = diagnosis_table(diagnosis(RECORDED["entry"], RECORDED["watched"], READY, tolerance_percent="10"))
    text = "\n".join(lines)
    assert "wait for a CPU" in text and "Layers" in text and "Rules of thumb" in text
    assert max(map(len, lines)) < 100


def test_phases_are_those_of_the_record():
    assert [phase["kind"] for phase in diagnosis_phases(RECORDED["entry"], 8, 4)] == ["decode", "prefill"]


def test_wrong_input_is_one_sentence():
    with pytest.raises(AnsibleFilterError, match="brought up to date by"):
        diagnosis({}, RECORDED["watched"], READY)
    with pytest.raises(AnsibleFilterError, match="give what the filter diagnosis returned"):
        diagnosis_table({})
    with pytest.raises(AnsibleFilterError, match="seconds and blocks above 0"):
        diagnosis_phases(RECORDED["entry"], 8, 0)
