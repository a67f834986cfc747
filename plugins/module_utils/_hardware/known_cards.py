# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one table of known cards. Private to this collection. Pure functions only.

Every figure says where it comes from. What a card's driver says of itself wins over this table.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._base.types import Json, Mapping
from . import lost_cards

#: Part of the nominal memory bandwidth that decoding reached in the slowest of the published runs, for all other cards.
USUAL_FRACTION: t.Final = 0.73


@dataclasses.dataclass(frozen=True)
class Peak:
    """Draw for less than a millisecond, and the default power limit. Unverified: third parties' figures."""

    limit_watts: int
    low_watts: int
    high_watts: int
    source: str


@dataclasses.dataclass(frozen=True)
class Card:
    """One kind of card. C(sources) say where each number comes from."""

    name: str
    total_mib: int
    free_mib: int
    bandwidth_gb_per_s: float             # nominal, 10^9 bytes
    fraction: float                       # of it that decode reached
    prefill_tflops: float                 # reached, 10^12 operations per second
    sources: tuple[str, ...]
    pci_device_id: str | None = None
    peak: Peak | None = None


# Decode: bytes read per token x published tokens per second / nominal bandwidth, for Llama 3 70B Q4_K_M, of which
# 41.92e9 bytes are read per token. Prefill: a prompt of 1024 tokens in micro-batches of 512 takes three of four stages'
# time on two equal cards, each stage 2 x 34.2e9 operations per token. For cards without such a run: 1.13 operations per
# nominal FP32 operation, as the two published pairs have 1.125 and 1.137.
_PAIRS = "XiongjieDai, GPU-Benchmarks-on-LLM-Inference, May 2024, llama.cpp, Llama 3 70B Q4_K_M"

#: short name, as in a hardware profile -> card
CARDS: t.Final[dict[str, Card]] = {
    "rtx4090": Card(
        "NVIDIA GeForce RTX 4090", 24564, 23633, 1008, 0.793, 92.9,
        (
            "free: llama.cpp log of a machine without a desktop, 23633 and 23698 MiB on its two cards (discussion at"
            " ik_llama.cpp, 2025-05-10); others show up to 23818",
            "bandwidth: 10501 MHz x 2 x 384 bit",
            f"decode: two cards, 19.06 tokens per second ({_PAIRS})",
            f"prefill: two cards, 905 tokens per second at 1024 ({_PAIRS})",
        ),
        "0x2684",
        Peak(450, 500, 600, "500 to 600 W for less than 1 ms in published measurements, 600 W in guides; unverified"),
    ),
    "rtx3090": Card(
        "NVIDIA GeForce RTX 3090", 24576, 23982, 936, 0.730, 40.5,
        (
            "free: llama.cpp logs, 23982 MiB; another shows 23641",
            "bandwidth: 9751 MHz x 2 x 384 bit",
            f"decode: two cards, 16.29 tokens per second ({_PAIRS})",
            f"prefill: two cards, 394 tokens per second at 1024 ({_PAIRS})",
        ),
        "0x2204",
        Peak(350, 450, 570, "450 W in guides, 500 to 570 W for less than 1 ms in published measurements; unverified"),
    ),
    "rtx3060": Card(
        "NVIDIA GeForce RTX 3060", 12288, 11929, 360, USUAL_FRACTION, 14.4,
        (
            "free: llama.cpp log, 11929 MiB (Linux; Windows shows about 11250)",
            "bandwidth: NVIDIA's specification of the 12 GB card, 15 Gbit/s x 192 bit",
            "decode: assumed, the RTX 3090's fraction; nothing published was found",
            "prefill: computed, 1.13 x 12.7 TFLOPS FP32",
        ),
    ),
    "rtx5090": Card(
        "NVIDIA GeForce RTX 5090", 32607, 31518, 1792, USUAL_FRACTION, 118.4,
        (
            "free: llama.cpp logs, 31518 and 31600 MiB",
            "bandwidth: NVIDIA's specification, 28 Gbit/s x 512 bit",
            "decode: assumed, the RTX 3090's fraction; nothing published was found for a large model",
            "prefill: computed, 1.13 x 104.8 TFLOPS FP32",
        ),
    ),
}  # fmt: skip


def named(name: t.Any) -> Card | None:
    """Return the card with exactly this product name, or None."""
    return next((card for card in CARDS.values() if card.name == name), None)


def peak_of(name: str) -> Peak | None:
    """Return the peak of the card whose short product name (RTX 4090) C(name) ends in, or None."""
    known = (card for card in CARDS.values() if card.peak)
    return next((card.peak for card in known if name.endswith(card.name.removeprefix("NVIDIA GeForce "))), None)


def of_host(host: Mapping, expected: t.Sequence[str] = ()) -> list[Json]:
    """Return what is known of each card: entries of gpu_facts, and for cards that do not answer name and PCI address.

    Before there is a driver none answers. A card that does not answer beside others is lost, and draws power as before;
    `expected` (UUIDs or parts of names) may name what nothing else does.
    """
    gpus = host["gpus"]
    if gpus and gpus["gpus"]:
        return [*gpus["gpus"], *lost_cards.of_host(host, expected)]
    names = {card.pci_device_id: card.name for card in CARDS.values() if card.pci_device_id}
    return [
        {"name": names.get(device["device_id"]) or device.get("name"), "pci_bus_id": device["address"]}
        for device in host["nvidia_devices"]
    ]
