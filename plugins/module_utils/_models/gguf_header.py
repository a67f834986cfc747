# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The header of a GGUF file, read within bounds of memory and time. Private to this collection. Pure.

It is read as it is written: names of architectures and tensor types mean nothing here, so a file that is newer than
this collection is read too. What llama.cpp b11312 refuses in ggml/src/gguf.cpp whatever the model (arrays of arrays,
long names, names twice, more than four dimensions) is refused here too, in one sentence.
"""

from __future__ import annotations

import bisect
import itertools
import struct
import typing as t
import zlib
from dataclasses import dataclass, field

from .._base.errors import UserError
from .._base.fields import is_whole
from .._base.types import Json
from . import tensor_types

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)

# Bounds, each far above what models have: 262144 tokens and as many merges take 20 MiB.
MAXIMUM_HEADER_BYTES = 128 << 20
MAXIMUM_KEYS = 1 << 16
MAXIMUM_TENSORS = 1 << 17
MAXIMUM_STRINGS = 4_000_000  # in all arrays: they are the only thing that is walked one by one
MAXIMUM_KEY_BYTES = 1 << 16
MAXIMUM_NAME_BYTES = 63  # GGML_MAX_NAME with its end
MAXIMUM_DIMENSIONS = 4  # GGML_MAX_DIMS
KEPT_STRING_BYTES = 1 << 16  # longer values are counted, not kept: a chat template, a token list
KEPT_ELEMENTS = 1 << 16
#: The tokens of the vocabulary, of which each so many in a row have a checksum.
TOKENS = "tokenizer.ggml.tokens"
TOKENS_PER_SUM = 1024
MAXIMUM_KEPT_BYTES = 16 << 20

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LENGTH = struct.Struct("<Q")
_LARGEST = (1 << 63) - 1


class MoreNeededError(Exception):
    """The bytes that were given end within the header; ``n_bytes``: how many it needs at least."""

    def __init__(self, n_bytes: int) -> None:
        super().__init__(n_bytes)
        self.n_bytes = n_bytes


@dataclass(frozen=True)
class Tensor:
    """A tensor; ``offset``: bytes from the start of the file. ``n_bytes`` of an unknown type reach to the next one."""

    name: str
    kind: int
    elements: int
    offset: int
    n_bytes: int


@dataclass
class Header:
    """What a header says. ``fields``: values without long ones; ``lengths``: elements of every array.

    ``places``: where the elements of every array start and end in the file. ``n_bytes``: where the header ends.
    ``token_sums``: a checksum of each TOKENS_PER_SUM tokens in a row.
    """

    fields: Json = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    n_bytes: int = 0
    token_sums: list[str] = field(default_factory=list)


def shown(text: str) -> str:
    """Return a name of a file's as it may stand in a sentence: quoted, without control characters, not long."""
    return ascii(text if len(text) <= 60 else f"{text[:60]}...")


class _Cursor:
    """A place in the first bytes of a file, which moves forward only."""

    def __init__(self, path: str, data: bytes, size_bytes: int) -> None:
        self.path, self.data, self.size_bytes = path, data, size_bytes
        self.position = self.strings = self.kept_bytes = 0

    def ahead(self, n_bytes: int, what: str) -> None:
        """Make sure that so many bytes lie ahead. Raises UserError, or MoreNeededError."""
        end = self.position + n_bytes
        if end > self.size_bytes:
            raise UserError(
                f"{self.path} is cut off or damaged ({what} would reach to byte {end}, and the file has "
                f"{self.size_bytes}): download it again."
            )
        if end > MAXIMUM_HEADER_BYTES:
            raise UserError(
                f"The header of {self.path} does not end within {MAXIMUM_HEADER_BYTES >> 20} MiB ({what} would reach "
                f"to byte {end}), which no model needs: take the model from another source."
            )
        if end > len(self.data):
            raise MoreNeededError(end)

    def take(self, n_bytes: int, what: str) -> bytes:
        """Return the next bytes."""
        self.ahead(n_bytes, what)
        start, self.position = self.position, self.position + n_bytes
        return self.data[start : self.position]

    def number(self, code: str, what: str) -> t.Any:
        """Return the next number, of a code of the module struct."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code), what))[0]

    def text(self, maximum: int, what: str) -> str:
        """Return the next string. Raises UserError for a longer one."""
        length = self.number("Q", f"the length of {what}")
        if length > maximum:
            raise UserError(f"{self.path} has {what} of {length} bytes, and {maximum} is the most: {_OTHER_SOURCE}")
        return self.take(length, what).decode("utf-8", "replace")

    def skip_strings(self, count: int, what: str) -> list[int]:
        """Pass over an array of strings, within bounds; return where each TOKENS_PER_SUM of them begin, and the end."""
        self.ahead(8 * count, what)
        self.strings += count
        if self.strings > MAXIMUM_STRINGS:
            raise UserError(f"{self.path} has more than {MAXIMUM_STRINGS} strings in its header: {_OTHER_SOURCE}")
        position, end, data, length_at = self.position, len(self.data), self.data, _LENGTH.unpack_from
        begins: list[int] = []
        for number in range(count):
            if position + 8 > end:
                break
            if number % TOKENS_PER_SUM == 0:
                begins.append(position)
            position += 8 + length_at(data, position)[0]
        else:
            self.position = position
            self.ahead(0, what)
            return [*begins, position]
        self.position = position
        self.ahead(8, what)
        return []

    def kept(self, n_bytes: int) -> None:
        """Count bytes that are kept. Raises UserError beyond the bound."""
        self.kept_bytes += n_bytes
        if self.kept_bytes > MAXIMUM_KEPT_BYTES:
            raise UserError(
                f"The header of {self.path} has more than {MAXIMUM_KEPT_BYTES >> 20} MiB of settings: {_OTHER_SOURCE}"
            )


_OTHER_SOURCE = "llama.cpp does not load such a file either; take the model from another source."


def parse(path: str, data: bytes, size_bytes: int) -> Header:
    """Return the header of the file of ``size_bytes`` bytes that starts with ``data``.

    Raises MoreNeededError where ``data`` end within the header, and UserError, in one sentence with the path, where it
    is no header that can be read.
    """
    cursor = _Cursor(path, data, size_bytes)
    _check_start(cursor)
    version = cursor.number("I", "the version")
    _check_version(path, version)
    tensors, keys = cursor.number("Q", "the number of tensors"), cursor.number("Q", "the number of keys")
    for count, maximum, least, what in ((keys, MAXIMUM_KEYS, 13, "keys"), (tensors, MAXIMUM_TENSORS, 25, "tensors")):
        cursor.ahead(count * least, f"its list of {count} {what}")
        if count > maximum:
            raise UserError(f"{path} names {count} {what}, and {maximum} is the most: {_OTHER_SOURCE}")
    header = Header()
    for _key in range(keys):
        _read_key(cursor, header)
    alignment = _alignment(path, header.fields)
    raw = _read_tensors(cursor, tensors)
    header.n_bytes = cursor.position
    start = -(-cursor.position // alignment) * alignment
    ends = sorted({start + offset for _name, _kind, _elements, _row, offset in raw} | {size_bytes})
    for name, kind, elements, row, offset in raw:
        n_bytes = _n_bytes(path, name, kind, elements, row)
        place = start + offset
        if n_bytes is None:
            after = bisect.bisect_right(ends, place)
            n_bytes = ends[after] - place if after < len(ends) else 0
        header.tensors.append(Tensor(name, kind, elements, place, n_bytes))
    return header


def check_extent(path: str, size_bytes: int, tensors: t.Iterable[Tensor]) -> None:
    """Raise UserError when tensors of the file reach beyond its end, or into each other."""
    tensors = sorted(tensors, key=lambda tensor: tensor.offset)
    for one, other in itertools.pairwise(tensor for tensor in tensors if tensor.n_bytes):
        if other.offset < one.offset + one.n_bytes:
            raise UserError(
                f"{path} has the tensors {shown(one.name)} and {shown(other.name)} in the same place: {_OTHER_SOURCE}"
            )
    last = max(tensors, key=lambda tensor: tensor.offset + tensor.n_bytes, default=None)
    end = last.offset + last.n_bytes if last else 0
    if last and end > size_bytes:
        raise UserError(
            f"{path} is truncated: its last tensor {shown(last.name)} ends at byte {end}, the file has {size_bytes}, "
            f"so {end - size_bytes} bytes are missing: download it again."
        )


def _check_start(cursor: _Cursor) -> None:
    head = cursor.data[:4]
    if head != MAGIC:
        what = "is empty" if not head else f"starts with {head!r}, not with {MAGIC!r}"
        raise UserError(
            f"{cursor.path} is no GGUF file (it {what}): download the model's .gguf file, or convert the model with "
            "llama.cpp."
        )
    cursor.position = 4


def _check_version(path: str, version: int) -> None:
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


def _read_key(cursor: _Cursor, header: Header) -> None:
    """Read one key with its value; long values are counted only."""
    key = cursor.text(MAXIMUM_KEY_BYTES, "a key")
    if not key or key in header.fields or key in header.lengths:
        said = f"the key {shown(key)} twice" if key else "a key without a name"
        raise UserError(f"{cursor.path} has {said}: {_OTHER_SOURCE}")
    cursor.kept(len(key) + 64)
    kind = cursor.number("I", f"the type of {shown(key)}")
    if kind == _ARRAY:
        _read_array(cursor, header, key)
    elif kind == _STRING:
        length = cursor.number("Q", f"the length of {shown(key)}")
        value = cursor.take(length, f"the value of {shown(key)}")
        header.fields[key] = None
        if length <= KEPT_STRING_BYTES:
            cursor.kept(length)
            header.fields[key] = value.decode("utf-8", "replace")
    elif kind in _SCALARS:
        header.fields[key] = cursor.number(_SCALARS[kind], f"the value of {shown(key)}")
    else:
        raise _unknown_kind(cursor.path, key, kind)


def _unknown_kind(path: str, key: str, kind: int) -> UserError:
    what = "an array of arrays" if kind == _ARRAY else f"of the type {kind}, which GGUF does not have"
    return UserError(f"{path} has a key {shown(key)} that is {what}: {_OTHER_SOURCE}")


def _read_array(cursor: _Cursor, header: Header, key: str) -> None:
    """Read an array of numbers, or pass over it by its size; strings are passed over."""
    what = f"the array {shown(key)}"
    kind, count = cursor.number("I", what), cursor.number("Q", what)
    header.lengths[key] = count
    start = cursor.position
    if kind == _STRING:
        begins = cursor.skip_strings(count, what)
        if key == TOKENS:
            chunks = (cursor.data[begin:end] for begin, end in itertools.pairwise(begins))
            header.token_sums = [f"{zlib.crc32(chunk):08x}" for chunk in chunks]
    elif kind in _SCALARS:
        _read_numbers(cursor, header, key, kind, count)
    else:
        raise _unknown_kind(cursor.path, key, kind)
    header.places[key] = start, cursor.position


def _read_numbers(cursor: _Cursor, header: Header, key: str, kind: int, count: int) -> None:
    """Keep the numbers of an array, or pass over a long one."""
    what = f"the array {shown(key)}"
    n_bytes = count * struct.calcsize(_SCALARS[kind])
    cursor.ahead(n_bytes, what)
    if count <= KEPT_ELEMENTS:
        cursor.kept(8 * count)
        values = struct.unpack(f"<{count}{_SCALARS[kind]}", cursor.take(n_bytes, what))
        header.fields[key] = list(values)
    else:
        cursor.position += n_bytes


def _alignment(path: str, fields: Json) -> int:
    """Return the alignment of the tensors, which is a power of two."""
    value = fields.get("general.alignment", 32)
    if not is_whole(value, 1) or value & (value - 1):
        raise UserError(f"{path} has the alignment {shown(str(value))}, which is no power of two: {_OTHER_SOURCE}")
    return value


def _read_tensors(cursor: _Cursor, count: int) -> list[tuple[str, int, int, int, int]]:
    """Return (name, type, elements, elements of a row, offset) of every tensor."""
    found, names = [], set()
    for _tensor in range(count):
        name = cursor.text(MAXIMUM_NAME_BYTES, "the name of a tensor")
        if name in names:
            raise UserError(f"{cursor.path} has the tensor {shown(name)} twice: {_OTHER_SOURCE}")
        names.add(name)
        what = f"the tensor {shown(name)}"
        dimensions = cursor.number("I", what)
        if dimensions > MAXIMUM_DIMENSIONS:
            raise UserError(f"{cursor.path} has {what} with {dimensions} dimensions: {_OTHER_SOURCE}")
        elements, row = 1, 1
        for dimension in range(dimensions):
            size = cursor.number("Q", what)
            row = size if dimension == 0 else row
            elements *= size
        if elements > _LARGEST:
            raise UserError(f"{cursor.path} has {what} with {elements} elements: {_OTHER_SOURCE}")
        kind, offset = cursor.number("I", what), cursor.number("Q", what)
        found.append((name, kind, elements, row, offset))
    return found


def _n_bytes(path: str, name: str, kind: int, elements: int, row: int) -> int | None:
    """Return the bytes of a tensor, or None where its type is unknown."""
    known = tensor_types.TYPES.get(kind)
    if known is None:
        return None
    if row % known.elements:
        raise UserError(
            f"{path} has the tensor {shown(name)} with rows of {row} elements, and {known.name} stores "
            f"{known.elements} at a time: {_OTHER_SOURCE}"
        )
    return elements // known.elements * known.n_bytes


def read(path: str, handle: t.BinaryIO, size_bytes: int) -> Header:
    """Return the header of an open file. Raises UserError as parse, and OSError where it cannot be read."""
    window = 1 << 20
    while True:
        handle.seek(0)
        data = handle.read(window)
        try:
            return parse(path, data, size_bytes)
        except MoreNeededError as exc:
            if len(data) < min(window, size_bytes):
                raise UserError(
                    f"{path} became shorter while it was read: let its download end, then try again."
                ) from exc
            window = max(window * 4, exc.n_bytes)
