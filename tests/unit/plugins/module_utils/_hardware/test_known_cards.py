# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import known_cards


def test_every_number_of_every_card_has_a_source() -> None:
    for card in known_cards.CARDS.values():
        assert [source.split(":")[0] for source in card.sources] == ["free", "bandwidth", "decode", "prefill"]
        assert card.peak is None or card.peak.low_watts <= card.peak.high_watts
    assert len({card.name for card in known_cards.CARDS.values()}) == len(known_cards.CARDS)


def test_a_name_that_goes_on_is_another_card() -> None:
    assert known_cards.named("NVIDIA GeForce RTX 3090") is known_cards.CARDS["rtx3090"]
    assert known_cards.named("RTX 3090") is None
    assert known_cards.peak_of("RTX 3090") is known_cards.CARDS["rtx3090"].peak
    assert known_cards.peak_of("NVIDIA GeForce RTX 3090 Ti") is None
    assert known_cards.peak_of("NVIDIA GeForce RTX 3060") is None


def test_cards_without_a_driver_are_named_by_their_pci_id() -> None:
    host = {"gpus": None, "nvidia_devices": [
        {"device_id": "0x2684", "address": "0000:01:00.0"}, {"device_id": "0x1", "address": "0000:02:00.0"},
    ]}
    assert [card["name"] for card in known_cards.of_host(host)] == ["NVIDIA GeForce RTX 4090", None]
    seen = {"gpus": {"gpus": [{"name": "x"}]}, "nvidia_devices": []}
    assert known_cards.of_host(seen) == [{"name": "x"}]
