# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import known_devices


def test_the_devices_of_a_host() -> None:
    gpus = [
        {"id": uuid, "name": f"NVIDIA {name}", "memory_total_mib": total, "memory_bandwidth_gb_per_s": bandwidth}
        for uuid, name, total, bandwidth in (
            ("GPU-a", "GeForce RTX 4090", 24564, 1008.1), ("GPU-b", "Thing", 16000, 500.0)
        )
    ]
    first, second = known_devices.host_devices([], gpus)
    assert (first["device"], first["id"], first["free_mib"], first["fraction"]) == ("CUDA0", "GPU-a", 23633, 0.877)
    assert (second["free_mib"], second["fraction"], second["prefill_tflops"]) == (15360, 0.85, None)
    recorded = [
        {"device": "CUDA0", "id": "GPU-b", "description": "NVIDIA Thing", "free_mib": 15000, "budget_mib": None},
        {"device": "RPC0", "id": "host:1", "description": "host:1", "free_mib": 8000, "budget_mib": None},
    ]
    third, fourth = known_devices.host_devices(recorded, gpus)
    assert (third["free_mib"], third["bandwidth_gb_per_s"]) == (15000, 500.0)
    assert fourth["bandwidth_gb_per_s"] is None and fourth["sources"] == []


def test_a_profile_may_repeat_a_card_and_name_a_bridge() -> None:
    assert known_devices.read_profile("rtx3090_x2_nvlink") == (("rtx3090", "rtx3090"), True, ())
    assert known_devices.read_profile("p40_x3_rtx3060") == (("p40", "p40", "p40", "rtx3060"), False, ())
    for wrong in ("nvlink", "x2", "rtx3090_nvlink", "rtx3090_x2_rtx4090_nvlink", "rtx3090_x8_x2", "", "rtx3090_x9"):
        with pytest.raises(ValueError, match="hardware profile"):
            known_devices.read_profile(wrong)


def test_a_profile_may_name_cards_of_lenders_and_how_they_are_reached() -> None:
    profile = known_devices.read_profile("rtx4090+rtx3090_x2@2.5gbe+rtx3060@1gbe")
    assert profile.cards == ("rtx4090",)
    assert profile.lent == (("rtx3090", "2.5gbe"), ("rtx3090", "2.5gbe"), ("rtx3060", "1gbe"))
    own, *lent = known_devices.profile_devices("rtx4090+rtx3090_x2@2.5gbe")
    assert "link" not in own and [device["device"] for device in lent] == ["RPC0", "RPC1"]
    assert lent[0]["id"] != lent[1]["id"] and lent[0]["link"]["to_mb_per_s"] == pytest.approx(293.75)
    for wrong, words in (
        ("rtx4090+rtx3090", "no link ''; known are 0.1gbe, 1gbe"), ("rtx4090+@1gbe", "hardware profile"),
        ("rtx4090+rtx3090@fast", "no link 'fast'"), ("+rtx3090@1gbe", "hardware profile"),
        ("rtx3090_x8+rtx3090@1gbe", "hardware profile"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            known_devices.read_profile(wrong)


def test_profiles_name_cards_in_the_order_of_the_devices() -> None:
    for name in known_devices.PROFILES:
        assert len(known_devices.profile_devices(name)) == 2
    first, second = known_devices.profile_devices("rtx5090_rtx3090")
    assert (first["device"], first["description"]) == ("CUDA0", "NVIDIA GeForce RTX 5090")
    assert (second["device"], second["description"]) == ("CUDA1", "NVIDIA GeForce RTX 3090")


def test_a_link_is_lanes_times_generation() -> None:
    card = {"pcie_width": 16, "pcie_generation_max": 4}
    assert known_devices.link_gb_per_s(card) == 16 * 1.969
    for unknown in ({}, {**card, "pcie_width": None}, {**card, "pcie_generation_max": 9}):
        assert known_devices.link_gb_per_s(unknown) is None
