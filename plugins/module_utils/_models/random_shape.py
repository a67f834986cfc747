# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Shapes of models with random weights: checked, sized and named by a hash. Pure functions only."""

from __future__ import annotations

import hashlib
import json
import math
import re
import typing as t

from .._base.errors import UserError
from .._base.types import Mapping
from . import known_next_token

RANDOM_VERSION = 4  # raise it when the same parameters give another file
PARAMETERS_KEY = "mixed_gpu.random_gguf.parameters"  # header key by which our own files are recognised
#: The options of random_gguf that make the model.
RANDOM_OPTIONS = (
    "blocks", "embedding_length", "feed_forward_length", "head_count", "head_count_kv", "vocabulary_size",
    "context_length", "type", "seed", "distinct_blocks", "expert_count", "expert_used_count", "agreement",
)  # fmt: skip
#: More than any model of llama.cpp has.
_MOST = {
    "blocks": 512, "embedding_length": 1 << 16, "feed_forward_length": 1 << 18, "head_count": 1024,
    "head_count_kv": 1024, "context_length": 1 << 24,
}  # fmt: skip
_MOST_EXPERTS = 512
MAXIMUM_VOCABULARY = 1 << 20
MINIMUM_VOCABULARY = 3 + 256 + 1 + 94  # special tokens, bytes, word separator, printable ASCII

# bytes per block of elements
_STORAGE = {"f16": (2, 1), "q8_0": (34, 32), "q4_0": (18, 32)}


def check_random_parameters(parameters: Mapping) -> None:
    """Raise UserError, in one sentence, when llama.cpp could not load a model of this shape."""
    p = parameters
    for key, most in _MOST.items():
        if not 1 <= p[key] <= most:
            raise UserError(f"{key} is {p[key]}: it must be at least 1 and at most {most}.")
    if p["embedding_length"] % p["head_count"] or (p["embedding_length"] // p["head_count"]) % 2:
        raise UserError(
            f"embedding_length {p['embedding_length']} does not divide into {p['head_count']} heads of even length: "
            "choose a multiple of twice head_count."
        )
    if p["head_count"] % p["head_count_kv"]:
        raise UserError(
            f"head_count {p['head_count']} is no multiple of head_count_kv {p['head_count_kv']}: choose a divisor."
        )
    if p["expert_count"] > _MOST_EXPERTS:
        raise UserError(f"expert_count is {p['expert_count']}: it must be at most {_MOST_EXPERTS}.")
    if not 0 <= p["expert_used_count"] <= p["expert_count"] or (p["expert_count"] and not p["expert_used_count"]):
        raise UserError(
            f"expert_used_count is {p['expert_used_count']} of {p['expert_count']} experts: choose 1 or more of them, "
            "or 0 of 0."
        )
    for key in ("embedding_length", "feed_forward_length"):
        if p[key] % _STORAGE[p["type"]][1]:
            raise UserError(f"{key} {p[key]} does not suit {p['type']}, which needs a multiple of 32: choose one.")
    if p["vocabulary_size"] < MINIMUM_VOCABULARY:
        raise UserError(
            f"vocabulary_size {p['vocabulary_size']} is too small: byte tokens and ASCII need {MINIMUM_VOCABULARY}."
        )
    if p["vocabulary_size"] > MAXIMUM_VOCABULARY:
        raise UserError(f"vocabulary_size {p['vocabulary_size']} is too large: at most {MAXIMUM_VOCABULARY}.")
    _check_agreement(p["agreement"], p["vocabulary_size"], p["type"])


def _check_agreement(agreement: t.Sequence[float], vocabulary: int, stored: str) -> None:
    """Raise UserError for shares of agreement with a known text that this model cannot have."""
    if not agreement:
        return
    if not all(0 <= share <= 1 for share in agreement):
        raise UserError(f"agreement is {', '.join(map(str, agreement))}: give shares between 0 and 1.")
    per_text = (vocabulary - known_next_token.FIRST_WORD) // len(agreement)
    if per_text < known_next_token.LEAST_WORDS:
        raise UserError(
            f"vocabulary_size {vocabulary} leaves {per_text} words for each of {len(agreement)} texts: "
            f"each needs {known_next_token.LEAST_WORDS}."
        )
    if stored == "q4_0":
        raise UserError("agreement needs weights of type f16 or q8_0: q4_0 is too coarse for a known next token.")


def architecture(parameters: Mapping) -> str:
    """Return the architecture of a random model: qwen3moe where it has experts."""
    return "qwen3moe" if parameters["expert_count"] else "llama"


def block_shapes(parameters: Mapping) -> dict[str, tuple[int, ...]]:
    """Return (rows, columns) of the matrices of one block, by llama.cpp's tensor name; of experts with their number."""
    width, hidden = parameters["embedding_length"], parameters["feed_forward_length"]
    kv_width = width // parameters["head_count"] * parameters["head_count_kv"]
    shapes: dict[str, tuple[int, ...]] = {
        "attn_q": (width, width),
        "attn_k": (kv_width, width),
        "attn_v": (kv_width, width),
        "attn_output": (width, width),
    }
    forward = {"ffn_gate": (hidden, width), "ffn_up": (hidden, width), "ffn_down": (width, hidden)}
    count = parameters["expert_count"]
    experts = {f"{name}_exps": (count, *shape) for name, shape in forward.items()}
    return {**shapes, **(experts if count else forward)}


def vector_shapes(parameters: Mapping) -> dict[str, tuple[int, ...]]:
    """Return the tensors of one block that stay in float32: norms, and the router of experts."""
    width = parameters["embedding_length"]
    norms: dict[str, tuple[int, ...]] = {"attn_norm": (width,), "ffn_norm": (width,)}
    if not parameters["expert_count"]:
        return norms
    head = (width // parameters["head_count"],)
    return {**norms, "attn_q_norm": head, "attn_k_norm": head, "ffn_gate_inp": (parameters["expert_count"], width)}


def random_model_bytes(parameters: Mapping) -> int:
    """Return the bytes that a random model needs on disk: tensors, norms, and a margin for header and alignment."""
    width, vocabulary, blocks = parameters["embedding_length"], parameters["vocabulary_size"], parameters["blocks"]
    stored, per = _STORAGE[parameters["type"]]
    per_block = sum(math.prod(shape) for shape in block_shapes(parameters).values())
    elements = 2 * vocabulary * width + blocks * per_block
    vectors = 4 * (width + blocks * sum(math.prod(shape) for shape in vector_shapes(parameters).values()))
    return elements * stored // per + vectors + 64 * vocabulary + 1024 * blocks + 65536


def parameters_hash(parameters: Mapping) -> str:
    """Return the SHA-256 that names a random model: of its parameters and of this recipe's version."""
    made_of = {name: value for name, value in parameters.items() if value or not name.startswith(("expert_", "agree"))}
    canonical = json.dumps({**made_of, "recipe": RANDOM_VERSION}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def stored_parameters_hash(head: bytes) -> str | None:
    """Find the parameters' hash in the first kilobytes of a random model; None when the file is not one of ours."""
    key = PARAMETERS_KEY.encode()
    value = re.search(re.escape(key) + rb"\x08\x00\x00\x00\x40\x00{7}([0-9a-f]{64})", head)  # type string, 64 bytes
    return value[1].decode() if value else None
