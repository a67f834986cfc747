# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a token reads and computes in each layer of a model. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base import fingerprints
from . import layer_weights, memory_plan
from .types import Model, Serving

#: What decides the work of a model's blocks. The output layer may differ: costs are carried over by bytes.
_OF_BLOCKS: t.Final = (
    "architecture", "file_type", "block_bytes", "block_read_bytes", "block_weights", "block_ffn_bytes",
    "embedding_length", "feed_forward_length", "expert_feed_forward_length", "expert_count", "expert_used_count",
    "head_count", "head_count_kv", "key_length", "kv_k_elements_per_token", "kv_v_elements_per_token", "window_tokens",
    "block_sequence_bytes",
)  # fmt: skip


def blocks_fingerprint(model: Model) -> str:
    """Return a hash that two models share if a device does the same work for their blocks, as for a fine-tune."""
    return fingerprints.fingerprint({name: model.get(name) for name in _OF_BLOCKS})


def bytes_read(model: Model, serving: Serving, depth_tokens: float) -> list[float]:
    """Return the bytes that one token reads in each layer, with C(depth_tokens) tokens in the KV cache before it."""
    windows = model.get("window_tokens") or [0] * model["block_count"]
    cached = memory_plan.kv_bytes_per_token(model, serving)
    read = model.get("block_read_bytes") or model["block_bytes"]
    blocks = [
        weights + per_token * (min(depth_tokens, window) if window else depth_tokens)
        for weights, per_token, window in zip(read, cached, windows, strict=True)
    ]
    return [*blocks, float(model["output_bytes"])]


def of_average_layer(model: Model, serving: Serving, depth_tokens: float, batch_tokens: float) -> dict[str, float]:
    """Return what an average layer is to a device: bytes of weights and of KV cache that a token reads in it, at
    C(depth_tokens), and the operations of an average block for C(batch_tokens) tokens of a prompt."""
    weights = bytes_read(model, serving, 0)
    cached = sum(bytes_read(model, serving, depth_tokens)) - sum(weights)
    work = model.get("block_weights") or model["block_bytes"]
    return {
        "weights_bytes": round(sum(weights) / len(weights)),
        "cache_bytes": round(cached / len(weights)),
        "operations": round(2.0 * sum(work) / len(work) * batch_tokens),
    }


def of_model(model: Model, serving: Serving, depth_tokens: float) -> layer_weights.LayerWeights:
    """Return the weights of a model's layers, decoding at a depth of C(depth_tokens)."""
    read = bytes_read(model, serving, depth_tokens)
    work = model.get("block_weights") or model["block_bytes"]
    if min(read[:-1]) <= 0 or min(work) <= 0:
        return layer_weights.equal(len(read))
    return layer_weights.LayerWeights(
        layer_weights.prefix_sums(layer_weights.relative(read)),
        layer_weights.prefix_sums([*layer_weights.relative(work), 0.0]),
    )
