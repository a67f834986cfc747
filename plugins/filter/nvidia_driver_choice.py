# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: nvidia_driver_choice
short_description: Decide which versions of driver packages to install
version_added: 0.1.0
description:
  - Judges what apt could install. A transitional package, another branch, a version that no source has, and a driver
    whose module is
    known not to compile for the next kernel are refused, with the alternative named.
positional: _input, info, request
options:
  _input:
    description: The plan of P(homelab.mixed_gpu.nvidia_driver_plan#filter).
    type: dict
    required: true
  info:
    description: C(driver) as M(homelab.mixed_gpu.nvidia_driver_info) returns it, asked with C(policies).
    type: dict
    required: true
  request:
    description: As for P(homelab.mixed_gpu.nvidia_driver_plan#filter).
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Choose
  ansible.builtin.set_fact:
    my_choice: "{{ my_plan | homelab.mixed_gpu.nvidia_driver_choice(found.driver, request) }}"
"""

RETURN = r"""
_value:
  description: C(error) (one sentence, or empty), C(version), C(install) (versions by package) and C(remove).
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_packages


def nvidia_driver_choice(
    plan: t.Mapping[str, t.Any], info: t.Mapping[str, t.Any], request: t.Mapping[str, t.Any]
) -> dict[str, t.Any]:
    """Return the choice. Raises AnsibleFilterError when the input is not a plan and what nvidia_driver_info returns."""
    try:
        return driver_packages.choose(plan, info["policies"], info, request)
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(
            f"nvidia_driver_choice: the input is no plan of nvidia_driver_plan ({error!r}); pass both on unchanged."
        ) from None


class FilterModule:
    """Filter that decides about versions."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"nvidia_driver_choice": nvidia_driver_choice}
