# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record
from ansible_collections.homelab.mixed_gpu.plugins.modules import engine_comparison_info

ENTRY = json.loads(
    (pathlib.Path(__file__).parents[3] / "fixtures" / "report" / "mixed_70b.json").read_text(encoding="utf-8")
)["entry"]


@pytest.fixture
def compare(call_module, tmp_path):
    def run(text):
        path = tmp_path / "mixed_gpu.fact"
        if text is not None:
            path.write_text(text)
        return call_module(engine_comparison_info, {"fact_file": str(path)})

    return run


def test_a_record_becomes_rows_and_lines(compare):
    record = {"schema": fact_record.SCHEMA, "active": "d", "models": {"d": ENTRY}}
    result = compare(json.dumps(record))
    assert result["changed"] is False
    assert [row["deployment"] for row in result["deployments"]] == ["d"]
    assert result["lines"][-1].startswith("Only llama.cpp was measured")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "records no deployment: run the site playbook"),
        ("{broken", "mixed_gpu.fact"),
        (json.dumps({"schema": fact_record.SCHEMA, "active": None, "models": {"d": {}}}), "d.model is missing"),
    ],
)
def test_what_cannot_be_compared(compare, text, words):
    result = compare(text)
    assert result["failed"] and words in result["msg"]


def test_a_record_that_is_no_file_is_one_sentence(compare, tmp_path):
    (tmp_path / "mixed_gpu.fact").mkdir()
    assert "mixed_gpu.fact cannot be read (Is a directory): run as root, or move it away." in compare(None)["msg"]
