# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: engine_comparison
short_description: Show what was measured with each engine in one table
version_added: 0.1.0
description:
  - Turns the host's facts into lines of plain text, one per recorded deployment, llama.cpp's and ExLlama's alike, by
    time per request where both have been measured by the same objective.
  - Weights differ between formats, so the bytes that a token reads stand beside its time. Nothing here says which
    quantisation answers better.
options:
  _input:
    description: The fact C(ansible_local.mixed_gpu), see C(docs/data_formats.md).
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Compare the engines on this host
  ansible.builtin.debug:
    msg: "{{ ansible_facts['ansible_local'].mixed_gpu | homelab.mixed_gpu.engine_comparison }}"
"""

RETURN = r"""
_value:
  description: The lines.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import engines


def engine_comparison(record: t.Any) -> list[str]:
    """Return the table as lines; AnsibleFilterError when the input is no record."""
    try:
        return engines.lines(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise AnsibleFilterError(
            f"engine_comparison: the input is no fact mixed_gpu ({error!r}): run the site playbook, which writes it."
        ) from error


class FilterModule:
    """Filters that speak."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"engine_comparison": engine_comparison}
