# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a tuning's variables and its host say of experts in RAM. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._split import context_room, expert_placement, known_devices, memory_plan
from .._split.types import Serving
from . import expert_threads, ram_speed
from .tuning_settings import Settings

#: What the system and its other programs keep of the RAM.
RAM_OF_THE_HOST_MIB: t.Final = 3072


def wanted(
    settings: Settings, look: Mapping, devices: t.Sequence[Mapping], gpus: t.Sequence[Mapping], own: Mapping | None
) -> Json:
    """Return C(experts_in_ram) of the problem (docs/data_formats.md).

    C(look): of split_tuning_info. C(own): where llama.cpp would place the model, once it was asked.
    """
    cpu, by_id = look["cpu"], {gpu.get("id"): gpu for gpu in gpus}
    links = [_link(by_id.get(device["id"])) for device in devices]
    return {
        "mode": mode(settings),
        "threads": settings.expert_threads or expert_threads.choices(cpu["physical_cores"], cpu["threads"]),
        # of llama.cpp's own placement; whose threads were chosen by hand gets no others
        "default_threads": None if settings.expert_threads else cpu["physical_cores"],
        "ram_mib": settings.ram_mib or ram_mib(look["memory_total_mib"]),
        "no_host": any(device["backend"] == "CUDA" for device in devices),
        "links_gb_per_s": links if all(links) else None,
        "own": own,
    }


def expected(settings: Settings, look: Mapping | None, gpus: t.Sequence[Mapping]) -> Json:
    """Return the same before the devices were listed; without a host C(look) is None."""
    links = [_link(card) for card in gpus]
    return {
        "mode": mode(settings),
        "ram_mib": settings.ram_mib or (None if look is None else ram_mib(look["memory_total_mib"])),
        "links_gb_per_s": links if links and all(links) else None,
        "ram_speed": ram_speed.known(settings.ram_gb_per_s, None if look is None else look["record"]),
    }


def mode(settings: Settings) -> str | int:
    """Return how many blocks have their experts in RAM: auto, never or a number."""
    asked = settings.experts_in_ram
    return int(asked) if asked.isdecimal() else asked


def served(serving: Mapping, decision: Mapping) -> Json:
    """Return the serving profile with the micro-batch of the decision, and as weights in RAM want it."""
    return {**expert_placement.of_decision(t.cast(Serving, serving), decision)}


def in_ram(settings: Settings, model: Mapping, serving: Mapping, devices: t.Sequence[Mapping]) -> bool:
    """Return whether weights of the model go into RAM beside these devices, as far as is known before any load."""
    budgets = memory_plan.budgets_mib(devices, settings.reserve_mib)
    return context_room.needs_ram(model, serving, budgets, mode(settings))


def fingerprint_part(settings: Settings) -> Json:
    """Return what was set about experts in RAM and is not the default; nothing for most tunings."""
    told = {"mode": settings.experts_in_ram, "threads": settings.expert_threads, "ram_mib": settings.ram_mib}
    default = {"mode": "auto", "threads": [], "ram_mib": 0}
    return {} if told == default else told


def card_ids(settings: Settings, gpus: t.Sequence[Mapping], model: Mapping, serving: Mapping) -> list[str]:
    """Return the cards in the order of the devices: where experts go into RAM, the one with the widest link first.

    C(model): of gguf_info, empty where it was not read. The largest context is one with which the model fits.
    """
    ids = [str(gpu["id"]) for gpu in gpus]
    budgets = [max(0, (gpu.get("memory_total_mib") or 0) - settings.reserve_mib) for gpu in gpus]
    if not ids or not context_room.needs_ram(model, serving, budgets, mode(settings)):
        return ids
    links = {str(gpu["id"]): _link(gpu) or 0.0 for gpu in gpus}
    return sorted(ids, key=lambda card_id: -links[card_id])


def ram_mib(total_mib: int) -> int:
    """Return the MiB of RAM that a host has for experts, by what it has in all."""
    return max(0, total_mib - RAM_OF_THE_HOST_MIB)


def _link(card: Mapping | None) -> float | None:
    """Return the bandwidth of a card's PCIe link in GB/s, or None where it is not known."""
    return None if card is None else known_devices.link_gb_per_s(card)
