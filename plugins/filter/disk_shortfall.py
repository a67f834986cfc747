# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: disk_shortfall
short_description: Say whether all missing files fit on the disk
version_added: 0.1.0
description:
  - Adds up what is still missing and compares it with what is free.
positional: _input
options:
  _input:
    description:
      - Results of M(homelab.mixed_gpu.model_file) and M(homelab.mixed_gpu.random_gguf), looped over what
        P(homelab.mixed_gpu.model_files#filter) returned.
    type: list
    elements: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show what is missing
  ansible.builtin.debug:
    msg: "{{ looks.results | homelab.mixed_gpu.disk_shortfall }}"
"""

RETURN = r"""
_value:
  description: One sentence, or an empty string when everything fits.
  type: str
"""

import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import transfer


class FilterModule:
    """Filter for the files of models."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"disk_shortfall": transfer.disk_shortfall}
