# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: device_probe
short_description: Say which device is fast and which is slow
version_added: 0.1.0
description:
  - Reads what a small model did alone on each device, and ranks the devices by the time of one token.
  - Warns when the order contradicts the cards' theoretical bandwidth, where that is known.
  - Devices that differ by less than the noise share a rank and cause no warning.
positional: _input
options:
  _input:
    description: The loads of P(homelab.mixed_gpu.device_probe_loads#filter), as M(homelab.mixed_gpu.split_benchmark)
      completed them.
    type: list
    elements: dict
    required: true
  devices:
    description: The devices, as M(homelab.mixed_gpu.llama_devices_info) returns them.
    type: list
    elements: dict
    required: true
  model:
    description: The probe model, as M(homelab.mixed_gpu.gguf_info) returns it.
    type: dict
    required: true
  reserve_mib:
    description: Memory in MiB that stays free on every device.
    type: int
    required: true
  gpus:
    description: The cards, as M(homelab.mixed_gpu.gpu_facts) returns them. A device that is none of them has no
      theoretical bandwidth.
    type: list
    elements: dict
    default: []
seealso:
  - module: homelab.mixed_gpu.split_benchmark
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Rank the devices
  ansible.builtin.set_fact:
    probed: "{{ loads | homelab.mixed_gpu.device_probe(devices=listed.devices, model=small.model, reserve_mib=512) }}"

- name: Say which is which
  ansible.builtin.debug:
    msg: "{{ probed.summary }}"
"""

RETURN = r"""
_value:
  description: The result, see C(docs/data_formats.md).
  type: dict
  contains:
    devices:
      description: One entry per device with time per token, bandwidth, prefill speed and rank, or why there is none.
      type: list
      elements: dict
    weights_bytes:
      description: Bytes of weights that one token reads.
      type: int
    order:
      description: V(confirmed), V(contradicted) or V(unknown).
      type: str
    warning:
      description: One sentence when the order is contradicted, else V(none).
      type: str
    failure:
      description: One or more sentences when a device does not work, else V(none).
      type: str
    summary:
      description: One sentence for the person who watches.
      type: str
    fingerprint:
      description: The fingerprint under which the loads are stored.
      type: str
    campaign:
      description: The campaign under which the loads are stored.
      type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import probe_stage


def device_probe(
    measured: t.Any, devices: t.Any, model: t.Any, reserve_mib: int, gpus: t.Any = ()
) -> dict[str, t.Any]:
    """Return the ranked devices; AnsibleFilterError says which field does not belong there."""
    try:
        return probe_stage.assess(measured, devices, model, reserve_mib, gpus)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise AnsibleFilterError(f"device_probe: {what}; docs/data_formats.md says what belongs there") from error


class FilterModule:
    """Filters that judge devices."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"device_probe": device_probe}
