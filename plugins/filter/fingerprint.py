# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: fingerprint
short_description: Hash everything that can change a result
version_added: 0.1.0
description:
  - Returns the SHA-256 of the canonical JSON (sorted keys, no spaces) of a dict of parts.
  - The order of keys does not matter; the order of lists does, as the order of devices does.
  - Refuses what JSON cannot hold, such as NaN, keys that are no strings, or dates.
options:
  _input:
    description: The parts, each with a name that tells what it is.
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Recognise an unchanged configuration
  ansible.builtin.set_fact:
    example_fingerprint: "{{ {'driver': '580.95.05', 'gpus': ['GPU-1', 'GPU-2']} | homelab.mixed_gpu.fingerprint }}"
"""

RETURN = r"""
_value:
  description: The SHA-256 as 64 hexadecimal digits.
  type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import fingerprints
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError


def fingerprint(parts: t.Mapping[str, t.Any]) -> str:
    """Return the fingerprint of the parts."""
    try:
        return fingerprints.fingerprint(parts)
    except UserError as exc:
        raise AnsibleFilterError(f"homelab.mixed_gpu.fingerprint: {exc}") from exc


class FilterModule:
    """Filter that hashes what a result depends on."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"fingerprint": fingerprint}
