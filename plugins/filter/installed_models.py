# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: installed_models
short_description: Sum up the files of models
version_added: 0.1.0
description:
  - Returns where every model lies, its SHA-256 and its size, as far as they are known.
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
- name: Show the models
  ansible.builtin.debug:
    msg: "{{ looks.results | homelab.mixed_gpu.installed_models }}"
"""

RETURN = r"""
_value:
  description: By model id, C(path), C(sha256) (empty when unknown) and C(size_bytes) (V(none) when unknown).
  type: dict
"""

import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import entries


class FilterModule:
    """Filter for the files of models."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"installed_models": entries.installed_models}
