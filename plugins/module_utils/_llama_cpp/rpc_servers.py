# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which RPC servers a host runs, where each listens and for whom. Private to this collection. Pure functions only."""

from __future__ import annotations

import re
import typing as t

from .._base import addresses, unit_sandbox
from .._base.errors import UserError
from .._base.types import Json, Mapping
from .._split import engines

#: Port of the first card that is lent; the next ones follow.
FIRST_PORT: t.Final = 50052
_DEFAULTS: t.Final = {
    "program": "/opt/llama.cpp/current/bin/ggml-rpc-server", "threads": 1, "device": "", "environment": {},
}  # fmt: skip


def servers(given: t.Sequence[Mapping], address: str, gpus: t.Sequence[Mapping], networks: t.Any) -> list[Json]:
    """Return the servers of a host, each with all its settings.

    C(given) is llama_rpc_devices, C(address) llama_rpc_address ("": nothing is lent), C(gpus) the cards of gpu_facts,
    C(networks) llama_rpc_allowed_networks. A host that lends and names no devices lends each card. Added to each are
    C(unit), C(endpoint), C(networks) (for IPAddressAllow=), C(filtered) (whether other hosts reach it) and C(nodes)
    (for DeviceAllow=).
    Raises UserError for a host that lends nothing, for a server that anybody would reach, and for names and ports that
    two servers share or that are no part of a unit's name.
    """
    devices = list(given)
    _check_names(devices)
    if address:
        addresses.check_lent(address, "llama_rpc_address")
        addresses.check_devices(devices, address)
        devices = devices or [_of_card(index, str(gpu["id"])) for index, gpu in enumerate(gpus)]
        if not devices:
            raise UserError(
                "this host lends nothing: the driver reports no card, and llama_rpc_devices is empty; look at"
                " nvidia-smi, or name devices."
            )
    return [_whole(device, address, networks) for device in devices]


def _check_names(devices: t.Sequence[Mapping]) -> None:
    for device in devices:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", str(device["name"])):
            raise UserError(
                f'llama_rpc_devices has an entry named "{device["name"]}", which cannot be part of a unit\'s name: use'
                " lower case letters, digits and hyphens."
            )
    for key in ("name", "port"):
        if len({str(device[key]) for device in devices}) < len(devices):
            raise UserError(f"Two entries of llama_rpc_devices have the same {key}; give each its own.")


def _of_card(index: int, identity: str) -> Json:
    """Return the server of one card, which is the only one that its program sees."""
    environment = engines.cuda_environment([identity])
    return {"name": f"card{index}", "port": FIRST_PORT + index, "device": "CUDA0", "environment": environment}


def _whole(device: Mapping, address: str, networks: t.Any) -> Json:
    found: Json = {**_DEFAULTS, "host": address or "127.0.0.1", **device}
    host = str(found["host"])
    filtered = not addresses.is_loopback(host)
    if filtered:
        addresses.check_lent(host, f"host of {found.get('name')} in llama_rpc_devices")
    clients = addresses.clients(networks, "llama_rpc_allowed_networks") if filtered else [addresses.LOOPBACK]
    if not clients:
        raise UserError(
            f"the RPC server {found.get('name')} is to bind to {host}, and llama_rpc_allowed_networks is empty; set it"
            " to the addresses of the hosts that use it, such as [192.168.1.5]."
        )
    nodes = unit_sandbox.nodes([str(found["device"])])
    return {
        **found, "unit": f"ggml-rpc-server-{found['name']}.service", "endpoint": f"{host}:{found['port']}",
        "networks": clients, "filtered": filtered, "nodes": nodes,
    }  # fmt: skip
