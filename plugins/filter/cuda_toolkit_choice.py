# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: cuda_toolkit_choice
short_description: Decide where the CUDA toolkit comes from
version_added: 0.1.0
description:
  - Checks a wish against driver, gcc and glibc of a host. A combination that cannot work is an error that names one
    that does.
positional: _input, system
options:
  _input:
    description: >-
      The wish, with C(source) (V(auto), V(existing), V(distribution), V(nvidia) or V(wheels)), C(version),
      C(wheels_version) and
      C(existing), the version of the toolkit that is there, or an empty text.
    type: dict
    required: true
  system:
    description: C(system) (such as V(Debian 13)), C(gcc) (major version), C(glibc), C(driver) (loaded version, or an
      empty text).
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Decide
  ansible.builtin.debug:
    msg: "{{ wish | homelab.mixed_gpu.cuda_toolkit_choice(system) }}"
  vars:
    wish: {source: auto, version: "13.0", wheels_version: "13.0", existing: ""}
    system: {system: Debian 13, gcc: 14, glibc: "2.41", driver: 595.71.05}
"""

RETURN = r"""
_value:
  description: C(error) (one sentence, or empty), C(source) and C(version).
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import cuda_compat


def cuda_toolkit_choice(request: t.Mapping[str, t.Any], system: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the choice. Raises AnsibleFilterError for a wish or a system that lacks a key."""
    try:
        return cuda_compat.choose(request, system)
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(f"cuda_toolkit_choice: wish or system lack a key ({error!r}).") from None


class FilterModule:
    """Filter that decides about toolkits."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"cuda_toolkit_choice": cuda_toolkit_choice}
