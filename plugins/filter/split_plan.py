# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: split_plan
short_description: Plan which split of a model to measure next, or decide
version_added: 0.1.0
description:
  - Takes a problem (devices, model, serving profile, objective) and every load measured so far, and returns the loads
    to measure next or, when nothing is left that is worth measuring, the decision.
  - It is a pure function. It keeps no state and runs on the controller, so feeding it any first part of a campaign's
    loads gives that campaign's continuation.
  - First come one load each of as many well separated splits as there are devices, from which the cost of one slot on
    each device is fitted. Then the predicted winner is measured against llama.cpp's own split, in loads that take
    turns. The verdict uses a 95 percent interval whose unit is the load.
  - Then come the micro-batches of the chosen split and, where it is allowed, split mode tensor as a guarded trial.
positional: _input, loads
options:
  _input:
    description:
      - The problem, see C(docs/data_formats.md). All sizes are MiB.
    type: dict
    required: true
  loads:
    description:
      - Every load of the campaign so far, as M(homelab.mixed_gpu.split_benchmark) returns them in C(load), in the
        order in which they were measured.
    type: list
    elements: dict
    required: true
seealso:
  - module: homelab.mixed_gpu.split_benchmark
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Ask the planner for the next loads
  ansible.builtin.set_fact:
    step: "{{ problem | homelab.mixed_gpu.split_plan(loads) }}"

- name: Say what was decided
  ansible.builtin.debug:
    msg: "{{ step.decision.why }}"
  when: step.done
"""

RETURN = r"""
_value:
  description: The plan, see C(docs/data_formats.md).
  type: dict
  contains:
    done:
      description: Whether nothing is left to measure.
      type: bool
    stage:
      description:
        - V(anchor), V(confirm), V(repeat), V(micro_batch), V(tensor), V(tensor_trial), V(decided) or V(impossible).
      type: str
    why:
      description: One sentence for the person who watches.
      type: str
    loads:
      description: What to measure next, in this order; empty when done.
      type: list
      elements: dict
    trials:
      description: What M(homelab.mixed_gpu.split_mode_trial) is to try next; its results belong among the loads.
      type: list
      elements: dict
    feasible:
      description: Every split that memory allows and that has not failed, with the MiB and the headroom of each device.
      type: list
      elements: dict
    default_layers:
      description: The split that llama.cpp makes when it is told none.
      type: list
      elements: int
    fit:
      description: The fitted costs, or null before the anchors are measured.
      type: dict
    decision:
      description: The decision when O(ignore:stage) is V(decided), else null.
      type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import stages


def split_plan(problem: t.Any, loads: t.Any) -> dict[str, t.Any]:
    """Return the plan for a problem and its loads; AnsibleFilterError names the field that is wrong."""
    try:
        return stages.split_plan(problem, loads)
    except ValueError as error:
        raise AnsibleFilterError(f"split_plan: {error}; docs/data_formats.md says what belongs there") from error


class FilterModule:
    """Filters that plan measurements."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"split_plan": split_plan}
