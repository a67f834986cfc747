# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: power_sweep_choice
short_description: Recommend power limits from measurements
version_added: 0.1.0
description:
  - Chooses the limits that use the least energy for a request among those that are at most so much slower than the
    first point. A combination of limits that were measured on one card at a time is predicted from these.
options:
  _input:
    description: What was measured, in that order, each the point of P(homelab.mixed_gpu.power_sweep_plan#filter) with
      the C(load) that M(homelab.mixed_gpu.split_benchmark) returned for it. A point may be there more than once.
    type: list
    elements: dict
    required: true
  gpus:
    description: The cards that are swept, of the list C(gpus) of the fact C(mixed_gpu_gpus).
    type: list
    elements: dict
    required: true
  objective:
    description: What a request is, C(name), C(prompt_tokens) and C(generated_tokens).
    type: dict
    required: true
  tolerance_percent:
    description: How much slower the recommended limits may be.
    type: float
    required: true
  measured_only:
    description: Whether only limits that were measured together may be recommended.
    type: bool
    default: false
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Choose
  ansible.builtin.set_fact:
    example_choice: >-
      {{ example_measurements
         | homelab.mixed_gpu.power_sweep_choice(ansible_facts['mixed_gpu_gpus'].gpus, example_objective, 3.0) }}
"""

RETURN = r"""
_value:
  description: The recommendation.
  type: dict
  contains:
    rows:
      description: Speed and energy per token of each point.
      type: list
      elements: dict
    limits_watts:
      description: The recommended limits by UUID.
      type: dict
    label:
      description: The same in words.
      type: str
    measured:
      description: Whether they were measured together; measure them otherwise, and ask again with O(measured_only).
      type: bool
    slower_percent:
      description: How much slower a request is than at the first point.
      type: float
    less_energy_percent:
      description: How much less energy it takes.
      type: float
    noise_percent:
      description: How far the loads of the first point are apart; V(none) when there is only one.
      type: float
    why:
      description: All of it in one or two sentences.
      type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import power_sweep


def power_sweep_choice(
    measurements: t.Sequence[dict[str, t.Any]], gpus: t.Sequence[t.Mapping[str, t.Any]],
    objective: t.Mapping[str, t.Any], tolerance_percent: float, measured_only: bool = False,
) -> dict[str, t.Any]:
    """Return the recommendation; AnsibleFilterError where the first point was not measured."""
    try:
        points = power_sweep.group(measurements)
        return power_sweep.choose(points, gpus, objective, tolerance_percent, measured_only)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(f"homelab.mixed_gpu.power_sweep_choice: {error}: run the sweep again") from error


class FilterModule:
    """Filter that recommends power limits."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"power_sweep_choice": power_sweep_choice}
