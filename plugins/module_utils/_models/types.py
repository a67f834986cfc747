# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is known of a model by its headers. Private to this collection. docs/data_formats.md has an example."""

from __future__ import annotations

import typing as t

from .._base.types import Json


class MemoryCorrections(t.TypedDict):
    """What the engine's dry run says of a model whose memory is an estimate; factors, and bytes of each block."""

    weights: float
    compute: float
    planned_bytes: list[int]
    cache_bytes: list[int]


class Model(t.TypedDict):
    """A model by its headers; lists have one number per repeating block. Sizes are bytes."""

    path: str
    shards: list[str]
    name: str | None
    architecture: str
    file_type: str | None
    size_bytes: int
    block_count: int
    block_bytes: list[int]
    block_read_bytes: list[int]
    block_weights: list[int]
    #: What may be in RAM by part (up, gate, down, gate_up): experts, or the feed-forward layers of a dense model.
    block_ffn_bytes: t.NotRequired[dict[str, list[int]]]
    output_bytes: int
    output_weights: int
    token_embedding_bytes: int
    embedding_length: int
    vocabulary_size: int
    feed_forward_length: int
    expert_feed_forward_length: int
    expert_count: int
    expert_used_count: int
    head_count: int
    head_count_kv: int
    key_length: int
    context_length_train: int
    kv_k_elements_per_token: list[int]
    kv_v_elements_per_token: list[int]
    window_tokens: list[int]
    block_sequence_bytes: t.NotRequired[list[int]]  # what each sequence keeps whatever its length is; of a GGUF alone
    notes: list[str]
    vocabulary: t.NotRequired[Json]                  # vocabulary.of_header, exl_vocabulary.of_tokenizer
    nextn_blocks: t.NotRequired[int]                 # of a GGUF: blocks that only predict further tokens (MTP) ...
    nextn_bytes: t.NotRequired[int]                  # ... which are loaded for speculation alone
    nextn_kv_elements: t.NotRequired[int]            # of K and V, per token, of all of them
    estimated: t.NotRequired[bool]                   # of a GGUF: whether its memory is an estimate
    memory_corrections: t.NotRequired[MemoryCorrections]     # while such a model is tuned
    block_attention_bytes: t.NotRequired[list[int]]  # of an ExLlama's model alone
    block_state_bytes: t.NotRequired[list[int]]  # what is kept whatever the context is; of an ExLlama's model alone
