# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: exllamav2_split
short_description: Decide which cards ExLlama uses and how much memory of each
version_added: 0.1.0
description:
  - A given split counts, else the one that is recorded in the host's facts for ExLlama and this model. Without either
    the engine fills one card after the other.
options:
  _input:
    description: C(models) of the host's facts, C(ansible_local.mixed_gpu.models); may be empty.
    type: dict
    required: true
  wanted:
    description:
      - C(engine) (V(v2) or V(v3)), C(model_id), C(context_size) and C(cache_mode), which a record must have as well to
        be used, C(gpus) (UUIDs in order; empty means those of the record, else all) and C(gpu_split_gb) (GB per card in
        that order; empty means what is recorded, else automatic).
    type: dict
    required: true
  known:
    description: UUIDs of the host's cards in PCI order.
    type: list
    elements: str
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show how the model is split
  ansible.builtin.debug:
    msg: "{{ {} | homelab.mixed_gpu.exllamav2_split(wanted, ['GPU-1', 'GPU-2']) }}"
  vars:
    wanted:
      engine: v2
      model_id: qwen-exl2
      context_size: 8192
      cache_mode: FP16
      gpus: []
      gpu_split_gb: [20.5, 17.0]
"""

RETURN = r"""
_value:
  description: The split.
  type: dict
  contains:
    gpus:
      description: UUIDs in the order in which the engine is to see them.
      type: list
      elements: str
    gpu_split_gb:
      description: Memory per card, or nothing when the engine decides.
      type: list
      elements: float
    environment:
      description: Variables under which the engine sees these cards, in this order.
      type: dict
    source:
      description: V(variable), V(record) or V(automatic).
      type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import exllama_plan


def exllamav2_split(
    models: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any], known: t.Sequence[str]
) -> dict[str, t.Any]:
    """Return the cards and the memory per card."""
    try:
        return exllama_plan.split(models, wanted, known)
    except (KeyError, TypeError, AttributeError) as exc:
        raise AnsibleFilterError(
            f"homelab.mixed_gpu.exllamav2_split: the record is not as it should be ({exc})"
        ) from exc
    except exllama_plan.ExllamaError as exc:
        raise AnsibleFilterError(f"The model cannot be split as asked: {exc}.") from None


class FilterModule:
    """Filter that decides on a split for ExLlama."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"exllamav2_split": exllamav2_split}
