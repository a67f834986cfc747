# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Devices as llama.cpp lists them, with the id that names a card everywhere else. Private to this collection.

Pure functions only. docs/data_formats.md describes a device.
"""

from __future__ import annotations

import re
import typing as t

from .._base.errors import UserError
from .._base.types import Mapping
from .types import Device, ListedDevice

D = t.TypeVar("D", bound=Device)

#: The variable, and what a play of one's own gives the modules that list devices.
_BUDGETS: t.Final = "split_tuning_device_budget_mib (budgets_mib)"
#: How cards are named.
_CARD: t.Final = re.compile(r"CUDA\d+|GPU-.*")


def identify(devices: t.Sequence[ListedDevice], cuda_ids: t.Sequence[str]) -> list[Device]:
    """Return the devices with C(id) and an empty C(budget_mib).

    RPC devices are known by their endpoint (a second device of one endpoint by endpoint#1), CUDA devices by their
    place in C(cuda_ids), all others by their name. Raises UserError when the ids do not match the devices.
    """
    cuda = [entry["device"] for entry in devices if entry["backend"] == "CUDA"]
    if cuda_ids and len(cuda_ids) != len(cuda):
        raise UserError(
            f"cuda_ids names {len(cuda_ids)} cards ({', '.join(cuda_ids)}) but llama.cpp sees {len(cuda)} CUDA"
            f" devices ({', '.join(cuda) or 'none'}): give one id (UUID) for each, in the order of CUDA_VISIBLE_DEVICES"
        )
    by_name = dict(zip(cuda, cuda_ids, strict=False))
    result: list[Device] = []
    for entry in devices:
        name = str(entry["device"])
        identity = by_name.get(name, name)
        if entry["backend"] == "RPC":
            endpoint = str(entry["description"])
            earlier = sum(1 for other in result if other["backend"] == "RPC" and other["description"] == endpoint)
            identity = f"{endpoint}#{earlier}" if earlier else endpoint
        if any(other["id"] == identity for other in result):
            raise UserError(f"two devices have the id {identity}: every entry of cuda_ids must be a different card")
        result.append({**entry, "id": identity, "budget_mib": None})
    return result


def endpoint_of(identity: str) -> str:
    """Return the endpoint that an RPC device is behind, by its id; the id of any other device as it is."""
    return identity.partition("#")[0]


def set_budgets(devices: t.Sequence[D], budgets_mib: Mapping) -> list[D]:
    """Return the devices with C(budget_mib) from C(budgets_mib) alone, whose keys are ids or llama.cpp's names."""
    _refuse(
        [str(key) for key in budgets_mib if not any(key in (one["id"], one["device"]) for one in devices)], devices
    )
    result = [t.cast(D, {**entry, "budget_mib": None}) for entry in devices]
    for key, value in budgets_mib.items():
        device = next(entry for entry in result if key in (entry["id"], entry["device"]))
        try:
            budget = int(value)
        except (TypeError, ValueError):
            budget = 0
        if isinstance(value, bool) or budget < 1 or str(budget) != str(value).strip():
            raise UserError(f"{_BUDGETS} gives {key} {value!r}: a budget is a whole number of MiB, at least 1")
        if device["budget_mib"] not in (None, budget):
            raise UserError(f"{_BUDGETS} names {device['id']} by id and by name with different values: keep one")
        device["budget_mib"] = budget
    return result


def check_budgets(
    budgets_mib: Mapping, gpus: Mapping | None, endpoints: t.Sequence[str] | None = None
) -> None:
    """Raise UserError for budgets of cards and endpoints that are not there, before the engine lists its devices.

    C(gpus): the fact of gpu_facts. C(endpoints) is None where those of lenders are not known yet. Other names are the
    engine's own, which set_budgets judges.
    """
    asked = gpus is not None and gpus["available"]
    cards = [
        {"device": f"CUDA{index}", "id": str(gpu["id"])} for index, gpu in enumerate(gpus["gpus"] if gpus else ())
    ]
    known = {name for card in cards for name in card.values()}
    lent = [{"device": endpoint, "id": endpoint} for endpoint in endpoints or ()]
    strange = [
        key for key in map(str, budgets_mib)
        if (asked and _CARD.fullmatch(key) and key not in known)
        or (":" in key and endpoints is not None and endpoint_of(key) not in endpoints)
    ]  # fmt: skip
    _refuse(strange, [*cards, *lent])


def _refuse(strange: t.Sequence[str], devices: t.Sequence[Mapping]) -> None:
    """Raise UserError for names of budgets that no device has."""
    if strange:
        verb = "which is" if len(strange) == 1 else "which are"
        raise UserError(
            f"{_BUDGETS} names {', '.join(strange)}, {verb} none of the devices here: {describe(devices)}"
        )


def in_order(devices: t.Sequence[Device], expected: t.Sequence[Mapping]) -> list[Device]:
    """Return the devices in the order of those that are expected, as an earlier listing had them.

    Raises UserError where others are there, cards are listed in another order, or RPC devices have other names: names
    follow the order. Devices of different kinds may be listed in another order than is expected.
    """
    found, wanted = ([str(entry["id"]) for entry in several] for several in (devices, expected))
    cards, names = cuda_ids(devices), _rpc_names(devices)
    same = set(found) == set(wanted) and cards == [one for one in wanted if one in cards]
    if expected and not (same and names == _rpc_names(expected)):
        raise UserError(
            f"the devices are not those expected, or not in that order: found {', '.join(found) or 'none'}, expected "
            f"{', '.join(wanted)}; check CUDA_DEVICE_ORDER=PCI_BUS_ID, CUDA_VISIBLE_DEVICES and the order of"
            " rpc_endpoints"
        )
    by_id = {str(entry["id"]): entry for entry in devices}
    return [by_id[one] for one in wanted or found]


def _rpc_names(devices: t.Iterable[Mapping]) -> dict[str, str]:
    return {str(one["id"]): str(one["device"]) for one in devices if one["backend"] == "RPC"}


def missing_endpoints(devices: t.Sequence[Mapping], rpc_endpoints: t.Sequence[str]) -> list[str]:
    """Return the endpoints that were asked for and offer no device."""
    there = {entry["description"] for entry in devices if entry["backend"] == "RPC"}
    return [endpoint for endpoint in rpc_endpoints if endpoint not in there]


def describe(devices: t.Sequence[Mapping]) -> str:
    """Return the devices as C(RPC0 (127.0.0.1:50052), ...), or C(none)."""
    names = [str(e["device"]) if e["id"] == e["device"] else f"{e['device']} ({e['id']})" for e in devices]
    return ", ".join(names) or "none"


def cuda_ids(devices: t.Iterable[Mapping]) -> list[str]:
    """Return the ids of the CUDA cards among the devices, in order. A card that has only llama.cpp's name has none."""
    return [str(one["id"]) for one in devices if one["backend"] == "CUDA" and one["id"] != one["device"]]
