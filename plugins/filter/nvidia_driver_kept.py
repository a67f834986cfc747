# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: nvidia_driver_kept
short_description: Say which package files of a driver to keep for going back
version_added: 0.1.0
description:
  - Archives often have the newest version of a driver only; going back then needs the package files.
positional: _input, record
options:
  _input:
    description: C(driver) as M(homelab.mixed_gpu.nvidia_driver_info) returns it, asked with C(kept_dir).
    type: dict
    required: true
  record:
    description: C(record) as M(homelab.mixed_gpu.nvidia_driver_record) returns it.
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show what is to be fetched
  ansible.builtin.debug:
    msg: "{{ (found.driver | homelab.mixed_gpu.nvidia_driver_kept(recorded.record)).fetch }}"
"""

RETURN = r"""
_value:
  description: C(fetch) (V(name=version) each), C(folder) (named after the present driver) and C(folders) (those that
    stay).
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_record


def nvidia_driver_kept(info: t.Mapping[str, t.Any], record: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what to keep. Raises AnsibleFilterError when the input is not what the modules return."""
    try:
        return driver_record.kept(record, info["packages"], info["kept"])
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(
            f"nvidia_driver_kept: the input is not what nvidia_driver_info and nvidia_driver_record return "
            f"({error!r}); pass both on "
            "unchanged."
        ) from None


class FilterModule:
    """Filter for kept package files."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"nvidia_driver_kept": nvidia_driver_kept}
