# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: revalidation_table
short_description: Show a revalidation as lines for people
version_added: 0.1.0
description:
  - Returns the verdict, what changed, every check, and what to do next.
positional: _input
options:
  _input:
    description: What P(homelab.mixed_gpu.revalidation#filter) returned.
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show it
  ansible.builtin.debug:
    msg: "{{ revalidate_result | homelab.mixed_gpu.revalidation_table }}"
"""

RETURN = r"""
_value:
  description: Lines.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import verdict


def revalidation_table(result: t.Any) -> list[str]:
    """Return the lines; AnsibleFilterError names the field that is wrong."""
    try:
        return verdict.table(result)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise AnsibleFilterError(f"revalidation_table: {what}; docs/data_formats.md says what belongs there") from error


class FilterModule:
    """Filters that show revalidations."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"revalidation_table": revalidation_table}
