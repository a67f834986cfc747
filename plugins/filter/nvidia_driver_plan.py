# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: nvidia_driver_plan
short_description: Decide which driver packages a host is to have
version_added: 0.1.0
description:
  - Turns what M(homelab.mixed_gpu.nvidia_driver_info) found and what is wanted into package names, before apt is asked.
positional: _input, request, table
options:
  _input:
    description: C(driver) as M(homelab.mixed_gpu.nvidia_driver_info) returns it.
    type: dict
    required: true
  request:
    description:
      - C(system) (such as V(Debian 13)), C(branch), C(version), C(source), C(open_modules), C(signed_modules), and
        C(recorded), the
        packages of the newest recorded state that the role made.
    type: dict
    required: true
  table:
    description: What is known about C(systems) and C(branches), as the role P(homelab.mixed_gpu.nvidia_driver#role)
      has it.
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Decide
  ansible.builtin.set_fact:
    my_plan: "{{ found.driver | homelab.mixed_gpu.nvidia_driver_plan(request, table) }}"
"""

RETURN = r"""
_value:
  description:
    - C(error) (one sentence, or empty), C(packages), C(headers), C(main), C(module), C(installed), C(foreign),
      C(missing), C(note).
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_packages


def nvidia_driver_plan(
    info: t.Mapping[str, t.Any], request: t.Mapping[str, t.Any], table: t.Mapping[str, t.Any]
) -> dict[str, t.Any]:
    """Return the plan. Raises AnsibleFilterError when the input is not what nvidia_driver_info returns."""
    try:
        return driver_packages.plan(info, request, table)
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(
            f"nvidia_driver_plan: the input is not what homelab.mixed_gpu.nvidia_driver_info returns ({error!r}); "
            "pass it on unchanged."
        ) from None


class FilterModule:
    """Filter that decides about driver packages."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"nvidia_driver_plan": nvidia_driver_plan}
