# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters on the units that serve. Each is documented in a file of its name beside this one."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError


def llama_server_command(entry: t.Any, settings: t.Any) -> dict[str, t.Any]:
    """Return how a deployment is served."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import escaping
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_server

    try:
        result = llama_server.command(entry, settings)
        words = [escaping.escaped(word, "argument", "llama_server_extra_arguments") for word in result["arguments"]]
        ways = [f"--lender={name}" for name in result["lenders"]]
        ways += [f"--protocol={result['rpc_protocol']}"] if ways and result["rpc_protocol"] else []
        ways += [f"--placement={text}" for text in result["placements"]]
        choose = [escaping.escaped(word, "argument", "split_tuning_rpc_endpoints") for word in ways]
    except UserError as error:
        raise AnsibleFilterError(str(error)) from None
    except (KeyError, TypeError, ValueError) as error:
        what = f"the deployment has no {error}" if isinstance(error, KeyError) else str(error)
        raise AnsibleFilterError(f"llama_server_command: {what}: run the tuning play again") from None
    return {**result, "exec_start": words, "choose": choose}


def llama_server_url(host: str, port: int) -> str:
    """Return where a server that binds to an address is reached on its own host."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_server

    return llama_server.url(host, port)


def unit_sandbox(
    device_nodes: t.Any, networks: t.Any, engine: str = "llama_cpp", cache: str = "", nccl: bool = False
) -> list[str]:
    """Return the sandbox of a unit, as lines."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import unit_sandbox as sandbox

    if engine == "none":
        return list(sandbox.EVERY_UNIT)
    found = sandbox.lines(engine, device_nodes, networks, nccl)
    return found + (sandbox.cache_lines(engine, cache) if cache and device_nodes else [])


class FilterModule:
    """Filters on the units that serve."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {
            "llama_server_command": llama_server_command,
            "llama_server_url": llama_server_url,
            "unit_sandbox": unit_sandbox,
        }
