# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import words


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "It takes 11.2% less time than llama.cpp's default split 17,16 (95% interval 9.8 to 12.6%)."),
        ({"verdict": "no_difference"}, "No difference that matters"),
        ({"verdict": "inconclusive", "gain_interval_percent": [-100.0, 55.0]}, "(95% interval too wide to tell)"),
        ({"verdict": "inconclusive"}, "is not settled"),
        (
            {
                "verdict": "inconclusive", "gain_over_default_percent": -3.0, "gain_interval_percent": [-9.0, 2.5],
            },
            "is not settled: 3.0% more time (95% interval -2.5 to 9.0%).",
        ),
        ({"gain_over_default_percent": None}, "It was not compared with llama.cpp's default split"),
        ({"default_layers": None, "gain_over_default_percent": None}, "does not fit"),
    ],
)
def test_the_gain_in_words(sandbox: dict[str, t.Any], change: dict[str, t.Any], sentence: str) -> None:
    assert sentence in words.gain_words({"decision": {**sandbox["entry"]["decision"], **change}})


def test_one_device_holds_everything(sandbox: dict[str, t.Any]) -> None:
    entry = sandbox["entry"]
    entry["decision"]["layers"] = [33, 0]
    assert words.placement_words(entry) == "all 33 layers on RPC0"


def test_experts_in_ram_belong_to_the_placement(experts: dict[str, t.Any]) -> None:
    said = words.placement_words(experts)
    count = len(experts["experts_in_ram"]["blocks"])
    assert f", with the experts of {count} blocks" in said and said.endswith(" in RAM")
    assert "llama.cpp's own placement of experts 10,15" in words.gain_words(experts)
    unknown = {**experts, "decision": {**experts["decision"], "default_layers": None}}
    assert words.gain_words(unknown) == "llama.cpp's own placement of experts is not known."


@pytest.mark.parametrize(
    ("campaign", "effort", "said"),
    [
        (
            "after nothing", {"measuring_seconds": 1130, "leased_seconds": 7500, "loads": 11, "kept_loads": 0},
            "The first tuning measured 19 min in 11 loads. It had the devices for 2 h 5 min: so long a server that "
            "runs is stopped.",
        ),
        (
            "after 2026-11-24T04:33:09Z", {"measuring_seconds": 61, "leased_seconds": 20, "loads": 5, "kept_loads": 4},
            "The tuning after that of 2026-11-24 04:33 UTC measured 61 s in 5 loads, of which 4 were kept of a "
            "run that was interrupted. It had the devices for 20 s: so long a server that runs is stopped.",
        ),
        ("after nothing", None, "The first tuning took 6 loads of the model."),
    ],
)
def test_how_long_the_tuning_took(
    mixed: dict[str, t.Any], campaign: str, effort: dict[str, int] | None, said: str
) -> None:
    decision = {**mixed["entry"]["decision"], "effort": effort}
    assert words.effort_words({**mixed["entry"], "campaign": campaign, "decision": decision}) == said


def test_what_the_network_costs_is_a_sentence_of_its_own(mixed: dict[str, t.Any]) -> None:
    decision = mixed["entry"]["decision"]
    said = words.later_stages({**decision, "network": {"why": "the 1 GbE link costs 31 % of prompts", "links": {}}})
    assert said == [*words.later_stages(decision), "Network: the 1 GbE link costs 31 % of prompts"]
