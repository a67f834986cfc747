# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: diagnosis
short_description: Judge what was seen of a server's devices
version_added: 0.1.0
description:
  - Compares how busy each device was with what the record of the tuning expects of this split, names what is in the
    way, and says which layers to move, if any.
options:
  _input:
    description: The deployment's entry in the host's facts.
    type: dict
    required: true
  watched:
    description: What M(homelab.mixed_gpu.llama_server_watch) returned.
    type: dict
    required: true
  server:
    description: What M(homelab.mixed_gpu.llama_server_info) returned, with C(deviations).
    type: dict
    required: true
  baseline:
    description: Text of the host's baseline of this deployment, empty where there is none.
    type: str
    default: ""
  tolerance_percent:
    description: A device is called slower or faster only beyond this.
    type: float
    default: 10.0
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Judge
  ansible.builtin.set_fact:
    example_diagnosis: "{{ example_entry | homelab.mixed_gpu.diagnosis(example_watched, server=example_server) }}"
"""

RETURN = r"""
_value:
  description: The diagnosis, see C(docs/data_formats.md).
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._diagnosis import findings

Json = dict[str, t.Any]


def diagnosis(entry: Json, watched: Json, server: Json, baseline: str = "", tolerance_percent: float = 10.0) -> Json:
    """Return the diagnosis; AnsibleFilterError when an input is not what it is said to be."""
    try:
        return findings.diagnose(entry, watched, server, baseline, float(tolerance_percent))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(
            f"homelab.mixed_gpu.diagnosis: {error!r}: give a deployment of the host's facts, and what "
            "llama_server_watch and llama_server_info returned; a record of before this release is brought up to date "
            "by running site"
        ) from error


class FilterModule:
    """Filter that diagnoses."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"diagnosis": diagnosis}
