# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Small files that later runs trust, and locks on them. Private to this collection. Standard library only.

The one module_utils that touches the disk: the modules that own state share it, so that each file is written and each
lock is taken in the same way.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import math
import os
import re
import stat
import tempfile
import time
import typing as t

POLL_SECONDS = 0.2
#: Nothing that this collection reads has more than a tenth of these levels; what has would exhaust Python's stack.
DEEPEST = 100
#: What tempfile.mkstemp calls a file of ours.
_TEMPORARY = re.compile(r"\.new-[a-z0-9_]{8}")
_TIME = "%Y-%m-%dT%H:%M:%SZ"
#: More than any size or time has; larger numbers overflow a float or take long to read.
_MOST_DIGITS: t.Final = 40
_TOO_DEEP = f"it is nested more than {DEEPEST} levels deep"


def utc_now() -> str:
    """Return the time as C(2026-11-24T04:35:00Z)."""
    return datetime.datetime.now(datetime.UTC).strftime(_TIME)


def utc_time(text: str) -> datetime.datetime:
    """Return the time that utc_now wrote. Raises ValueError for another text."""
    return datetime.datetime.strptime(text, _TIME).replace(tzinfo=datetime.UTC)


def read_text(path: str) -> str | None:
    """Return the text of a file, or None where there is no such file. Undecodable bytes are replaced, never raised.

    Raises OSError for what is no file: a pipe would be waited for, and a device such as /dev/zero read for ever. A link
    to /dev/null is an empty file, as a unit is that was masked.
    """
    try:
        with open(path, encoding="utf-8", errors="replace", opener=_open_at_once) as handle:
            found = os.fstat(handle.fileno())
            if not stat.S_ISREG(found.st_mode) and found.st_rdev != os.stat(os.devnull).st_rdev:
                raise OSError(errno.EINVAL, "it is no file", path)
            return handle.read()
    except FileNotFoundError:
        return None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def from_text(text: str | bytes, any_number: bool = False) -> t.Any:
    """Return what a JSON text holds. Raises ValueError, with the reason, for no JSON and for more than DEEPEST levels.

    Numbers that JSON or a float cannot hold are no JSON either: NaN, infinity, and more than 40 digits. With
    C(any_number) they are read, for a program's output whose reader says more of them.

    Every file, answer and output that may be damaged is read with this one function.
    """
    try:
        data = json.loads(text, **({} if any_number else _STRICT))
    except RecursionError as exc:
        raise ValueError(_TOO_DEEP) from exc
    level = [data]
    for _depth in range(DEEPEST + 1):
        branches = [node for node in level if isinstance(node, (dict, list))]
        if not branches:
            return data
        level = [one for node in branches for one in (node.values() if isinstance(node, dict) else node)]
    raise ValueError(_TOO_DEEP)


def _no_number(text: str) -> t.NoReturn:
    raise ValueError(f"it holds the number {text:.60}, which is none of JSON's")


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _int(text: str) -> int:
    return int(text) if len(text) <= _MOST_DIGITS else _no_number(text)


_STRICT: t.Final[dict[str, t.Any]] = {"parse_constant": _no_number, "parse_float": _float, "parse_int": _int}


def to_text(data: t.Any) -> str:
    """Return the readable JSON that this collection writes to disk."""
    return json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_text(path: str, text: str, mode: int, move: t.Callable[[str, str], t.Any]) -> None:
    """Write a whole file or nothing: a synced temporary file beside it, then C(move) (AnsibleModule.atomic_move).

    File and directory are on the disk when this returns. What killed writers left beside the file is removed.
    """
    directory = os.path.dirname(path)
    make_directory(directory)
    _remove_leftovers(directory)
    descriptor, temporary = _temporary(directory)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
            os.chmod(temporary, mode)
            move(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    # AnsibleModule.atomic_move gives a new file the process's default mode and an old one the mode it had.
    os.chmod(path, mode)
    sync_directory(directory)


def replace_link(path: str, target: str) -> None:
    """Lead a link to another target in one step, on the disk when this returns. The caller holds a lock."""
    new = os.path.join(os.path.dirname(path), f".new-{os.path.basename(path)}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    os.symlink(target, new)
    os.replace(new, path)
    sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    """Write a directory's names to the disk: without it a power cut may undo what was made or renamed there."""
    descriptor = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):      # a network file system that cannot
            raise
    finally:
        os.close(descriptor)


def make_directory(path: str) -> None:
    """Make a directory (0755 before the umask) and those above it, on the disk when this returns."""
    if os.path.isdir(path or "."):
        return
    parent = os.path.dirname(path)
    make_directory(parent)
    with contextlib.suppress(FileExistsError):                  # made by somebody else meanwhile
        os.mkdir(path, 0o755)
    sync_directory(parent)


def _temporary(directory: str) -> tuple[int, str]:
    """Return the descriptor and name of a new file that is locked, which tells that its writer lives."""
    while True:
        descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=directory)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:                                 # taken for a leftover before it was locked
            os.close(descriptor)
            continue
        except OSError:                                         # no locks here: then nobody removes leftovers either
            return descriptor, temporary
        if os.fstat(descriptor).st_nlink:
            return descriptor, temporary
        os.close(descriptor)


def _remove_leftovers(directory: str) -> None:
    """Remove the temporary files of writers that were killed."""
    for name in os.listdir(directory or "."):
        if not _TEMPORARY.fullmatch(name):
            continue
        path = os.path.join(directory, name)
        with contextlib.suppress(OSError):                      # it is being written, is no file, or is gone
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(descriptor)


def take_lock(path: str, wait_seconds: float) -> int | None:
    """Lock a file (made when missing) or a directory, and return its descriptor, or None when it stays locked.

    The lock belongs to the open file: it ends when the last process that inherited the descriptor ends.
    """
    if os.path.isdir(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    else:
        make_directory(os.path.dirname(path))
        # not for writing: a program in a sandbox inherits it
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
        time.sleep(POLL_SECONDS)


def release_lock(descriptor: int) -> None:
    """Unlock, also for processes that inherited the descriptor, and close it."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
