# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: baseline_step
short_description: Ask whether a baseline needs another load
version_added: 0.1.0
description:
  - Takes the problem of a tuning that is decided, and says which loads of the chosen split, as it is served, a later
    revalidation
    can compare with, and whether another load is needed before a slowdown of the tolerance could be seen.
positional: _input
options:
  _input:
    description: The problem of P(homelab.mixed_gpu.split_plan#filter).
    type: dict
    required: true
  decision:
    description: The decision about it.
    type: dict
    required: true
  loads:
    description: All loads of the campaign, and those that were asked for here.
    type: list
    elements: dict
    required: true
  most_loads:
    description: At most so many loads.
    type: int
    required: true
  tolerance_percent:
    description: Slowdown that a later revalidation is to see.
    type: float
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Ask for the next load of the baseline
  ansible.builtin.set_fact:
    example_step: >-
      {{ example_problem | homelab.mixed_gpu.baseline_step(decision=example_plan.decision, loads=example_loads,
         most_loads=6, tolerance_percent=3) }}
"""

RETURN = r"""
_value:
  description: C(done), C(loads) to measure next, C(reference) loads, C(smallest_visible_percent) by test, and C(why).
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import baselines


def baseline_step(
    problem: t.Any, decision: t.Any, loads: t.Any, most_loads: int, tolerance_percent: float
) -> dict[str, t.Any]:
    """Return how the baseline goes on; AnsibleFilterError names the field that is wrong."""
    try:
        return baselines.step(problem, decision, loads, most_loads, tolerance_percent)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise AnsibleFilterError(f"baseline_step: {what}; docs/data_formats.md says what belongs there") from error


class FilterModule:
    """Filters that plan baselines."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"baseline_step": baseline_step}
