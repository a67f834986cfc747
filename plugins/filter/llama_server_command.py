# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: llama_server_command
short_description: Turn a recorded deployment into llama-server's arguments and environment
version_added: 0.1.0
description:
  - Sets every flag that decides memory or speed, so that nothing depends on llama-server's defaults.
  - Only devices that hold a layer are named. CUDA devices are selected by UUID and renumbered accordingly.
options:
  _input:
    description: One entry of the host's facts, C(ansible_local.mixed_gpu.models[deployment]).
    type: dict
    required: true
  settings:
    description:
      - What the facts do not decide. Needs the keys C(host), C(port), C(alias), C(cache_ram_mib), C(cors_origins),
        C(log_verbosity), C(extra_arguments) and C(allowed_networks).
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Look at the command line of the active deployment
  ansible.builtin.debug:
    msg: "{{ ansible_local.mixed_gpu.models[ansible_local.mixed_gpu.active]
      | homelab.mixed_gpu.llama_server_command(example_settings) }}"
  vars:
    example_settings:
      host: 127.0.0.1
      port: 8080
      alias: example
      cache_ram_mib: 0
      cors_origins: localhost
      log_verbosity: 4
      extra_arguments: []
      allowed_networks: []
"""

RETURN = r"""
_value:
  description: How the deployment is served.
  type: dict
  contains:
    arguments:
      description: The words after the program, without the API key.
      type: list
      elements: str
    exec_start:
      description: The same words, quoted for a systemd unit.
      type: list
      elements: str
    environment:
      description: Environment of the process.
      type: dict
    device_nodes:
      description: Device groups that the unit must allow; empty when it needs none.
      type: list
      elements: str
    local:
      description: Whether the server listens on and talks to this host alone.
      type: bool
    networks:
      description: The only networks that the unit may talk to; empty means that there is no filter.
      type: list
      elements: str
    layers:
      description: Slots on each device in use.
      type: list
      elements: int
    url:
      description: Where this host reaches the server.
      type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import systemd
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_server


def llama_server_command(deployment: t.Mapping[str, t.Any], settings: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return how a deployment is served."""
    try:
        result = llama_server.command(deployment, settings)
    except KeyError as exc:
        raise AnsibleFilterError(
            f"homelab.mixed_gpu.llama_server_command: the deployment has no {exc}: run the tuning play again"
        ) from exc
    except (TypeError, ValueError) as exc:
        raise AnsibleFilterError(f"homelab.mixed_gpu.llama_server_command: {exc}: run the tuning play again") from exc
    return {**result, "exec_start": [systemd.quoted(word) for word in result["arguments"]]}


class FilterModule:
    """Filter that builds llama-server's command line."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"llama_server_command": llama_server_command}
