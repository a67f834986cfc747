# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: pending_files
short_description: List the files that are still to be fetched, generated or recorded
version_added: 0.1.0
description:
  - Returns the files that a first look did not find as they shall be.
positional: _input, read_again
options:
  _input:
    description:
      - Results of M(homelab.mixed_gpu.model_file) and M(homelab.mixed_gpu.random_gguf), looped over what
        P(homelab.mixed_gpu.model_files#filter) returned.
    type: list
    elements: dict
    required: true
  read_again:
    description: Whether to list also the files that can only be known by reading them.
    type: bool
    default: false
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show what is to be done
  ansible.builtin.debug:
    msg: "{{ looks.results | homelab.mixed_gpu.pending_files }}"
"""

RETURN = r"""
_value:
  description: Entries of P(homelab.mixed_gpu.model_files#filter).
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import transfer


class FilterModule:
    """Filter for the files of models."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"pending_files": transfer.pending_files}
