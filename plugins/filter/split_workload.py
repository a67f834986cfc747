# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: split_workload
short_description: Say what is to be fast, and which tests of llama-bench measure it
version_added: 0.1.0
description:
  - Turns what a user asks for into the C(objective) and the C(tests) of C(split_plan), see C(docs/data_formats.md).
  - The preset V(agent) takes its own numbers, a conversation of 8192 tokens in a warm cache and an answer of 512. All
    tests run at the depth of the objective.
  - A depth that does not fit the context of one request, together with its prompt and answer or with a test, is an
    error.
positional: _input, bench, serving
options:
  _input:
    description: What is to be fast, as C(name), C(prompt_tokens), C(generated_tokens) and C(depth_tokens).
    type: dict
    required: true
  bench:
    description: What one load measures, as C(prompt_tokens), C(generated_tokens) and C(repetitions).
    type: dict
    required: true
  serving:
    description: The serving profile, see C(docs/data_formats.md).
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Ask for a quick first token of long prompts, in the middle of a conversation
  ansible.builtin.set_fact:
    workload: "{{ asked | homelab.mixed_gpu.split_workload(bench, serving) }}"
  vars:
    asked: {name: ttft, prompt_tokens: 4096, generated_tokens: 256, depth_tokens: 2048}
    bench: {prompt_tokens: 2048, generated_tokens: 128, repetitions: 3}
"""

RETURN = r"""
_value:
  description: The workload.
  type: dict
  contains:
    objective:
      description: Name, prompt, answer and depth, presets resolved.
      type: dict
    tests:
      description: What each load of the model measures.
      type: list
      elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import workload


def split_workload(objective: t.Any, bench: t.Any, serving: t.Any) -> dict[str, t.Any]:
    """Return objective and tests; AnsibleFilterError when the depth does not fit the context or a field is wrong."""
    try:
        return workload.plan(objective, bench, serving)
    except ValueError as error:
        raise AnsibleFilterError(f"split_workload: {error}") from error


class FilterModule:
    """Filters that say what is to be fast."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"split_workload": split_workload}
