# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: preflight_table
short_description: Show preflight checks as lines of text
version_added: 0.1.0
description:
  - One entry per check with verdict, name and what was seen; below a check that is not ok, what to do.
options:
  _input:
    description: What P(homelab.mixed_gpu.preflight_checks#filter) returns.
    type: list
    elements: dict
    required: true
  claims:
    description: What P(homelab.mixed_gpu.preflight_claims#filter) returns, to be shown below the checks.
    type: list
    elements: dict
    default: []
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show the checks
  ansible.builtin.debug:
    msg: "{{ host_preflight_checks | homelab.mixed_gpu.preflight_table }}"
"""

RETURN = r"""
_value:
  description: The lines.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import host_checks


def preflight_table(
    checks: t.Sequence[t.Mapping[str, t.Any]], claims: t.Sequence[t.Mapping[str, t.Any]] = ()
) -> list[str]:
    """Return the checks as lines. Raises AnsibleFilterError when they are no checks."""
    try:
        return [*host_checks.table(checks), *host_checks.claims_table(claims)]
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(
            f"preflight_table: the input is no list of checks ({error!r}); pass on host_preflight_checks."
        ) from error


class FilterModule:
    """Filters that speak."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"preflight_table": preflight_table}
