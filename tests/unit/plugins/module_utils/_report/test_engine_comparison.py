# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import copy
import json
import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report.engine_comparison import compare

ENTRY = json.loads((pathlib.Path(__file__).parents[4] / "fixtures" / "report" / "mixed_70b.json").read_text())["entry"]


def record(**others):
    """The recorded llama.cpp deployment as the active one, and changed copies of it."""
    models = {"llama-q4": copy.deepcopy(ENTRY)}
    for name, (serving, decision, *layers) in others.items():
        models[name] = copy.deepcopy(ENTRY)
        models[name]["serving"].update(serving)
        models[name]["decision"].update(decision)
        for place, count in zip(models[name]["placement"], layers, strict=False):
            place["layers"] = count
    return {"schema": 3, "active": "llama-q4", "models": models}


def table(fact):
    return compare(fact)["lines"]


def row(lines, name):
    return next(line.split() for line in lines if line.strip().startswith(name))


def test_both_engines_stand_in_one_table_the_quicker_first():
    decode = ENTRY["decision"]["decode_tokens_per_second"]
    lines = table(
        record(
            exl2=(
                {"engine": "exllamav2", "cache_mode": "FP16"},
                {"decode_tokens_per_second": 2 * decode},
                50,
                31,
            )
        )
    )
    names = [line.split()[0] for line in lines if line.strip().startswith(("llama-q4", "exl2"))]
    assert names == ["exl2", "llama-q4"]
    assert row(lines, "exl2")[1] == "ExLlamaV2" and "50,31" in row(lines, "exl2")
    assert row(lines, "llama-q4")[1] == "llama.cpp" and row(lines, "llama-q4")[-1] == "active"
    assert "Files differ in size and quality" in lines[-1]
    # the time of a request is the prompt's and the answer's, by the two speeds beside it
    objective, speed = ENTRY["decision"]["objective"], ENTRY["decision"]["prefill_tokens_per_second"]
    seconds = objective["prompt_tokens"] / speed + objective["generated_tokens"] / decode
    assert float(row(lines, "llama-q4")[-3]) == pytest.approx(seconds, rel=0.01)


def test_one_engine_alone_says_how_to_get_the_other():
    assert "mixed_gpu_engine=exllamav2 to compare" in table(record())[-1]


def test_what_was_measured_otherwise_is_not_compared():
    other = {**ENTRY["decision"]["objective"], "generated_tokens": 99999}
    lines = table(record(exl3=({"engine": "exllamav3"}, {"objective": other})))
    assert " ".join(row(lines, "exl3")).endswith("another objective")
    lines = table(record(exl3=({"engine": "exllamav3"}, {"decode_tokens_per_second": None})))
    assert row(lines, "exl3").count("–") >= 2


def test_nothing_recorded():
    assert compare({"models": {}}) == {"deployments": [], "lines": ["Nothing was tuned on this host yet."]}


def test_the_rows_say_the_same_as_the_lines():
    (only,) = compare(record())["deployments"]
    assert (only["deployment"], only["active"], only["same_objective"]) == ("llama-q4", True, True)
    assert only["layers"] == [44, 37] and only["request_ms"] > 0
