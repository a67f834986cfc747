# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tensor shapes of well-known models, to plan for them without their files. Private to this collection. Pure functions.

Dimensions are those of each model's published config.json. Which tensor gets which type under Q4_K_M follows
llama_tensor_get_type of llama.cpp's src/llama-quant.cpp: Q6_K for the output matrix and, in the blocks that
use_more_bits names, for attn_v and ffn_down; Q5_K for the other attn_v of 70B models; F32 for vectors and expert
routers; Q4_K for the rest. The sizes that follow agree with the published files, see PUBLISHED_GB. Names and sizes of
tensors are those that load_arch_tensors of llama.cpp's src/models (b11312) asks for.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json
from . import gguf_file, gguf_header, tensor_types

#: general.file_type of Q4_K_M, and of files with MXFP4 experts and Q8_0 for the rest.
FILE_TYPE, MXFP4_FILE_TYPE = 15, 38


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


class LinearAttention(t.NamedTuple):
    """Blocks with a gated delta net instead of attention: all but every C(interval)-th."""

    interval: int
    conv_kernel: int
    state_length: int                     # of one head
    key_heads: int
    value_heads: int


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
    shared_feed_forward_length: int = 0   # of the experts that every token uses
    dense_lead_blocks: int = 0            # first blocks without experts
    nextn_blocks: int = 0                 # last of the blocks, which only predict further tokens
    post_attention_norm: bool = False     # instead of a norm before feed-forward
    open_weight_format: bool = False      # of gpt-oss: attention sinks, biases everywhere, MXFP4 experts and Q8_0
    linear: LinearAttention | None = None


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
    "qwen3_5_27b_q4_k_m": Shape(
        "Qwen3.5 27B", "qwen35", 64, 5120, 17408, 24, 4, 256, 248320, 262144, head_norms=True,
        post_attention_norm=True, linear=LinearAttention(4, 4, 128, 16, 48),
    ),
    "gpt_oss_20b_mxfp4": Shape(
        "gpt-oss 20b", "gpt-oss", 24, 2880, 2880, 64, 8, 64, 201088, 131072, attention_bias=True, sliding_window=128,
        expert_count=32, expert_used_count=4, expert_feed_forward_length=2880, post_attention_norm=True,
        open_weight_format=True,
    ),
    "gpt_oss_120b_mxfp4": Shape(
        "gpt-oss 120b", "gpt-oss", 36, 2880, 2880, 64, 8, 64, 201088, 131072, attention_bias=True, sliding_window=128,
        expert_count=128, expert_used_count=4, expert_feed_forward_length=2880, post_attention_norm=True,
        open_weight_format=True,
    ),
    "glm_4_5_air_q4_k_m": Shape(
        "GLM 4.5 Air", "glm4moe", 47, 4096, 10944, 96, 8, 128, 151552, 131072, attention_bias=True, expert_count=128,
        expert_used_count=8, expert_feed_forward_length=1408, shared_feed_forward_length=1408, dense_lead_blocks=1,
        nextn_blocks=1, post_attention_norm=True,
    ),
    "qwen3_next_80b_a3b_q4_k_m": Shape(
        "Qwen3 Next 80B A3B", "qwen3next", 48, 2048, 5120, 16, 2, 256, 151936, 262144, head_norms=True,
        expert_count=512, expert_used_count=10, expert_feed_forward_length=512, shared_feed_forward_length=512,
        post_attention_norm=True, linear=LinearAttention(4, 4, 128, 16, 32),
    ),
    "qwen3_5_122b_a10b_q4_k_m": Shape(
        "Qwen3.5 122B A10B", "qwen35moe", 48, 3072, 0, 32, 2, 256, 248320, 262144, head_norms=True,
        expert_count=256, expert_used_count=8, expert_feed_forward_length=1024, shared_feed_forward_length=1024,
        post_attention_norm=True, linear=LinearAttention(4, 4, 128, 16, 64),
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
    width, vocabulary = shape.embedding_length, shape.vocabulary_size
    plain = "Q8_0" if shape.open_weight_format else "Q4_K"
    better = "Q8_0" if shape.open_weight_format else "Q6_K"
    found = [Tensor("token_embd.weight", width, vocabulary, 0, better if shape.tied else plain)]
    found += [Tensor("output_norm.weight", width, 1, 0, "F32")]
    if not shape.tied:
        found += [Tensor("output.weight", width, vocabulary, 0, better)]
    if shape.rope_table:
        found += [Tensor("rope_freqs.weight", shape.head_length // 2, 1, 0, "F32")]
    for block in range(shape.blocks):
        more = "Q6_K" if _more_bits(block, shape.blocks) else "Q4_K"
        value = "Q5_K" if shape.more_bits_for_v and more == "Q4_K" else more
        kinds = _Kinds(plain, plain, plain) if shape.open_weight_format else _Kinds(plain, more, value)
        parts = _attention(shape, block, kinds) + _feed_forward(shape, block, kinds) + _next_tokens(shape, block)
        found += [
            Tensor(f"blk.{block}.{_whole_name(part)}", columns, rows, experts, _fitting(kind, columns))
            for part, columns, rows, experts, kind in parts
        ]
    return found


class _Kinds(t.NamedTuple):
    """Types of one block's tensors."""

    plain: str
    down: str
    value: str


#: Name, columns, rows, experts and type of a tensor of a block.
_Part = tuple[str, int, int, int, str]


def _fitting(kind: str, columns: int) -> str:
    """Return the type, or what llama.cpp's tensor_type_fallback takes where its blocks of 256 do not fill the rows."""
    return kind if columns % 256 == 0 else {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}.get(kind, kind)


def _whole_name(part: str) -> str:
    """Return the name of a tensor: weights unless it says otherwise, or, as ssm_a, has no end at all."""
    return part if "." in part or part == "ssm_a" else f"{part}.weight"


def _attention(shape: Shape, block: int, kinds: _Kinds) -> list[_Part]:
    width, length = shape.embedding_length, shape.head_length
    norm = "post_attention_norm" if shape.post_attention_norm else "ffn_norm"
    parts: list[_Part] = [("attn_norm", width, 1, 0, "F32"), (norm, width, 1, 0, "F32")]
    if shape.post_norms:
        parts += [("post_attention_norm", width, 1, 0, "F32"), ("post_ffw_norm", width, 1, 0, "F32")]
    if shape.linear and (block + 1) % shape.linear.interval:
        return parts + _delta_net(shape, shape.linear, kinds)
    query, cached = shape.head_count * length, shape.head_count_kv * length
    asked = 2 * query if shape.linear else query  # with a gate for the attention's output
    parts += [
        ("attn_q", width, asked, 0, kinds.plain), ("attn_k", width, cached, 0, kinds.plain),
        ("attn_v", width, cached, 0, kinds.value), ("attn_output", query, width, 0, kinds.plain),
    ]  # fmt: skip
    if shape.head_norms:
        parts += [("attn_q_norm", length, 1, 0, "F32"), ("attn_k_norm", length, 1, 0, "F32")]
    if shape.attention_bias:
        sizes = (("attn_q", query), ("attn_k", cached), ("attn_v", cached))
        parts += [(f"{part}.bias", size, 1, 0, "F32") for part, size in sizes]
    if shape.open_weight_format:
        parts += [("attn_output.bias", width, 1, 0, "F32"), ("attn_sinks", shape.head_count, 1, 0, "F32")]
    return parts


def _delta_net(shape: Shape, linear: LinearAttention, kinds: _Kinds) -> list[_Part]:
    width, length = shape.embedding_length, linear.state_length
    keys, values = linear.key_heads * length, linear.value_heads * length
    parts: list[_Part] = [
        ("attn_qkv", width, 2 * keys + values, 0, kinds.value), ("attn_gate", width, values, 0, kinds.plain),
        ("ssm_conv1d", linear.conv_kernel, 2 * keys + values, 0, "F32"), ("ssm_out", values, width, 0, kinds.plain),
        ("ssm_dt.bias", linear.value_heads, 1, 0, "F32"), ("ssm_a", linear.value_heads, 1, 0, "F32"),
        ("ssm_norm", length, 1, 0, "F32"),
    ]  # fmt: skip
    if shape.architecture == "qwen3next":
        return [*parts, ("ssm_ba", width, 2 * linear.value_heads, 0, kinds.plain)]
    return [*parts, *((part, width, linear.value_heads, 0, kinds.plain) for part in ("ssm_alpha", "ssm_beta"))]


def _feed_forward(shape: Shape, block: int, kinds: _Kinds) -> list[_Part]:
    width, count, hidden = shape.embedding_length, shape.expert_count, shape.expert_feed_forward_length
    if not count or block < shape.dense_lead_blocks:
        hidden = shape.feed_forward_length
        return [
            ("ffn_gate", width, hidden, 0, kinds.plain), ("ffn_up", width, hidden, 0, kinds.plain),
            ("ffn_down", hidden, width, 0, kinds.down),
        ]  # fmt: skip
    up, down = ("MXFP4", "MXFP4") if shape.open_weight_format else (kinds.plain, kinds.down)
    parts: list[_Part] = [
        ("ffn_gate_inp", width, count, 0, "F32"), ("ffn_gate_exps", width, hidden, count, up),
        ("ffn_up_exps", width, hidden, count, up), ("ffn_down_exps", hidden, width, count, down),
    ]  # fmt: skip
    if shape.open_weight_format:
        biases = (("ffn_gate_exps", hidden), ("ffn_up_exps", hidden), ("ffn_down_exps", width))
        parts += [("ffn_gate_inp.bias", count, 1, 0, "F32")]
        parts += [(f"{part}.bias", size, count, 0, "F32") for part, size in biases]
    if shape.architecture == "glm4moe":
        parts += [("exp_probs_b.bias", count, 1, 0, "F32")]
    shared = shape.shared_feed_forward_length
    if shared:
        parts += [("ffn_gate_inp_shexp", width, 1, 0, "F32")] if shape.linear else []
        parts += [
            ("ffn_gate_shexp", width, shared, 0, kinds.plain), ("ffn_up_shexp", width, shared, 0, kinds.plain),
            ("ffn_down_shexp", shared, width, 0, kinds.down),
        ]  # fmt: skip
    return parts


def _next_tokens(shape: Shape, block: int) -> list[_Part]:
    if block < shape.blocks - shape.nextn_blocks:
        return []
    width, vocabulary = shape.embedding_length, shape.vocabulary_size
    return [
        ("nextn.eh_proj.weight", 2 * width, width, 0, "Q4_K"),
        *((f"nextn.{norm}.weight", width, 1, 0, "F32") for norm in ("enorm", "hnorm", "shared_head_norm")),
        *((f"nextn.{part}.weight", width, vocabulary, 0, "Q4_K") for part in ("embed_tokens", "shared_head_head")),
    ]


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
    if shape.shared_feed_forward_length:
        own["expert_shared_feed_forward_length"] = shape.shared_feed_forward_length
    if shape.architecture == "glm4moe":
        own |= {"leading_dense_block_count": shape.dense_lead_blocks, "expert_shared_count": 1}
        own["nextn_predict_layers"] = shape.nextn_blocks
    if shape.linear:
        own |= {
            "full_attention_interval": shape.linear.interval,
            "ssm.conv_kernel": shape.linear.conv_kernel,
            "ssm.inner_size": shape.linear.value_heads * shape.linear.state_length,
            "ssm.state_size": shape.linear.state_length,
            "ssm.time_step_rank": shape.linear.value_heads,
            "ssm.group_count": shape.linear.key_heads,
            "rope.dimension_count": shape.head_length // 4,
        }
    if shape.architecture in ("qwen35", "qwen35moe"):
        own["rope.dimension_sections"] = [11, 11, 10, 0]
    return {
        "general.architecture": shape.architecture,
        "general.name": shape.name,
        "general.file_type": MXFP4_FILE_TYPE if shape.open_weight_format else FILE_TYPE,
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
