# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which device holds which layers of a deployment. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.types import Mapping
from . import device_list, network_links
from .types import Placed, UsedDevice

_NEEDED = ("model", "serving", "devices", "placement", "split_mode", "rpc_endpoints")


def by_id(devices: t.Sequence[Mapping], layers: t.Sequence[int]) -> list[Placed]:
    """Return a split as C([{id, layers}]), one row per device, so that another order cannot change its meaning.

    Devices without a layer are kept. Raises ValueError when the two lists do not belong together.
    """
    if len(devices) != len(layers):
        raise ValueError(f"{len(layers)} layer counts do not belong to {len(devices)} devices")
    return [{"id": str(device["id"]), "layers": int(count)} for device, count in zip(devices, layers, strict=True)]


def without_idle_lenders(endpoints: t.Sequence[str], places: t.Iterable[Placed], draft: str | None) -> list[str]:
    """Return the RPC endpoints without those of other hosts whose devices hold neither layers nor the draft."""
    idle: set[str] = set()
    busy = {device_list.endpoint_of(str(draft))}
    for place in places:
        (busy if place["layers"] else idle).add(device_list.endpoint_of(place["id"]))
    left_out = (idle - busy).intersection(network_links.remote(endpoints))
    return [endpoint for endpoint in endpoints if endpoint not in left_out]


def served_endpoints(deployment: Mapping) -> list[str]:
    """Return the RPC endpoints that a server connects to, in the order of the recorded ones."""
    draft = (deployment.get("speculation") or {}).get("device")
    return without_idle_lenders(deployment["rpc_endpoints"], deployment["placement"], draft)


def device_names(deployment: Mapping) -> dict[str, str]:
    """Return llama.cpp's name of each recorded device by its id, as a server calls it.

    CUDA devices are numbered under engines.cuda_environment of the cards, those of RPC in the order of --rpc over the
    endpoints that the server connects to. Others keep the recorded name.
    """
    names = {device["id"]: device["device"] for device in deployment["devices"]}
    served = served_endpoints(deployment)
    cards = [device["id"] for device in deployment["devices"] if device["backend"] == "CUDA"]
    remote = [device["id"] for device in deployment["devices"] if device["backend"] == "RPC"]
    remote = [name for name in remote if device_list.endpoint_of(name) in served]
    remote.sort(key=lambda name: (served.index(device_list.endpoint_of(name)), name))
    numbered = {"CUDA": cards, "RPC": remote}
    return names | {name: f"{kind}{at}" for kind, ids in numbered.items() for at, name in enumerate(ids)}


def used_devices(deployment: Mapping) -> list[UsedDevice]:
    """Return the devices that hold at least one slot, in order: C({id, device, backend, layers, mib, ...}).

    C(device) is the name under engines.cuda_environment of the recorded cards. C(mib) is what the plan counts, or None.
    Raises ValueError with one sentence when the entry does not fit together.
    """
    missing = [key for key in _NEEDED if key not in deployment]
    if missing:
        raise ValueError(f"the deployment has no {', '.join(missing)}")
    placement = {place["id"]: int(place["layers"]) for place in deployment["placement"]}
    planned = (deployment.get("decision") or {}).get("mib") or []
    used: list[UsedDevice] = []
    names = device_names(deployment)
    for index, device in enumerate(deployment["devices"]):
        name = names[device["id"]]
        layers = placement.pop(device["id"], 0)
        if layers > 0:
            mib = planned[index] if index < len(planned) else None
            used.append(t.cast(UsedDevice, {**device, "device": name, "layers": layers, "mib": mib}))
    if placement:
        raise ValueError(f"the placement names {', '.join(sorted(placement))}, which is not among the recorded devices")
    if not used:
        raise ValueError("the placement gives no device any layer")
    return used
