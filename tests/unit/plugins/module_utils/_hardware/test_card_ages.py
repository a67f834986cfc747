# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The table of card generations against entries of the PCI ID Repository, and what mixed boxes need."""

from __future__ import annotations

import pathlib
import re

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import card_ages

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "pci_ids.txt"
# the first letters of a chip's name say its generation
CHIPS = {
    "GF": "Fermi", "GK": "Kepler", "GM": "Maxwell", "GP": "Pascal", "GV": "Volta", "TU": "Turing", "GA": "Ampere",
    "AD": "Ada", "GH": "Hopper", "GB": "Blackwell",
}  # fmt: skip
# https://developer.nvidia.com/cuda-gpus, and cuda-legacy-gpus
CAPABILITIES = {
    "Tesla K80": "3.7", "GeForce GT 710": "3.5", "GeForce GTX TITAN X": "5.2",
    "Tesla M60": "5.2", "GeForce GTX 1080": "6.1", "GeForce GTX 1080 Ti": "6.1", "Tesla P40": "6.1",
    "TITAN V": "7.0", "Tesla V100 SXM2 16GB": "7.0", "GeForce RTX 2080 Ti Rev. A": "7.5", "Tesla T4": "7.5",
    "A100 SXM4 40GB": "8.0", "GeForce RTX 3090": "8.6", "GeForce RTX 4090": "8.9", "H100 SXM5 80GB": "9.0",
    "GeForce RTX 5090": "12.0", "GeForce RTX 5070": "12.0", "GeForce RTX 5060 Ti": "12.0",
}  # fmt: skip
# address: device id
P40, GTX1080TI, V100, GTX970 = 0x1B38, 0x1B06, 0x1DB1, 0x13C2
RTX2080TI, RTX3090, RTX4090, RTX5090, RTX5070 = 0x1E07, 0x2204, 0x2684, 0x2B85, 0x2F04
K80, FERMI, NEW = 0x102D, 0x1080, 0x3FFF


def entries():
    lines = FIXTURE.read_text(encoding="utf-8").splitlines()
    return [re.fullmatch(r"\t([0-9a-f]{4})  (([A-Z]{2})[0-9].*)", line).groups() for line in lines if line[0] == "\t"]


def box(*ids, left_out=()):
    devices = [{"address": f"0000:{place:02x}:00.0", "device_id": f"{number:#06x}"} for place, number in
               enumerate(ids, 1)]
    return card_ages.cards(devices, left_out)


@pytest.mark.parametrize(("number", "name", "letters"), entries())
def test_every_chip_is_of_its_generation(number, name, letters):
    kind, capability = card_ages.of_id(number)
    assert kind.name == CHIPS[letters], name
    assert capability in card_ages.TARGETS


def test_cards_that_are_sold_have_the_capability_that_nvidia_states():
    sold = {name: number for number, entry, _letters in entries() for name in re.findall(r"\[(.+)\]", entry)}
    for name, capability in CAPABILITIES.items():
        assert card_ages.of_id(sold[name])[1] == capability, name


def test_ids_in_every_form_and_ids_that_nobody_knows():
    assert card_ages.of_id("0x2204") == card_ages.of_id("2204") == card_ages.of_id(0x2204)
    assert [card_ages.of_id(number) for number in (NEW, "0x0001", None, "", "none")] == [None] * 5


def test_ranges_are_ordered_and_do_not_overlap():
    bounds = [number for first, last, _kind, _capability in card_ages._RANGES for number in (first, last)]
    assert bounds == sorted(bounds)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ((RTX4090, RTX3090), (525, None, None, (11, 8), None)),
        ((P40, RTX3090), (None, 580, False, (11, 1), (12, 9))),
        ((V100, RTX2080TI), (None, 580, False, (10, 0), (12, 9))),
        ((GTX970,), (None, 580, False, (6, 5), (12, 9))),
        ((RTX5090, RTX3090), (570, None, True, (12, 8), None)),
        ((RTX5070, RTX2080TI, RTX4090), (570, None, True, (12, 8), None)),
        ((), (None, None, None, None, None)),
    ],
)
def test_what_boxes_need(ids, expected):
    needs = card_ages.needs(box(*ids))
    assert needs[:5] == expected
    assert (needs.problem, needs.unknown) == ("", [])


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ((P40, RTX5090), ("both the card 10de:2b85 (Blackwell, 0000:02:00.0)", "the card 10de:1b38 (Pascal", "closed")),
        ((V100, RTX3090, RTX5070), ("Volta", "Blackwell", "0000:03:00.0")),
        ((K80, RTX3090), ("(Kepler, 0000:01:00.0)", "branch 470 was its last")),
        ((FERMI,), ("Fermi", "390")),
    ],
)
def test_a_pair_that_no_driver_serves_is_one_sentence(ids, words):
    problem = card_ages.needs(box(*ids)).problem
    assert all(word in problem for word in words) and ". " not in problem
    # without the card that does not go with the others, nothing is wrong
    assert card_ages.needs(box(*ids, left_out=["01:00.0", "00000000:03:00.0"])).problem == ""


def test_a_card_that_a_virtual_machine_has_limits_nothing():
    devices = [{"address": "0000:01:00.0", "device_id": "0x1b06", "driver": "vfio-pci"},
               {"address": "0000:02:00.0", "device_id": "0x2b85", "driver": "nouveau"}]
    assert [card.address for card in card_ages.cards(devices)] == ["0000:02:00.0"]


def test_from_an_unknown_card_nothing_is_derived():
    needs = card_ages.needs(box(NEW, P40))
    assert needs.unknown == ["card 10de:3fff (0000:01:00.0)"] and needs.last_branch == 580
    assert card_ages.needs(box(NEW))[:6] == (None, None, None, None, None, "")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0000:01:00.0", "00000000:01:00.0"), ("01:00.0", "0000:01:00.0"), ("0001:0A:00.0", "00000001:0a:00.0"),
        ("10000:01:00.0", "00010000:01:00.0"),
    ],
)  # fmt: skip
def test_a_slot_has_one_name(one, other):
    assert card_ages.same_slot(one) == card_ages.same_slot(other)
    assert card_ages.same_slot(one) != card_ages.same_slot("0002:01:00.0")


def test_nvml_is_believed_where_it_sees_all_cards():
    seen = {"available": True, "gpus": [{"compute_capability": "8.6"}, {"compute_capability": None}]}
    assert card_ages.capabilities(seen, box(P40, RTX3090)) == ["8.6"]
    assert card_ages.capabilities({**seen, "available": False}, box(P40, RTX3090)) == ["6.1", "8.6"]
    assert card_ages.capabilities(None, box(RTX5090, P40, NEW, GTX970)) == ["5.2", "6.1", "12.0"]


@pytest.mark.parametrize(
    ("release", "wanted", "words"),
    [
        ("13.0", ["6.1", "8.6"], "6.1, which ended with 12.9"), ("13.5", ["7.0"], "7.0, which ended with 12.9"),
        ("12.9", ["5.2", "7.0", "12.0"], ""), ("12.4", ["8.6", "12.0"], "12.0, which begins with 12.8"),
        ("12.8", ["10.3"], "begins with 12.9"), ("13.0.2", ["7.5", "12.0"], ""), ("12.0", ["3.7"], "ended with 11.8"),
        ("13.0", ["99.0"], ""),
    ],
)  # fmt: skip
def test_targets_of_a_toolkit(release, wanted, words):
    found = card_ages.target_problem(release, wanted)
    assert (words in found) if words else found == ""


def test_the_page_has_the_table():
    page = (pathlib.Path(__file__).parents[5] / "docs/cards.md").read_text(encoding="utf-8")
    for capability, kind in {capability: kind for _first, _last, kind, capability in card_ages._RANGES}.items():
        cells = [f"| {kind.name} | {capability} |"]
        cells += [f"up to {kind.last_branch} |"] if kind.last_branch else []
        cells += [card_ages.words(cuda) for cuda in card_ages.TARGETS[capability] if cuda]
        (line,) = [line for line in page.splitlines() if line.startswith(cells[0])]
        assert all(cell in line for cell in cells)
        assert ("open" in line, "closed" in line) == (kind.open_modules, kind.closed_modules)
