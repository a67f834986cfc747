# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The vocabulary of a model in a folder, as vocabulary.why_not compares it. Private to this collection. Pure.

Neither ExLlama nor TabbyAPI compares the vocabularies of model and draft: with another one the drafted ids are other
words, and next to none is right. C(tokenizer.json) has both the model's tokens and those that were added.
"""

from __future__ import annotations

import typing as t
import zlib

from .._base import json_file
from .._base.types import Json
from . import gguf_header

FILE: t.Final = "tokenizer.json"
#: Larger than any that is known (Gemma: 33 MB).
LONGEST: t.Final = 80_000_000
#: More ids than any model has.
_MOST_IDS: t.Final = 1 << 22


def of_tokenizer(text: bytes | None) -> Json:
    """Return C({kind, size, sums, ...}) of a C(tokenizer.json); C(kind) is None where it is missing or no such file.

    Special tokens are compared by their text, as all tokens are: which of them a model adds is no matter of drafting.
    """
    kind, tokens = _read(text) if text is not None else (None, [])
    step = gguf_header.TOKENS_PER_SUM
    sums = [
        f"{zlib.crc32(chr(0).join(tokens[first:first + step]).encode('utf-8', 'surrogatepass')):08x}"
        for first in range(0, len(tokens), step)
    ]
    special = {f"{name}_token": None for name in ("bos", "eos")} | {f"adds_{name}": False for name in ("bos", "eos")}
    return {"kind": kind, "size": len(tokens), "sums": sums, **special}


def _read(text: bytes) -> tuple[str | None, list[str]]:
    """Return the kind of tokenizer and the text of each id; C((None, [])) for what cannot be read."""
    try:
        whole = json_file.from_text(text)
        own, added = whole["model"], whole.get("added_tokens") or []
        listed = own["vocab"]
        # Unigram lists tokens with their scores, the others map tokens to ids
        ids = dict(listed) if isinstance(listed, dict) else {entry[0]: place for place, entry in enumerate(listed)}
        ids.update({entry["content"]: entry["id"] for entry in added})
        places = {int(place): str(token) for token, place in ids.items()}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None, []
    if not places or min(places) < 0 or max(places) >= _MOST_IDS:
        return None, []
    return str(own.get("type")), [places.get(place, "") for place in range(max(places) + 1)]
