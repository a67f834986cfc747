# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: models_table
short_description: Show the models of a host and what they use of its disk
version_added: 0.1.0
description:
  - One line per model that is wanted or there, the filesystem, and what the catalogue has beside them.
positional: _input, answers, store
options:
  _input:
    description:
      - Results of M(homelab.mixed_gpu.model_file), looped over what P(homelab.mixed_gpu.model_files#filter) returned.
    type: list
    elements: dict
    required: true
  answers:
    description:
      - Results of M(homelab.mixed_gpu.hub_files), looped over what P(homelab.mixed_gpu.hub_questions#filter) returned.
    type: list
    elements: dict
    required: true
  store:
    description: What M(homelab.mixed_gpu.model_store_info) returned.
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show the models
  ansible.builtin.debug:
    msg: "{{ example_looks.results | homelab.mixed_gpu.models_table(example_answers.results, example_store) }}"
"""

RETURN = r"""
_value:
  description: The lines.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_table


def models_table(results: t.Any, answers: t.Any, store: t.Any) -> list[str]:
    """Return the lines; AnsibleFilterError when the input is something else."""
    try:
        return model_table.table(results, answers, store)
    except (AttributeError, KeyError, TypeError) as error:
        raise AnsibleFilterError(f"models_table: {error!r}: give the results that its documentation names.") from error


class FilterModule:
    """Filter that shows models."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"models_table": models_table}
