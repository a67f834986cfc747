# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: exllama_placement
short_description: What the host's facts say of a tuned ExLlama beyond a tuned llama.cpp
version_added: 0.1.0
description:
  - Looks for the load that placed the chosen layers and returns its C(gpu_split_gb) and memory, with the engine.
  - For a deployment of llama.cpp there is nothing beyond, and the result is empty.
positional: _input, entry
options:
  _input:
    description: The measured loads.
    type: list
    elements: dict
    required: true
  entry:
    description: The entry that is about to be recorded, with C(serving) and C(decision).
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show what is added
  ansible.builtin.debug:
    msg: "{{ example_loads | homelab.mixed_gpu.exllama_placement(example_entry) }}"
"""

RETURN = r"""
_value:
  description: C(engine), C(gpu_split_gb) in the order of the entry's devices, and C(loaded); or nothing.
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import exllama_bench


def exllama_placement(loads: t.Any, entry: t.Any) -> dict[str, t.Any]:
    """Return what is added to an entry; AnsibleFilterError when no load placed the chosen layers."""
    try:
        return exllama_bench.recorded(loads, entry)
    except (KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(f"exllama_placement: {error}") from error


class FilterModule:
    """Filters that say where layers are."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"exllama_placement": exllama_placement}
