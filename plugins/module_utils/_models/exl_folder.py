# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads the headers of an EXL model in a folder. Private to this collection. exl_model.py says what they mean."""

from __future__ import annotations

import hashlib
import os
import stat
import typing as t

from .._base import json_file
from .._base.errors import UserError
from . import exl_model, exl_vocabulary, file_names


def _content(path: str, most: int, position: int = 0) -> tuple[bytes, int]:
    """Return up to C(most) bytes of a regular file from a position on, and its size."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as handle:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path} is no file: download it again.")
            handle.seek(position)
            return handle.read(most), status.st_size
    except OSError as exc:
        raise UserError(f"{path} cannot be read ({exc.strerror}): check the path, or download it.") from exc


def _whole(path: str, most: int) -> bytes:
    """Return a small file. Raises UserError where it is larger than C(most) bytes."""
    content, size = _content(path, most)
    if size > most:
        raise UserError(f"{path} has {size} bytes, and such a file has {most} at most: download it again.")
    return content


def _header(path: str) -> tuple[bytes, int]:
    """Return the header of a safetensors file and the file's size."""
    start, size = _content(path, exl_model.LENGTH_BYTES)
    length = exl_model.header_length(path, start, size)
    return _content(path, length, exl_model.LENGTH_BYTES)[0], size


def _names(folder: str) -> list[str]:
    """Return the names of the safetensors files that a folder has or should have."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    except OSError as exc:
        raise UserError(f"{folder} cannot be read ({exc.strerror}): name the folder of a model.") from exc
    index = f"{folder}/model.safetensors.index.json"
    if os.path.exists(index):
        text = _whole(index, exl_model.LONGEST_HEADER).decode("utf-8", "replace")
        indexed = exl_model.indexed_files(text, index)
        # an index none of whose files is there is that of the model before it was quantised; the engines read no index
        names = sorted({*names, *(indexed if set(indexed) & set(names) else [])})
    if not names:
        raise UserError(f"{folder} holds no safetensors file: name the folder of an EXL2 or EXL3 model.")
    return names


def read(folder: str) -> tuple[dict[str, t.Any], str]:
    """Return the model in a folder and the hash of its headers. Raises UserError."""
    config_text = _whole(f"{folder}/config.json", exl_model.LONGEST_CONFIG)
    try:
        config = json_file.from_text(config_text, any_number=True)
    except ValueError as exc:
        said = file_names.shown_text(str(exc))
        raise UserError(f"{folder}/config.json is no JSON ({said}): download it again.") from exc
    if not isinstance(config, dict):
        raise UserError(f"{folder}/config.json holds no dict: download it again.")
    files, tensors, header_bytes = [], [], 0
    owners: dict[str, str] = {}
    digest = hashlib.sha256(config_text)
    for name in _names(folder):
        text, size = _header(f"{folder}/{name}")
        header_bytes += len(text)
        if header_bytes > exl_model.LONGEST_HEADERS:
            raise UserError(f"{folder} has more than {exl_model.LONGEST_HEADERS} bytes of headers: it is no model.")
        digest.update(f"\0{name}\0{size}\0".encode("utf-8", "surrogateescape"))
        digest.update(text)
        files.append((f"{folder}/{name}", size))
        own = exl_model.read_header(f"{folder}/{name}", text, size)
        for tensor in own:
            if owners.setdefault(tensor.name, name) != name:
                raise UserError(
                    f"{folder} holds {file_names.shown_text(tensor.name)} twice, in {owners[tensor.name]} and in"
                    f" {name}: files of another revision lie there; move the folder away and fetch the model again."
                )
        tensors += own
    model = {**exl_model.describe(folder, config, files, tensors), "vocabulary": _vocabulary(folder)}
    return model, digest.hexdigest()


def _vocabulary(folder: str) -> dict[str, t.Any]:
    """Return the vocabulary; its kind is None where no C(tokenizer.json) can be read, which drafting alone minds."""
    try:
        text = _whole(f"{folder}/{exl_vocabulary.FILE}", exl_vocabulary.LONGEST)
    except UserError:
        text = None
    return exl_vocabulary.of_tokenizer(text)
