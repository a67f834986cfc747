# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: host_configuration
short_description: Put together what can move the speed of a recorded split
version_added: 0.1.0
description:
  - Returns in clear, from what is known without touching a device, everything that can change how fast or whether a
    recorded
    split runs. Two of them are compared by a revalidation.
positional: _input
options:
  _input:
    description: Entry of the host's facts, C(ansible_local.mixed_gpu.models[deployment]).
    type: dict
    required: true
  build:
    description: Key of the llama.cpp build in use.
    type: str
    required: true
  gpus:
    description: The fact C(mixed_gpu_gpus) of M(homelab.mixed_gpu.gpu_facts).
    type: dict
    required: true
  host:
    description: RV(homelab.mixed_gpu.host_info#module:host) of M(homelab.mixed_gpu.host_info).
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show what a revalidation would compare
  ansible.builtin.debug:
    msg: "{{ example_entry | homelab.mixed_gpu.host_configuration(build='b1', gpus=mixed_gpu_gpus, host=info.host) }}"
"""

RETURN = r"""
_value:
  description: The C(configuration) of a baseline.
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import baselines


def host_configuration(entry: t.Any, build: str, gpus: t.Any, host: t.Any) -> dict[str, t.Any]:
    """Return the configuration; AnsibleFilterError names the field that is wrong."""
    try:
        return baselines.configuration(entry, build, gpus, host)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise AnsibleFilterError(f"host_configuration: {what}; docs/data_formats.md says what belongs there") from error


class FilterModule:
    """Filters that describe hosts."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"host_configuration": host_configuration}
