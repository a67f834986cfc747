# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A GGUF model of one or several files, read by its headers. Private to this collection.

Modules gguf_info and gguf_load_check are its faces.
"""

from __future__ import annotations

import os
import typing as t

from .._base.errors import UserError
from .._base.types import Json
from . import gguf_file, gguf_header, gguf_kind, vocabulary
from .gguf_header import Header


def files_of(path: str) -> list[tuple[str, int, int]]:
    """Return (path, bytes, mtime in ns) of every shard, or raise UserError naming the one that cannot be read."""
    paths = gguf_file.shard_paths(path)
    found = []
    for number, shard in enumerate(paths, 1):
        try:
            status = os.stat(shard)
        except (OSError, ValueError) as exc:
            whole = f", shard {number} of {len(paths)}," if len(paths) > 1 else ""
            said = getattr(exc, "strerror", None) or exc
            raise UserError(f"{shard}{whole} cannot be read ({said}): check the path, or download the file.") from exc
        if not os.path.isfile(shard):
            raise UserError(f"{shard} is no file: name the GGUF file itself.")
        found.append((shard, status.st_size, status.st_mtime_ns))
    return found


def read(files: t.Sequence[tuple[str, int, int]], draft: bool = False) -> Json:
    """Return the ``model`` dict of the files that files_of() found. Raises UserError in one sentence.

    A ``draft`` may be a head that works only beside its model.
    """
    headers = [read_header(path, size_bytes) for path, size_bytes, _mtime in files]
    return describe(headers, [file[:2] for file in files], draft)


def read_header(path: str, size_bytes: int) -> Header:
    """Return the header of one file. Raises UserError in one sentence."""
    try:
        with open(path, "rb") as handle:
            header = gguf_header.read(path, handle, size_bytes)
    except OSError as exc:
        raise UserError(f"{path} cannot be read ({exc.strerror or exc}): check its permissions and its disk.") from exc
    except UserError as exc:
        kind = gguf_kind.by_name(path)
        if kind == "importance matrix":  # once a format of its own
            raise UserError(gguf_kind.sentence(path, kind, ", as its name says")) from exc
        raise
    gguf_header.check_extent(path, size_bytes, header.tensors)
    return header


def describe(headers: t.Sequence[Header], files: t.Sequence[tuple[str, int]], draft: bool = False) -> Json:
    """Return the ``model`` dict of the headers of all shards, in order. Raises UserError where they are not one model.

    ``files``: (path, bytes) of each.
    """
    fields, lengths = headers[0].fields, headers[0].lengths
    path, tensors = files[0][0], [tensor for header in headers for tensor in header.tensors]
    count = fields.get("split.count", 1)
    if isinstance(count, int) and count > 1 and count != len(files):
        raise UserError(
            f"{path} is one of {count} shards, and its name does not tell where the others are: "
            f"keep llama.cpp's names (NAME-00001-of-{count:05d}.gguf)."
        )
    _check_places(headers, files)
    declared = fields.get("split.tensors.count")
    if isinstance(declared, int) and len(files) > 1 and declared != len(tensors):
        raise UserError(
            f"The shards of {path} hold {len(tensors)} tensors and should hold {declared}: "
            "they are not of one model; download them again."
        )
    model = gguf_file.describe(fields, tensors, files, lengths.get(gguf_header.TOKENS), draft)
    return {**model, "vocabulary": vocabulary.of_header(headers[0])}


def _check_places(headers: t.Sequence[Header], files: t.Sequence[tuple[str, int]]) -> None:
    """Raise UserError where a shard is another one than its name says, which llama.cpp does not load."""
    for place, (header, (path, _size)) in enumerate(zip(headers, files, strict=True)):
        number, count = header.fields.get("split.no", place), header.fields.get("split.count")
        if len(files) > 1 and (number, count) != (place, len(files)):
            numbers = isinstance(number, int) and isinstance(count, int)
            said = f"shard {number + 1} of {count}" if numbers else "no shard"
            raise UserError(
                f"{path} is named as shard {place + 1} of {len(files)}, and its header says that it is {said}: "
                "download it again under its own name."
            )
