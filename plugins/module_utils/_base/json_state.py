# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""JSON files that later runs trust: their form, one that a module owns, and the history beside it. Private to this
collection.

A Form only reads; StateFile and History act on the host for a module, which they are given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import typing as t

from . import fields, json_file
from .errors import UserError
from .types import Json


def _no_check(_data: Json) -> None:
    """Accept any dict of the right schema."""


@dataclasses.dataclass(frozen=True)
class Form:
    """What one kind of file holds.

    C(cure) ends the sentence "move it away (mv a b) and ..." for a file that cannot be used. C(shape), of
    fields.check_shape, is what readers rely on, and C(check) raises UserError for what a shape cannot say. C(schema) is
    None for files that do not outlive a boot.
    """

    schema: int | None
    cure: str
    check: t.Callable[[Json], t.Any] = _no_check
    shape: fields.Shape = dataclasses.field(default_factory=dict)

    def data(self, text: str) -> Json:
        """Return the dict in C(text). Raises UserError with the reason alone, for callers that set a file aside."""
        try:
            data = json_file.from_text(text)
        except ValueError as exc:
            raise UserError(f"it holds no JSON ({exc})") from exc
        if not isinstance(data, dict):
            raise UserError(f"it holds a {type(data).__name__} instead of a dict")
        schema = data.get("schema")
        if self.schema is not None and (isinstance(schema, bool) or schema != self.schema):
            raise UserError(f"its schema is {schema!r}, and this release reads schema {self.schema}")
        fields.check_shape("", data, self.shape)
        self.check(data)
        return data

    def parse(self, text: str, path: str) -> Json:
        """Return the dict in C(text), the content of the file C(path). Raises UserError with file, reason and cure."""
        try:
            return self.data(text)
        except UserError as exc:
            cure = f"move it away (mv {path} {path}.old) and {self.cure}"
            raise UserError(f"{path} cannot be used: {exc}; {cure}") from exc

    def read(self, path: str) -> Json | None:
        """Return the dict in a file, None where there is no file. Raises UserError as parse does, and OSError."""
        text = json_file.read_text(path)
        return None if text is None else self.parse(text, path)


class StateFile:
    """One JSON file that a module owns: read, changed under a lock, written whole or not at all."""

    def __init__(self, module: t.Any, form: Form, path: str, lock_file: str = "") -> None:
        """Take the AnsibleModule, and what to lock: a file beside the state, or its folder when C(lock_file) is ""."""
        self.module = module
        self.form = form
        self.path = path
        self.lock_file = lock_file or os.path.dirname(path)
        self.text: str | None = None
        self.wanted: str | None = None

    @contextlib.contextmanager
    def locked(self, wait_seconds: float = 30) -> t.Iterator[None]:
        """Keep other runs from changing the file meanwhile; in check mode nothing is locked. Raises UserError."""
        if self.module.check_mode:
            yield
            return
        json_file.make_directory(os.path.dirname(self.path))
        lock = json_file.take_lock(self.lock_file, wait_seconds)
        if lock is None:
            raise UserError(
                f"{self.lock_file} has been locked by another run for {wait_seconds:g} seconds: wait for it to end"
            )
        try:
            yield
        finally:
            json_file.release_lock(lock)

    def read(self) -> Json | None:
        """Return what the file holds, None where there is no file. Raises UserError for a damaged one."""
        self.text = self.wanted = json_file.read_text(self.path)
        return None if self.text is None else self.form.parse(self.text, self.path)

    def write(self, data: Json | None) -> bool:
        """Write C(data), or remove the file for None, unless in check mode; return whether that is a change.

        Call read first: what it found is what a change is measured against.
        """
        self.wanted = None if data is None else json_file.to_text(data)
        changed = self.wanted != self.text
        if self.module.check_mode:
            return changed
        if self.wanted is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
                json_file.sync_directory(os.path.dirname(self.path))
            return changed
        if changed:
            json_file.write_text(self.path, self.wanted, 0o644, self.module.atomic_move)
        return bool(self.module.set_mode_if_different(self.path, 0o644, changed))

    def diff(self) -> Json:
        """Return C({diff: ...}) for the result of the module where it was asked for, else an empty dict."""
        if not self.module._diff:
            return {}
        sides = {"before_header": self.path, "after_header": self.path}
        return {"diff": {**sides, "before": self.text or "", "after": self.wanted or ""}}


@dataclasses.dataclass(frozen=True)
class History:
    """A folder of superseded JSON files, C(name@time-count.json), of which the newest C(keep) of a name stay."""

    module: t.Any
    folder: str
    keep: int

    def add(self, name: str, at: str, data: t.Any) -> str | None:
        """Write a file, remove the oldest of that name, and return its path if it is kept; nothing in check mode."""
        if self.module.check_mode:
            return None
        json_file.make_directory(self.folder)
        path = os.path.join(self.folder, history_name(name, at, os.listdir(self.folder)))
        json_file.write_text(path, json_file.to_text(data), 0o644, self.module.atomic_move)
        for old in to_prune(os.listdir(self.folder), name, self.keep):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.folder, old))
        return path if os.path.exists(path) else None


def history_name(name: str, at: str, taken: t.Iterable[str]) -> str:
    """Return a file name that sorts after those that are taken: name, time, and a count within the second."""
    start = f"{name}@{re.sub(r'[^0-9TZ]', '', at)}-"
    counts = [int(file[len(start) : -len(".json")]) for file in taken if file.startswith(start)]
    return f"{start}{max(counts, default=-1) + 1:03d}.json"


def to_prune(names: t.Iterable[str], name: str, keep: int) -> list[str]:
    """Return the oldest history files of C(name) beyond C(keep)."""
    own = sorted(file for file in names if file.startswith(f"{name}@") and file.endswith(".json"))
    return own[: max(0, len(own) - keep)]


@contextlib.contextmanager
def failures_told(module: t.Any, place: str) -> t.Iterator[None]:
    """End the module with one sentence for a UserError or an OSError; C(place) is the file that an OSError is about."""
    try:
        yield
    except UserError as exc:
        module.fail_json(msg=f"{exc}.")
    except OSError as exc:
        where = exc.filename or place
        module.fail_json(msg=f"{where} cannot be read or written ({exc.strerror}): run as root, and make room there.")
