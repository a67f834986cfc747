# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Hashes of model files, and the manifests that record them on the host. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import re
import typing as t

from .._base import json_file
from .._base.types import Json, Mapping

CHUNK_BYTES = 1 << 20
MANIFEST_SCHEMA = 1

_SHA256 = re.compile(r"^[0-9a-f]{64}$")


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


def manifest(
    path: str,
    digest: Digest,
    size_bytes: int,
    mtime_ns: int,
    inode: int,
    source: Mapping,
) -> Json:
    """Return what is recorded about a file whose hashes were computed."""
    return {
        "schema": MANIFEST_SCHEMA,
        "path": path,
        "sha256": digest.sha256,
        **({"git_sha1": digest.git_sha1} if digest.git_sha1 else {}),
        "size_bytes": size_bytes,
        "mtime_ns": mtime_ns,
        "inode": inode,
        "source": dict(source),
    }


def describes(recorded: t.Any, size_bytes: int, mtime_ns: int, inode: int) -> bool:
    """Whether a manifest still describes the file with these properties, so that its SHA-256 may be believed."""
    if not isinstance(recorded, dict):
        return False
    seen = (recorded.get("schema"), recorded.get("size_bytes"), recorded.get("mtime_ns"), recorded.get("inode"))
    return (
        seen == (MANIFEST_SCHEMA, size_bytes, mtime_ns, inode)
        and isinstance(recorded.get("sha256"), str)
        and _SHA256.match(recorded["sha256"]) is not None
    )


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
        recorded = json.loads(json_file.read_text(file) or "null")
    except (OSError, ValueError) as exc:
        warn(f"{file} cannot be read ({exc}): it is made anew from the model file.")
        return None
    return recorded if isinstance(recorded, dict) else None


def believed(recorded: Json | None, path: str, git: bool = False) -> Digest | None:
    """Return the recorded hashes of the file at ``path`` if the manifest still describes it, and has what is asked."""
    status = os.stat(path)
    if recorded is None or not describes(recorded, status.st_size, status.st_mtime_ns, status.st_ino):
        return None
    sha1 = recorded.get("git_sha1") if git else None
    return None if git and not sha1 else Digest(recorded["sha256"], sha1)


def write_manifest(
    file: str, path: str, digest: Digest, source: Mapping, move: t.Callable[[str, str], t.Any]
) -> None:
    """Record the hashes that were just computed of the file at ``path``."""
    status = os.stat(path)
    recorded = manifest(path, digest, status.st_size, status.st_mtime_ns, status.st_ino, source)
    json_file.write_text(file, json_file.to_text(recorded), 0o644, move)
