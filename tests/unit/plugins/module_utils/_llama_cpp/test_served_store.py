# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import copy
import json
import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import served_store

ENTRY = json.loads(
    (pathlib.Path(__file__).parents[4] / "fixtures" / "report" / "mixed_70b.json").read_text(encoding="utf-8")
)["entry"]
TESTS = [{"name": "a", "prompt_tokens": 16, "generated_tokens": 8, "repetitions": 2}]


def stored(entry=ENTRY, **change):
    rows = [{**test, "skipped_reason": None, "samples": []} for test in TESTS]
    configuration = served_store.configuration(entry)
    result = {"schema": served_store.SCHEMA, "configuration": configuration, "power_tokens": 0, "tests": rows}
    return {**result, **change}


def test_results_belong_to_the_recorded_configuration():
    text = json.dumps(stored())
    assert served_store.read(text, ENTRY) == json.loads(text)
    # when an entry was recorded does not matter, nor what else is in it
    assert served_store.read(text, {**ENTRY, "recorded_at": "2027-01-01T00:00:00Z"}) is not None
    for key in ("fingerprint", "campaign"):
        assert served_store.read(text, {**ENTRY, key: "another"}) is None
    moved = copy.deepcopy(ENTRY)
    moved["placement"][0]["layers"] -= 1
    moved["placement"][1]["layers"] += 1
    assert served_store.read(text, moved) is None


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 9, "tests": []}', '{"schema": 1}'])
def test_a_damaged_file_is_an_error(text):
    with pytest.raises(ValueError):
        served_store.read(text, ENTRY)


@pytest.mark.parametrize(
    ("tests", "power_tokens", "answered"),
    [
        (TESTS, 0, True),
        (TESTS, 16, False),
        ([], 0, False),
        ([*TESTS, {**TESTS[0], "name": "b"}], 0, False),
        ([{**TESTS[0], "repetitions": 3}], 0, False),
    ],
)
def test_results_answer_the_tests_that_were_measured(tests, power_tokens, answered):
    assert served_store.covers(stored(), tests, power_tokens) is answered
