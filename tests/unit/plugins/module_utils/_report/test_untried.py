# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report.untried import untried

TRIED = {"verdict": "slower", "why": "it is slower"}


def said(entry: dict[str, t.Any], **decision: t.Any) -> list[str]:
    return untried({**entry, "decision": {**entry["decision"], **decision}})


def test_what_is_not_allowed_names_its_variable(mixed: dict[str, t.Any]) -> None:
    tensor, speculation = said(mixed["entry"])
    assert "set split_tuning_modes: [layer, tensor]" in tensor and "set split_tuning_speculation: auto" in speculation


def test_what_was_tried_is_not_named(mixed: dict[str, t.Any]) -> None:
    assert said(mixed["entry"], tensor=TRIED, speculation=TRIED) == []


def test_what_was_asked_for_and_not_tried_says_why(mixed: dict[str, t.Any]) -> None:
    tensor = {"verdict": "not_tried", "why": "tensor mode was not tried: it needs flash attention, which is off"}
    speculation = {"verdict": "not_tried", "why": "speculation was not tried: the inventory names no draft"}
    assert said(mixed["entry"], tensor=tensor, speculation=speculation) == [
        "Tensor mode was not tried: it needs flash attention, which is off.",
        "Speculation was not tried: the inventory names no draft.",
    ]


@pytest.mark.parametrize("objective", ["prefill", "ttft"])
def test_speculation_makes_no_prompt_faster(mixed: dict[str, t.Any], objective: str) -> None:
    wanted = {**mixed["entry"]["decision"]["objective"], "name": objective}
    assert said(mixed["entry"], tensor=TRIED, objective=wanted) == []


def test_one_device_shares_no_layer(mixed: dict[str, t.Any]) -> None:
    one = {**mixed["entry"], "devices": mixed["entry"]["devices"][:1]}
    assert said(one, speculation=TRIED) == []


def test_one_micro_batch_alone(mixed: dict[str, t.Any]) -> None:
    parts = {**mixed["entry"]["fingerprint_parts"], "micro_batches": []}
    entry = {**mixed["entry"], "fingerprint_parts": parts}
    (words,) = said(entry, tensor=TRIED, speculation=TRIED)
    assert "split_tuning_micro_batches" in words
    decode = {**entry["decision"]["objective"], "name": "decode"}
    assert said(entry, tensor=TRIED, speculation=TRIED, objective=decode) == []


def test_an_exllama_has_drafts_and_no_micro_batches(mixed: dict[str, t.Any]) -> None:
    for engine, names in (("exllamav2", []), ("exllamav3", ["split_tuning_exllama_modes"])):
        entry = {**mixed["entry"], "serving": {**mixed["entry"]["serving"], "engine": engine}}
        found = said(entry)
        assert len(found) == len(names) + 1 and "no entry of llm_models has draft_for" in found[-1]
        assert all(name in words for name, words in zip(names, found, strict=False))
        assert len(said(entry, speculation=TRIED)) == len(names)


def test_experts_in_ram_leave_the_cards_apart(experts: dict[str, t.Any]) -> None:
    assert any("weights are in RAM" in words for words in said(experts, tensor=None))
