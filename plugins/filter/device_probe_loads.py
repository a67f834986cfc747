# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: device_probe_loads
short_description: List the loads that measure each device alone
version_added: 0.1.0
description:
  - Returns one load per device, with all slots of a small model on it and none on any other.
  - A device whose free memory or budget is too small for the model is left out.
positional: _input
options:
  _input:
    description: The devices, as M(homelab.mixed_gpu.llama_devices_info) returns them.
    type: list
    elements: dict
    required: true
  model:
    description: The probe model, as M(homelab.mixed_gpu.gguf_info) returns it.
    type: dict
    required: true
  tests:
    description: The tests of every load, one of them of kind C(decode) and one C(prefill).
    type: list
    elements: dict
    required: true
  reserve_mib:
    description: Memory in MiB that stays free on every device.
    type: int
    required: true
seealso:
  - plugin: homelab.mixed_gpu.device_probe
    plugin_type: filter
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show how the devices would be measured
  ansible.builtin.debug:
    msg: "{{ listed.devices | homelab.mixed_gpu.device_probe_loads(model=small.model, tests=tests, reserve_mib=512) }}"
"""

RETURN = r"""
_value:
  description: The loads, as M(homelab.mixed_gpu.split_benchmark) takes them.
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import probe_stage


def device_probe_loads(devices: t.Any, model: t.Any, tests: t.Any, reserve_mib: int) -> list[dict[str, t.Any]]:
    """Return one load per device; AnsibleFilterError says which field does not belong there."""
    try:
        return probe_stage.loads(devices, model, tests, reserve_mib)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise AnsibleFilterError(f"device_probe_loads: {what}; docs/data_formats.md says what belongs there") from error


class FilterModule:
    """Filters that judge devices."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"device_probe_loads": device_probe_loads}
