# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Headers of GGUF files that are read by ranges of bytes. Private to this collection. Pure but for C(read).

Most of a header is the vocabulary, some MB that all quants of a model share. It is read once: of a further quant come
the bytes before it, and from where it would end. Where it ends elsewhere, no keys and tensors follow there that lie
within the file, and the whole header is read.
"""

from __future__ import annotations

import typing as t

from .._base.errors import UserError
from . import gguf_header
from .gguf_header import Header

FIRST_BYTES: t.Final = 1 << 20           # of the first file
HEAD_BYTES: t.Final = 1 << 16            # of a further one: before the vocabulary stand a few KB
BEHIND_BYTES: t.Final = 1 << 18          # behind the vocabulary: a template, and the names of 1000 tensors
MOST_BEHIND_BYTES: t.Final = 1 << 22
_VOCABULARY: t.Final = "tokenizer.ggml."
_TOKENS: t.Final = "tokenizer.ggml.tokens"
_KEY_BYTES: t.Final = 8 + len(_TOKENS) + 4 + 4 + 8    # its name, that it is an array, of what, and how long

#: (start, end) -> these bytes of a file, fewer only where it ends.
Read = t.Callable[[int, int], bytes]


class Shared(t.NamedTuple):
    """What a header shares with others of the same model: the vocabulary, and what stands right before it."""

    before: bytes                         # the key of the tokens, with type and length of the array
    vocabulary: bytes


def header(path: str, size_bytes: int, read: Read, shared: Shared | None) -> tuple[Header, Shared | None]:
    """Return the header of a file, and what further files may share; C(shared) comes from an earlier file.

    Raises UserError, in one sentence with the path, where it is no header that can be read, and what C(read) raises.
    """
    known = bytearray(read(0, min(size_bytes, HEAD_BYTES if shared else FIRST_BYTES)))
    found = None if shared is None else _spliced(path, size_bytes, read, known, shared)
    if found is None:
        found = _grown(path, size_bytes, read, known)
    gguf_header.check_extent(path, size_bytes, found.tensors)
    return found, shared or _shared(found, bytes(known))


def _grown(path: str, size_bytes: int, read: Read, known: bytearray) -> Header:
    """Read on until the header is whole."""
    while True:
        try:
            return gguf_header.parse(path, bytes(known), size_bytes)
        except gguf_header.MoreNeededError as exc:
            end = min(size_bytes, max(2 * len(known), exc.n_bytes))
        more = read(len(known), end)
        if len(more) < end - len(known):
            raise UserError(f"{path} ends after {len(known) + len(more)} of {size_bytes} bytes: ask again.")
        known += more


def _spliced(path: str, size_bytes: int, read: Read, head: bytearray, shared: Shared) -> Header | None:
    """Return the header with the vocabulary of an earlier file, or None where this file has another one."""
    place = head.find(shared.before)
    start = place + len(shared.before)
    behind = start + len(shared.vocabulary)
    n_bytes = BEHIND_BYTES
    while place >= 0 and n_bytes <= MOST_BEHIND_BYTES:
        end = min(size_bytes, behind + n_bytes)
        tail = read(behind, end) if end > behind else b""
        if len(tail) < end - behind:
            return None
        try:
            found = gguf_header.parse(path, bytes(head[:start]) + shared.vocabulary + tail, size_bytes)
            gguf_header.check_extent(path, size_bytes, found.tensors)
            return found
        except gguf_header.MoreNeededError as exc:
            n_bytes = max(2 * n_bytes, exc.n_bytes - behind)
        except UserError:
            return None
    return None


def _shared(found: Header, data: bytes) -> Shared | None:
    """Return what other quants of the model may share; None where the file has no vocabulary."""
    if _TOKENS not in found.places:
        return None
    start = found.places[_TOKENS][0]
    end = max(end for key, (_start, end) in found.places.items() if key.startswith(_VOCABULARY))
    return Shared(data[start - _KEY_BYTES : start], data[start:end])
