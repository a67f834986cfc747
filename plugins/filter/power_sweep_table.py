# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: power_sweep_table
short_description: Show a sweep of power limits as text
version_added: 0.1.0
description:
  - One line for each point with speed and energy, and the recommendation below.
options:
  _input:
    description: What P(homelab.mixed_gpu.power_sweep_choice#filter) returns.
    type: dict
    required: true
  gpus:
    description: The cards that were swept, of the list C(gpus) of the fact C(mixed_gpu_gpus).
    type: list
    elements: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show the sweep
  ansible.builtin.debug:
    msg: "{{ example_choice | homelab.mixed_gpu.power_sweep_table(ansible_facts['mixed_gpu_gpus'].gpus) }}"
"""

RETURN = r"""
_value:
  description: Lines of text.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import power_sweep


def power_sweep_table(choice: t.Mapping[str, t.Any], gpus: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """Return the lines; AnsibleFilterError when the input is no choice."""
    try:
        return power_sweep.table(choice, gpus)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(
            f"homelab.mixed_gpu.power_sweep_table: {error!r}: give what power_sweep_choice returned"
        ) from error


class FilterModule:
    """Filter that shows a sweep of power limits."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"power_sweep_table": power_sweep_table}
