# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tensor shapes of well-known models, to plan for them without their files. Private to this collection. Pure functions.

Dimensions are those of each model's published config.json. Which tensor gets which type under Q4_K_M follows
llama_tensor_get_type of llama.cpp's src/llama-quant.cpp: Q6_K for the output matrix and, in the blocks that
use_more_bits names, for attn_v and ffn_down; Q5_K for the other attn_v of 70B models; F32 for vectors and expert
routers; Q4_K for the rest. The sizes that follow agree with the published files, see PUBLISHED_GB.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json
from . import gguf_file, gguf_header, tensor_types

#: Of all shapes: Q4_K_M.
FILE_TYPE = 15


class Tensor(t.NamedTuple):
    """One tensor: C(rows) of C(columns) elements, for each of C(experts) where it has any; a vector has rows 1."""

    name: str
    columns: int
    rows: int
    experts: int
    kind: str

    @property
    def elements(self) -> int:
        return self.columns * self.rows * max(1, self.experts)

    @property
    def n_bytes(self) -> int:
        stored = tensor_types.BY_NAME[self.kind.lower()]
        return self.elements // stored.elements * stored.n_bytes


class Shape(t.NamedTuple):
    """What a model's header says, in the header's own words where there are any."""

    name: str
    architecture: str
    blocks: int
    embedding_length: int
    feed_forward_length: int
    head_count: int
    head_count_kv: int
    head_length: int
    vocabulary_size: int
    context_length: int
    tied: bool = False                    # the token embedding is the output matrix too
    attention_bias: bool = False
    head_norms: bool = False              # of queries and keys
    post_norms: bool = False              # after attention and after feed-forward
    rope_table: bool = False
    more_bits_for_v: bool = False         # llama.cpp's rule for models of 80 blocks
    sliding_window: int = 0
    expert_count: int = 0
    expert_used_count: int = 0
    expert_feed_forward_length: int = 0


SHAPES: dict[str, Shape] = {
    "llama_3_3_70b_q4_k_m": Shape(
        "Llama 3.3 70B Instruct", "llama", 80, 8192, 28672, 64, 8, 128, 128256, 131072,
        rope_table=True, more_bits_for_v=True,
    ),
    "llama_3_1_8b_q4_k_m": Shape(
        "Llama 3.1 8B Instruct", "llama", 32, 4096, 14336, 32, 8, 128, 128256, 131072, rope_table=True,
    ),
    "qwen2_5_coder_32b_q4_k_m": Shape(
        "Qwen2.5 Coder 32B Instruct", "qwen2", 64, 5120, 27648, 40, 8, 128, 152064, 32768, attention_bias=True,
    ),
    "qwen3_30b_a3b_q4_k_m": Shape(
        "Qwen3 30B A3B", "qwen3moe", 48, 2048, 6144, 32, 4, 128, 151936, 40960, head_norms=True,
        expert_count=128, expert_used_count=8, expert_feed_forward_length=768,
    ),
    "gemma_3_27b_it_q4_k_m": Shape(
        "Gemma 3 27B it", "gemma3", 62, 5376, 21504, 32, 16, 128, 262144, 131072, tied=True, head_norms=True,
        post_norms=True, sliding_window=1024,
    ),
}

#: Size of the published file in 10^9 bytes: tensors, and a header of some MB with the vocabulary. As the file lists of
#: these models' GGUF repositories on Hugging Face (bartowski's, and Qwen's for qwen3_30b_a3b) show it.
PUBLISHED_GB: dict[str, float] = {
    "llama_3_3_70b_q4_k_m": 42.52,
    "llama_3_1_8b_q4_k_m": 4.92,
    "qwen2_5_coder_32b_q4_k_m": 19.85,
    "qwen3_30b_a3b_q4_k_m": 18.6,
    "gemma_3_27b_it_q4_k_m": 16.55,
}


def known() -> list[str]:
    """Return the names of all shapes."""
    return sorted(SHAPES)


def _more_bits(block: int, blocks: int) -> bool:
    """Return llama.cpp's use_more_bits: the first and the last eighth, and every third block between."""
    eighth = blocks // 8
    return block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2


def tensors(shape: Shape) -> list[Tensor]:
    """Return all tensors of C(shape)."""
    width, hidden, length = shape.embedding_length, shape.feed_forward_length, shape.head_length
    query, cached = shape.head_count * length, shape.head_count_kv * length
    found = [Tensor("token_embd.weight", width, shape.vocabulary_size, 0, "Q6_K" if shape.tied else "Q4_K")]
    found += [Tensor("output_norm.weight", width, 1, 0, "F32")]
    if not shape.tied:
        found += [Tensor("output.weight", width, shape.vocabulary_size, 0, "Q6_K")]
    if shape.rope_table:
        found += [Tensor("rope_freqs.weight", length // 2, 1, 0, "F32")]
    for block in range(shape.blocks):
        better = _more_bits(block, shape.blocks)
        value = "Q6_K" if better else "Q5_K" if shape.more_bits_for_v else "Q4_K"
        parts: list[tuple[str, int, int, int, str]] = [
            ("attn_norm", width, 1, 0, "F32"), ("ffn_norm", width, 1, 0, "F32"),
            ("attn_q", width, query, 0, "Q4_K"), ("attn_k", width, cached, 0, "Q4_K"),
            ("attn_v", width, cached, 0, value), ("attn_output", query, width, 0, "Q4_K"),
        ]
        if shape.head_norms:
            parts += [("attn_q_norm", length, 1, 0, "F32"), ("attn_k_norm", length, 1, 0, "F32")]
        if shape.post_norms:
            parts += [("post_attention_norm", width, 1, 0, "F32"), ("post_ffw_norm", width, 1, 0, "F32")]
        down = "Q6_K" if better else "Q4_K"
        if shape.expert_count:
            count, hidden = shape.expert_count, shape.expert_feed_forward_length
            parts += [
                ("ffn_gate_inp", width, count, 0, "F32"), ("ffn_gate_exps", width, hidden, count, "Q4_K"),
                ("ffn_up_exps", width, hidden, count, "Q4_K"), ("ffn_down_exps", hidden, width, count, down),
            ]
        else:
            parts += [("ffn_gate", width, hidden, 0, "Q4_K"), ("ffn_up", width, hidden, 0, "Q4_K")]
            parts += [("ffn_down", hidden, width, 0, down)]
        found += [
            Tensor(f"blk.{block}.{part}.weight", columns, rows, experts, kind)
            for part, columns, rows, experts, kind in parts
        ]
        if shape.attention_bias:
            biases = (("attn_q", query), ("attn_k", cached), ("attn_v", cached))
            found += [Tensor(f"blk.{block}.{part}.bias", size, 1, 0, "F32") for part, size in biases]
    return found


def fields(shape: Shape) -> Json:
    """Return the header's keys and values, without the vocabulary itself."""
    own: Json = {
        "context_length": shape.context_length,
        "embedding_length": shape.embedding_length,
        "block_count": shape.blocks,
        "feed_forward_length": shape.feed_forward_length,
        "attention.head_count": shape.head_count,
        "attention.head_count_kv": shape.head_count_kv,
        "attention.key_length": shape.head_length,
        "attention.value_length": shape.head_length,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": shape.head_length,
        "vocab_size": shape.vocabulary_size,
    }
    if shape.sliding_window:
        own["attention.sliding_window"] = shape.sliding_window
    if shape.expert_count:
        own |= {
            "expert_count": shape.expert_count,
            "expert_used_count": shape.expert_used_count,
            "expert_feed_forward_length": shape.expert_feed_forward_length,
        }
    return {
        "general.architecture": shape.architecture,
        "general.name": shape.name,
        "general.file_type": FILE_TYPE,
        **{f"{shape.architecture}.{key}": value for key, value in own.items()},
    }


def model(name: str) -> Json:
    """Return the C(model) dict of docs/data_formats.md for a known shape; ValueError lists the known ones."""
    if name not in SHAPES:
        raise ValueError(f"there is no model shape {name!r}; known are {', '.join(known())}")
    shape = SHAPES[name]
    parts = tensors(shape)
    found = [
        gguf_header.Tensor(part.name, tensor_types.NUMBERS[part.kind.lower()], part.elements, 0, part.n_bytes)
        for part in parts
    ]
    size = sum(part.n_bytes for part in parts)
    return gguf_file.describe(fields(shape), found, [(f"{name} (shape only)", size)], shape.vocabulary_size)
