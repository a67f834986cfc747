# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a GGUF file is, where it is no model that can be served: by its metadata, or else by its name. Private; pure."""

from __future__ import annotations

import os
import re
import typing as t

from .._base.errors import UserError
from .._base.types import Mapping
from . import architectures, tensor_types
from .gguf_header import Tensor, shown

#: kind -> (what it is, what to do), the two halves of a sentence.
_KINDS: t.Final[dict[str, tuple[str, str]]] = {
    "projector": (
        "is a projector (mmproj), the part of a model that sees or hears",
        "name the model's own GGUF file, which lies beside it",
    ),
    "importance matrix": (
        "is an importance matrix (imatrix), which a model is quantised with",
        "name the model's own GGUF file",
    ),
    "adapter": (
        "is an adapter (LoRA or control vector), which changes a model and is none",
        "name the GGUF file of the model it was made for",
    ),
    "vocabulary": ("holds a vocabulary only, and no weights", "name the model's own GGUF file"),
    "embedding model": (
        "is an embedding or reranking model, which writes no text",
        "name a model that writes text; this collection measures and serves generation",
    ),
    "drafting head": (
        "is a drafting head for speculative decoding, which works only beside its model",
        "name the model's own GGUF file",
    ),
    "speech model": ("is a part of a speech program, which writes no text", "name a model that writes text"),
    "image model": (
        "is a model that makes images or videos, which llama.cpp does not load",
        "serve it with ComfyUI or stable-diffusion.cpp, and name a model that writes text here",
    ),
}

#: general.type -> kind, as the converters of llama.cpp write it.
_TYPES: t.Final = {
    "adapter": "adapter", "imatrix": "importance matrix", "mmproj": "projector", "vocab": "vocabulary",
    "control-vector": "adapter", "controlvector": "adapter", "lora": "adapter",
}  # fmt: skip
#: First parts of the names of what sees, hears and connects in a file of Ollama's.
_TOWERS: t.Final = frozenset({"v", "a", "s", "mm"})

_ARCHITECTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_QUANT = re.compile(r"(?:^|[-._])(?:UD-)?(?:(?:IQ|Q|TQ|MXFP|NVFP)\d\w*|BF16|F16|FP16|F32)(?=[-._]|$)", re.IGNORECASE)
_HEAD_NAME = re.compile(r"(?:^mtp-|(?:^|[-._])(?:eagle[23]|dflash|dspark)(?=[-._]|$))")
#: What might be a part of a model, by a word of its name or of its folder's.
_MAYBE_NAME = re.compile(
    r"(?:^|[-._/])(?:mtp|nextn|eagle|medusa|drafters?|drafts?|speculators?|assistants?|loras?|adapters?"
    r"|mmproj|mm[-_]?proj|(?:mm[-_]?)?projectors?|vision|vit|clip|audio|tokenizer|vae|talker|vocoder)(?=[-._/]|$)"
)


# ---- by name ---------------------------------------------------------------------------------------------------------


def by_name(name: str) -> str | None:
    """Return what a file is by its name, or None for a model. "mmproj" anywhere is a projector, as for llama.cpp."""
    base = os.path.basename(name).lower()
    if "mmproj" in base:
        return "projector"
    if "imatrix" in base and not _QUANT.search(base.removesuffix(".gguf")):
        return "importance matrix"
    if _HEAD_NAME.search(base):
        return "drafting head"
    return "vocabulary" if base.startswith("ggml-vocab-") else None


def models_among(names: t.Iterable[str]) -> list[str]:
    """Return the names of models; such as might be a part of a model count where there are no others."""
    models = [name for name in names if by_name(name) is None]
    plain = [name for name in models if not _MAYBE_NAME.search(name.lower())]
    return plain or models


def sentence(path: str, kind: str, known_by: str = "") -> str:
    """Return the whole sentence about a file that is no model."""
    what, cure = _KINDS[kind]
    return f"{path} {what}{known_by}: {cure}."


# ---- by metadata -----------------------------------------------------------------------------------------------------


def _kind(fields: Mapping, tensors: t.Sequence[Tensor], architecture: str) -> str | None:
    """Return the kind that the metadata tell, or None for a model."""
    declared = str(fields.get("general.type") or "model").lower()
    if declared in _TYPES:
        return _TYPES[declared]
    if architecture == "clip" or any(key.startswith("clip.") for key in fields):
        return "projector"
    if architecture in ("imatrix", "controlvector"):
        return "adapter" if architecture == "controlvector" else "importance matrix"
    if any(key.startswith("imatrix.") for key in fields):
        return "importance matrix"
    if "adapter.type" in fields or any(tensor.name.endswith((".lora_a", ".lora_b")) for tensor in tensors):
        return "adapter"
    if not tensors:
        return "vocabulary"
    for kind, names in (
        ("embedding model", architectures.EMBEDDING), ("drafting head", architectures.DRAFTING),
        ("speech model", architectures.SPEECH), ("image model", architectures.IMAGE),
    ):  # fmt: skip
        if architecture in names:
            return kind
    pooling = fields.get(f"{architecture}.pooling_type")
    return "embedding model" if isinstance(pooling, int) and 1 <= pooling <= 4 else None


def check(path: str, fields: Mapping, tensors: t.Sequence[Tensor], draft: bool) -> str:
    """Return the architecture of a model. Raises UserError, with the cause and the cure, for what cannot be served.

    A C(draft) is served beside its model, so it may be an EAGLE-3 head.
    """
    architecture = fields.get("general.architecture")
    architecture = architecture if isinstance(architecture, str) else ""
    kind = _kind(fields, tensors, architecture)
    if kind and not (draft and architecture == "eagle3"):
        raise UserError(sentence(path, kind))
    _check_ollama(path, architecture, tensors)           # before types: it gives old numbers another meaning
    _check_types(path, tensors)
    if not architecture:
        named = by_name(path)
        if named:
            raise UserError(sentence(path, named, ", as its name says"))
        raise UserError(
            f"{path} names no architecture, so it is no model: take one from llama.cpp's converter."
        )
    if not _ARCHITECTURE.fullmatch(architecture):
        raise UserError(
            f"{path} names the architecture {shown(architecture)}, which no program has: take the model from another "
            "source."
        )
    _check_blocks(path, architecture, fields, tensors)
    return architecture


def _check_types(path: str, tensors: t.Sequence[Tensor]) -> None:
    """Raise UserError where a tensor has a type of another engine."""
    for tensor in tensors:
        whose = tensor_types.foreign(tensor.kind)
        if whose:
            raise UserError(
                f"{path} has the tensor {shown(tensor.name)} of type {tensor.kind}, {whose}: take another quantisation "
                "of the model, made for llama.cpp."
            )


def _check_ollama(path: str, architecture: str, tensors: t.Sequence[Tensor]) -> None:
    """Raise UserError for a file of Ollama's own engine, which keeps the towers of a model inside."""
    tower = next((tensor.name for tensor in tensors if tensor.name.split(".", 1)[0] in _TOWERS), None)
    if tower is None and architecture not in architectures.OLLAMA:
        return
    sign = f"the tensor {shown(tower)} beside the model's" if tower else f"the architecture {shown(architecture)}"
    raise UserError(
        f"{path} is a file for Ollama's own engine (it has {sign}), which llama.cpp does not load: download the "
        "model's GGUF for llama.cpp, with the projector (mmproj) in a file of its own."
    )


def _check_blocks(path: str, architecture: str, fields: Mapping, tensors: t.Sequence[Tensor]) -> None:
    """Raise UserError where blocks that are declared are missing, or others are there.

    llama.cpp demands tensors of every block, and loads no file with one that it does not take.
    """
    drafting, blocks = (fields.get(f"{architecture}.{key}") for key in ("nextn_predict_layers", "block_count"))
    if not isinstance(blocks, int) or not 0 < blocks <= len(tensors):  # refused later; a loop over them may not end
        return
    drafting = int(drafting) if isinstance(drafting, int) and 0 < drafting < blocks else 0
    names = {tensor.name for tensor in tensors}
    present = {name.split(".", 2)[1] for name in names if name.startswith("blk.")}
    missing = [block for block in range(blocks) if str(block) not in present]
    drafts = range(blocks - drafting, blocks)
    if drafting and "0" not in present and not set(missing) & set(drafts):
        raise UserError(sentence(path, "drafting head", " (only its MTP blocks are there)"))
    if architecture not in architectures.PINNED or len(missing) == blocks:
        return
    if architecture not in architectures.MTP_OPTIONAL:
        _check_drafting(path, architecture, blocks, drafts, names)
    lost = [block for block in missing if block not in drafts and architecture not in architectures.EMPTY_BLOCKS]
    more = sorted(int(block) for block in present if block.isdecimal() and int(block) >= blocks)
    if lost or more:
        said = f"no tensors of block {lost[0]}" if lost else f"tensors of block {more[0]}, which would be one more"
        raise UserError(
            f"{path} declares {blocks} blocks and has {said}, so llama.cpp does not load it: download the model's "
            "whole file again, or take it from another source."
        )


def _check_drafting(path: str, architecture: str, blocks: int, drafts: range, names: set[str]) -> None:
    """Raise UserError where a block for drafting is missing, or a part that llama.cpp demands of it."""
    for block in drafts:
        start = f"blk.{block}."
        lost = None if any(name.startswith(start) for name in names) else "has no tensors"
        if not lost and architecture in architectures.MTP_NORM and f"{start}attn_norm.weight" not in names:
            lost = "has no attn_norm.weight"
        if lost:
            raise UserError(
                f"{path} declares {len(drafts)} of its {blocks} blocks for drafting (MTP), and block {block} {lost}, "
                "so llama.cpp does not load it: take a file that was converted with them, or one that declares none."
            )
