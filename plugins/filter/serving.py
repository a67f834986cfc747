# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters for the files of units. Each is documented in a file of its name beside this one."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError


def escaped(value: t.Any, form: str, name: str) -> str:
    """Return a value as a file of the host wants it."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import escaping

    try:
        return escaping.escaped(value, form, name)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from None


def assignments(environment: t.Mapping[str, t.Any], name: str) -> list[str]:
    """Return variables as words of Environment=, sorted by name."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import escaping

    try:
        return [escaping.assignment(variable, environment[variable], name) for variable in sorted(environment)]
    except (ValueError, TypeError) as error:
        raise AnsibleFilterError(str(error)) from None


def rpc_servers(devices: t.Any, address: str, facts: t.Any, networks: t.Any) -> list[dict[str, t.Any]]:
    """Return the RPC servers of a host, each with all its settings."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import rpc_servers as servers

    cards = facts.get("mixed_gpu_gpus", {"gpus": []})["gpus"]
    try:
        return servers.servers(devices, address, cards, networks)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from None


def api_key(value: t.Any) -> dict[str, t.Any]:
    """Return whether a server asks for a key, and the key where the variable holds it."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import access_key

    if found := access_key.problem(value, "The API key"):
        raise AnsibleFilterError(found)
    return {"wanted": access_key.wanted(value), "given": access_key.given_key(value)}


class FilterModule:
    """Filters for the files of units."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {
            "api_key": api_key,
            "assignments": assignments,
            "escaped": escaped,
            "rpc_servers": rpc_servers,
        }
