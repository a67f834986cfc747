# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The cost of a split in the form that the exact search takes. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from . import cost_model
from .layer_split import output_device


class Cost(t.NamedTuple):
    """What a split costs, in ms: sum(slots[i] * slot_ms[i] + blocks[i] * block_ms[i]) + max(blocks[i] * stage_ms[i]).

    The blocks of a device are its slots, less the output slot. Decoding is a sum over slots. A prompt of m
    micro-batches is a sum over blocks, and where they pass through a pipeline, m - 1 times the longest stage. Tensor
    mode is a maximum alone.
    """

    slot_ms: tuple[float, ...]
    block_ms: tuple[float, ...]
    stage_ms: tuple[float, ...]

    def ms(self, layers: t.Sequence[int]) -> float:
        """Return the cost of C(layers)."""
        last = output_device(layers)
        total = self.longest_ms(layers)
        for device, (count, slot_ms, block_ms) in enumerate(zip(layers, self.slot_ms, self.block_ms, strict=True)):
            total += count * slot_ms + (count - (device == last)) * block_ms
        return total

    def longest_ms(self, layers: t.Sequence[int]) -> float:
        """Return the longest stage of C(layers)."""
        last = output_device(layers)
        stages = zip(layers, self.stage_ms, strict=True)
        return max((count - (device == last)) * ms for device, (count, ms) in enumerate(stages))


def workload_cost(
    decode_slot_ms: t.Sequence[float] | None,
    prefill_slot_ms: t.Sequence[float] | None,
    prompt_tokens: int,
    generated_tokens: int,
    tested_tokens: int,
    micro_batch: int,
    overlap: float,
) -> Cost | None:
    """Return what a fit says of a prompt and an answer as coefficients of the layers; None where it says nothing.

    C(tested_tokens) is the prompt that the fit of prefill rests on: micro-batches are as full on average as each prompt
    makes them (see cost_model.prefill_scale).
    """
    known = decode_slot_ms or prefill_slot_ms
    if not known:
        return None
    slot_ms = block_ms = stage_ms = [0.0] * len(known)
    if generated_tokens and decode_slot_ms:
        slot_ms = [generated_tokens * ms for ms in decode_slot_ms]
    if prompt_tokens and prefill_slot_ms:
        batches = cost_model.micro_batches(prompt_tokens, micro_batch)
        fullness = (prompt_tokens / batches) / (tested_tokens / cost_model.micro_batches(tested_tokens, micro_batch))
        of_sum, of_max = cost_model.prefill_weights(batches, overlap)
        block_ms = [fullness * of_sum * own for own in prefill_slot_ms]
        stage_ms = [fullness * of_max * own for own in prefill_slot_ms]
    counts = any((*slot_ms, *block_ms, *stage_ms))
    return Cost(tuple(slot_ms), tuple(block_ms), tuple(stage_ms)) if counts else None
