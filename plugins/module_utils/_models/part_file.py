# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The unfinished file beside a model file, and what is known of it. Private to this collection. Standard library only.

Both are opened without following links and only as regular files of ours: whoever may write to the directory could
otherwise have root write to any file (docs/decisions/0029-what-a-server-says.md).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
import typing as t

from .._base import json_file
from .._base.errors import UserError
from .._base.types import Json, Mapping
from . import transfer

_LONGEST_STATE = 1 << 16
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class PartFile:
    """The unfinished file at ``path``; ``path``.json says what it holds a part of."""

    def __init__(self, path: str) -> None:
        self.path, self.state_file = path, f"{path}.json"

    def size(self) -> int:
        """Return the bytes of the unfinished file, 0 where there is none. Raises UserError where it is none of ours."""
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return 0
        self._check(status)
        return status.st_size

    def state(self) -> Json:
        """Return what is known of the unfinished file; an empty dict where that is nothing, or is no file of ours."""
        with contextlib.suppress(OSError, ValueError):
            descriptor = os.open(self.state_file, os.O_RDONLY | _FLAGS)
            with os.fdopen(descriptor, "rb") as handle:
                self._check(os.fstat(descriptor))
                found = json_file.from_text(handle.read(_LONGEST_STATE))
                return found if isinstance(found, dict) else {}
        return {}

    def resumable(self, wanted: str) -> tuple[int, Json]:
        """Return the bytes that may be continued of the content with the hash ``wanted``, and what is known of them.

        Raises UserError where something else than a file of ours has the name of the unfinished file.
        """
        size, state = self.size(), self.state()
        if size and transfer.can_resume(state, wanted):
            return size, transfer.sound_state(state)
        return 0, {}

    def whole_bytes(self, wanted: str, size_bytes: int | None) -> int | None:
        """Return the size of an unfinished file that has all bytes of the content, or None.

        ``size_bytes``: what an index says; without it, what the server said when it was begun.
        """
        kept, state = self.resumable(wanted)
        total = size_bytes if size_bytes is not None else state.get("total_bytes")
        return kept if kept and kept == total else None

    def forget(self) -> None:
        """Remove the unfinished file and what is known about it; of links, the links."""
        for path in (self.path, self.state_file):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def write_state(self, state: Mapping, move: t.Callable[[str, str], t.Any]) -> None:
        """Write what is known of the unfinished file, in one step."""
        json_file.write_text(self.state_file, json_file.to_text(state), 0o644, move)

    def open(self, offset: int) -> t.BinaryIO:
        """Return the unfinished file, opened for writing at byte ``offset``; 0 makes it anew.

        Raises UserError where it is no file of ours, or was changed meanwhile; OSError as open() does.
        """
        if not offset:
            self._check_there()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o644)
            return os.fdopen(descriptor, "wb")
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | _FLAGS)
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENXIO):
                raise UserError(self._refusal("no regular file")) from exc
            raise
        handle = os.fdopen(descriptor, "ab")
        try:
            status = os.fstat(descriptor)
            self._check(status)
            if status.st_size != offset:
                raise UserError(f"{self.path} was changed while it was continued: run the play again.")
        except UserError:
            handle.close()
            raise
        return handle

    def _check_there(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._check(os.lstat(self.path))

    def _check(self, status: os.stat_result) -> None:
        """Raise UserError unless this is a regular file of ours with one name."""
        if stat.S_ISLNK(status.st_mode):
            raise UserError(self._refusal("a link"))
        if not stat.S_ISREG(status.st_mode):
            raise UserError(self._refusal("no regular file"))
        if status.st_nlink != 1:
            raise UserError(self._refusal("a file with a second name elsewhere"))
        if status.st_uid != os.geteuid() and status.st_uid != self._own_uid():
            raise UserError(self._refusal(f"a file of the user id {status.st_uid}"))

    def _own_uid(self) -> int:
        """Return to whom a new file here belongs: on a network filesystem that need not be who writes it."""
        with tempfile.TemporaryFile(dir=os.path.dirname(self.path)) as handle:
            return os.fstat(handle.fileno()).st_uid

    def _refusal(self, what: str) -> str:
        return (
            f"{self.path} is {what} and not an unfinished download of this collection, so nothing is written to it: "
            "find out who made it, and remove it."
        )
