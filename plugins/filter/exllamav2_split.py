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
  model_id:
    description: The model, as the record names it.
    type: str
    required: true
  gpus:
    description: UUIDs of the cards to use, in order. Empty means those of the record, else all.
    type: list
    elements: str
    required: true
  split_gb:
    description: Memory per card in GB, in the order of O(gpus). Empty means what is recorded, else automatic.
    type: list
    elements: float
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
    msg: "{{ {} | homelab.mixed_gpu.exllamav2_split('qwen-exl2', [], [20.5, 17.0], ['GPU-1', 'GPU-2']) }}"
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
    source:
      description: V(variable), V(record) or V(automatic).
      type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils import _exllama


def exllamav2_split(
    models: t.Mapping[str, t.Any],
    model_id: str,
    gpus: t.Sequence[str],
    split_gb: t.Sequence[float],
    known: t.Sequence[str],
) -> dict[str, t.Any]:
    """Return the cards and the memory per card."""
    try:
        return _exllama.split(models, model_id, gpus, split_gb, known)
    except (KeyError, TypeError, AttributeError) as exc:
        raise AnsibleFilterError(
            f"homelab.mixed_gpu.exllamav2_split: the record is not as it should be ({exc})"
        ) from exc
    except _exllama.ExllamaError as exc:
        raise AnsibleFilterError(f"The model cannot be split as asked: {exc}.") from None


class FilterModule:
    """Filter that decides on a split for ExLlama."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"exllamav2_split": exllamav2_split}
