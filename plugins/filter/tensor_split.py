# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: tensor_split
short_description: Write a split the way a program wants it
version_added: 0.1.0
description:
  - Turns layer counts into the value of C(--tensor-split) of one program. llama-server wants commas, llama-bench
    slashes, because to llama-bench a comma separates whole tests.
  - Layer counts given as shares make llama.cpp place exactly these layers.
  - For V(vllm) it is the value of C(VLLM_PP_LAYER_PARTITION), blocks per pipeline stage, which add up to the model's
    blocks. The output layer, a slot of its own in a split, comes off the last card, where vLLM has it too. A card
    without a block is refused.
positional: _input, program
options:
  _input:
    description: One whole number per device, in the order in which the program counts its devices.
    type: list
    elements: int
    required: true
  program:
    description: The program that reads it.
    type: str
    choices: [llama_bench, llama_fit_params, llama_server, vllm]
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show the split for llama-server, here 45,36
  ansible.builtin.debug:
    msg: "--tensor-split {{ [45, 36] | homelab.mixed_gpu.tensor_split('llama_server') }}"

- name: Show the same cards for vLLM, the 3090 first, here 36,44
  ansible.builtin.debug:
    msg: "VLLM_PP_LAYER_PARTITION={{ [36, 45] | homelab.mixed_gpu.tensor_split('vllm') }}"
"""

RETURN = r"""
_value:
  description: The value of C(--tensor-split), or of C(VLLM_PP_LAYER_PARTITION).
  type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import layer_split


def tensor_split(layers: t.Any, program: str) -> str:
    """Return the split as C(program) wants it; AnsibleFilterError for an unknown program or for what is no split."""
    try:
        return layer_split.render_tensor_split(layers, program)
    except ValueError as error:
        raise AnsibleFilterError(f"tensor_split: {error}") from error


class FilterModule:
    """Filters that write splits."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"tensor_split": tensor_split}
