# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether the PCIe link of each card is as wide and fast as it could be. Private to this collection. Pure functions."""

from __future__ import annotations

from .._base.checks import check
from .._base.types import Json, Mapping
from . import known_cards

#: 10^9 bytes per second of one lane in one direction, by generation, from the PCIe base specifications.
LANE_GB_PER_S = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}


def links(host: Mapping) -> list[Json]:
    """One check per card: PCIe width and generation, judged by what was seen under load where that is known."""
    if host["hypervisor"] and host["nvidia_devices"]:
        return [check("PCIe", True, "note", "not judged: a virtual machine does not see the real slots", None)]
    by_address = {device["address"][-10:].lower(): device for device in host["nvidia_devices"]}
    found = []
    for gpu in known_cards.of_host(host):
        address = (gpu.get("pci_bus_id") or "")[-10:].lower()
        found.append(_link(gpu, by_address.get(address, {}), address))
    return found


def _sampled(gpu: Mapping, key: str) -> int | None:
    """The highest value that was seen while something ran on the card; None where nothing was sampled or it idled."""
    sampled = gpu.get("sampled") or {}
    busy = (sampled.get("utilization_gpu_percent") or {}).get("max") or 0
    value = (sampled.get(key) or {}).get("max")
    return int(value) if busy and value is not None else None


def _link(gpu: Mapping, device: Mapping, address: str) -> Json:
    name = f"PCIe {address or gpu.get('id')}"
    # idle links lower their generation and keep their width
    loaded = _sampled(gpu, "pcie_generation")
    width = _sampled(gpu, "pcie_width") or gpu.get("pcie_width") or device.get("width")
    possible = gpu.get("pcie_generation_max") or _least(device.get("generation_max"), device.get("slot_generation_max"))
    own = gpu.get("pcie_generation_device_max") or device.get("generation_max")
    now = gpu.get("pcie_generation") or device.get("generation")
    if width is None:
        return check(name, True, "note", "unknown: neither driver nor kernel says", None)
    seen = loaded if loaded is not None else now if now == possible else None
    at = "generation unknown"
    if seen is not None:
        at = f"generation {seen}"
    elif possible is not None:
        at = f"generation {possible} at most, now unknown (an idle card lowers it)"
    detail = f"x{width}, {at}"
    if width < 8:
        detail += f", {_speed(width, loaded or possible)}slow for loading, prompts and tensor split"
        cure = (
            "use a slot with 8 lanes or more (the board's manual says which share lanes with M.2), or check riser and"
            " seating"
        )
        return check(name, False, "warning", detail, cure)
    if loaded is not None and possible is not None and loaded < possible:
        cure = "set the slot's generation in the firmware instead of Auto, and check riser and seating"
        return check(name, False, "warning", f"{detail} under load, {possible} possible", cure)
    if possible is not None and own is not None and possible < own:
        cure = "the slot or the firmware's setting allows no more; an old riser is a reason to set it so"
        return check(name, False, "warning" if possible < 3 else "note", f"{detail}; the card could do {own}", cure)
    if width == 8:
        detail += ": enough, a layer split sends one row of activations per token, 32 KiB of a 70B model"
    return check(name, True, "note", detail, None)


def _least(*values: int | None) -> int | None:
    known = [value for value in values if value is not None]
    return min(known) if known else None


def _speed(width: int, gen: int | None) -> str:
    return f"{width * LANE_GB_PER_S[gen]:.1f} GB/s at most: " if gen in LANE_GB_PER_S else ""
