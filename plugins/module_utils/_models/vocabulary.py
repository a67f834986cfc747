# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether two models have the same vocabulary, so that one can draft for the other. Private to this collection. Pure.

As common_speculative_are_compatible of llama.cpp b11312: the kind of tokenizer, the special tokens, at most 128 tokens
more or less, and the same text of every token that both have.
"""

from __future__ import annotations

import itertools
import typing as t

from .._base.types import Json, Mapping
from . import gguf_header

#: By how many tokens two vocabularies may differ (SPEC_VOCAB_MAX_SIZE_DIFFERENCE).
MOST_DIFFERENT: t.Final = 128
_PREFIX: t.Final = "tokenizer.ggml."
_SPECIAL: t.Final = {"bos": ("add_bos_token", "bos_token_id"), "eos": ("add_eos_token", "eos_token_id")}


def of_header(header: gguf_header.Header) -> Json:
    """Return what is compared: C(kind), C(size), C(sums) and the special tokens."""
    fields = header.fields
    said = {f"{name}_token": fields.get(_PREFIX + token) for name, (_adds, token) in _SPECIAL.items()}
    adds = {f"adds_{name}": fields.get(_PREFIX + added) for name, (added, _token) in _SPECIAL.items()}
    kind = fields.get(f"{_PREFIX}model")
    return {
        "kind": kind, "size": header.lengths.get(gguf_header.TOKENS, 0), "sums": header.token_sums, **said, **adds
    }  # fmt: skip


def why_not(target: Mapping, draft: Mapping) -> str | None:
    """Return why a draft cannot speak for a target, as a clause, or None. Both are dicts of of_header()."""
    if not target.get("kind") or not draft.get("kind"):
        return "its header or that of the target has no vocabulary"
    if target["kind"] != draft["kind"]:
        return f"its tokenizer is {draft['kind']}, and that of the target {target['kind']}"
    for name in _SPECIAL:
        if target[f"adds_{name}"] != draft[f"adds_{name}"]:
            return f"only one of the two adds the {name} token"
        if target[f"adds_{name}"] and target[f"{name}_token"] != draft[f"{name}_token"]:
            return f"its {name} token is {draft[f'{name}_token']}, and that of the target {target[f'{name}_token']}"
    if abs(target["size"] - draft["size"]) > MOST_DIFFERENT:
        return f"its vocabulary has {draft['size']} tokens, and that of the target {target['size']}"
    # the last sum of the smaller one may be of fewer tokens
    common = min(target["size"], draft["size"]) // gguf_header.TOKENS_PER_SUM
    both = zip(target["sums"], draft["sums"], strict=False)
    compared = itertools.islice(both, None if target["size"] == draft["size"] else common)
    for place, (mine, theirs) in enumerate(compared):
        if mine != theirs:
            first = place * gguf_header.TOKENS_PER_SUM
            return f"its tokens from {first} on are other words than those of the target"
    return None
