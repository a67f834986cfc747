# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What llama.cpp is asked about a model that may not be there yet: files of a header and a hole. Private."""

from __future__ import annotations

import os
import typing as t
from dataclasses import dataclass

from .._base.errors import UserError
from .._base.types import Json, Mapping
from . import architectures, gguf_model, remote_header, tensor_types, transfer, vocabulary
from .gguf_header import Header

#: What is smaller is there in a minute, and is asked about then.
WORTHWHILE_BYTES = 1 << 30


def questions(files: t.Iterable[Mapping], missing_only: bool) -> dict[str, list[Mapping]]:
    """Return, by id, the files of GGUF models that are there, or are worth a look before they are fetched.

    ``files``: as of model_plan.
    """
    by_id: dict[str, list[Mapping]] = {}
    for file in files:
        by_id.setdefault(str(file["id"]), []).append(file)
    return {
        name: found
        for name, found in by_id.items()
        if all(file["gguf"] for file in found) and _worthwhile(found, missing_only)
    }


def _worthwhile(files: t.Sequence[Mapping], missing_only: bool) -> bool:
    missing = [file for file in files if not file["present"]]
    if not missing:
        return not missing_only
    sizes = [file["size_bytes"] for file in missing]
    return all(file["url"] for file in missing) and (None in sizes or sum(sizes) >= WORTHWHILE_BYTES)


@dataclass(frozen=True)
class Found:
    """The header of one file: ``name`` for people, the file's own name, its size, and the bytes of the header."""

    name: str
    base: str
    size_bytes: int
    header: Header
    data: bytes


def find(file: Mapping, token: str | None) -> Found:
    """Return a file's header, from the host or from its URL. Raises UserError, HeaderUnknownError."""
    path = file["path"]
    if file["present"]:
        size_bytes = os.path.getsize(path)
        header = gguf_model.read_header(path, size_bytes)
        with open(path, "rb") as handle:
            return Found(path, os.path.basename(path), size_bytes, header, handle.read(header.n_bytes))
    header, data, size_bytes = remote_header.fetch(file["url"], token, file["size_bytes"])
    name = transfer.shown_url(file["url"])
    return Found(name, os.path.basename(path), size_bytes, header, data[: header.n_bytes])


def describe(found: t.Sequence[Found], draft: bool) -> Json:
    """Return the C(model) dict of the headers. Raises UserError, with the cause, where they are no model.

    A C(draft) may be a head that works only beside its model.
    """
    files = [(one.name, one.size_bytes) for one in found]
    return gguf_model.describe([one.header for one in found], files, draft)


def drafts(files: t.Iterable[Mapping]) -> list[tuple[Mapping, Mapping]]:
    """Return (draft, target), by their first files, of which one at least is not there yet and has a URL."""
    first = {str(file["id"]): file for file in files if file.get("first") and file["gguf"]}
    pairs = [(file, first[file["draft_for"]]) for file in first.values() if file.get("draft_for") in first]
    return [
        pair
        for pair in pairs
        if not all(file["present"] for file in pair) and all(file["present"] or file["url"] for file in pair)
    ]


def check_draft(draft: tuple[str, Found], target: tuple[str, Found]) -> None:
    """Raise UserError for a draft, by id and first file, whose vocabulary is not that of its target."""
    if draft[1].header.fields.get("general.architecture") == "eagle3":  # a head has a vocabulary of its own
        return
    mine, its = (vocabulary.of_header(found.header) for _name, found in (target, draft))
    why = vocabulary.why_not(mine, its)
    if why is not None:
        raise UserError(
            f"The model {draft[0]} cannot draft for {target[0]}: {why}; choose a draft of the same family, or remove "
            "draft_for."
        )


def write(found: t.Sequence[Found], directory: str) -> list[str]:
    """Write files of the headers and a hole of the right size, which others may read; return their paths. OSError."""
    paths = []
    for one in found:
        path = os.path.join(directory, one.base)
        with open(path, "xb") as handle:
            handle.write(one.data)
            handle.truncate(one.size_bytes)
            os.fchmod(handle.fileno(), 0o644)
        paths.append(path)
    return paths


def check_pinned(found: t.Sequence[Found], model: Mapping) -> None:
    """Raise UserError for a model that the pinned llama.cpp does not know; for hosts that have none to ask."""
    architecture = model["architecture"]
    kinds = sorted({
        tensor.kind for one in found for tensor in one.header.tensors if tensor.kind not in tensor_types.TYPES
    })  # fmt: skip
    unknown = [f"the architecture {architecture}"] if architecture not in architectures.PINNED else []
    unknown += [f"the tensor type {kind}" for kind in kinds[:3]]
    if unknown:
        raise UserError(
            f"{found[0].name} has {' and '.join(unknown)}, unknown to the llama.cpp that this collection pins, and no "
            "llama.cpp is installed to ask: choose another model, or install a newer one first (role llama_cpp)."
        )
