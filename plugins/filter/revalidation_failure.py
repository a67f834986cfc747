# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: revalidation_failure
short_description: Count a host on which revalidating failed as broken
version_added: 0.1.0
description:
  - Returns a revalidation with the verdict V(broken) and what failed as its only check.
positional: _input
options:
  _input:
    description: What failed, as text or as C(ansible_failed_result).
    type: raw
    required: true
  host:
    description: Name of the host.
    type: str
    required: true
  at:
    description: When it was (UTC).
    type: str
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show it
  ansible.builtin.debug:
    msg: "{{ 'no llama.cpp here' | homelab.mixed_gpu.revalidation_failure(host='box', at='2026-11-25T18:20:36Z') }}"
"""

RETURN = r"""
_value:
  description: The C(revalidation) of C(docs/data_formats.md).
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import verdict


def revalidation_failure(reason: t.Any, host: str, at: str) -> dict[str, t.Any]:
    """Return the revalidation; AnsibleFilterError names the field that is wrong."""
    try:
        return verdict.broken(host, None, at, verdict.failure_text(reason))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise AnsibleFilterError(f"revalidation_failure: {what}") from error


class FilterModule:
    """Filters that judge hosts."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"revalidation_failure": revalidation_failure}
