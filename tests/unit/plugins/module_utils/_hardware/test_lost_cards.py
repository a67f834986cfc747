# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Cards that are on the bus and do not answer, and what names them."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import known_cards, lost_cards, power_budget

REASON = "GPU 1: An NVIDIA card fell off the bus (NVML error 15): power-cycle the machine."
SLOTS = {"0000:0a:00.0": "0x2704", "0000:0b:00.0": "0x2208", "0000:42:00.0": "0x1b38"}
FIRST = {"id": "GPU-1", "name": "NVIDIA GeForce RTX 4080", "pci_bus_id": "00000000:0A:00.0"}
SECOND = {"id": "GPU-2", "name": "NVIDIA GeForce RTX 3080 Ti", "pci_bus_id": "00000000:0B:00.0"}
THIRD = {"id": "GPU-3", "name": "Tesla P40", "pci_bus_id": "00000000:42:00.0"}


def host(answering, recorded=(), names=None, driver="nvidia"):
    devices = [
        {"address": address, "device_id": number, "driver": driver, "name": (names or {}).get(address)}
        for address, number in SLOTS.items()
    ]
    gpus = {"available": False, "reason": REASON, "driver_version": "580.95.05", "gpus": list(answering)}
    record = {"models": {"m": {"fingerprint_parts": {"gpus": list(recorded)}}, "rpc": {"fingerprint_parts": {}}}}
    return {"nvidia_devices": devices, "gpus": gpus, "recorded": record if recorded else None}


def lost(*arguments, expected=(), **more):
    return [(card["name"], card["pci_bus_id"], card["id"]) for card in
            lost_cards.of_host(host(*arguments, **more), expected)]


def test_the_record_knows_name_and_uuid_by_slot():
    assert lost([FIRST, SECOND], [FIRST, SECOND, THIRD]) == [("Tesla P40", "0000:42:00.0", "GPU-3")]


def test_a_card_that_changed_its_slot_is_known_by_what_else_is_missing():
    moved = {**THIRD, "pci_bus_id": "00000000:81:00.0"}
    assert lost([FIRST, SECOND], [FIRST, SECOND, moved]) == [("Tesla P40", "0000:42:00.0", "GPU-3")]
    assert lost([FIRST], [FIRST, {**SECOND, "pci_bus_id": None}, moved],
                names={"0000:0b:00.0": "GeForce RTX 3080 Ti", "0000:42:00.0": "Tesla P40"}) == [
        ("NVIDIA GeForce RTX 3080 Ti", "0000:0b:00.0", "GPU-2"), ("Tesla P40", "0000:42:00.0", "GPU-3"),
    ]  # fmt: skip


def test_without_a_record_the_pci_ids_and_the_expectation_tell():
    assert lost([FIRST, SECOND], names={"0000:42:00.0": "Tesla P40"}) == [("Tesla P40", "0000:42:00.0", None)]
    assert lost([FIRST, SECOND], expected=["RTX 4080", "RTX 3080 Ti", "P40"]) == [("P40", "0000:42:00.0", None)]
    assert lost([FIRST, SECOND], expected=["GPU-1", "GPU-9"]) == [(None, "0000:42:00.0", "GPU-9")]
    assert lost([FIRST], expected=["RTX 4080", "P40", "3080"]) == [
        (None, "0000:0b:00.0", None), (None, "0000:42:00.0", None),
    ]  # fmt: skip


def test_cards_that_answer_that_nobody_can_ask_or_that_are_passed_on_are_not_lost():
    assert lost([FIRST, SECOND, THIRD]) == []
    assert lost([FIRST], driver="vfio-pci") == []
    assert lost([{**FIRST, "pci_bus_id": None}]) == []
    silent = host([])
    assert lost_cards.of_host({**silent, "gpus": None}) == []
    assert lost_cards.of_host({**silent, "gpus": {**silent["gpus"], "driver_version": None}}) == []
    assert len(lost_cards.of_host(silent)) == 3


def test_the_reason_names_the_card_instead_of_an_index():
    found = host([FIRST, SECOND], [THIRD])
    told = lost_cards.told(found["gpus"], found["nvidia_devices"], found["recorded"])
    assert told["reason"].startswith("Tesla P40 at 0000:42:00.0 (GPU-3): An NVIDIA card fell off the bus")
    both = host([FIRST])
    two = {**both["gpus"], "reason": f"{REASON} {REASON.replace('1', '2')}"}
    told = lost_cards.told(two, both["nvidia_devices"], None)
    assert told["reason"].startswith("an NVIDIA card at 0000:0b:00.0 and an NVIDIA card at 0000:42:00.0: An NVIDIA")
    well = host([FIRST, SECOND, THIRD])
    told = lost_cards.told({**well["gpus"], "reason": None}, well["nvidia_devices"], None)
    assert (told["reason"], told["lost"]) == (None, [])


@pytest.mark.parametrize("recorded", [None, {}, {"models": None}, {"models": {"a": {"fingerprint_parts": None}}}])
def test_a_record_without_cards_is_no_trouble(recorded):
    assert lost_cards.remembered(recorded) == []


def test_the_power_budget_counts_a_lost_card():
    watts = {"power_limit_enforced_watts": 320.0, "power_limit_default_watts": 320.0}
    found = known_cards.of_host(host([{**FIRST, **watts}, {**SECOND, **watts}], [THIRD]))
    assert [card["name"] for card in found] == [FIRST["name"], SECOND["name"], "Tesla P40"]
    budget = power_budget.budget(found, 1000, 200)
    assert budget["verdict"] == "unknown" and "the draw of Tesla P40 is not known" in power_budget.words(budget)
    lost_pair = host([{**FIRST, **watts}, {**SECOND, **watts}], [{**THIRD, "name": "NVIDIA GeForce RTX 3090"}])
    assert power_budget.budget(known_cards.of_host(lost_pair), 1000, 200)["steady_watts"] == 200 + 320 + 320 + 350
