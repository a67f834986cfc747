# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Devices with what is known of their speed before anything was measured. Private to this collection. Pure functions.

C(fraction), C(launch_ms) and C(prefill_tflops) come from the table of known cards, bandwidth from NVML where the card
is there.
"""

from __future__ import annotations

import re
import typing as t

from .._base.types import Mapping
from .._hardware import known_cards, pcie
from . import network_links
from .types import KnownDevice

#: Pairs to name in a message; any cards of known_cards.CARDS can be put together the same way.
PROFILES = (
    "rtx4090_rtx3090", "rtx3090_x2_nvlink", "rtx3090_rtx3060", "rtx5090_rtx3090", "rtx3090_rtx3090", "rtx5090_rtx4090",
)  # fmt: skip


class Profile(t.NamedTuple):
    """Cards by their short names, in llama.cpp's order, and whether a bridge joins the two of them.

    C(lent) are cards of other hosts, each with the name of its link.
    """

    cards: tuple[str, ...]
    nvlink: bool
    lent: tuple[tuple[str, str], ...] = ()


def read_profile(name: str) -> Profile:
    """Return what a profile names: C(rtx4090_rtx3090), C(rtx3090_x2_nvlink). Raises ValueError, with what is known.

    Cards are joined by underscores, one to eight in all. C(xN) makes the card before it N cards. C(nvlink) at the end
    is a bridge between two cards that have such a connector. C(rtx4090+rtx3090@1gbe) has the cards of a lender behind
    the plus, and how it is reached.
    """
    own, *lenders = name.split("+")
    *parts, last = own.split("_")
    cards = _cards(parts + ([] if last == "nvlink" else [last]))
    lent = _lent(lenders)
    named = [*cards, *(card for card, _link in lent)]
    if not 1 <= len(named) <= 8 or any(card not in known_cards.CARDS for card in named):
        raise ValueError(
            f"there is no hardware profile {name!r}; known are {', '.join(PROFILES)}, and up to eight of "
            f"{', '.join(sorted(known_cards.CARDS))} joined by underscores in the order of the devices (x2 is two"
            " of the card before it; +rtx3090@1gbe at the end is a lender's card over the network)"
        )
    nvlink = last == "nvlink"
    if nvlink and not (len(cards) == 2 and all(known_cards.CARDS[card].nvlink for card in cards)):
        able = ", ".join(sorted(short for short, card in known_cards.CARDS.items() if card.nvlink))
        raise ValueError(f"the hardware profile {name!r} cannot have nvlink: it joins two cards of {able}")
    return Profile(tuple(cards), nvlink, tuple(lent))


def _cards(parts: t.Sequence[str]) -> list[str]:
    """Return the cards that words of a profile name."""
    cards: list[str] = []
    for part in parts:
        count = re.fullmatch(r"x([2-8])", part)
        if count and cards:
            cards += [cards[-1]] * (int(count[1]) - 1)
        else:
            cards.append(part)
    return cards


def _lent(lenders: t.Iterable[str]) -> list[tuple[str, str]]:
    """Return cards and their links, of C(rtx3090@1gbe) for each lender. Raises ValueError for an unknown link."""
    lent = []
    for lender in lenders:
        words, _at, link = lender.partition("@")
        network_links.assumed(link)
        lent += [(card, link) for card in _cards(words.split("_"))]
    return lent


def read_lent(lenders: t.Sequence[str]) -> list[KnownDevice]:
    """Return the devices of lenders, each named as C(rtx3090_x2@1gbe). Raises ValueError, with what is known."""
    lent = _lent(lenders)
    strange = next((card for card, _link in lent if card not in known_cards.CARDS), None)
    if strange is not None:
        known = ", ".join(sorted(known_cards.CARDS))
        raise ValueError(f"a lender has {strange!r}, which is no card of the table: known are {known}")
    return lent_devices(lent)


def profile_devices(name: str) -> list[KnownDevice]:
    """Return devices with what is known of their speed for a profile as of read_profile. Raises ValueError."""
    profile = read_profile(name)
    return [*card_devices([known_cards.CARDS[card] for card in profile.cards]), *lent_devices(profile.lent)]


def lent_devices(lent: t.Sequence[tuple[str, str]]) -> list[KnownDevice]:
    """Return devices of other hosts: cards by their short names, each with the name of its link."""
    return [
        {
            **_device(f"RPC{index}", f"lender:{index}", known_cards.CARDS[card]),
            "backend": "RPC", "link": network_links.assumed(link),
        }
        for index, (card, link) in enumerate(lent)
    ]  # fmt: skip


def card_devices(cards: t.Sequence[known_cards.Card]) -> list[KnownDevice]:
    """Return devices with what is known of their speed for cards in llama.cpp's order."""
    return [_device(f"CUDA{index}", f"CUDA{index}", card) for index, card in enumerate(cards)]


def _device(name: str, identity: str, card: known_cards.Card) -> KnownDevice:
    return {
        "device": name, "id": identity, "backend": "CUDA", "description": card.name, "total_mib": card.total_mib,
        "free_mib": card.free_mib, "budget_mib": None, "bandwidth_gb_per_s": card.bandwidth_gb_per_s,
        "fraction": card.fraction, "launch_ms": card.launch_ms, "prefill_tflops": card.prefill_tflops,
        "sources": list(card.sources),
    }


def link_gb_per_s(gpu: Mapping) -> float | None:
    """Return the bandwidth of a card's PCIe link in one direction (an entry of gpu_facts), or None if unknown."""
    width, generation = gpu.get("pcie_width"), gpu.get("pcie_generation_max")
    lane = pcie.LANE_GB_PER_S.get(generation or 0)
    return width * lane if width and lane else None


class _Speed(t.TypedDict):
    bandwidth_gb_per_s: float | None
    fraction: float
    launch_ms: float
    prefill_tflops: float | None
    sources: list[str]


def host_devices(recorded: t.Sequence[Mapping], gpus: t.Sequence[Mapping]) -> list[KnownDevice]:
    """Return devices with what is known of their speed for a host.

    C(recorded): devices of an earlier tuning, whose free memory was read while nothing else used them; they win.
    C(gpus): as gpu_facts reports them. Without a record their free memory is that of the known card, or their total
    less known_cards.OVERHEAD, because what is free now says little while a server runs. Bandwidth is NVML's own.
    """
    by_id = {gpu.get("id"): gpu for gpu in gpus}
    if recorded:
        known = ({**device, **_speed(by_id.get(device["id"]), device.get("description"))} for device in recorded)
        return [t.cast(KnownDevice, device) for device in known]
    result: list[KnownDevice] = []
    for index, gpu in enumerate(gpus):
        speed = _speed(gpu, gpu.get("name"))
        total = gpu.get("memory_total_mib") or 0
        card = known_cards.named(gpu.get("name"))
        free = card.free_mib if card and abs(card.total_mib - total) < total * 0.02 else int(
            total * (1 - known_cards.OVERHEAD)
        )
        speed["sources"] = [
            f"free: estimated from the card's {total} MiB; llama.cpp has not been asked", *speed["sources"]
        ]
        result.append({
            "device": f"CUDA{index}", "id": gpu.get("id") or f"CUDA{index}", "backend": "CUDA",
            "description": gpu.get("name") or "unnamed card", "total_mib": total, "free_mib": free, "budget_mib": None,
            **speed,
        })
    return result


def _speed(gpu: Mapping | None, name: t.Any) -> _Speed:
    card = known_cards.named(gpu.get("name") if gpu else name)
    bandwidth = gpu.get("memory_bandwidth_gb_per_s") if gpu else None
    sources = ["bandwidth: the card's own highest memory clock and bus width (NVML)"] if bandwidth else []
    if card is not None:
        sources += [source for source in card.sources if source.split(":")[0] in ("decode", "prefill", "launches")]
        sources += [source for source in card.sources if source.startswith("bandwidth:") and not bandwidth]
    elif bandwidth:
        sources += ["decode, launches: assumed, the mean of known cards, and what an RTX 30 takes"]
    return {
        "bandwidth_gb_per_s": bandwidth or (card.bandwidth_gb_per_s if card else None),
        "fraction": card.fraction if card else known_cards.USUAL_FRACTION,
        "launch_ms": card.launch_ms if card else known_cards.USUAL_LAUNCHES.ms,
        "prefill_tflops": card.prefill_tflops if card else None,
        "sources": sources,
    }
