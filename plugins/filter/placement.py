# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: placement
short_description: Write a split by device id
version_added: 0.1.0
description:
  - Joins devices and layer counts, so that what is recorded keeps its meaning when the order of the devices changes.
positional: _input, layers
options:
  _input:
    description: The devices, as M(homelab.mixed_gpu.llama_devices_info) returns them.
    type: list
    elements: dict
    required: true
  layers:
    description: One whole number per device, in the same order.
    type: list
    elements: int
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show who holds what
  ansible.builtin.debug:
    msg: "{{ listed.devices | homelab.mixed_gpu.placement([45, 36]) }}"
"""

RETURN = r"""
_value:
  description: One dict with C(device) and C(layers) per device.
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import layer_split


def placement(devices: t.Any, layers: t.Any) -> list[dict[str, t.Any]]:
    """Return the split by device id; AnsibleFilterError when devices and layers do not belong together."""
    try:
        return layer_split.placement(devices, layers)
    except (KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(f"placement: {error}") from error


class FilterModule:
    """Filters that say where layers are."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"placement": placement}
