# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: revalidation_step
short_description: Ask what a revalidation has to measure next
version_added: 0.1.0
description:
  - Says whether the timings of the serving instance are enough, and if not which load of the recorded split is to be
    measured next
    under a lease, until the verdict is clear or the limit is reached.
positional: _input
options:
  _input:
    description: What was observed so far, as the role P(homelab.mixed_gpu.revalidate#role) collects it.
    type: dict
    required: true
  limits:
    description:
      - C(tolerance_percent), C(least_loads), C(most_loads) and C(baseline), whether the loads are to become a baseline.
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Ask for the next load
  ansible.builtin.set_fact:
    example_step: "{{ example_observed | homelab.mixed_gpu.revalidation_step(limits=example_limits) }}"
"""

RETURN = r"""
_value:
  description: C(suspicion) and C(blocked), a sentence each or V(none), and C(load), a load or V(none).
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import verdict


def revalidation_step(observed: t.Any, limits: t.Any) -> dict[str, t.Any]:
    """Return what is to be done next; AnsibleFilterError names the field that is wrong."""
    try:
        return verdict.step(observed, limits)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise AnsibleFilterError(f"revalidation_step: {what}; docs/data_formats.md says what belongs there") from error


class FilterModule:
    """Filters that plan revalidations."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"revalidation_step": revalidation_step}
