# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: diagnosis_phases
short_description: What to load a server with to diagnose its split
version_added: 0.1.0
description:
  - The tests that the record rests on, as far as they fit one request, for M(homelab.mixed_gpu.llama_server_watch).
positional: seconds, blocks
options:
  _input:
    description: The deployment's entry in the host's facts.
    type: dict
    required: true
  seconds:
    description: For how long each phase is measured.
    type: float
    required: true
  blocks:
    description: Parts that it is divided into; a request lasts no longer than one where that is known.
    type: int
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Say what would be sent
  ansible.builtin.debug:
    msg: "{{ example_entry | homelab.mixed_gpu.diagnosis_phases(8, 4) }}"
"""

RETURN = r"""
_value:
  description: One dict per phase with C(kind), C(prompt_tokens) and C(generated_tokens).
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._diagnosis import findings


def diagnosis_phases(entry: dict[str, t.Any], seconds: float, blocks: int) -> list[dict[str, t.Any]]:
    """Return the phases; AnsibleFilterError when the input is no entry."""
    try:
        return findings.phases(entry, float(seconds) / int(blocks))
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise AnsibleFilterError(
            f"homelab.mixed_gpu.diagnosis_phases: {error!r}: give a deployment of the host's facts, and seconds and "
            "blocks above 0"
        ) from error


class FilterModule:
    """Filter that says what to measure."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"diagnosis_phases": diagnosis_phases}
