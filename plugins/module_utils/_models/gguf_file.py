# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a GGUF header means for memory, and the shape of random test models.

Private to this collection. Pure functions only: files are read, and written, by the modules.
"""

from __future__ import annotations

import os
import re
import struct
import typing as t

from .._base.errors import UserError
from .._base.types import Json, Mapping

# Part of the cache's key: raise it whenever describe() answers differently for the same file.
DESCRIPTION_VERSION = 3

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
PREAMBLE_BYTES = 24                       # magic, version, tensor count, key count

# Architectures whose KV cache is head_count_kv x (key_length + value_length) elements in every block, and whose tensors
# have the usual names. All others are described too, with a note.
PLAIN_ARCHITECTURES = frozenset({
    "llama", "apertus", "arcee", "baichuan", "bitnet", "bloom", "chameleon", "chatglm", "codeshell", "cohere2",
    "command-r", "dbrx", "deci", "deepseek", "dots1", "ernie4_5", "ernie4_5-moe", "exaone", "exaone4", "falcon",
    "gemma", "gemma2", "gemma3", "glm4", "gpt-oss", "gpt2", "gptj", "gptneox", "granite", "granitemoe", "grok",
    "hunyuan-dense", "hunyuan-moe", "internlm2", "jais", "maincoder", "minicpm", "minimax-m2", "mistral3", "mpt",
    "nemotron", "olmo", "olmo2", "olmoe", "openelm", "orion", "pangu-embedded", "phi2", "phi3", "phimoe", "plamo",
    "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "refact", "seed_oss",
    "smollm3", "stablelm", "starcoder", "starcoder2", "xverse",
})

# Architectures with a sliding window in some blocks -> pattern that holds when the header has none: of every so many
# blocks the last one sees everything. From load_arch_hparams in llama.cpp's src/models (b11312).
WINDOW_PATTERNS = {"cohere2": 4, "exaone4": 4, "gemma2": 2, "gemma3": 6, "gpt-oss": 2, "olmo2": 4}

# Where llama.cpp puts the tensors that belong to no block (first component of the name).
INPUT_TENSORS = frozenset({"token_embd", "position_embd", "token_types", "per_layer_token_embd"})     # host memory
OUTPUT_TENSORS = frozenset({"output", "output_norm", "cls"})
FIRST_BLOCK_TENSORS = frozenset({"token_embd_norm", "rope_freqs", "rope_factors_long", "rope_factors_short"})

_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf$")
_BLOCK = re.compile(r"^blk\.([0-9]+)\.")


def shard_paths(path: str) -> list[str]:
    """Return all files of the model that ``path`` belongs to, in order; just ``[path]`` for a model of one file.

    Any shard may be given; names follow llama.cpp's ``<stem>-00001-of-00004.gguf``. Raises UserError on impossible
    numbers.
    """
    directory, name = os.path.split(path)
    match = _SHARD.match(name)
    if match is None:
        return [path]
    number, count = int(match["number"]), int(match["count"])
    if not 1 <= number <= count:
        raise UserError(f"{path} is named as shard {number} of {count}, which cannot be: correct the file name.")
    return [os.path.join(directory, f"{match['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]


def check_preamble(path: str, head: bytes) -> None:
    """Raise UserError unless ``head``, the first PREAMBLE_BYTES bytes of ``path``, start a GGUF that can be read."""
    if head[:4] != MAGIC:
        what = "is empty" if not head else f"starts with {head[:4]!r}, not with {MAGIC!r}"
        raise UserError(
            f"{path} is no GGUF file (it {what}): download the model's .gguf file, or convert the model with llama.cpp."
        )
    if len(head) < PREAMBLE_BYTES:
        raise UserError(f"{path} ends after {len(head)} bytes, within the GGUF header: download it again.")
    version = struct.unpack("<I", head[4:8])[0]
    if version & 0xFFFF == 0:
        raise UserError(
            f"{path} is a big-endian GGUF, which this host cannot use: download the little-endian file, "
            "or convert it with gguf-convert-endian."
        )
    if version not in SUPPORTED_VERSIONS:
        raise UserError(
            f"{path} has GGUF version {version}, and only versions {' and '.join(map(str, SUPPORTED_VERSIONS))} are "
            "supported: download a current conversion of the model."
        )


def check_extent(path: str, size_bytes: int, extents: t.Iterable[tuple[str, int, int]]) -> None:
    """Raise UserError when tensor data reach beyond the end of the file.

    ``extents``: (tensor name, offset from the start of the file, bytes).
    """
    end, last = 0, ""
    for name, offset, n_bytes in extents:
        if offset + n_bytes > end:
            end, last = offset + n_bytes, name
    if end > size_bytes:
        raise UserError(
            f"{path} is truncated: its last tensor {last} ends at byte {end}, the file has {size_bytes}, so "
            f"{end - size_bytes} bytes are missing: download it again."
        )


class _Header:
    """The header's fields, read with messages that name the file."""

    def __init__(self, path: str, architecture: str, fields: Mapping) -> None:
        self.path, self.architecture, self.fields = path, architecture, fields

    def integer(self, key: str, default: int | None = None) -> int:
        """Return ``<architecture>.<key>``; of a list with one entry per block, the largest."""
        value = self.fields.get(f"{self.architecture}.{key}", default)
        if isinstance(value, (list, tuple)):
            value = max(value, default=0)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(
                f"The header of {self.path} has no usable {self.architecture}.{key}: "
                "it is damaged or not the first file of the model; download it again."
            )
        return value

    def per_block(self, key: str, blocks: int, default: list[int]) -> list[int]:
        """Return ``<architecture>.<key>`` as one integer per block."""
        value = self.fields.get(f"{self.architecture}.{key}")
        if value is None:
            return default
        if not isinstance(value, (list, tuple)):
            return [self.integer(key)] * blocks
        if len(value) < blocks:
            raise UserError(
                f"The header of {self.path} has {len(value)} entries of {self.architecture}.{key} for {blocks} blocks: "
                "it is damaged; download it again."
            )
        return [int(entry) for entry in value[:blocks]]


def _notes(header: _Header) -> list[str]:
    """One sentence for everything that makes the KV figures an estimate."""
    notes = []
    architecture = header.architecture

    def positive(key: str) -> bool:
        return header.integer(key, 0) > 0

    if architecture not in PLAIN_ARCHITECTURES:
        notes.append(
            f"The memory of the architecture {architecture} is not modelled here: weights are counted by tensor name, "
            "the KV cache as that of plain attention."
        )
    if positive("attention.sliding_window") and architecture not in WINDOW_PATTERNS:
        notes.append(
            f"Some blocks may use a sliding window of {header.integer('attention.sliding_window')} tokens: "
            "their KV cache is counted for the whole context, which is more than llama.cpp needs."
        )
    if positive("attention.kv_lora_rank"):
        notes.append(
            "The model uses multi-head latent attention: its KV cache is counted as that of plain attention, "
            "which differs from what llama.cpp allocates."
        )
    if positive("attention.shared_kv_layers"):
        notes.append(
            "Some blocks share their KV cache: it is counted for every block, which is more than llama.cpp needs."
        )
    recurrent = tuple(f"{architecture}.{part}." for part in ("ssm", "wkv", "shortconv"))
    if any(key.startswith(recurrent) for key in header.fields):
        notes.append("Some blocks are recurrent: the fixed state that they keep per sequence is not counted.")
    if positive("nextn_predict_layers"):
        notes.append("The last blocks only predict further tokens (MTP): they are counted like all others.")
    return notes


def _windows(header: _Header, blocks: int) -> list[int]:
    """Return, per block, the tokens that its attention looks back on; 0 where that is the whole context.

    As in load_swa_pattern of llama.cpp: the header's pattern is one flag per block, or a number n, by which every n-th
    block sees everything. gemma2 and exaone4 have a window of 4096 when the header names none.
    """
    architecture = header.architecture
    window = header.integer("attention.sliding_window", 4096 if architecture in ("exaone4", "gemma2") else 0)
    pattern = header.fields.get(f"{architecture}.attention.sliding_window_pattern")
    if architecture not in WINDOW_PATTERNS or window <= 0 or (architecture == "exaone4" and blocks != 64):
        return [0] * blocks
    if isinstance(pattern, (list, tuple)) and len(pattern) >= blocks:
        return [window if entry else 0 for entry in pattern[:blocks]]
    every = pattern if isinstance(pattern, int) and not isinstance(pattern, bool) else WINDOW_PATTERNS[architecture]
    return [window if every == 0 or block % every < every - 1 else 0 for block in range(blocks)]


class _Weights:
    """The tensors of a model, added up by the block or the layer that they belong to."""

    def __init__(self, blocks: int, experts: int, experts_used: int) -> None:
        self.blocks, self.experts, self.experts_used = blocks, experts, experts_used
        self.block_bytes, self.read_bytes, self.block_weights = [0] * blocks, [0] * blocks, [0] * blocks
        self.output_bytes = self.output_weights = self.input_bytes = self.embedding_bytes = 0
        self.has_output = False
        self.others: dict[str, int] = {}

    def add(self, name: str, n_bytes: int, elements: int = 0) -> None:
        """Count one tensor."""
        block = _BLOCK.match(name)
        head = name.split(".", 1)[0]
        if name in ("output.weight", "token_embd.weight"):
            self.output_weights = max(self.output_weights, elements)
        if block and int(block[1]) < self.blocks:
            self._add_to_block(int(block[1]), name, n_bytes, elements)
        elif head in FIRST_BLOCK_TENSORS and self.blocks:
            self.block_bytes[0] += n_bytes
        elif head in OUTPUT_TENSORS:
            self.output_bytes += n_bytes
            self.has_output = self.has_output or name == "output.weight"
        elif head in INPUT_TENSORS:
            self.input_bytes += n_bytes
            self.embedding_bytes += n_bytes if name == "token_embd.weight" else 0
        else:
            self.others[name] = n_bytes

    def _add_to_block(self, index: int, name: str, n_bytes: int, elements: int) -> None:
        expert = "_exps." in name and self.experts and self.experts_used
        share, whole = (self.experts_used, self.experts) if expert else (1, 1)
        self.block_bytes[index] += n_bytes
        self.read_bytes[index] += n_bytes * share // whole
        self.block_weights[index] += elements * share // whole

    def output_layer_bytes(self) -> int:
        """Return the bytes of the output layer; a tied token embedding is loaded a second time for it."""
        return self.output_bytes + (0 if self.has_output else self.embedding_bytes)

    def notes(self, path: str) -> list[str]:
        """Return a sentence for what is not counted. Raises UserError when no block has a tensor."""
        notes = []
        if self.others:
            names = sorted(self.others)
            notes.append(
                f"{len(names)} tensors of {sum(self.others.values())} bytes belong to no known layer and are not "
                f"counted ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})."
            )
        empty = [str(i) for i, n_bytes in enumerate(self.block_bytes) if n_bytes == 0]
        if len(empty) == self.blocks:
            raise UserError(
                f"{path} has no tensors for any of its {self.blocks} blocks: it holds a vocabulary only, or it is "
                "damaged; download the model again."
            )
        if empty:
            notes.append(f"{len(empty)} of the {self.blocks} blocks have no tensors (the first is {empty[0]}).")
        return notes


def _attention(header: _Header, blocks: int) -> Json:
    """Return heads, key length and the elements of the KV cache per block and token."""
    head_count = header.per_block("attention.head_count", blocks, [0] * blocks)
    head_count_kv = header.per_block("attention.head_count_kv", blocks, head_count)
    heads = (head_count[0] or max(head_count)) if head_count else 0
    natural = header.integer("embedding_length") // heads if heads else 0
    key_length = header.integer("attention.key_length", natural)
    value_length = header.integer("attention.value_length", natural)
    return {
        "head_count": max(head_count, default=0),
        "head_count_kv": max(head_count_kv, default=0),
        "key_length": key_length,
        "kv_k_elements_per_token": [count * key_length for count in head_count_kv],
        "kv_v_elements_per_token": [count * value_length for count in head_count_kv],
        "window_tokens": _windows(header, blocks),
    }


def _known_architecture(path: str, fields: Mapping, known: t.Collection[str]) -> str:
    """Return the architecture. Raises UserError when the file is no language model, or one of an unknown kind."""
    architecture = fields.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise UserError(f"{path} names no architecture: it is damaged or holds no model; download it again.")
    kind = fields.get("general.type", "model")
    if kind != "model" or architecture == "clip":
        raise UserError(
            f"{path} is no language model (its type is {kind}, its architecture {architecture}): "
            "name the model's own GGUF file."
        )
    if architecture not in PLAIN_ARCHITECTURES and architecture not in known:
        raise UserError(
            f"{path} is a model of the architecture {architecture!r}, which is unknown: choose another model, or, if "
            "it is newer than this collection, update the collection with its gguf library and llama.cpp."
        )
    return architecture


def describe(
    fields: Mapping,
    tensors: t.Iterable[tuple[str, int] | tuple[str, int, int]],
    files: t.Sequence[tuple[str, int]],
    token_count: int | None,
    file_type: str | None,
    known_architectures: t.Collection[str] = (),
) -> Json:
    """Return the ``model`` dict of docs/data_formats.md.

    ``fields``: the header's keys and values as plain Python types, without the token lists. ``tensors``: (name, bytes,
    elements) of all shards; without the elements nothing can be said about the work of a token. ``files``: (path,
    bytes) of all shards, in order. ``token_count``: length of the vocabulary, if it has one. ``file_type``: name of the
    quantisation. ``known_architectures``: those that llama.cpp has beside PLAIN_ARCHITECTURES. Raises UserError when
    the file is no language model, or one of an unknown architecture.

    Placement of tensors and tied embeddings follow llama.cpp's ``load_tensors``: without an ``output.weight`` the token
    embedding is loaded a second time for the output layer. KV elements per token and block are
    ``head_count_kv x key_length`` and ``head_count_kv x value_length``. Of experts (tensors named ``*_exps``) a token
    reads and uses ``expert_used_count`` of ``expert_count``.
    """
    path = files[0][0]
    architecture = _known_architecture(path, fields, known_architectures)
    header = _Header(path, architecture, fields)
    blocks = header.integer("block_count")
    experts, experts_used = header.integer("expert_count", 0), header.integer("expert_used_count", 0)
    weights = _Weights(blocks, experts, experts_used)
    for tensor in tensors:
        weights.add(*tensor)
    attention = _attention(header, blocks)
    notes = _notes(header) + weights.notes(path)
    if not attention["head_count"]:
        notes.append("The header names no attention heads: no KV cache is counted.")
    title = fields.get("general.name")
    return {
        "path": path,
        "shards": [file for file, _size in files],
        "size_bytes": sum(size for _file, size in files),
        "name": title if isinstance(title, str) and title else os.path.basename(path),
        "architecture": architecture,
        "file_type": file_type,
        "block_count": blocks,
        "block_bytes": weights.block_bytes,
        "block_read_bytes": weights.read_bytes,
        "block_weights": weights.block_weights,
        "output_bytes": weights.output_layer_bytes(),
        "output_weights": weights.output_weights,
        "token_embedding_bytes": weights.input_bytes,
        "embedding_length": header.integer("embedding_length"),
        "vocabulary_size": token_count or header.integer("vocab_size", 0),
        "feed_forward_length": header.integer("feed_forward_length", 0),
        "expert_feed_forward_length": header.integer("expert_feed_forward_length", 0),
        "expert_count": experts,
        "expert_used_count": experts_used,
        **attention,
        "context_length_train": header.integer("context_length", 0),
        "notes": notes,
    }
