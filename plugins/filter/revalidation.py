# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: revalidation
short_description: Judge whether a recorded split still holds
version_added: 0.1.0
description:
  - Compares what was observed on a host with its baseline and returns a verdict per check, what changed, and why
    something became
    slower.
positional: _input
options:
  _input:
    description: What was observed, as the role P(homelab.mixed_gpu.revalidate#role) collects it.
    type: dict
    required: true
  settings:
    description: C(tolerance_percent), C(reserve_mib) and C(accept), the verdicts that are accepted.
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Judge
  ansible.builtin.set_fact:
    example_result: >-
      {{ example_observed
         | homelab.mixed_gpu.revalidation(settings={'tolerance_percent': 3, 'reserve_mib': 512, 'accept': ['ok']}) }}
"""

RETURN = r"""
_value:
  description: The C(revalidation) of C(docs/data_formats.md).
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import verdict


def revalidation(observed: t.Any, settings: t.Any) -> dict[str, t.Any]:
    """Return the revalidation; AnsibleFilterError names the field that is wrong."""
    try:
        return verdict.judge(observed, settings)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise AnsibleFilterError(f"revalidation: {what}; docs/data_formats.md says what belongs there") from error


class FilterModule:
    """Filters that judge hosts."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"revalidation": revalidation}
