# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: exllama_serving
short_description: The serving profile of an ExLlama
version_added: 0.1.0
description:
  - Turns what TabbyAPI is told into the serving profile that C(split_plan) and C(split_benchmark) read, see
    C(docs/data_formats.md).
  - A cache mode that the engine does not have, and a context that is no multiple of 256 tokens, are errors.
positional: _input, context_size, cache_mode, flash_attention
options:
  _input:
    description: The engine.
    type: str
    choices: [exllamav2, exllamav3]
    required: true
  context_size:
    description: Tokens of context (C(max_seq_len) and C(cache_size)).
    type: int
    required: true
  cache_mode:
    description: V(FP16), V(Q8), V(Q6) or V(Q4); for ExLlamaV3 also the bits of K and V, such as V(8,6).
    type: str
    required: true
  flash_attention:
    description: Whether ExLlamaV2 finds the package flash-attn; ExLlamaV3 brings its own.
    type: bool
    default: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: State how ExLlamaV2 will serve
  ansible.builtin.set_fact:
    example_serving: "{{ 'exllamav2' | homelab.mixed_gpu.exllama_serving(16384, 'Q8') }}"
"""

RETURN = r"""
_value:
  description: The profile.
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import exl_split


def exllama_serving(
    engine: t.Any, context_size: t.Any, cache_mode: t.Any, flash_attention: bool = True
) -> dict[str, t.Any]:
    """Return the profile; AnsibleFilterError naming what is wrong."""
    try:
        return exl_split.serving_profile(engine, context_size, cache_mode, flash_attention=flash_attention)
    except ValueError as error:
        raise AnsibleFilterError(f"exllama_serving: {error}") from error


class FilterModule:
    """Filters that say how a model is served."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"exllama_serving": exllama_serving}
