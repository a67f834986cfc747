# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a GGUF header means for memory.

Private to this collection. Pure functions only: files are read, and written, by the modules.
"""

from __future__ import annotations

import os
import re
import typing as t

from .._base.errors import UserError
from .._base.types import Json, Mapping
from . import architectures, gguf_kind, tensor_types
from .gguf_header import Tensor, shown

# Part of the cache's key: raise it whenever describe() answers differently for the same file.
DESCRIPTION_VERSION = 6

LARGEST_VALUE, MOST_BLOCKS = 1 << 31, 4096  # of any number in a header that memory is counted with; llama.cpp has 512

# Architectures whose KV cache is head_count_kv x (key_length + value_length) elements in every block, and whose tensors
# have the usual names. All others are described too, with a note.
PLAIN_ARCHITECTURES = frozenset({
    "llama", "apertus", "arcee", "baichuan", "bitnet", "bloom", "chameleon", "chatglm", "codeshell", "cohere2",
    "command-r", "dbrx", "deci", "deepseek", "dots1", "ernie4_5", "ernie4_5-moe", "exaone", "exaone4", "falcon",
    "gemma", "gemma2", "gemma3", "glm4", "gpt-oss", "gpt2", "gptj", "gptneox", "granite", "granitemoe", "grok",
    "hunyuan-dense", "hunyuan-moe", "internlm2", "jais", "maincoder", "minicpm", "minimax-m2", "mistral3", "mpt",
    "nemotron", "olmo", "olmo2", "olmoe", "openelm", "orion", "pangu-embedded", "phi2", "phi3", "phimoe", "plamo",
    "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "refact", "seed_oss",
    "smollm3", "stablelm", "starcoder", "starcoder2", "xverse", "glm4moe", "qwen35", "qwen35moe", "qwen3next",
})

# Architectures whose last blocks, those that only predict further tokens (MTP), are not loaded without a draft: neither
# their weights nor a KV cache of theirs. From load_arch_tensors in llama.cpp's src/models (b11312).
UNLOADED_MTP = frozenset({"glm4moe", "qwen35", "qwen35moe", "qwen3next"})

# Architectures in which all blocks but every so many-th have a gated delta net instead of attention.
DELTA_NETS = frozenset({"qwen35", "qwen35moe", "qwen3next"})

# Architectures with a sliding window in some blocks -> pattern that holds when the header has none: of every so many
# blocks the last one sees everything. From load_arch_hparams in llama.cpp's src/models (b11312).
WINDOW_PATTERNS = {"cohere2": 4, "exaone4": 4, "gemma2": 2, "gemma3": 6, "gpt-oss": 2, "olmo2": 4}

# Where llama.cpp puts the tensors that belong to no block (first component of the name).
INPUT_TENSORS = frozenset({"token_embd", "position_embd", "token_types", "per_layer_token_embd"})     # host memory
OUTPUT_TENSORS = frozenset({"output", "output_norm", "cls"})
FIRST_BLOCK_TENSORS = frozenset({"token_embd_norm", "rope_freqs", "rope_factors_long", "rope_factors_short"})

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")
_BLOCK = re.compile(r"^blk\.([0-9]+)\.")
# What --n-cpu-moe and --n-cpu-ffn keep in host memory: LLM_FFN_EXPS_REGEX, LLM_FFN_DENSE_REGEX of llama.cpp b11312.
_EXPERTS, _DENSE = re.compile(r"\.ffn_(up|down|gate|gate_up)_(?:ch)?exps"), re.compile(r"\.ffn_(up|down|gate)\.")


def shard_paths(path: str) -> list[str]:
    """Return all files of the model that ``path`` belongs to, in order; just ``[path]`` for a model of one file.

    Any shard may be given; names follow llama.cpp's ``<stem>-00001-of-00004.gguf``. Raises UserError on impossible
    numbers.
    """
    directory, name = os.path.split(path)
    match = _SHARD.fullmatch(name)
    if match is None:
        return [path]
    number, count = int(match["number"]), int(match["count"])
    if not 1 <= number <= count:
        raise UserError(f"{path} is named as shard {number} of {count}, which cannot be: correct the file name.")
    return [os.path.join(directory, f"{match['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]


class _Header:
    """The header's fields, read with messages that name the file."""

    def __init__(self, path: str, architecture: str, fields: Mapping) -> None:
        self.path, self.architecture, self.fields = path, architecture, fields
        #: key -> value that cannot be
        self.strange: dict[str, str] = {}

    def integer(self, key: str, default: int | None = None) -> int:
        """Return ``<architecture>.<key>``; of a list with one entry per block, the largest.

        What cannot be is noted, and the default taken; without a default it is a UserError.
        """
        name = f"{self.architecture}.{key}"
        value = self.fields.get(name)
        values = value if isinstance(value, list) else [default if value is None else value]
        if values and all(map(_usable, values)):
            return int(max(values))
        if default is None:
            said = "has no" if value is None else f"has {shown(str(value))} as"
            raise UserError(
                f"The header of {self.path} {said} {name}: it is not the first file of the model, or was made by a "
                "program with a fault; take the model from another source."
            )
        if value != []:
            self.strange.setdefault(name, shown(str(value)))
        return default

    def per_block(self, key: str, blocks: int, default: list[int]) -> list[int]:
        """Return ``<architecture>.<key>`` as one integer per block."""
        name = f"{self.architecture}.{key}"
        value = self.fields.get(name)
        if value is None:
            return default
        if not isinstance(value, list):
            return [self.integer(key, 0)] * blocks
        if len(value) != blocks:  # llama.cpp takes no other length, whatever the architecture
            raise UserError(
                f"The header of {self.path} has {len(value)} entries of {name} for {blocks} blocks: take the model "
                "from another source."
            )
        if not all(map(_usable, value)):
            self.strange.setdefault(name, shown(str(value)))
            return default
        return [int(entry) for entry in value]


def _usable(value: t.Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_VALUE


def _notes(header: _Header) -> list[str]:
    """One sentence for everything that makes the KV figures an estimate."""
    notes = []
    architecture = header.architecture

    def positive(key: str) -> bool:
        return header.integer(key, 0) > 0

    if architecture not in PLAIN_ARCHITECTURES:
        known = "" if architecture in architectures.PINNED else ", unknown to this collection,"
        notes.append(
            f"The memory of the architecture {architecture}{known} is not modelled here: weights are "
            "counted by tensor name, the KV cache as that of plain attention."
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
    if architecture not in DELTA_NETS and any(key.startswith(recurrent) for key in header.fields):
        notes.append("Some blocks are recurrent: the fixed state that they keep per sequence is not counted.")
    if positive("nextn_predict_layers") and architecture not in UNLOADED_MTP:
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

    def __init__(self, blocks: int, loaded: int, experts: int, experts_used: int) -> None:
        self.blocks, self.loaded, self.experts, self.experts_used = blocks, loaded, experts, experts_used
        self.block_bytes, self.read_bytes, self.block_weights = [0] * blocks, [0] * blocks, [0] * blocks
        self.ffn_bytes: dict[str, list[int]] = {}
        self.output_bytes = self.output_weights = self.input_bytes = self.embedding_bytes = 0
        self.has_output = False
        self.others: dict[str, int] = {}
        self.nextn_bytes = 0

    def add(self, name: str, n_bytes: int, elements: int) -> None:
        """Count one tensor."""
        block = _BLOCK.match(name)
        head = name.split(".", 1)[0]
        if name in ("output.weight", "token_embd.weight"):
            self.output_weights = max(self.output_weights, elements)
        if block and int(block[1]) < self.blocks:
            if int(block[1]) < self.loaded:
                self._add_to_block(int(block[1]), name, n_bytes, elements)
            else:
                self.nextn_bytes += n_bytes
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
        part = (_EXPERTS if self.experts else _DENSE).search(name)
        if part:
            self.ffn_bytes.setdefault(part[1], [0] * self.blocks)[index] += n_bytes

    def output_layer_bytes(self) -> int:
        """Return the bytes of the output layer; a tied token embedding is loaded a second time for it."""
        return self.output_bytes + (0 if self.has_output else self.embedding_bytes)

    def notes(self, path: str) -> list[str]:
        """Return a sentence for what is not counted. Raises UserError when no block has a tensor."""
        notes = []
        if self.others:
            names = [shown(name) for name in sorted(self.others)]
            notes.append(
                f"{len(names)} tensors of {sum(self.others.values())} bytes belong to no known layer and are not "
                f"counted ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})."
            )
        empty = [str(i) for i, n_bytes in enumerate(self.block_bytes[: self.loaded]) if n_bytes == 0]
        if len(empty) == self.loaded:
            raise UserError(
                f"{path} has no tensors for any of its {self.blocks} blocks, so it is no whole model: name the model's "
                "own GGUF file."
            )
        if empty:
            notes.append(f"{len(empty)} of the {self.blocks} blocks have no tensors (the first is {empty[0]}).")
        return notes


def _attention(header: _Header, blocks: int, loaded: int) -> Json:
    """Return heads, key length, the elements of the KV cache per block and token, and what a sequence keeps per block.

    Blocks from C(loaded) on keep nothing.
    """
    head_count = header.per_block("attention.head_count", blocks, [0] * blocks)
    head_count_kv = header.per_block("attention.head_count_kv", blocks, head_count)
    heads = (head_count[0] or max(head_count)) if head_count else 0
    natural = header.integer("embedding_length") // heads if heads else 0
    key_length = header.integer("attention.key_length", natural)
    value_length = header.integer("attention.value_length", natural)
    states = _sequence_bytes(header, blocks, loaded)
    cached = [
        0 if state or block >= loaded else count
        for block, (state, count) in enumerate(zip(states, head_count_kv, strict=True))
    ]
    return {
        "head_count": max(head_count, default=0),
        "head_count_kv": max(head_count_kv, default=0),
        "key_length": key_length,
        "kv_k_elements_per_token": [count * key_length for count in cached],
        "kv_v_elements_per_token": [count * value_length for count in cached],
        "window_tokens": _windows(header, blocks),
        "block_sequence_bytes": states,
    }


def _sequence_bytes(header: _Header, blocks: int, loaded: int) -> list[int]:
    """Return the bytes that a sequence keeps per block whatever its length: the state of a gated delta net, else 0.

    As n_embd_r and n_embd_s of llama.cpp's src/llama-hparams.cpp, in float32.
    """
    if header.architecture not in DELTA_NETS:
        return [0] * blocks
    inner, state = header.integer("ssm.inner_size", 0), header.integer("ssm.state_size", 0)
    kernel, groups = header.integer("ssm.conv_kernel", 0), header.integer("ssm.group_count", 0)
    own = 4 * (max(0, kernel - 1) * (inner + 2 * groups * state) + state * inner)
    named = header.fields.get(f"{header.architecture}.attention.recurrent_layers")
    every = max(1, header.integer("full_attention_interval", 4))
    recurrent = [(block + 1) % every > 0 for block in range(blocks)]
    if isinstance(named, (list, tuple)) and len(named) >= blocks:
        recurrent = [bool(entry) for entry in named[:blocks]]
    return [own if of_net and block < loaded else 0 for block, of_net in enumerate(recurrent)]


def _unknown_types(tensors: t.Sequence[Tensor]) -> list[str]:
    """Return a sentence for tensors whose size nobody here knows."""
    unknown = [tensor for tensor in tensors if tensor.kind not in tensor_types.TYPES]
    if not unknown:
        return []
    kinds = sorted({tensor.kind for tensor in unknown})
    types = f"type{'s' if len(kinds) > 1 else ''} {', '.join(map(str, kinds[:5]))}{', ...' if len(kinds) > 5 else ''}"
    return [
        f"{len(unknown)} tensors have the unknown {types} (the first is {shown(unknown[0].name)}): their bytes are "
        "counted by their places in the file."
    ]


def _blocks(header: _Header, tensors: t.Sequence[Tensor]) -> int:
    """Return the number of blocks, which is at least 1 and at most that of the tensors, and MOST_BLOCKS."""
    blocks = header.integer("block_count")
    if header.integer("embedding_length") < 1:
        raise UserError(f"The header of {header.path} names a width of 0: take the model from another source.")
    if not 1 <= blocks <= min(len(tensors), MOST_BLOCKS):
        raise UserError(
            f"The header of {header.path} names {blocks} blocks, and the file has {len(tensors)} tensors: take the "
            "model from another source."
        )
    return blocks


def describe(
    fields: Mapping, tensors: t.Sequence[Tensor], files: t.Sequence[tuple[str, int]], token_count: int | None,
    draft: bool = False,
) -> Json:  # fmt: skip
    """Return the ``model`` dict of docs/data_formats.md.

    ``fields``: the header's keys and values, without token lists. ``tensors``: those of all shards. ``files``: (path,
    bytes) of all shards. ``token_count``: length of the vocabulary. ``draft``: it works beside another model. Raises
    UserError, with the cause, for what cannot be served; an unknown architecture or type is described, with a note.

    Placement of tensors and tied embeddings follow llama.cpp's ``load_tensors``: without an ``output.weight`` the token
    embedding is loaded a second time for the output layer. KV elements per token and block are
    ``head_count_kv x key_length`` and ``head_count_kv x value_length``. Of experts (tensors named ``*_exps``) a token
    reads and uses ``expert_used_count`` of ``expert_count``.
    """
    path = files[0][0]
    architecture = gguf_kind.check(path, fields, tensors, draft)
    header = _Header(path, architecture, fields)
    blocks = _blocks(header, tensors)
    experts, experts_used = header.integer("expert_count", 0), header.integer("expert_used_count", 0)
    if experts_used > experts:
        header.strange[f"{architecture}.expert_used_count"] = shown(f"{experts_used} of {experts}")
        experts_used = experts
    # of a file that is a draft alone, all blocks are loaded
    nextn = header.integer("nextn_predict_layers", 0) if architecture in UNLOADED_MTP else 0
    loaded = blocks - nextn if nextn < blocks else blocks
    weights = _Weights(blocks, loaded, experts, experts_used)
    for tensor in tensors:
        weights.add(tensor.name, tensor.n_bytes, tensor.elements)
    model = {
        "path": path,
        "shards": [file for file, _size in files],
        "size_bytes": sum(size for _file, size in files),
        "name": _title(fields, path),
        "architecture": architecture,
        "file_type": tensor_types.FILE_TYPES.get(_hashable(fields.get("general.file_type"))),
        "block_count": blocks,
        "block_bytes": weights.block_bytes,
        "block_read_bytes": weights.read_bytes,
        "block_weights": weights.block_weights,
        "block_ffn_bytes": weights.ffn_bytes,
        "output_bytes": weights.output_layer_bytes(),
        "output_weights": weights.output_weights,
        "token_embedding_bytes": weights.input_bytes,
        "embedding_length": header.integer("embedding_length"),
        "vocabulary_size": token_count or header.integer("vocab_size", 0),
        "feed_forward_length": header.integer("feed_forward_length", 0),
        "expert_feed_forward_length": header.integer("expert_feed_forward_length", 0),
        "expert_count": experts,
        "expert_used_count": experts_used,
        **_attention(header, blocks, loaded),
        **_further(header, blocks, loaded, weights),
        "context_length_train": header.integer("context_length", 0),
    }
    estimates = _notes(header) + _unknown_types(tensors)
    notes = estimates + weights.notes(path)
    if not model["head_count"]:
        notes.append("The header names no attention heads: no KV cache is counted.")
    notes += [f"{key} is {value}, which cannot be: it is not counted with." for key, value in header.strange.items()]
    return {**model, "estimated": bool(estimates), "notes": notes}


def _further(header: _Header, blocks: int, loaded: int, weights: _Weights) -> Json:
    """Return what the blocks are that only predict further tokens (MTP): number, bytes, KV elements of a token.

    All are 0 where there are none, and where the file has lost their tensors.
    """
    if loaded == blocks or not weights.nextn_bytes:
        return {"nextn_blocks": 0, "nextn_bytes": 0, "nextn_kv_elements": 0}
    heads = header.per_block("attention.head_count_kv", blocks, [0] * blocks)[loaded:]
    per_head = header.integer("attention.key_length", 0) + header.integer("attention.value_length", 0)
    elements = sum(heads) * per_head
    return {"nextn_blocks": blocks - loaded, "nextn_bytes": weights.nextn_bytes, "nextn_kv_elements": elements}


def _hashable(value: t.Any) -> int:
    return value if isinstance(value, int) else -1


def _title(fields: Mapping, path: str) -> str:
    """Return the model's name as it may be shown: without control characters, and not long."""
    title = fields.get("general.name")
    title = "".join(c if c.isprintable() else " " for c in title[:200]).strip() if isinstance(title, str) else ""
    return title or os.path.basename(path)
