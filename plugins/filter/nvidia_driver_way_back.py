# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: nvidia_driver_way_back
short_description: Work out how to go back to a recorded driver
version_added: 0.1.0
description:
  - Returns what M(homelab.mixed_gpu.apt_transaction) has to do, or why a recorded driver cannot be restored.
positional: _input, info
options:
  _input:
    description: C(target) as M(homelab.mixed_gpu.nvidia_driver_record) returns it.
    type: dict
    required: true
  info:
    description: C(driver) as M(homelab.mixed_gpu.nvidia_driver_info) returns it, asked with C(policies) and
      C(kept_dir).
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Work it out
  ansible.builtin.set_fact:
    my_step: "{{ begun.target | homelab.mixed_gpu.nvidia_driver_way_back(found.driver) }}"
"""

RETURN = r"""
_value:
  description: C(error) (one sentence, or empty), C(install) (versions by package), C(files) (paths by package) and
    C(remove).
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_packages, driver_record


def nvidia_driver_way_back(state: t.Mapping[str, t.Any], info: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the step. Raises AnsibleFilterError when the input is not what the modules return."""
    try:
        present = {
            name: entry["version"]
            for name, entry in info["packages"].items()
            if driver_packages.is_driver(name, entry["source"])
        }
        return driver_record.way_back(state, present, info["policies"], info["kept"])
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(
            f"nvidia_driver_way_back: the input is not what nvidia_driver_record and nvidia_driver_info return "
            f"({error!r}); pass both "
            "on unchanged."
        ) from None


class FilterModule:
    """Filter for the way back."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"nvidia_driver_way_back": nvidia_driver_way_back}
