# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who lends devices to which box, and what of that cannot work. Private to this collection. Pure functions only.

A lender is a host of the group of lenders, a box one that serves. C(lenders) and C(boxes) map names of the inventory to
the variables of each host: llama_rpc_address, mixed_gpu_box, and the pins of llama.cpp. Looks are what the module
network_info found. Problems are one sentence per host that has one, by its name.
"""

from __future__ import annotations

import typing as t
from collections import abc

from .._base import addresses
from .._base.errors import UserError
from .._base.types import Json, Mapping

Hosts = t.Mapping[str, Mapping]
Problems = dict[str, str]

#: Variables that say which llama.cpp is built; a box and its lenders speak one version of a protocol.
PINS: t.Final = (
    "llama_cpp_source", "llama_cpp_sdist_version", "llama_cpp_sdist_sha256", "llama_cpp_sdist_build_number",
    "llama_cpp_sdist_build_commit", "llama_cpp_git_url", "llama_cpp_git_version", "llama_cpp_archive_url",
    "llama_cpp_archive_sha256", "llama_cpp_archive_build_number", "llama_cpp_archive_build_commit",
    "llama_cpp_packages",
)  # fmt: skip
#: What a look holds, and of which kind.
_OF_LOOK: t.Final = {"machine_id": str, "boot_id": str, "addresses": list, "routes": abc.Mapping}
#: What the check reads of a host.
VARIABLES: t.Final = ("llama_rpc_address", "llama_rpc_devices", "llama_rpc_allowed_networks", "mixed_gpu_box", *PINS)


def box_of(name: str, lenders: Hosts, boxes: t.Collection[str]) -> str:
    """Return the box that a lender lends to. Raises UserError where that is unclear."""
    wanted = lenders[name].get("mixed_gpu_box")
    if not boxes:
        raise UserError(f"{name} lends its devices, and there is no box: add the host that serves to mixed_gpu.")
    if name in boxes:
        raise UserError(f"{name} is a box of mixed_gpu and a lender: take it out of one of the two groups.")
    if wanted and wanted not in boxes:
        known = ", ".join(sorted(boxes))
        raise UserError(f"mixed_gpu_box of {name} is {wanted!r}, which is no box; there are {known}.")
    if not wanted and len(boxes) > 1:
        known = ", ".join(sorted(boxes))
        raise UserError(f"{name} lends its devices, and there are several boxes ({known}): set its mixed_gpu_box.")
    return str(wanted or next(iter(boxes)))


def lenders_of(box: str, lenders: Hosts, boxes: t.Collection[str]) -> list[str]:
    """Return the lenders of a box, in the order of the inventory; those of an unclear box are left out."""
    found = []
    for name in lenders:
        try:
            found += [name] if box_of(name, lenders, boxes) == box else []
        except UserError:
            continue
    return found


def lent_cards(box: str, lenders: Hosts, boxes: t.Collection[str]) -> list[str]:
    """Return the cards of the lenders of a box, and how each is reached, where their variables say so."""
    found = [str(lenders[name].get("mixed_gpu_lends") or "") for name in lenders_of(box, lenders, boxes)]
    return [cards for cards in found if cards]


def routes(name: str, lenders: Hosts, boxes: t.Collection[str]) -> list[str]:
    """Return the addresses to which a host needs a route: those of its lenders for a box."""
    found = [str(lenders[one].get("llama_rpc_address") or "") for one in lenders_of(name, lenders, boxes)]
    return [address for address in found if address] if name in boxes else []


def problems_of_inventory(lenders: Hosts, boxes: Hosts, defaults: Mapping) -> Problems:
    """Return what the inventory alone shows; C(defaults) are those of the role llama_cpp."""
    found: Problems = {}
    seen: dict[str, str] = {}
    for name, variables in lenders.items():
        address = str(variables.get("llama_rpc_address") or "")
        try:
            box = box_of(name, lenders, boxes)
            if not address:
                raise UserError(
                    f"{name} has no llama_rpc_address: set the private address of {name} that {box} reaches, such as"
                    " 192.168.1.20."
                )
            addresses.check_lent(address, f"llama_rpc_address of {name}")
            addresses.check_devices(variables.get("llama_rpc_devices"), address, f" of {name}")
            _networks(name, variables)
            if address in seen:
                raise UserError(f"{name} and {seen[address]} have the llama_rpc_address {address}: list a host once.")
            _check_pins(name, variables, box, boxes[box], defaults)
        except UserError as error:
            found[name] = str(error)
        seen.setdefault(address, name)
    return found


def _check_pins(name: str, own: Mapping, box: str, of_box: Mapping, defaults: Mapping) -> None:
    """Raise UserError for a lender that asks for another llama.cpp than its box."""
    for pin in PINS:
        wanted = of_box.get(pin, defaults.get(pin))
        if pin in own and str(own[pin]) != str(wanted):
            raise UserError(
                f"{pin} is {own[pin]} for {name} and {wanted} for {box}, and all hosts of a group need the same"
                f" llama.cpp: remove {pin} from {name}, the box's value is used."
            )


def _networks(name: str, own: Mapping) -> list[str]:
    """Return who may use a lender by its own variables; nobody where they do not say. Raises UserError."""
    return addresses.clients(own.get("llama_rpc_allowed_networks") or [], f"llama_rpc_allowed_networks of {name}")


def pins_of(name: str, lenders: Hosts, boxes: Hosts, defaults: Mapping) -> Json:
    """Return the pins that a lender takes from its box, all of them; C(defaults) are those of the role llama_cpp."""
    of_box = boxes[box_of(name, lenders, boxes)]
    return {pin: of_box.get(pin, defaults[pin]) for pin in PINS}


def problems_of_hosts(
    lenders: Hosts, boxes: t.Collection[str], looks: Hosts, run: t.Collection[str], together: bool
) -> Problems:
    """Return what the looks at the hosts show; hosts without a look are left out.

    C(run) are the hosts that were to take part: a box whose lender was refused or did not answer goes no further, since
    it would be tuned without it. Other boxes go on, also where the answer of a host is malformed. With C(together) a
    box takes part with all of its lenders or not at all.
    """
    found: Problems = {}
    for name in lenders:
        if name not in looks:
            continue
        try:
            _check_host(name, lenders, boxes, looks)
        except UserError as error:
            found[name] = str(error)
    for box in (name for name in boxes if name in looks):
        own = lenders_of(box, lenders, boxes)
        lost = [one for one in own if one in found or (one not in looks and (one in run or together))]
        if lost:
            out = [] if any(one in run for one in lost) else [box, *own]
            found[box] = _without(box, lost, together, out)
    return found


def _without(box: str, lost: t.Sequence[str], together: bool, limit: t.Sequence[str]) -> str:
    """Return why a box goes no further; C(limit) are the hosts to run over where it was --limit that left some out."""
    names = " and ".join(lost)
    them, state = ("it", "was refused or does not") if len(lost) == 1 else ("them", "were refused or do not")
    if not together:
        return (
            f"{box} does not go on without {names}, which {state} answer: correct or wake {them}, or leave {them} out"
            f" with --limit {box}."
        )
    said = f"{box} and its lenders move together or not at all, so nothing was changed:"
    if limit:
        return f"{said} --limit leaves out {names}; run without it, or with {', '.join(limit)} in it."
    return f"{said} {names} {state} answer; correct or wake {them}, then run again."


def batches(lenders: Hosts, boxes: t.Collection[str], looks: Hosts) -> list[list[str]]:
    """Return the hosts that move together, a box first, then its lenders; without those that have no look."""
    groups = ([box, *lenders_of(box, lenders, boxes)] for box in boxes if box in looks)
    return [[name for name in group if name in looks] for group in groups]


def _check_host(name: str, lenders: Hosts, boxes: t.Collection[str], looks: Hosts) -> None:
    box = box_of(name, lenders, boxes)
    look = _whole(name, looks[name])
    address = str(lenders[name]["llama_rpc_address"])
    if box not in looks:
        raise UserError(
            f"{box}, the box of {name}, is not part of this run or does not answer, so the only address that may use"
            f" {name} is unknown: run without --limit, or with both hosts."
        )
    of_box = _whole(box, looks[box])
    if _same(look, of_box):
        raise UserError(f"{name} is the box {box} itself: a host's own cards are used as they are, so remove {name}.")
    for other in lenders:
        if other == name:
            break
        if other in looks and not _missing(looks[other]) and _same(look, looks[other]):
            raise UserError(f"{name} and {other} are the same host: list a host once.")
    if address not in look["addresses"]:
        own = ", ".join(one for one in look["addresses"] if not addresses.is_loopback(one)) or "none"
        raise UserError(f"llama_rpc_address of {name} is {address}, which is none of its own ({own}): correct it.")
    if address in of_box["addresses"]:
        raise UserError(f"llama_rpc_address of {name} is {address}, which is an address of {box} itself: correct it.")
    if not of_box["routes"].get(address):
        raise UserError(f"{box} has no route to {address} of {name}: put both hosts into one network.")
    _check_clients(name, lenders[name], box, of_box["routes"][address])


def _check_clients(name: str, own: Mapping, box: str, client: str) -> None:
    """Raise UserError for a lender that others than its box may use."""
    others = set(_networks(name, own)) - {addresses.network(client, "the box")}
    if others:
        raise UserError(
            f"llama_rpc_allowed_networks of {name} has {', '.join(sorted(others))}, and {box} ({client}) alone may use"
            f" {name}: remove llama_rpc_allowed_networks."
        )


def _missing(look: t.Any) -> list[str]:
    """Return what a look does not hold as it should."""
    known = look if isinstance(look, abc.Mapping) else {}
    return [name for name, kind in _OF_LOOK.items() if not isinstance(known.get(name), kind)]


def _whole(name: str, look: Mapping) -> Mapping:
    """Return the look at a host. Raises UserError for one that is malformed."""
    missing = _missing(look)
    if missing:
        raise UserError(
            f"The answer of {name} about its network holds no usable {' and no '.join(missing)}: run"
            f" homelab.mixed_gpu.site again with -vvv --limit {name}, which shows the whole answer."
        )
    return look


def _same(one: Mapping, other: Mapping) -> bool:
    """Return whether two looks saw the same host: a cloned disk has the same machine id, and another boot."""
    return bool(one["machine_id"] and one["machine_id"] == other["machine_id"] and one["boot_id"] == other["boot_id"])


def member(name: str, lenders: Hosts, boxes: Hosts, looks: Hosts) -> Json:
    """Return what a host is in the group.

    C(hosts) move together with it (see batches). Of a box also C(lenders) that take part and C(absent) ones; of a
    lender its C(box), and C(clients), the only address that may use it.
    """
    box = name if name in boxes else box_of(name, lenders, boxes)
    hosts = next((batch for batch in batches(lenders, boxes, looks) if batch[0] == box), [])
    if name == box:
        own = lenders_of(name, lenders, boxes)
        return {"hosts": hosts, "lenders": hosts[1:], "absent": [one for one in own if one not in looks]}
    address = str(lenders[name]["llama_rpc_address"])
    return {"hosts": hosts, "box": box, "clients": [looks[box]["routes"][address]]}


def variables_of(pins: Mapping, clients: t.Sequence[str]) -> Json:
    """Return what the roles llama_cpp and llama_rpc are told on a lender: the box has the chat page, and is served."""
    return {**pins, "llama_cpp_web_ui": False, "llama_rpc_allowed_networks": list(clients)}
