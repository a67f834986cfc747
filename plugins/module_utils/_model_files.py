# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Manifests, hashes and free space of model files on the host. Private to this collection. Standard library only.

Shared by the two modules that put model files on a host (model_file, random_gguf): each reads what the other wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils import _download, _state_files

CHUNK_BYTES = 1 << 20


def free_space(path: str) -> tuple[str, int]:
    """Return the nearest existing directory above ``path``, and the bytes that are free on its filesystem."""
    directory = os.path.dirname(path)
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    status = os.statvfs(directory)
    return directory, status.f_bavail * status.f_frsize


def make_parents(path: str) -> None:
    """Make the missing directories above ``path``, 0755 whatever the umask: the server's user reads them."""
    missing = []
    directory = os.path.dirname(path)
    while not os.path.isdir(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    for directory in reversed(missing):
        os.mkdir(directory)
        os.chmod(directory, 0o755)


def publish(part: str, path: str, move: t.Callable[[str, str], t.Any]) -> None:
    """Put a finished, synced file in its place in one step. A new file is 0644, an old one keeps its mode."""
    new = not os.path.exists(path)
    with open(part, "rb") as handle:
        os.fsync(handle.fileno())
    move(part, path)
    if new:
        os.chmod(path, 0o644)             # AnsibleModule.atomic_move follows the umask


def sha256(path: str, tick: t.Callable[[int], t.Any] | None = None) -> str:
    """Return the SHA-256 of a file, calling ``tick`` with the bytes read so far."""
    digest, done = hashlib.sha256(), 0
    with open(path, "rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if tick:
                tick(done)
    return digest.hexdigest()


def manifest_path(directory: str, path: str) -> str:
    """Return where the manifest of ``path`` is kept."""
    return os.path.join(directory, f"{_download.manifest_name(path)}.json")


def read_manifest(file: str, warn: t.Callable[[str], t.Any]) -> dict[str, t.Any] | None:
    """Return a manifest, or None where there is none. A damaged one only costs a new hash: it is warned about."""
    try:
        recorded = json.loads(_state_files.read_text(file) or "null")
    except (OSError, ValueError) as exc:
        warn(f"{file} cannot be read ({exc}): it is made anew from the model file.")
        return None
    return recorded if isinstance(recorded, dict) else None


def believed_sha256(recorded: dict[str, t.Any] | None, path: str) -> str | None:
    """Return the recorded SHA-256 of the file at ``path`` if the manifest still describes it."""
    status = os.stat(path)
    if recorded is not None and _download.describes(recorded, status.st_size, status.st_mtime_ns, status.st_ino):
        return recorded["sha256"]
    return None


def write_manifest(
    file: str, path: str, digest: str, source: t.Mapping[str, t.Any], move: t.Callable[[str, str], t.Any]
) -> None:
    """Record the SHA-256 that was just computed of the file at ``path``."""
    status = os.stat(path)
    manifest = _download.manifest(path, digest, status.st_size, status.st_mtime_ns, status.st_ino, source)
    _state_files.write_text(file, _state_files.to_text(manifest), 0o644, move)
