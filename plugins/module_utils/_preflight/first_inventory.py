# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The first inventory of a box, from what its kernel says and what its owner wishes. Private. Pure functions only."""

from __future__ import annotations

import json
import typing as t

from .._base import addresses
from .._base.errors import UserError
from .._base.types import Json, Mapping
from .._hardware import known_cards
from .._models import catalogue
from .._planner import catalogue_fit
from .._split import known_devices

MIB: t.Final = 1 << 20
#: What cards need beside the weights, as a part of them, for a model whose shape is not known.
BESIDE_WEIGHTS: t.Final = 0.1
VARIABLES: t.Final = "group_vars/mixed_gpu/main.yml"
VAULT: t.Final = "group_vars/mixed_gpu/vault.yml"


class Wishes(t.NamedTuple):
    """What the owner says: name and address of the box, user there, model, context, and networks that may ask it."""

    name: str
    address: str = ""
    user: str = ""
    model: str = ""
    context_size: int = 8192
    networks: tuple[str, ...] = ()


def cards(host: t.Mapping[str, t.Any]) -> list[Json]:
    """Return the cards on the PCI bus: name (None where unknown) and address."""
    return known_cards.of_host({**host, "gpus": host.get("gpus")})


def model_of(found: t.Sequence[Json], wished: str, context_size: int) -> tuple[str, str]:
    """Return the id of the model to begin with, and the reason. UserError for an id that the catalogue lacks."""
    if wished:
        if wished not in catalogue.CATALOGUE:
            raise UserError(f"model is {wished!r}, which is not in the catalogue ({', '.join(catalogue.CATALOGUE)}).")
        return wished, "as wished"
    sizes = {name: model.size_bytes for name, model in catalogue.CATALOGUE.items() if not model.drafts_for}
    known = [card for each in found if (card := known_cards.named(each["name"])) is not None]
    if not known or len(known) < len(found):
        smallest = min(sizes, key=sizes.__getitem__)
        return smallest, "the smallest of the catalogue, because the memory of the cards is not known"
    room_mib = sum(card.free_mib for card in known)
    devices = known_devices.card_devices(known)
    fitting = {name: size for name, size in sizes.items() if _fits(name, devices, room_mib, context_size)}
    if not fitting:
        return "", "none of the catalogue fits; homelab.mixed_gpu.plan -e model_repo=OWNER/NAME tells of others"
    return max(fitting, key=fitting.__getitem__), f"the largest of the catalogue that fits {room_mib} MiB"


def _fits(name: str, devices: t.Sequence[Mapping], room_mib: int, context_size: int) -> bool:
    model = catalogue.CATALOGUE[name]
    if model.shape:
        return catalogue_fit.usable(model.shape, devices, context_size) is not None
    return model.size_bytes * (1 + BESIDE_WEIGHTS) < room_mib * MIB


def files(host: t.Mapping[str, t.Any], wishes: Wishes) -> dict[str, str]:
    """Return the text of each file by its path below the inventory. UserError for a wish that cannot be met."""
    networks = [str(network) for network in addresses.networks(list(wishes.networks), "networks")]
    if wishes.context_size < 1:
        raise UserError(f"context_size is {wishes.context_size}; it must be at least 1.")
    found = cards(host)
    model, why = model_of(found, wishes.model, wishes.context_size)
    return {
        "hosts.yml": _hosts(wishes),
        VARIABLES: _variables(host, found, model, why, wishes.context_size, networks),
        VAULT: _VAULT,
    }


def next_steps(directory: str, wishes: Wishes, kept: t.Sequence[str]) -> list[str]:
    """Return what to do next, one line each; C(kept) are files that were there already."""
    become = "" if wishes.user == "root" else " --ask-become-pass"
    command = f"ansible-playbook -i {directory}{become} homelab.mixed_gpu"
    return [
        *(f"{directory}/{path} was there already and was left as it is." for path in kept),
        f"Look through {directory}/{VARIABLES}, then check, install, tune and serve:",
        f"  {command}.preflight",
        f"  {command}.site --check",
        f"  {command}.site",
    ]


def _hosts(wishes: Wishes) -> str:
    lines = ["---", "mixed_gpu:", "  hosts:", f"    {wishes.name}:"]
    if wishes.address:
        lines.append(f"      ansible_host: {json.dumps(wishes.address)}")
        lines += [f"      ansible_user: {json.dumps(wishes.user)}"] if wishes.user else []
    else:
        lines.append("      ansible_connection: local")
    return "\n".join([*lines, _CONNECTION])


def _variables(
    host: t.Mapping[str, t.Any], found: t.Sequence[Json], model: str, why: str, context: int, networks: t.Sequence[str]
) -> str:
    system = host["os"].get("pretty_name") or "an unknown system"
    names = [card["name"] or f"an unknown card at {card['pci_bus_id']}" for card in found]
    drafts = catalogue.drafts_of(model)
    known = [card["name"].removeprefix("NVIDIA GeForce ") for card in found if card["name"]]
    return "\n".join([
        "---",
        f"# Found: {system}, {host['memory_total_mib']} MiB of memory, cards: {', '.join(names) or 'none'}.",
        "# Everything else has a default: ansible-doc -t role homelab.mixed_gpu.ROLE",
        "",
        f"# The model to serve: {why}.",
        "# homelab.mixed_gpu.models lists the ready entries.",
        *([f"# With {' or '.join(drafts)} beside it, drafts are tried, too."] if drafts else []),
        f"llm_models: {json.dumps([{'id': model}] if model else [])}",
        f"split_tuning_model_id: {json.dumps(model)}",
        "# Tokens that a conversation may have.",
        f"split_tuning_context_size: {context}",
        "",
        "# Stop at once when a card is missing (parts of names, or UUIDs of `nvidia-smi -L`).",
        f"host_preflight_gpus_expected: {json.dumps(known)}",
        "# A card that also drives a desktop: never plan more than this on it (MiB, by UUID).",
        "split_tuning_device_budget_mib: {}",
        "",
        "# Reboot when the driver needs it? Otherwise the play ends and says so.",
        "nvidia_driver_reboot_ok: false",
        "# What the power supply delivers, for the power budget in the preflight.",
        "# gpu_power_psu_watts: 1300",
        "",
        "# Who may ask the server: this box alone (127.0.0.1), or the networks that are named.",
        f"llama_server_host: {'0.0.0.0' if networks else '127.0.0.1'}",
        f"llama_server_allowed_networks: {json.dumps(list(networks))}",
        "# A key is generated on the box. For one of your own, put it into vault.yml and write here:",
        '# llama_server_api_key: "{{ vault_llama_server_api_key }}"',
        "",
    ])  # fmt: skip


_CONNECTION: t.Final = """\
  vars:
    # a host that answers no more is noticed after a minute; what it measures goes on and is stored
    ansible_ssh_common_args: -o ServerAliveInterval=15 -o ServerAliveCountMax=4
"""
_VAULT: t.Final = """---
# Secrets. Encrypt this file before you write one: ansible-vault encrypt vault.yml, then ansible-vault edit vault.yml.
# Plays then need --ask-vault-pass.
# vault_llama_server_api_key: at least 16 characters
# vault_hub_token: for models that need an account
"""
