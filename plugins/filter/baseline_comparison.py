# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: baseline_comparison
short_description: Say what became of the speed since the baseline before
version_added: 0.1.0
description:
  - Returns one sentence about the loads of two baselines and about what changed between them.
positional: _input
options:
  _input:
    description: The new baseline.
    type: dict
    required: true
  before:
    description: The one before, or V(none).
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show it
  ansible.builtin.debug:
    msg: "{{ example_new | homelab.mixed_gpu.baseline_comparison(before=example_old) }}"
"""

RETURN = r"""
_value:
  description: The sentence, V(none) without a baseline before.
  type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import verdict


def baseline_comparison(baseline: t.Any, before: t.Any) -> str | None:
    """Return the sentence; AnsibleFilterError names the field that is wrong."""
    try:
        return verdict.since(before, baseline)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise AnsibleFilterError(f"baseline_comparison: {what}") from error


class FilterModule:
    """Filters that compare baselines."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"baseline_comparison": baseline_comparison}
