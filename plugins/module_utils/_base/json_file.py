# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Small files that later runs trust, and locks on them. Private to this collection. Standard library only.

The one module_utils that touches the disk: the modules that own state share it, so that each file is written and each
lock is taken in the same way.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import tempfile
import time
import typing as t

POLL_SECONDS = 0.2


def utc_now() -> str:
    """Return the time as C(2026-11-24T04:35:00Z)."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_text(path: str) -> str | None:
    """Return the text of a file, or None where there is no such file. Undecodable bytes are replaced, never raised."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except FileNotFoundError:
        return None


def to_text(data: t.Any) -> str:
    """Return the readable JSON that this collection writes to disk."""
    return json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_text(path: str, text: str, mode: int, move: t.Callable[[str, str], t.Any]) -> None:
    """Write a whole file or nothing: a synced temporary file beside it, then C(move) (AnsibleModule.atomic_move)."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=directory)
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


def take_lock(path: str, wait_seconds: float) -> int | None:
    """Lock a file (made when missing) or a directory, and return its descriptor, or None when it stays locked.

    The lock belongs to the open file: it ends when the last process that inherited the descriptor ends.
    """
    if os.path.isdir(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    else:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
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
