# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: nvidia_driver_settings
short_description: Work out what keeps an installed driver as it is
version_added: 0.1.0
description:
  - Returns the holds to change, the text of apt's pin and of unattended-upgrades' blacklist, what the persistence
    daemon needs, and
    what Secure Boot makes of the kernel module.
positional: _input, version, hold, hold_kernel
options:
  _input:
    description: C(driver) as M(homelab.mixed_gpu.nvidia_driver_info) returns it.
    type: dict
    required: true
  version:
    description: Package version of the driver.
    type: str
    required: true
  hold:
    description: Whether the driver is held and pinned.
    type: bool
    required: true
  hold_kernel:
    description: Whether kernel metapackages are held as well.
    type: bool
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show which packages should be held
  ansible.builtin.debug:
    msg: "{{ (found.driver | homelab.mixed_gpu.nvidia_driver_settings('580.95.05-0ubuntu1', true, true)).hold }}"
"""

RETURN = r"""
_value:
  description: >-
    C(hold) and C(unhold) (packages), C(held) (those that are held then), C(pin) and C(blacklist) (texts), C(dropin)
    (text, or empty), C(wants) (whether the
    persistence daemon must be pulled in), C(secure_boot) (C(ok), C(detail), C(cure)), and C(built_problem) (one
    sentence, or empty).
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_packages


def nvidia_driver_settings(
    info: t.Mapping[str, t.Any], version: str, hold: bool, hold_kernel: bool
) -> dict[str, t.Any]:
    """Return the settings. Raises AnsibleFilterError when the input is not what nvidia_driver_info returns."""
    try:
        return {
            **driver_packages.holds(info["packages"], hold, hold_kernel),
            **driver_packages.persistence(info["persistence"]),
            "pin": driver_packages.pin(version),
            "blacklist": driver_packages.blacklist(hold_kernel),
            "secure_boot": driver_packages.secure_boot(info),
            "built_problem": driver_packages.built_problem(info, version),
        }
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(
            f"nvidia_driver_settings: the input is not what homelab.mixed_gpu.nvidia_driver_info returns "
            f"({error!r}); pass it on "
            "unchanged."
        ) from None


class FilterModule:
    """Filter for the settings around a driver."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"nvidia_driver_settings": nvidia_driver_settings}
