# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which cards are on the PCI bus and do not answer, by name. Private to this collection. Pure functions only.

NVML says no more of a card that is lost than its index. Its slot is what the answering cards leave over; its name and
its UUID are what the host's record of measurements has of that slot, else what the list of PCI ids or the list of
expected cards says.
"""

from __future__ import annotations

import re
import typing as t

from .._base.types import Json, Mapping
from . import card_ages, nvml


def remembered(record: Mapping | None) -> list[Json]:
    """Return {id, name, pci_bus_id} of every card in the host fact mixed_gpu, each UUID once; [] without a record."""
    found: dict[str, Json] = {}
    for entry in ((record or {}).get("models") or {}).values():
        for gpu in (entry.get("fingerprint_parts") or {}).get("gpus") or []:
            if gpu.get("id"):
                found[gpu["id"]] = {key: gpu.get(key) for key in ("id", "name", "pci_bus_id")}
    return list(found.values())


def unseen(cards: t.Sequence[card_ages.Card], gpus: Mapping | None) -> list[card_ages.Card]:
    """Return the cards on the bus that NVML does not list; [] where NVML does not answer, or says no slots."""
    if not gpus or not gpus.get("driver_version"):
        return []
    slots = [gpu.get("pci_bus_id") for gpu in gpus["gpus"]]
    if not all(slots):
        return []
    seen = {card_ages.same_slot(slot) for slot in slots if slot}
    return [card for card in cards if card_ages.same_slot(card.address) not in seen]


def of_host(host: Mapping, expected: t.Sequence[str] = ()) -> list[Json]:
    """Return {pci_bus_id, name, id} of each lost card; name and id are None where nothing tells.

    `host` has nvidia_devices, gpus (the fact mixed_gpu_gpus) and recorded (the fact mixed_gpu); `expected` holds UUIDs
    or parts of names. Cards that another kernel driver holds are not lost.
    """
    devices = [device for device in host["nvidia_devices"] if device.get("driver") in ("nvidia", None)]
    names = {device["address"]: device.get("name") for device in devices}
    cards = unseen(card_ages.cards(devices), host["gpus"])
    answering = host["gpus"]["gpus"] if cards else []
    known = remembered(host.get("recorded"))
    gone = [card for card in known if card["id"] not in {gpu["id"] for gpu in answering}]
    missing = nvml.missing_gpus(list(expected), list(answering))
    return [_lost(card, names[card.address], gone, missing, len(cards) == 1) for card in cards]


def _lost(
    card: card_ages.Card, name: str | None, gone: t.Sequence[Json], missing: t.Sequence[str], alone: bool
) -> Json:
    """Return what is known of one lost card; with `alone`, what is missing can only be this card."""
    there = [old for old in gone if card_ages.same_slot(old["pci_bus_id"] or "") == card_ages.same_slot(card.address)]
    there = there or [old for old in gone if name and str(old["name"] or "").endswith(name)]
    if alone and len(gone) == 1:
        there = there or list(gone)
    uuids = [want for want in missing if want.startswith("GPU-")]
    parts = [want for want in missing if not want.startswith("GPU-")]
    said = parts[0] if alone and len(missing) == 1 and parts else None
    uuid = uuids[0] if alone and len(missing) == 1 and uuids else None
    old: Json = there[0] if there else {"name": None, "id": None}
    return {"pci_bus_id": card.address, "name": old["name"] or name or said, "id": old["id"] or uuid}


def words(card: Mapping) -> str:
    """Return a lost card as sentences name it: RTX 4060 Ti at 0000:41:00.0 (GPU-...)."""
    uuid = f" ({card['id']})" if card["id"] else ""
    return f"{card['name'] or 'an NVIDIA card'} at {card['pci_bus_id']}{uuid}"


def reason(gpus: Mapping, lost: t.Sequence[Mapping]) -> str | None:
    """Return why cards cannot be used, with their names instead of NVML's index."""
    if not gpus["reason"] or not lost:
        return gpus["reason"]
    named = " and ".join(words(card) for card in lost)
    text, number = re.subn(r"\bGPU [0-9]+: ", f"{named}: " if len(lost) == 1 else "", str(gpus["reason"]))
    return text if number and len(lost) == 1 else f"{named}: {text}"


def told(gpus: Json, devices: t.Sequence[Mapping], record: Mapping | None) -> Json:
    """Return the fact mixed_gpu_gpus with C(lost), what is known of the cards that do not answer, and named reasons."""
    lost = of_host({"nvidia_devices": devices, "gpus": gpus, "recorded": record})
    return {**gpus, "lost": lost, "reason": reason(gpus, lost)}
