# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an EXL2, EXL3 or float16 model in a folder weighs, block by block. Private to this collection. Pure functions.

The folder holds config.json and safetensors files in Hugging Face's names. A safetensors file begins with the length of
its header (8 bytes, little endian) and the header, a JSON dict of tensors with C(data_offsets) into what follows
(https://huggingface.co/docs/safetensors, "Format"). ExLlama keeps weights on the cards as they are in the file, so the
bytes there are the bytes of memory.
"""

from __future__ import annotations

import re
import typing as t

from .._base import json_file
from .._base.errors import UserError
from .._base.types import Json, Mapping

LENGTH_BYTES = 8
#: The format's own limit of a header.
LONGEST_HEADER = 100_000_000

_BLOCK = re.compile(r"(?:(?:language_model|model)\.)*(?:layers|h|blocks)\.(\d+)\.(.+)")
_EMBEDDING = re.compile(r"^(?:(?:language_model|model|transformer)\.)*(?:embed_tokens|wte)\.")
_OUTPUT_NORM = re.compile(r"^(?:(?:language_model|model|transformer)\.)*(?:norm|ln_f|final_layernorm)\.")
_OUTPUT = re.compile(r"^(?:language_model\.)*(?:lm_head|output)\.")
_ATTENTION = re.compile(r"^(?:self_attn|attn|attention)\.|^input_layernorm\.")
_EXPERT = re.compile(r"\.experts?\.\d+\.|\.experts\.")
_OTHER_TOWER = re.compile(r"vision|visual|image|audio|mm_|multi_modal|mtp|patch")


class Tensor(t.NamedTuple):
    """One tensor of a safetensors file."""

    name: str
    n_bytes: int


def header_length(path: str, start: bytes, size_bytes: int) -> int:
    """Return the length of the header of a file of C(size_bytes) that begins with C(start). Raises UserError."""
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if len(start) < LENGTH_BYTES or not 2 <= length <= LONGEST_HEADER:
        raise UserError(f"{path} is no safetensors file: download it again.")
    if LENGTH_BYTES + length > size_bytes:
        raise UserError(f"{path} is cut off in its header ({size_bytes} bytes): download it again.")
    return length


def read_header(path: str, text: bytes, size_bytes: int) -> list[Tensor]:
    """Return the tensors that a header names. Raises UserError when the file does not hold them all."""
    try:
        header = json_file.from_text(text)
        tensors = [
            (Tensor(name, int(entry["data_offsets"][1]) - int(entry["data_offsets"][0])), int(entry["data_offsets"][1]))
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as exc:
        raise UserError(f"The header of {path} cannot be read ({exc}): download the file again.") from exc
    wanted = LENGTH_BYTES + len(text) + max((end for _tensor, end in tensors), default=0)
    if size_bytes < wanted:
        raise UserError(f"{path} is cut off: it has {size_bytes} bytes of {wanted}; download it again.")
    return [tensor for tensor, _end in tensors]


def indexed_files(text: str, path: str) -> list[str]:
    """Return the file names of a C(model.safetensors.index.json), each once. Raises UserError."""
    try:
        return sorted(set(json_file.from_text(text)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise UserError(f"{path} cannot be read ({exc}): download it again.") from exc


def describe(
    path: str, config: Mapping, files: t.Sequence[tuple[str, int]], tensors: t.Sequence[Tensor]
) -> Json:
    """Return the C(model) of docs/data_formats.md, with C(block_attention_bytes) beside it.

    C(config) is config.json, C(files) are the safetensors files with their bytes. Raises UserError for a model that
    cannot be planned.
    """
    text = config.get("text_config")
    own = {**config, **text} if isinstance(text, t.Mapping) else config
    blocks = _number(path, own, "num_hidden_layers", "n_layer")
    hidden = _number(path, own, "hidden_size", "n_embd")
    heads = _number(path, own, "num_attention_heads", "n_head")
    kv_heads = _optional(own, "num_key_value_heads") or heads
    head_length = _optional(own, "head_dim") or hidden // heads
    forward = _optional(own, "intermediate_size", "n_inner")
    experts = _optional(own, "num_local_experts", "num_experts", "n_routed_experts")
    used = _optional(own, "num_experts_per_tok") if experts else 0
    parts = _sort_tensors(tensors, blocks)
    _check_parts(path, parts)
    attention_weights = hidden * head_length * (2 * heads + 2 * kv_heads)
    weights = 0 if experts or not forward else attention_weights + 3 * hidden * forward
    share = used / experts if experts else 1.0
    kv = kv_heads * head_length
    vocabulary = _optional(own, "vocab_size")
    return {
        "path": path,
        "shards": [name for name, _size in files],
        "size_bytes": sum(size for _name, size in files),
        "name": config.get("_name_or_path") or path.rstrip("/").rpartition("/")[2],
        "architecture": next(iter(config.get("architectures") or ()), str(config.get("model_type"))),
        "file_type": quantisation(config),
        "block_count": blocks,
        "block_bytes": parts.blocks,
        "block_read_bytes": [
            size - round(of_experts * (1 - share)) for size, of_experts in zip(parts.blocks, parts.experts, strict=True)
        ],
        "block_weights": [weights] * blocks,
        "block_attention_bytes": parts.attention,
        "output_bytes": (parts.output or parts.embedding) + parts.norm,
        "output_weights": hidden * vocabulary,
        "token_embedding_bytes": parts.embedding,
        "embedding_length": hidden,
        "vocabulary_size": vocabulary,
        "feed_forward_length": forward,
        "expert_feed_forward_length": _optional(own, "moe_intermediate_size") or (forward if experts else 0),
        "expert_count": experts,
        "expert_used_count": used,
        "head_count": heads,
        "head_count_kv": kv_heads,
        "key_length": head_length,
        "context_length_train": _optional(own, "max_position_embeddings", "n_positions"),
        "kv_k_elements_per_token": [kv] * blocks,
        "kv_v_elements_per_token": [kv] * blocks,
        # ExLlama allocates the whole context, whatever a block looks back on
        "window_tokens": [0] * blocks,
        "notes": parts.notes,
    }


def _check_parts(path: str, parts: _Parts) -> None:
    """Raise UserError where a file must be missing."""
    missing = [number for number, size in enumerate(parts.blocks) if not size]
    if missing:
        raise UserError(
            f"{path} has no tensor of block {missing[0]} ({len(parts.blocks)} blocks are declared): a file is missing,"
            " or the architecture is not known; download it again, or use a GGUF of this model."
        )
    if not parts.output and not parts.embedding:
        raise UserError(
            f"{path} has neither an output layer nor a token embedding: a file is missing; download it again."
        )


def quantisation(config: Mapping) -> str:
    """Return how the weights are stored, as people write it: C(EXL2 4.5bpw); F16 where nothing says otherwise."""
    stored = config.get("quantization_config")
    if not isinstance(stored, t.Mapping) or not stored.get("quant_method"):
        return "F16"
    bits = stored.get("bits")
    return f"{str(stored['quant_method']).upper()}{f' {bits}bpw' if bits else ''}"


class _Parts(t.NamedTuple):
    blocks: list[int]
    attention: list[int]
    experts: list[int]
    output: int
    norm: int
    embedding: int
    notes: list[str]


def _sort_tensors(tensors: t.Sequence[Tensor], count: int) -> _Parts:
    """Add up the tensors by what they belong to."""
    blocks, attention, experts = [0] * count, [0] * count, [0] * count
    sums = {"output": 0, "norm": 0, "embedding": 0, "tower": 0, "unknown": 0}
    for name, n_bytes in tensors:
        match = _BLOCK.fullmatch(name)
        if match and int(match[1]) < count:
            blocks[int(match[1])] += n_bytes
            attention[int(match[1])] += n_bytes if _ATTENTION.match(match[2]) else 0
            experts[int(match[1])] += n_bytes if _EXPERT.search(f".{match[2]}") else 0
        elif _OUTPUT.match(name):
            sums["output"] += n_bytes
        elif _OUTPUT_NORM.match(name):
            sums["norm"] += n_bytes
        elif _EMBEDDING.match(name):
            sums["embedding"] += n_bytes
        else:
            sums["tower" if match or _OTHER_TOWER.search(name) else "unknown"] += n_bytes
    notes = []
    if sums["tower"]:
        notes.append(f"{sums['tower'] / 1e6:.0f} MB of another tower or of drafting heads are not counted.")
    if sums["unknown"]:
        notes.append(f"{sums['unknown'] / 1e6:.0f} MB of tensors with unknown names are not counted.")
    return _Parts(blocks, attention, experts, sums["output"], sums["norm"], sums["embedding"], notes)


def _optional(config: Mapping, *names: str) -> int:
    """Return the first whole number that config.json gives one of these names, or 0."""
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0), 0)


def _number(path: str, config: Mapping, *names: str) -> int:
    value = _optional(config, *names)
    if not value:
        raise UserError(f"config.json of {path} has no {names[0]}: it is no language model that can be planned.")
    return value
