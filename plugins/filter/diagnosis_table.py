# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: diagnosis_table
short_description: Show a diagnosis as lines of text
version_added: 0.1.0
description:
  - Devices, cards, what was found, advice, and rules of thumb beside what was measured.
options:
  _input:
    description: What P(homelab.mixed_gpu.diagnosis#filter) returns.
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show the diagnosis
  ansible.builtin.debug:
    msg: "{{ diagnose_result | homelab.mixed_gpu.diagnosis_table }}"
"""

RETURN = r"""
_value:
  description: Lines of text.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._diagnosis import findings_table


def diagnosis_table(diagnosis: dict[str, t.Any]) -> list[str]:
    """Return the lines; AnsibleFilterError when the input is no diagnosis."""
    try:
        return findings_table.table(diagnosis)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(
            f"homelab.mixed_gpu.diagnosis_table: {error!r}: give what the filter diagnosis returned"
        ) from error


class FilterModule:
    """Filter that shows a diagnosis."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"diagnosis_table": diagnosis_table}
