# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files of models on the host's disks: free space, folders, publication. Standard library only."""

from __future__ import annotations

import os
import pwd
import stat
import time
import typing as t

from .._base import json_file
from .._base.errors import UserError


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


def check_owner(path: str, trusted: t.Sequence[str]) -> None:
    """Raise UserError where somebody else could exchange the directory of ``path`` for a link while root writes there.

    ``trusted``: names or numbers of users whose directories are taken as they are. Directories of root, of who runs
    this, and of the owner of / (root under another number in a user namespace) always are.
    """
    allowed = {0, os.geteuid(), os.stat("/").st_uid, *(_user_id(name) for name in trusted)}
    directory = free_space(os.path.abspath(path))[0]
    for place in _above(directory) + _above(os.path.realpath(directory)):
        status = os.stat(place)
        owner = next((each.st_uid for each in (status, os.lstat(place)) if each.st_uid not in allowed), None)
        if owner is not None:
            raise UserError(
                f"{place} belongs to {_user_name(owner)}, who could have root write elsewhere by a link: give it to "
                f"root (chown root {place}), choose another directory, or name the owner in "
                "llm_models_trusted_owners."
            )
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            raise UserError(
                f"Everybody may write to {place}, and could have root write elsewhere by a link: take that away "
                f"(chmod o-w {place}), or choose another directory."
            )


def _above(directory: str) -> list[str]:
    """Return a directory and those above it."""
    found = [directory]
    while directory != os.path.dirname(directory):
        directory = os.path.dirname(directory)
        found.append(directory)
    return found


def _user_id(name: str) -> int:
    if name.isdecimal() and name.isascii():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError as exc:
        raise UserError(f"llm_models_trusted_owners names {name!r}, who is no user of this host: correct it.") from exc


def _user_name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (user id {uid})"
    except KeyError:
        return f"the user id {uid}"


def is_own_file(path: str) -> bool:
    """Whether a regular file, and no link, is at ``path``."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def is_older(path: str, days: float) -> bool:
    """Whether a regular file is at ``path`` that got its name more than so many days ago."""
    return is_own_file(path) and time.time() - os.lstat(path).st_ctime > days * 86400


def free_name(path: str) -> str:
    """Return ``path``, with a number at its end where something is there already."""
    name, number = path, 0
    while os.path.lexists(name):
        number += 1
        name = f"{path}-{number}"
    return name


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
    json_file.sync_directory(os.path.dirname(path))


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
