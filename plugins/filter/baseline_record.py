# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: baseline_record
short_description: Make the baseline that later revalidations compare with
version_added: 0.1.0
description:
  - Returns the baseline of a recorded split. What only a loaded server tells is added later by
    M(homelab.mixed_gpu.revalidation_record).
positional: _input
options:
  _input:
    description: Entry of the host's facts that the baseline belongs to.
    type: dict
    required: true
  configuration:
    description: What P(homelab.mixed_gpu.host_configuration#filter) returns.
    type: dict
    required: true
  loads:
    description: Loads of the recorded split, as it is served.
    type: list
    elements: dict
    required: true
  about:
    description: C(deployment), C(reason) (V(tuned) or V(accepted)), C(at), and C(most_loads) of a later revalidation.
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Make a baseline
  ansible.builtin.set_fact:
    example_baseline: >-
      {{ example_entry | homelab.mixed_gpu.baseline_record(configuration=example_now, loads=example_step.reference,
         about={'deployment': 'd', 'reason': 'tuned', 'at': '2026-11-25T18:20:36Z', 'most_loads': 6}) }}
"""

RETURN = r"""
_value:
  description: The baseline.
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import baselines


def baseline_record(entry: t.Any, configuration: t.Any, loads: t.Any, about: t.Any) -> dict[str, t.Any]:
    """Return the baseline; AnsibleFilterError names the field that is wrong."""
    try:
        return baselines.build(entry, configuration, loads, about)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise AnsibleFilterError(f"baseline_record: {what}; docs/data_formats.md says what belongs there") from error


class FilterModule:
    """Filters that make baselines."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"baseline_record": baseline_record}
