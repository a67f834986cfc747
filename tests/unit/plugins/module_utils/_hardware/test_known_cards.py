# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pathlib

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import known_cards


def test_every_number_of_every_card_has_a_source() -> None:
    for card in known_cards.CARDS.values():
        assert [source.split(":")[0] for source in card.sources] == [
            "free", "bandwidth", "decode", "prefill", "launches"
        ]
        assert card.limit_watts and card.pcie.lanes in (8, 16) and 0.3 < card.fraction < 0.9
        assert 0.05 < card.launch_ms < 0.2
        assert card.price is None or (card.price.source and card.price.low_usd <= card.price.high_usd)
        assert card.peak is None or card.peak.low_watts <= card.peak.high_watts
    assert len({card.name for card in known_cards.CARDS.values()}) == len(known_cards.CARDS)


def test_the_documented_table_is_that_of_the_code() -> None:
    page = pathlib.Path(known_cards.__file__).parents[3] / "docs" / "cards.md"
    shown = page.read_text(encoding="utf-8").partition("<!-- begin known cards -->")[2].partition("<!-- end")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.strip().splitlines()[2:]]
    assert [row[0].strip("`") for row in rows] == sorted(known_cards.CARDS)
    for short, name, gib, bandwidth, fraction, launches, prefill, watts, pcie, price in rows:
        card = known_cards.CARDS[short.strip("`")]
        assert (f"NVIDIA {name}" == card.name or name == card.name) and int(gib) == round(card.total_mib / 1024)
        assert (float(bandwidth), float(launches), float(prefill), int(watts)) == (
            card.bandwidth_gb_per_s, 1000 * card.launch_ms, card.prefill_tflops, card.limit_watts
        )  # fmt: skip
        assert fraction == f"{card.fraction:.0%}" and pcie == f"{card.pcie.generation}.0 x{card.pcie.lanes}"
        ends = ["-"] if card.price is None else sorted({str(card.price.low_usd), str(card.price.high_usd)})
        assert price.split(" to ") == ends or price == " to ".join(ends)


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
