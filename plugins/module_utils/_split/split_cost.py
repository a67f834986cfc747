# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The cost of a split in the form that the exact search takes. Private to this collection. Pure functions only."""

from __future__ import annotations

import operator
import typing as t

from . import cost_model, layer_weights


class Cost(t.NamedTuple):
    """What a split costs, in ms: sum(n[i] * slot_ms[i] + m[i] * block_ms[i]) + max(m[i] * stage_ms[i]) + hops.

    n are the layers of a device and m its blocks, each weighed by C(weights), or all equal without. Decoding is a sum
    over layers. A prompt is a sum over blocks, and where micro-batches pass through a pipeline, all but one of them
    times the longest stage. Tensor mode is a maximum alone. Each device in use costs C(hop_ms).
    """

    slot_ms: tuple[float, ...]
    block_ms: tuple[float, ...]
    stage_ms: tuple[float, ...]
    weights: layer_weights.LayerWeights | None = None
    hop_ms: float = 0.0

    def amounts(self, layers: t.Sequence[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return what each device holds under C(layers), for decoding and for a prompt."""
        weights = self.weights or layer_weights.equal(sum(layers))
        return weights.amounts("decode", layers), weights.amounts("prefill", layers)

    def ms(self, layers: t.Sequence[int]) -> float:
        """Return the cost of C(layers)."""
        return self.ms_of(layers, *self.amounts(layers))

    def ms_of(self, layers: t.Sequence[int], held: t.Sequence[float], blocks: t.Sequence[float]) -> float:
        """Return the cost of C(layers), whose C(amounts) are C(held) and C(blocks)."""
        total = self.hop_ms * sum(map(bool, layers)) + max(map(operator.mul, self.stage_ms, blocks))
        return total + sum(map(operator.mul, self.slot_ms, held)) + sum(map(operator.mul, self.block_ms, blocks))

    def longest_ms(self, layers: t.Sequence[int]) -> float:
        """Return the longest stage of C(layers)."""
        return max(map(operator.mul, self.stage_ms, self.amounts(layers)[1]))


def workload_cost(
    decode_slot_ms: t.Sequence[float] | None,
    prefill_slot_ms: t.Sequence[float] | None,
    prompt_tokens: int,
    generated_tokens: int,
    tested_tokens: int,
    micro_batch: int,
    overlap: float,
    weights: layer_weights.LayerWeights | None = None,
    hop_ms: float = 0.0,
) -> Cost | None:
    """Return what a fit says of a prompt and an answer as coefficients of the layers; None where it says nothing.

    C(tested_tokens) is the prompt that the fit of prefill rests on: micro-batches are as full on average as each prompt
    makes them (see cost_model.prefill_scale). C(hop_ms) is that of the whole request.
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
    return Cost(tuple(slot_ms), tuple(block_ms), tuple(stage_ms), weights, hop_ms) if counts else None
