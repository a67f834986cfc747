# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an EXL2, EXL3 or float16 model in a folder weighs, block by block. Private to this collection. Pure functions.

What config.json says of each block is read in exl_config.py. The folder holds config.json and safetensors files in
Hugging Face's names. A safetensors file begins with the length of its header (8 bytes, little endian) and the header,
a JSON dict of tensors with C(data_offsets) into what follows (https://huggingface.co/docs/safetensors, "Format").
ExLlama keeps weights on the cards as they are in the file, so the bytes there are the bytes of memory.
"""

from __future__ import annotations

import re
import typing as t

from .._base import json_file
from .._base.errors import UserError
from .._base.fields import is_number, is_whole
from .._base.types import Json, Mapping
from . import exl_config, file_names
from .exl_classes import FULL, NONE, STATE

LENGTH_BYTES = 8
#: Much less than the format's own limit: as Python objects, JSON is up to 32 times as large. The header of a file with
#: 100 000 tensors has about 14 MB.
LONGEST_HEADER = 20_000_000
#: Of all files of a model.
LONGEST_HEADERS = 100_000_000
LONGEST_CONFIG = 4_000_000

_BLOCK = re.compile(r"((?:[A-Za-z_]\w*\.)*?)(?:layers?|h|blocks?)\.(\d{1,5})\.(.+)")
_EMBEDDING = re.compile(r"(?:.+\.)?(?:embed_tokens|wte|tok_embeddings|word_embeddings|embeddings?|embed_in)\..+")
_OUTPUT_NORM = re.compile(r"(?:.+\.)?(?:norm|ln_f|norm_f|final_norm|final_layernorm|final_layer_norm)\..+")
_OUTPUT = re.compile(r"(?:.+\.)?(?:lm_head|output|output_layer|embed_out)\..+")
_ATTENTION = re.compile(
    r"(?:self_attn|attn|attention|self_attention|linear_attn)\.|(?:input_layernorm|ln_1|ln1|attention_norm)\."
)
_EXPERT = re.compile(r"\.experts?\.\d+\.|\.experts\.")
_OTHER_TOWER = re.compile(r"vision|visual|image|audio|speech|talker|code2wav|mm_|multi_modal|mtp|patch|projector")
#: Names within a block that show a state instead of a cache, and names that show attention.
_STATE = re.compile(r"(?:^|\.)(?:linear_attn|mamba|ssm|short_conv|conv|conv1d|\w+_conv1d|A_log|dt_bias)(?:\.|$)")
_ATTENDS = re.compile(
    r"(?:^|\.)(?:[qk]_proj|qkv_proj|qkv|query_key_value|c_attn|[Ww]qkv|q_a_proj|q_b_proj|kv_a_proj\w*|kv_b_proj|w[qk]"
    r"|query|attn_qkv)\."
)
_WIDTH = re.compile(r"(?:.+\.)?(?:self_attn|attn|attention|mixer)\.([kv])_proj\.(trellis|q_weight|weight)")


class Tensor(t.NamedTuple):
    """One tensor of a safetensors file."""

    name: str
    n_bytes: int
    shape: tuple[int, ...] = ()


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
        header = json_file.from_text(text, any_number=True)
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        tensors, last, total = [], 0, 0
        for name, entry in entries:
            start, end = entry["data_offsets"]
            if not (is_whole(start, 0) and is_whole(end, start)):
                raise ValueError(f"the place of {file_names.shown_text(name, 80)}")
            shape = entry.get("shape")
            sound = isinstance(shape, list) and all(is_whole(each, 0) for each in shape)
            tensors.append(Tensor(name, end - start, tuple(shape) if sound else ()))
            last, total = max(last, end), total + end - start
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        said = file_names.shown_text(str(exc))
        raise UserError(f"The header of {path} cannot be read ({said}): download the file again.") from exc
    wanted = LENGTH_BYTES + len(text) + last
    if size_bytes < wanted:
        raise UserError(f"{path} is cut off: it has {size_bytes} bytes of {wanted}; download it again.")
    if total > last:
        raise UserError(f"The header of {path} names tensors that overlap: download the file again.")
    return tensors


def indexed_files(text: str, path: str) -> list[str]:
    """Return the file names of a C(model.safetensors.index.json), each once. Raises UserError."""
    try:
        names = sorted(set(json_file.from_text(text)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        said = file_names.shown_text(str(exc))
        raise UserError(f"{path} cannot be read ({said}): download it again.") from exc
    for name in names:
        if "/" in file_names.check_name(name, path) or not name.endswith(".safetensors"):
            raise UserError(f"{path} names {ascii(name)}, which is no safetensors file beside it: download it again.")
    return names


def version_of(config: Mapping) -> int:
    """Return which ExLlama reads a model: 2 for EXL2, else 3."""
    return 2 if quantisation(config).startswith("EXL2") else 3


def describe(
    path: str, config: Mapping, files: t.Sequence[tuple[str, int]], tensors: t.Sequence[Tensor]
) -> Json:
    """Return the C(model) of docs/data_formats.md, with C(block_attention_bytes) beside it.

    C(config) is config.json, C(files) are the safetensors files with their bytes. Raises UserError for a model that
    cannot be planned.
    """
    shape = exl_config.read(path, config, version_of(config), _shown_kinds(tensors))
    notes = list(shape.notes)
    parts = _sort_tensors(tensors, len(shape.blocks))
    _check_parts(path, parts)
    blocks = _by_tensors(shape.blocks, parts.widths, notes)
    widest = max(blocks, key=lambda block: (block.k, block.kv_heads * block.head_length))
    share = shape.experts_used / shape.experts if shape.experts and shape.experts_used else 1.0
    model = {
        "path": path,
        "shards": [name for name, _size in files],
        "size_bytes": sum(size for _name, size in files),
        "name": exl_config.first_text(config.get("_name_or_path")) or path.rstrip("/").rpartition("/")[2],
        "architecture": exl_config.first_text(config.get("architectures")) or str(config.get("model_type"))[:200],
        "file_type": quantisation(config),
        "block_count": len(blocks),
        "block_bytes": parts.blocks,
        "block_read_bytes": [
            size - round(of_experts * (1 - share)) for size, of_experts in zip(parts.blocks, parts.experts, strict=True)
        ],
        "block_weights": [0 if shape.experts else _weights(shape.hidden, block) for block in blocks],
        "block_attention_bytes": parts.attention,
        "output_bytes": (parts.output or parts.embedding) + parts.norm,
        "output_weights": shape.hidden * shape.vocabulary,
        "token_embedding_bytes": parts.embedding,
        "embedding_length": shape.hidden,
        "vocabulary_size": shape.vocabulary,
        "feed_forward_length": shape.forward,
        "expert_feed_forward_length": shape.expert_forward,
        "expert_count": shape.experts,
        "expert_used_count": shape.experts_used,
        "head_count": max(block.heads for block in blocks),
        "head_count_kv": widest.kv_heads,
        "key_length": widest.head_length,
        "context_length_train": shape.context,
        "kv_k_elements_per_token": [block.k for block in blocks],
        "kv_v_elements_per_token": [block.v for block in blocks],
        # other blocks with a window keep the whole context all the same
        "window_tokens": [block.window for block in blocks],
        "notes": notes + parts.notes,
    }
    if any(block.state_bytes for block in blocks):
        model["block_state_bytes"] = [block.state_bytes or 0 for block in blocks]
    return model


def _weights(hidden: int, block: exl_config.Block) -> int:
    """Return the weights of a block, 0 where its feed-forward length is not known."""
    attention = hidden * block.head_length * 2 * (block.heads + block.kv_heads)
    return attention + 3 * hidden * block.forward if block.forward else 0


def _shown_kinds(tensors: t.Sequence[Tensor]) -> list[str | None]:
    """Return what the names of each block's tensors show: full, state or none; None for a block without tensors."""
    found: dict[int, str] = {}
    for tensor in tensors:
        match = _BLOCK.fullmatch(tensor.name)
        if not match or _OTHER_TOWER.search(match[1]) or int(match[2]) >= exl_config.MOST_BLOCKS:
            continue
        index = int(match[2])
        if _STATE.search(match[3]):
            found[index] = STATE
        elif found.get(index) != STATE:
            found[index] = FULL if _ATTENDS.search(match[3]) else found.get(index, NONE)
    return [found.get(index) for index in range(max(found, default=-1) + 1)]


def _by_tensors(
    blocks: t.Sequence[exl_config.Block], widths: t.Mapping[tuple[int, str], int], notes: list[str]
) -> list[exl_config.Block]:
    """Return the blocks with the elements of K and V that their tensors have, where those say something else."""
    result: list[exl_config.Block] = []
    first, other = None, 0
    for index, block in enumerate(blocks):
        k, v = widths.get((index, "k")), widths.get((index, "v"))
        plain = block.k and block.k == block.kv_heads * block.head_length    # no latent, and a cache
        if not plain or k is None or _same(block.k, k):
            result.append(block)
            continue
        first, other = first or block, other + 1
        state = (block.state_bytes or 0) * (k + (v or k)) // (block.k + block.v) if block.window else block.state_bytes
        heads = max(1, k // block.head_length)
        result.append(block._replace(k=k, v=v or k, kv_heads=heads, state_bytes=state))
    if first:
        notes.append(
            f"The tensors of {other} blocks have other heads than config.json, which gives {first.k} elements of K per"
            " token for the first of them: the tensors are believed."
        )
    return result


def _same(by_config: int, by_tensors: int) -> bool:
    """Whether two widths are the same; EXL3 may round a matrix up to 128 columns."""
    return by_tensors in (by_config, -(-by_config // 128) * 128)


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
    known = is_number(bits) and 0 < bits < 100
    return f"{str(stored['quant_method'])[:20].upper()}{f' {bits}bpw' if known else ''}"


class _Parts(t.NamedTuple):
    blocks: list[int]
    attention: list[int]
    experts: list[int]
    output: int
    norm: int
    embedding: int
    widths: dict[tuple[int, str], int]
    notes: list[str]


def _sort_tensors(tensors: t.Sequence[Tensor], count: int) -> _Parts:
    """Add up the tensors by what they belong to."""
    blocks, attention, experts = [0] * count, [0] * count, [0] * count
    sums = {"output": 0, "norm": 0, "embedding": 0, "tower": 0, "unknown": 0}
    widths: dict[tuple[int, str], int] = {}
    for name, n_bytes, shape in tensors:
        match = _BLOCK.fullmatch(name)
        if match and not _OTHER_TOWER.search(match[1]) and int(match[2]) < count:
            index, inner = int(match[2]), match[3]
            blocks[index] += n_bytes
            attention[index] += n_bytes if _ATTENTION.match(inner) else 0
            experts[index] += n_bytes if _EXPERT.search(f".{inner}") else 0
            width = _WIDTH.fullmatch(inner)
            if width:
                widths[index, width[1]] = _columns(width[2], shape)
            continue
        sums["tower" if match or _OTHER_TOWER.search(name) else _outside(name)] += n_bytes
    notes = []
    if sums["tower"]:
        notes.append(f"{sums['tower'] / 1e6:.0f} MB of another tower or of drafting heads are not counted.")
    if sums["unknown"]:
        notes.append(f"{sums['unknown'] / 1e6:.0f} MB of tensors with unknown names are not counted.")
    widths = {key: value for key, value in widths.items() if value}
    return _Parts(blocks, attention, experts, sums["output"], sums["norm"], sums["embedding"], widths, notes)


def _outside(name: str) -> str:
    """Return what a tensor outside of the blocks belongs to."""
    for kind, pattern in (("output", _OUTPUT), ("norm", _OUTPUT_NORM), ("embedding", _EMBEDDING)):
        if pattern.fullmatch(name):
            return kind
    return "unknown"


def _columns(stored: str, shape: t.Sequence[int]) -> int:
    """Return the outputs of a matrix by how it is stored, 0 where its shape is another."""
    if stored == "trellis":                              # EXL3: tiles of 16 x 16
        return shape[1] * 16 if len(shape) == 3 else 0
    if len(shape) != 2:
        return 0
    return shape[1] if stored == "q_weight" else shape[0]
