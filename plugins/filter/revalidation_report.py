# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: revalidation_report
short_description: Put the revalidations of several hosts together
version_added: 0.1.0
description:
  - Returns one report over all hosts, in which the worst one decides. A host that was not reached counts as broken.
positional: _input
options:
  _input:
    description: Revalidations by host.
    type: dict
    required: true
  unreachable:
    description: Hosts that were not reached.
    type: list
    elements: str
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Put them together
  ansible.builtin.debug:
    msg: "{{ {'box': revalidate_result} | homelab.mixed_gpu.revalidation_report(unreachable=[]) }}"
"""

RETURN = r"""
_value:
  description: C(schema), C(verdict), C(accepted), C(unreachable) and C(hosts).
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import verdict


def revalidation_report(hosts: t.Any, unreachable: t.Any) -> dict[str, t.Any]:
    """Return the report; AnsibleFilterError names the field that is wrong."""
    try:
        return verdict.together(hosts, unreachable)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise AnsibleFilterError(
            f"revalidation_report: {what}; docs/data_formats.md says what belongs there"
        ) from error


class FilterModule:
    """Filters that sum up revalidations."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"revalidation_report": revalidation_report}
