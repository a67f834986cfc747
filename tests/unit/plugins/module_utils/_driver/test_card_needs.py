# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which driver is chosen for which cards, and which wishes are refused."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import card_needs
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import card_ages

TESLA_P100, GTX1060, M40, TITAN_V = 0x15F8, 0x1C03, 0x17FD, 0x1D81
RTX2060, A4000, RTX4060, RTX5080, B200 = 0x1F08, 0x24B0, 0x2882, 0x2C02, 0x2901
GT730 = 0x1287


def choose(*ids, branch="", open_modules=None, system="Ubuntu 24.04", source="distribution", left_out=()):
    devices = [
        {"address": f"0000:{place:02x}:00.0", "device_id": hex(number), "name": None}
        for place, number in enumerate(ids, 1)
    ]
    return card_needs.choose(branch, open_modules, system, source, card_ages.cards(devices, left_out))


def refusal(*ids, **wish):
    with pytest.raises(UserError) as caught:
        choose(*ids, **wish)
    sentence = str(caught.value)
    assert sentence.endswith(".") and sentence.count(". ") == 0
    return sentence


@pytest.mark.parametrize(
    ("ids", "where", "branch", "open_modules"),
    [
        ((), ("Ubuntu 24.04", "distribution"), "580", True),
        ((RTX4060, A4000), ("Ubuntu 24.04", "distribution"), "580", True),
        ((GTX1060, A4000), ("Ubuntu 24.04", "distribution"), "580", False),
        ((M40, TESLA_P100, TITAN_V), ("Ubuntu 24.04", "nvidia"), "580", False),
        ((RTX5080, RTX2060), ("Ubuntu 24.04", "nvidia"), "580", True),
        ((RTX4060,), ("Debian 13", "nvidia"), "595", True),
        ((RTX4060,), ("Debian 13", "distribution"), "550", True),
        ((TITAN_V, RTX4060), ("Debian 13", "distribution"), "550", False),
        ((GTX1060,), ("Ubuntu 26.04", "distribution"), "580", False),
        ((B200,), ("Ubuntu 26.04", "nvidia"), "595", True),
        ((RTX2060,), ("Ubuntu 26.04", "distribution"), "595", True),
        ((GTX1060,), ("Debian 12", "nvidia"), "580", False),
        ((RTX2060,), ("Fedora 43", "nvidia"), "580", True),
    ],
)
def test_what_is_not_said_follows_from_the_cards_and_the_source(ids, where, branch, open_modules):
    choice = choose(*ids, system=where[0], source=where[1])
    assert choice == (branch, open_modules, "")


@pytest.mark.parametrize(
    ("ids", "wish", "words"),
    [
        ((GTX1060, RTX5080), {}, ["open kernel modules", "closed", "0000:01:00.0", "nvidia_driver_slots_left_out"]),
        ((GT730, RTX4060), {}, ["Kepler", "branch 470 was its last", "take a card out"]),
        ((M40,), {"branch": "595"}, ["Driver branch 595", "Maxwell", 'nvidia_driver_branch to "580"']),
        ((RTX4060, TITAN_V), {"branch": "610", "open_modules": False}, ["610", "Volta", "last branch is 580"]),
        ((RTX5080,), {"branch": "535"}, ["Blackwell", "first branch is 570", '"580"']),
        ((TESLA_P100,), {"open_modules": True}, ["begin with Turing", "Pascal", "set it to false or leave it out"]),
        ((RTX5080,), {"open_modules": False}, ["only the open kernel modules", "set it to true or leave it out"]),
        ((RTX4060,), {"branch": "620", "open_modules": False}, ["branch 620 has the open kernel modules only"]),
        ((RTX5080,), {"system": "Debian 13"}, ["Debian 13 has no driver branch", "nvidia_driver_source to nvidia"]),
        ((GTX1060,), {"system": "Debian 13", "source": "nvidia"}, ["Pascal", "nvidia_driver_source to distribution"]),
        ((GTX1060,), {"system": "Ubuntu 26.04", "source": "nvidia"}, ["nvidia_driver_source to distribution"]),
        ((RTX4060,), {"system": "Debian 12"}, ["Debian 12", "nvidia_driver_source to nvidia"]),
    ],
)
def test_what_cannot_serve_the_cards_is_refused_with_reason_and_cure(ids, wish, words):
    sentence = refusal(*ids, **wish)
    for word in words:
        assert word in sentence


def test_a_wish_that_the_cards_stand_is_kept():
    assert choose(RTX2060, branch="610", open_modules=False) == ("610", False, "")
    assert choose(GTX1060, branch="550", system="Debian 13") == ("550", False, "")


def test_a_card_that_is_left_out_limits_nothing():
    assert choose(GT730, RTX5080, left_out=["01:00.0"]) == ("580", True, "")


def test_an_unknown_card_is_told_and_changes_nothing():
    choice = choose(0x3FAB, RTX4060)
    assert choice[:2] == ("580", True) and "card 10de:3fab (0000:01:00.0)" in choice.note
    assert choose(0x3FAB, GTX1060)[:2] == ("580", False)


def test_a_word_that_is_no_branch_is_left_to_the_plan():
    assert choose(GTX1060, branch="latest").branch == "latest"
