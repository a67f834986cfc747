# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: openpgp_fingerprints
short_description: Fingerprints of the OpenPGP keys in a file
version_added: 0.1.0
description:
  - Needs no gpg. Armored and binary keys of version 4 are understood.
options:
  _input:
    description: The file's content in base64, as M(ansible.builtin.slurp) returns it.
    type: str
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Refuse any other key
  ansible.builtin.assert:
    that: key.content | homelab.mixed_gpu.openpgp_fingerprints == [expected]
"""

RETURN = r"""
_value:
  description: One fingerprint of 40 upper-case hexadecimal digits per primary key.
  type: list
  elements: str
"""

import base64
import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import openpgp


def openpgp_fingerprints(content: str) -> list[str]:
    """Return the fingerprints. Raises AnsibleFilterError for what is no key."""
    try:
        return openpgp.fingerprints(base64.b64decode(content))
    except (openpgp.OpenPGPError, ValueError) as error:
        raise AnsibleFilterError(f"openpgp_fingerprints: this cannot be read as a key: {error}.") from None


class FilterModule:
    """Filter for keys."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"openpgp_fingerprints": openpgp_fingerprints}
