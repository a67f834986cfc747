# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: llama_server_shortfalls
short_description: Find the cards whose free memory no longer covers the plan
version_added: 0.1.0
description:
  - Compares the planned memory of a recorded deployment with what NVML says is free on each card now.
  - Devices that NVML does not see, such as RPC servers, are left out.
options:
  _input:
    description: One entry of the host's facts, C(ansible_local.mixed_gpu.models[deployment]).
    type: dict
    required: true
  gpus:
    description: The list C(gpus) of the fact C(mixed_gpu_gpus).
    type: list
    elements: dict
    required: true
  own_pids:
    description: Processes that are about to be stopped, whose memory counts as free.
    type: list
    elements: int
    default: []
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Stop when a card is too full for the plan
  ansible.builtin.assert:
    that: example_shortfalls | length == 0
    fail_msg: "{{ example_shortfalls | map(attribute='sentence') | join(' ') }}"
  vars:
    example_entry: "{{ ansible_local.mixed_gpu.models[ansible_local.mixed_gpu.active] }}"
    example_gpus: "{{ ansible_facts['mixed_gpu_gpus'].gpus }}"
    example_shortfalls: "{{ example_entry | homelab.mixed_gpu.llama_server_shortfalls(example_gpus) }}"
"""

RETURN = r"""
_value:
  description: One entry per card that is absent or too full; an empty list when all is well.
  type: list
  elements: dict
  contains:
    id:
      description: UUID of the card.
      type: str
    device:
      description: Its name for llama-server.
      type: str
    needed_mib:
      description: Memory that the plan counts on it.
      type: int
    free_mib:
      description: Memory that is free now, with the memory of O(own_pids).
      type: int
    missing_mib:
      description: The difference.
      type: int
    processes:
      description: Processes that hold memory of the card.
      type: list
      elements: dict
    sentence:
      description: All of it in one sentence.
      type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_server


def llama_server_shortfalls(
    deployment: t.Mapping[str, t.Any], gpus: t.Sequence[t.Mapping[str, t.Any]], own_pids: t.Sequence[int] = ()
) -> list[dict[str, t.Any]]:
    """Return the cards that the plan does not fit on now."""
    try:
        return llama_server.memory_shortfalls(deployment, gpus, own_pids)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise AnsibleFilterError(
            f"homelab.mixed_gpu.llama_server_shortfalls: {exc}: run the tuning play again"
        ) from exc


class FilterModule:
    """Filter that compares planned with free memory."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"llama_server_shortfalls": llama_server_shortfalls}
