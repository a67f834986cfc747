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

#: Part of the nominal memory bandwidth that reading weights reaches on cards without a published run of a large model:
#: the mean of the five GeForce cards that have one (0.82 to 0.88).
USUAL_FRACTION: t.Final = 0.85

#: NVML's total less what llama.cpp found free on idle cards was 2.4 to 3.8 % of the total, see CARDS.
OVERHEAD: t.Final = 0.04


@dataclasses.dataclass(frozen=True)
class Peak:
    """Draw for less than a millisecond, and the default power limit. Unverified: third parties' figures."""

    limit_watts: int
    low_watts: int
    high_watts: int
    source: str


class Price(t.NamedTuple):
    """What a card costs in US dollars, when that was so, and by whom."""

    low_usd: int
    high_usd: int
    month: str
    source: str


class Launches(t.NamedTuple):
    """What launching the kernels of one block takes per token, and how that is known."""

    ms: float
    source: str


class Pcie(t.NamedTuple):
    """The card's own connector; a board may give it fewer lanes."""

    generation: int
    lanes: int


@dataclasses.dataclass(frozen=True)
class Card:
    """One kind of card. C(sources) say where each number comes from."""

    name: str
    total_mib: int
    free_mib: int
    bandwidth_gb_per_s: float             # nominal, 10^9 bytes
    fraction: float                       # of it that reading weights reached, launches apart
    prefill_tflops: float                 # reached, 10^12 operations per second
    sources: tuple[str, ...]
    launch_ms: float                      # of one block per token
    limit_watts: int                      # default power limit
    pcie: Pcie
    price: Price | None                   # None where nobody publishes one
    pci_device_id: str | None = None
    peak: Peak | None = None
    nvlink: bool = False                  # whether two of them can be bridged


# Decode: a token takes the bytes that it reads / (nominal bandwidth x fraction) + launch_ms for each block. Two runs
# tell both, one of a sparse model, which reads little (Qwen3-30B-A3B Q4_K_M: 48 blocks, 1.93e9 bytes), and one of
# a dense model (Llama 3 70B Q4_K_M: 80 blocks, 41.9e9 bytes; Qwen3.5-27B Q4_K_M: 64 blocks, 15.8e9 bytes).
# Prefill: a prompt of 1024 tokens in micro-batches of 512 takes three of four stages' time on two equal cards, each
# stage 2 x 34.2e9 operations per token. For cards without such a run: 1.13 operations per nominal FP32 operation, as
# the two published pairs have 1.125 and 1.137.
_GUIDE = "half of what a guide to such pairs says of two used ones"


def _new(usd: int, month: str) -> Price:
    return Price(usd, usd, month, "NVIDIA's price at launch")


_RTX30 = Launches(
    0.085,
    "between 167 tokens per second on an RTX 3090 Ti (smeltcore.com, June 2026) and 141 on an RTX 3090"
    " (multimodalflow.net, 2026), Qwen3-30B-A3B Q4_K_M",
)
_RTX40 = Launches(
    0.061,
    "up to 196 tokens per second on an RTX 4090, Qwen3-30B-A3B Q4_K_M (runaihome.com, 2026)",
)
_RTX50 = Launches(_RTX40.ms, "assumed, an RTX 4090's")
_PASCAL = Launches(
    0.17, "an RTX 30's and 0.09 ms that CUDA graphs would save, as on a GTX 1080 (llama.cpp PR 27721, August 2026)"
)
#: Of a card that is not known.
USUAL_LAUNCHES: t.Final = _RTX30

_PAIRS = "XiongjieDai, GPU-Benchmarks-on-LLM-Inference, May 2024, llama.cpp, Llama 3 70B Q4_K_M"

_MTP = "sudoingX, qwen38-mtp, community numbers and sweeps, August 2026"
_TENSOR_PR = "figures at llama.cpp PR 19378"

#: short name, as in a hardware profile -> card
CARDS: t.Final[dict[str, Card]] = {
    "rtx4090": Card(
        "NVIDIA GeForce RTX 4090", 24564, 23633, 1008, 0.877, 92.9,
        (
            "free: llama.cpp log of a machine without a desktop, 23633 and 23698 MiB on its two cards (discussion at"
            " ik_llama.cpp, 2025-05-10); others show up to 23818",
            "bandwidth: 10501 MHz x 2 x 384 bit",
            f"decode: two cards, 19.06 tokens per second ({_PAIRS})",
            f"prefill: two cards, 905 tokens per second at 1024 ({_PAIRS})",
            f"launches: {_RTX40.source}",
        ),
        _RTX40.ms, 450, Pcie(4, 16), Price(2000, 2500, "2026-05", _GUIDE), "0x2684",
        Peak(450, 500, 600, "500 to 600 W for less than 1 ms in published measurements, 600 W in guides; unverified"),
    ),
    "rtx3090": Card(
        "NVIDIA GeForce RTX 3090", 24576, 23982, 936, 0.824, 40.5,
        (
            "free: llama.cpp logs, 23982 MiB; another shows 23641",
            "bandwidth: 9751 MHz x 2 x 384 bit",
            f"decode: two cards, 16.29 tokens per second ({_PAIRS})",
            f"prefill: two cards, 394 tokens per second at 1024 ({_PAIRS})",
            f"launches: {_RTX30.source}",
        ),
        _RTX30.ms, 350, Pcie(4, 16), Price(600, 900, "2026-05", _GUIDE), "0x2204",
        Peak(350, 450, 570, "450 W in guides, 500 to 570 W for less than 1 ms in published measurements; unverified"),
        nvlink=True,
    ),
    "rtx3060": Card(
        "NVIDIA GeForce RTX 3060", 12288, 11929, 360, 0.85, 14.4,
        (
            "free: llama.cpp log, 11929 MiB (Linux; Windows shows about 11250)",
            "bandwidth: NVIDIA's specification of the 12 GB card, 15 Gbit/s x 192 bit",
            f"decode: with an RTX 4070 Super, 21.2 tokens per second, Qwen3.5-27B Q4_K ({_TENSOR_PR})",
            "prefill: computed, 1.13 x 12.7 TFLOPS FP32",
            f"launches: {_RTX30.source}",
        ),
        _RTX30.ms, 170, Pcie(4, 16), _new(329, "2021-02"),
    ),
    "rtx5090": Card(
        "NVIDIA GeForce RTX 5090", 32607, 31518, 1792, USUAL_FRACTION, 118.4,
        (
            "free: llama.cpp logs, 31518 and 31600 MiB",
            "bandwidth: NVIDIA's specification, 28 Gbit/s x 512 bit",
            f"decode: assumed, the mean of other cards; 71.9 to 76.9 tokens per second published, 27B Q4 ({_MTP})",
            "prefill: computed, 1.13 x 104.8 TFLOPS FP32",
            f"launches: {_RTX50.source}",
        ),
        _RTX50.ms, 575, Pcie(5, 16), _new(1999, "2025-01"),
    ),
}  # fmt: skip


def _specified(
    name: str, total_mib: int, bandwidth_gb_per_s: float, tflops: float, watts: int, pcie: Pcie, price: Price | None,
    launches: Launches,
    decode: tuple[float, str] = (USUAL_FRACTION, "assumed, the mean of other cards; no run of a large model was found"),
    prefill: tuple[float, str] | None = None, nvlink: bool = False,
) -> Card:  # fmt: skip
    """Return a card by NVIDIA's specification. C(tflops): FP32. C(decode), C(prefill): what was published instead."""
    fraction, decode_source = decode
    reached, prefill_source = prefill or (1.13 * tflops, f"computed, 1.13 x {tflops} TFLOPS FP32")
    sources = (
        f"free: {1 - OVERHEAD:.0%} of its specification's memory",
        f"bandwidth: NVIDIA's specification, {bandwidth_gb_per_s:g} GB/s",
        f"decode: {decode_source}",
        f"prefill: {prefill_source}",
        f"launches: {launches.source}",
    )
    free = int(total_mib * (1 - OVERHEAD))
    return Card(
        name, total_mib, free, bandwidth_gb_per_s, fraction, round(reached, 1), sources, launches.ms, watts, pcie,
        price, nvlink=nvlink,
    )  # fmt: skip


CARDS.update({
    "rtx3060ti": _specified(
        "NVIDIA GeForce RTX 3060 Ti", 8192, 448, 16.2, 200, Pcie(4, 16), _new(399, "2020-12"), _RTX30,
    ),
    "rtx3080": _specified("NVIDIA GeForce RTX 3080", 10240, 760, 29.8, 320, Pcie(4, 16), _new(699, "2020-09"), _RTX30),
    "rtx3080ti": _specified(
        "NVIDIA GeForce RTX 3080 Ti", 12288, 912, 34.1, 350, Pcie(4, 16), _new(1199, "2021-06"), _RTX30,
    ),
    "rtx3090ti": _specified(
        "NVIDIA GeForce RTX 3090 Ti", 24576, 1008, 40.0, 450, Pcie(4, 16), _new(1999, "2022-03"), _RTX30,
        (0.855, f"42.0 tokens per second, Qwen3.8-27B Q4_K_M ({_MTP})"), nvlink=True,
    ),
    "rtx4060ti16": _specified(
        "NVIDIA GeForce RTX 4060 Ti", 16384, 288, 22.1, 165, Pcie(4, 8), _new(499, "2023-07"), _RTX40,
    ),
    "rtx4070super": _specified(
        "NVIDIA GeForce RTX 4070 SUPER", 12288, 504, 35.5, 220, Pcie(4, 16), _new(599, "2024-01"), _RTX40,
        (0.85, f"with an RTX 3060, 21.2 tokens per second, Qwen3.5-27B Q4_K ({_TENSOR_PR})"),
    ),
    "rtx4070ti": _specified(
        "NVIDIA GeForce RTX 4070 Ti", 12288, 504, 40.1, 285, Pcie(4, 16), _new(799, "2023-01"), _RTX40,
    ),
    "rtx4070tisuper": _specified(
        "NVIDIA GeForce RTX 4070 Ti SUPER", 16384, 672, 44.1, 285, Pcie(4, 16), _new(799, "2024-01"), _RTX40,
    ),
    "rtx4080": _specified("NVIDIA GeForce RTX 4080", 16384, 717, 48.7, 320, Pcie(4, 16), _new(1199, "2022-11"), _RTX40),
    "rtx4080super": _specified(
        "NVIDIA GeForce RTX 4080 SUPER", 16384, 736, 52.2, 320, Pcie(4, 16), _new(999, "2024-01"), _RTX40,
    ),
    "rtx5060ti16": _specified(
        "NVIDIA GeForce RTX 5060 Ti", 16384, 448, 23.7, 180, Pcie(5, 8), _new(429, "2025-04"), _RTX50,
        (0.876, f"two cards, 22.1 and 23.1 tokens per second, Qwen3.8-27B Q4_K_M ({_MTP})"),
        (45.0, f"two cards, 927 tokens per second at 512, 27B UD-Q4_K_XL ({_MTP})"),
    ),
    "rtx5070ti": _specified(
        "NVIDIA GeForce RTX 5070 Ti", 16384, 896, 43.9, 300, Pcie(5, 16), _new(749, "2025-02"), _RTX50,
    ),
    "rtx5080": _specified("NVIDIA GeForce RTX 5080", 16384, 960, 56.3, 360, Pcie(5, 16), _new(999, "2025-01"), _RTX50),
    "a4000": _specified("NVIDIA RTX A4000", 16384, 448, 19.2, 140, Pcie(4, 16), _new(1000, "2021-04"), _RTX30),
    "p40": _specified(
        "Tesla P40", 24576, 346, 11.8, 250, Pcie(3, 16), None, _PASCAL,
        (
            0.82,
            "between 56.8 tokens per second, Llama 7B Q4_0, 0.89 (llama.cpp PR 4766), and 72, gpt-oss-20b, 0.76"
            " (llama.cpp PR 16715)",
        ),
        (9.5, f"two cards, 354 tokens per second, Qwen3.8-27B UD-Q5_K_XL ({_MTP})"),
    ),
})  # fmt: skip


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
