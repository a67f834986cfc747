# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: preflight_claims
short_description: Put what guides say of a mixed box beside what a host has
version_added: 0.1.0
description:
  - Power supply, peaks, memory, disk and PCIe. Claims are no requirements and nothing is judged by them.
  - Empty for a host without NVIDIA cards that is to have none.
positional: _input, wanted
options:
  _input:
    description: C(host) as M(homelab.mixed_gpu.host_info) returns it.
    type: dict
    required: true
  wanted:
    description: As P(homelab.mixed_gpu.preflight_checks#filter) takes it.
    type: dict
    required: true
  gpus:
    description: The fact C(mixed_gpu_gpus), or none where it could not be asked.
    type: dict
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show the claims
  ansible.builtin.debug:
    msg: "{{ found.host | homelab.mixed_gpu.preflight_claims(wanted, gpus=ansible_facts['mixed_gpu_gpus']) }}"
"""

RETURN = r"""
_value:
  description: One dict per claim with C(name), C(claim), C(found) and C(source).
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import host_checks


def preflight_claims(
    host: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any], gpus: t.Mapping[str, t.Any] | None = None
) -> list[dict[str, t.Any]]:
    """Return the claims. Raises AnsibleFilterError when `host` is not what host_info returns."""
    try:
        return host_checks.claims({**host, "gpus": gpus}, wanted)
    except (KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(
            f"preflight_claims: the input is not what homelab.mixed_gpu.host_info returns as host ({error!r});"
            " pass on its answer and the wanted of preflight_checks unchanged."
        ) from error


class FilterModule:
    """Filters that compare."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"preflight_claims": preflight_claims}
