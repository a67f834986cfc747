# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: power_sweep_plan
short_description: Say at which power limits to measure
version_added: 0.1.0
description:
  - All cards at their highest limit first, then each card at each lower limit, the others staying at their highest.
options:
  _input:
    description: The cards to sweep, of the list C(gpus) of the fact C(mixed_gpu_gpus).
    type: list
    elements: dict
    required: true
  fractions:
    description: Limits as fractions of each card's default limit; what is less than a card accepts is raised to that.
    type: list
    elements: float
    required: true
  limits_watts:
    description: Lists of limits by UUID, for cards whose limits are not to come from O(fractions).
    type: dict
    default: {}
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show what would be measured
  ansible.builtin.debug:
    msg: "{{ ansible_facts['mixed_gpu_gpus'].gpus | homelab.mixed_gpu.power_sweep_plan([1.0, 0.8, 0.6]) }}"
"""

RETURN = r"""
_value:
  description: The points to measure, in this order.
  type: list
  elements: dict
  contains:
    label:
      description: The limits in words.
      type: str
      sample: 315 + 350 W
    limits_watts:
      description: The limits by UUID.
      type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import power_sweep


def power_sweep_plan(
    gpus: t.Sequence[t.Mapping[str, t.Any]], fractions: t.Sequence[float],
    limits_watts: t.Mapping[str, t.Sequence[float]] | None = None,
) -> list[dict[str, t.Any]]:
    """Return the points to measure; AnsibleFilterError when the cards do not take what was asked for."""
    try:
        return power_sweep.plan(gpus, fractions, limits_watts or {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(f"homelab.mixed_gpu.power_sweep_plan: {error}: correct the limits to sweep") from error


class FilterModule:
    """Filter that plans a sweep of power limits."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"power_sweep_plan": power_sweep_plan}
