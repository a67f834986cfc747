# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Manifests, hashes and free space of model files on the host. Private to this collection. Standard library only.

Shared by the two modules that put model files on a host (model_file, random_gguf): each reads what the other wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import typing as t

from .._base import json_file
from . import hub_api, transfer

CHUNK_BYTES = 1 << 20


def free_space(path: str) -> tuple[str, int]:
    """Return the nearest existing directory above ``path``, and the bytes that are free on its filesystem."""
    directory = os.path.dirname(path)
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    status = os.statvfs(directory)
    return directory, status.f_bavail * status.f_frsize


def filesystem(path: str) -> str:
    """Return where the filesystem is mounted that ``path`` is or will be on."""
    directory = os.path.realpath(free_space(path)[0])
    while not os.path.ismount(directory):
        directory = os.path.dirname(directory)
    return directory


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


def digest(path: str, git: bool = False, tick: t.Callable[[int], t.Any] | None = None) -> transfer.Digest:
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
    return transfer.Digest(sha256.hexdigest(), sha1.hexdigest() if sha1 else None)


def candidates(directory: str | None, path: str, size_bytes: int | None) -> list[str]:
    """Return the files below ``directory`` that may have the content of ``path``, the likeliest first.

    With a known size those of that size, else those of its name: nobody reads a whole disk for a guess.
    """
    found = []
    for root, _directories, names in os.walk(directory or ""):
        for name in names:
            one = os.path.join(root, name)
            named = name == os.path.basename(path)
            if os.path.isfile(one) and (named if size_bytes is None else os.path.getsize(one) == size_bytes):
                found.append((not named, one))
    return [one for _other_name, one in sorted(found)]


def read_token(path: str | None, url: str) -> str | None:
    """Return the access token in a file, or None where there is none. Raises HubError when it must not be used."""
    if not path or not os.path.exists(path):
        return None
    if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        raise hub_api.HubError(f"Others may read the token in {path}: chmod 600 {path}, and make a new token.")
    token = (json_file.read_text(path) or "").strip()
    problem = hub_api.token_problem(url) if token else None
    if problem:
        raise hub_api.HubError(f"{problem} ({path}).")
    return token or None


def manifest_path(directory: str, path: str) -> str:
    """Return where the manifest of ``path`` is kept."""
    return os.path.join(directory, f"{transfer.manifest_name(path)}.json")


def read_manifest(file: str, warn: t.Callable[[str], t.Any]) -> dict[str, t.Any] | None:
    """Return a manifest, or None where there is none. A damaged one only costs a new hash: it is warned about."""
    try:
        recorded = json.loads(json_file.read_text(file) or "null")
    except (OSError, ValueError) as exc:
        warn(f"{file} cannot be read ({exc}): it is made anew from the model file.")
        return None
    return recorded if isinstance(recorded, dict) else None


def believed(recorded: dict[str, t.Any] | None, path: str, git: bool = False) -> transfer.Digest | None:
    """Return the recorded hashes of the file at ``path`` if the manifest still describes it, and has what is asked."""
    status = os.stat(path)
    if recorded is None or not transfer.describes(recorded, status.st_size, status.st_mtime_ns, status.st_ino):
        return None
    sha1 = recorded.get("git_sha1") if git else None
    return None if git and not sha1 else transfer.Digest(recorded["sha256"], sha1)


def write_manifest(
    file: str, path: str, digest: transfer.Digest, source: t.Mapping[str, t.Any], move: t.Callable[[str, str], t.Any]
) -> None:
    """Record the hashes that were just computed of the file at ``path``."""
    status = os.stat(path)
    manifest = transfer.manifest(path, digest, status.st_size, status.st_mtime_ns, status.st_ino, source)
    json_file.write_text(file, json_file.to_text(manifest), 0o644, move)
