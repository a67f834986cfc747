# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Hashes of model files, and the manifests that record them on the host. Standard library only."""

from __future__ import annotations

import hashlib
import os
import re
import typing as t

from .._base import json_file, json_state
from .._base.errors import UserError
from .._base.types import Json, Mapping

CHUNK_BYTES = 1 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Digest(t.NamedTuple):
    """Hashes of a file: SHA-256, and the SHA-1 that git gives it as a blob where that was asked for."""

    sha256: str
    git_sha1: str | None = None

    def meets(self, wanted: str | None) -> bool:
        """Whether this is the content with the hash ``wanted``; None is any content."""
        return wanted in (None, self.sha256, self.git_sha1)


def manifest_name(path: str) -> str:
    """Return the file name of the manifest of ``path`` (absolute): readable, and one for each path."""
    return f"{os.path.basename(path)}-{hashlib.sha256(path.encode()).hexdigest()[:12]}"


def _check(recorded: Json) -> None:
    if not isinstance(recorded.get("sha256"), str) or not _SHA256.fullmatch(recorded["sha256"]):
        raise UserError("it has no SHA-256")


FORM: t.Final = json_state.Form(1, "run the role llm_models: it is made anew from the model file", _check)


def state(path: str) -> Json:
    """Return what a manifest keeps of the file at ``path`` to tell whether it changed.

    Its ctime, too: nobody can set that back, as an owner can set the time of the content.
    """
    status = os.stat(path)
    return {
        "size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
    }  # fmt: skip


def digest(path: str, git: bool = False, tick: t.Callable[[int], t.Any] | None = None) -> Digest:
    """Return the hashes of a file in one reading, calling ``tick`` with the bytes read so far.

    ``git``: the SHA-1 of git's blob, too: of the word "blob", the size, a zero byte, and the content.
    """
    sha256, done = hashlib.sha256(), 0
    sha1 = hashlib.sha1(f"blob {os.path.getsize(path)}\0".encode(), usedforsecurity=False) if git else None
    with open(path, "rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            sha256.update(chunk)
            if sha1:
                sha1.update(chunk)
            done += len(chunk)
            if tick:
                tick(done)
    return Digest(sha256.hexdigest(), sha1.hexdigest() if sha1 else None)


def manifest_path(directory: str, path: str) -> str:
    """Return where the manifest of ``path`` is kept."""
    return os.path.join(directory, f"{manifest_name(path)}.json")


def read_manifest(file: str, warn: t.Callable[[str], t.Any]) -> Json | None:
    """Return a manifest, or None where there is none. A damaged one only costs a new hash: it is warned about."""
    try:
        text = json_file.read_text(file)
        return None if text is None else FORM.data(text)
    except (OSError, UserError) as exc:
        warn(f"{file} cannot be used ({exc}): it is made anew from the model file.")
        return None


def believed(recorded: Json | None, path: str, git: bool = False) -> Digest | None:
    """Return the recorded hashes of the file at ``path`` if the manifest still describes it, and has what is asked."""
    if recorded is None or any(recorded.get(name) != value for name, value in state(path).items()):
        return None
    sha1 = recorded.get("git_sha1") if git else None
    return None if git and not sha1 else Digest(recorded["sha256"], sha1)


def write_manifest(
    file: str, path: str, digest: Digest, source: Mapping, move: t.Callable[[str, str], t.Any]
) -> None:
    """Record the hashes that were just computed of the file at ``path``."""
    recorded = {
        "schema": FORM.schema, "path": path, "sha256": digest.sha256,
        **({"git_sha1": digest.git_sha1} if digest.git_sha1 else {}), **state(path), "source": dict(source),
    }  # fmt: skip
    json_file.write_text(file, json_file.to_text(recorded), 0o644, move)
