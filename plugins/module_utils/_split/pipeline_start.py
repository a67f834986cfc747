# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How vLLM (and SGLang) are started with pipeline parallelism, on one host and with Ray on several. Private. Pure.

Read in vLLM 0.33.0 and Ray 2.60.0. Under Ray the stages of a pipeline are in this order: the cards of the head first,
then the other nodes by Ray's own node id; within a node by PCI address, whatever CUDA_VISIBLE_DEVICES says
(get_bundles_sorted_by_node of v1/executor/ray_utils.py, _init_executor of ray_executor_v2.py).
"""

from __future__ import annotations

import ipaddress
import re
import shlex
import typing as t

from .._base.errors import UserError
from .._base.types import Mapping
from . import known_devices

VLLM_VERSION: t.Final = "0.33.0"
RAY_VERSION: t.Final = "2.60.0"
RAY_PORT: t.Final = 6379
#: vLLM's own default, and what its documentation calls every card's share.
GPU_MEMORY_UTILIZATION: t.Final = 0.92
MOST_NODES: t.Final = 16
_PARTITION: t.Final = {"vllm": "VLLM_PP_LAYER_PARTITION", "sglang": "SGLANG_PP_LAYER_PARTITION"}
_FIELDS: t.Final = {"address", "cards", "interface", "uuids"}


class Node(t.NamedTuple):
    """A host of a pipeline. C(uuids) are those of its cards by PCI address, empty for all cards that it has."""

    address: str
    profile: str
    interface: str
    uuids: tuple[str, ...]

    @property
    def cards(self) -> int:
        """How many cards it gives."""
        return len(known_devices.read_profile(self.profile).cards)

    @property
    def p2p(self) -> bool:
        """Whether its cards reach each other's memory: GeForce cards do with NVLink alone."""
        names = [device["description"] for device in known_devices.profile_devices(self.profile)]
        geforce = any("GeForce" in name for name in names)
        return len(names) == 1 or not geforce or known_devices.read_profile(self.profile).nvlink


def read_nodes(given: t.Sequence[t.Any]) -> list[Node]:
    """Return the nodes of a pipeline, the head first. Raises UserError that names what is wrong."""
    nodes = [_node(index, entry) for index, entry in enumerate(given)]
    if len(nodes) > MOST_NODES:
        raise UserError(f"mixed_gpu_nodes has {len(nodes)} entries: give at most {MOST_NODES}")
    addresses = [node.address for node in nodes]
    for address in addresses:
        if addresses.count(address) > 1:
            raise UserError(f"mixed_gpu_nodes has {address} twice: name each host once, with all its cards")
    return nodes


def _node(index: int, entry: t.Any) -> Node:
    where = f"mixed_gpu_nodes[{index}]"
    if not isinstance(entry, t.Mapping) or not set(entry) <= _FIELDS or not {"address", "cards"} <= set(entry):
        raise UserError(f"{where} is {entry!r}: give address and cards, and where wanted interface and uuids")
    try:
        address = ipaddress.ip_address(str(entry["address"]))
    except ValueError as exc:
        raise UserError(f"{where}.address is {entry['address']!r}: give the host's IP address") from exc
    if not address.is_private:
        raise UserError(f"{where}.address is {address}: Ray needs a private network, give an address of one")
    try:
        profile = known_devices.read_profile(str(entry["cards"]))
        if profile.lent:
            raise ValueError("name the cards of this host alone, and other hosts as nodes of their own")
    except ValueError as exc:
        raise UserError(f"{where}.cards: {exc}") from exc
    interface = str(entry.get("interface", ""))
    if not re.fullmatch(r"[\w.-]{0,15}", interface):
        raise UserError(f"{where}.interface is {interface!r}: give the name of a network interface")
    uuids = entry.get("uuids", [])
    if not isinstance(uuids, (list, tuple)) or not all(re.fullmatch(r"GPU-[0-9a-f-]+", str(uuid)) for uuid in uuids):
        raise UserError(f"{where}.uuids is {uuids!r}: give UUIDs of cards as nvidia-smi -L shows them")
    if uuids and len(uuids) != len(profile.cards):
        raise UserError(f"{where} has {len(uuids)} uuids and {len(profile.cards)} cards: give one for each card")
    return Node(str(address), str(entry["cards"]), interface, tuple(str(uuid) for uuid in uuids))


def environment(
    engine: str, gpus: t.Sequence[Mapping], counts: t.Sequence[int], p2p: bool
) -> dict[str, str]:
    """Return the environment of a pipeline on one host, over cards in this order. C(engine): vllm or sglang."""
    found = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if all(gpu.get("id") for gpu in gpus):
        found["CUDA_VISIBLE_DEVICES"] = ",".join(gpu["id"] for gpu in gpus)
    found[_PARTITION[engine]] = ",".join(str(count) for count in counts)
    if not p2p:
        found["NCCL_P2P_DISABLE"] = "1"
    return found


def command(engine: str, model: str | None, stages: int) -> str:
    """Return the command line for pipeline parallelism."""
    model = shlex.quote(model or "MODEL")
    if engine == "sglang":
        return f"python -m sglang.launch_server --model-path {model} --tp-size 1 --pp-size {stages}"
    return (
        f"vllm serve {model} --tensor-parallel-size 1 --pipeline-parallel-size {stages} --disable-custom-all-reduce"
    )


def serve(model: str, stages: int, context: int, ray: bool) -> str:
    """Return vLLM's command line for users beyond this host's, who come through a proxy: it listens on loopback."""
    backend = " --distributed-executor-backend ray" if ray else ""
    return (
        f"{command('vllm', model, stages)}{backend} --max-model-len {context}"
        f" --gpu-memory-utilization {GPU_MEMORY_UTILIZATION} --host 127.0.0.1 --port 8000"
    )


def node_environment(node: Node) -> dict[str, str]:
    """Return what `ray start` of a node needs; the workers of vLLM inherit it, and nothing of the head replaces it."""
    shown = f"$(ip -o addr show to {node.address} | awk '{{print $2; exit}}')"
    interface = node.interface or shown
    found = {"RAY_AUTH_MODE": "token", "VLLM_HOST_IP": node.address, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if node.uuids:
        found["CUDA_VISIBLE_DEVICES"] = ",".join(node.uuids)
    found |= {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface, "NCCL_IB_DISABLE": "1"}
    return found if node.p2p else {**found, "NCCL_P2P_DISABLE": "1"}


def ray_start(node: Node, head: str) -> str:
    """Return the command that joins a node to the cluster of C(head), or begins it there."""
    common = f"--node-ip-address={node.address} --num-gpus={node.cards} --disable-usage-stats"
    if node.address == head:
        return f"ray start --head --port={RAY_PORT} {common} --include-dashboard=false"
    return f"ray start --address={_joined(head, RAY_PORT)} {common}"


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def partition(nodes: t.Sequence[Node], counts: t.Sequence[int]) -> str:
    """Return the value of VLLM_PP_LAYER_PARTITION for a shell; C(counts) are blocks by card, in the order of the nodes.

    Which of several nodes beside the head comes first is known when Ray runs, so the value asks Ray then.
    """
    parts, rest = {}, list(counts)
    for node in nodes:
        parts[node.address], rest = ",".join(map(str, rest[: node.cards])), rest[node.cards :]
    if len({parts[node.address] for node in nodes[1:]}) < 2:
        return ",".join(parts.values())
    program = (
        f"import ray; ray.init('auto', log_to_driver=False, logging_level='ERROR'); at = {parts};"
        f" found = sorted((n['NodeManagerAddress'] != '{nodes[0].address}', n['NodeID'], n['NodeManagerAddress'])"
        " for n in ray.nodes() if n['Alive']); print(','.join(at[n[2]] for n in found))"
    )
    return f'$(RAY_AUTH_MODE=token python3 -c "{program}")'


def exports(variables: t.Mapping[str, str]) -> str:
    """Return variables before a command of a shell; values with $ are left to the shell."""
    return " ".join(
        f'{name}="{value}"' if value.startswith("$(") else f"{name}={value}" for name, value in variables.items()
    )
