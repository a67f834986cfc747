# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the page of a plan shows; whole pages are among the tests of the playbook."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import plan_view


def test_a_plan_that_ends_in_a_sentence_is_shown_as_its_lines() -> None:
    line = "No prediction: /wrong.gguf does not exist yet."
    shown = plan_view.view({"needed": True, "activate": False, "lines": [line], "why": line})
    assert shown == {"title": "No prediction", "sentences": [], "parts": [], "pictures": [], "lines": [line]}
    with pytest.raises(KeyError):
        plan_view.view({"msg": "no plan"})


CARD = {"card": "RTX 3090", "total_mib": 24576, "layers": 81, "free_mib": 3409}


def prediction(memory: list[dict[str, Any]]) -> dict[str, Any]:
    best = {"layers": [81], "mib": [20573], "headroom_mib": [3409], "decode_tokens_per_second": 17.5}
    device = {"description": "RTX 3090", "total_mib": 24576}
    told = {"model": {"name": "M"}, "why": "it is the fastest", "best": best, "devices": [device], "memory": memory}
    return {"prediction": told, "lines": ["it is the fastest.", "a table"]}


def test_a_prediction_shows_what_lies_on_each_card() -> None:
    shown = plan_view.view(prediction([{**CARD, "weights_mib": 18432, "kv_mib": 2048, "compute_mib": 0}]))
    (card,) = shown["pictures"][0]["cards"]
    assert [(part["name"], part["percent"]) for part in card["parts"]] == [("weights", 75.0), ("KV cache", 8.33)]
    assert shown["parts"] == ["weights", "KV cache"]
    # what is said above is not said again
    assert (shown["sentences"], shown["lines"]) == (["it is the fastest."], ["a table"])


def test_a_prediction_with_experts_in_ram_is_a_range() -> None:
    plan = prediction([{**CARD, "weights_mib": 18432, "kv_mib": 2048, "compute_mib": 0}])
    plan["prediction"]["best"] |= {"blocks_in_ram": 10.0, "ram_mib": 16766, "decode_interval": [33.8, 67.2]}
    (picture,) = plan_view.view(plan)["pictures"]
    assert picture["words"] == "33.8 to 67.2 tokens per second with 16766 MiB of weights in RAM"


def test_sentences_are_broken_and_rows_of_tables_are_not() -> None:
    sentence, row = f"  {'word ' * 40}".rstrip(), "cell  " * 40
    shown = plan_view.view({"lines": [sentence, row], "why": "", "needed": True})["lines"]
    assert shown[-1] == row and all(len(line) <= plan_view.WIDTH for line in shown[:-1])
    assert shown[0].startswith("  word") and shown[1].startswith("      word") and len(shown) == 3


def test_commands_of_a_start_stay_whole() -> None:
    command = f"   vllm serve {'--option value ' * 20}".rstrip()
    shown = plan_view.view({"start": {"model": "M"}, "why": "2 stages", "lines": [command]})
    assert (shown["title"], shown["sentences"], shown["lines"]) == ("A start of vLLM: M", ["2 stages."], [command])
