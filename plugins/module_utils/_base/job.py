# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Long work on a host: its log, its lock, the programs that run under the lock. Private to this collection.

It acts on the host on behalf of the modules that build an engine. Standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import typing as t

from . import json_file, sandboxed_run
from .errors import UserError
from .types import Json

MIB: t.Final = 1 << 20

_ERROR = re.compile(r"\b(error|fatal)(:| at )", re.IGNORECASE)
_TROUBLE = re.compile(r"\b(error|fatal|not found|cannot|killed|no space)\b", re.IGNORECASE)
# ninja's lines name files and whole commands, whatever words those contain; npm says a code before the cause
_NO_CAUSE = re.compile(r"\[\d+/\d+[ \]]|FAILED: |npm (?:warn|error (?:code|errno|syscall|path)) ")


class Log:
    """The log of a job. Every line is complete, so that the action plugin follow can show the newest."""

    def __init__(self, path: pathlib.Path) -> None:
        """Empty the file, and create its directory."""
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.path = path
        # without a buffer: what did not fit on a full disk must not fail again when the file is closed
        self._file = path.open("wb", buffering=0)

    def write(self, text: str) -> None:
        """Append a line."""
        self._file.write(text.rstrip("\n").encode("utf-8", errors="replace") + b"\n")

    def size_bytes(self) -> int:
        """Return how much has been written, as a mark for copy_from."""
        return self._file.tell()

    def copy_from(self, mark: int, destination: pathlib.Path) -> None:
        """Copy what was written after a mark into another file."""
        with self.path.open("rb") as file:
            file.seek(mark)
            destination.write_bytes(file.read())


class Lock:
    """One job at a time. Programs inherit the lock, so it is held until the last compiler has ended.

    Who wants what the holder makes waits for the holder. Raises UserError where the holder makes something else.
    """

    def __init__(self, path: pathlib.Path, what: str, engine: str) -> None:
        """Take the lock for `what`; `engine` names the program in the error."""
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        # not for writing: a program in a sandbox inherits it
        self._file = path.open(encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = self._file.read().strip() or "an unknown process"
            if not holder.startswith(f"{what}, process "):
                raise UserError(
                    f"another build of {engine} is under way on this host ({holder}, lock {path}); "
                    "wait until it has ended, then run the play again."
                ) from exc
            fcntl.flock(self._file, fcntl.LOCK_EX)
        path.write_text(f"{what}, process {os.getpid()}, since {json_file.utc_now()}\n", encoding="utf-8")

    def fileno(self) -> int:
        """Return the descriptor that programs inherit."""
        return self._file.fileno()

    def release(self) -> None:
        """Give the lock up, once the last program that inherited it has ended."""
        self._file.close()


def first_error(lines: t.Iterable[str]) -> str:
    """Return the line of a program's output that most probably names the cause, at most 300 characters."""
    told = [line.strip() for line in lines if line.strip() and not _NO_CAUSE.match(line.strip())]
    telling = [index for index, line in enumerate(told) if _ERROR.search(line)]
    telling = telling or [index for index, line in enumerate(told) if _TROUBLE.search(line)]
    if not telling:
        return (told[-1:] or ["nothing was printed"])[0][:300]
    # the first error explains those after it; CMake puts its reason into the lines below
    first = told[telling[0]]
    if first.startswith("CMake Error"):
        first = " ".join(told[telling[0] : telling[0] + 3]).partition(" Call Stack")[0]
    return first[:300]


class Shell:
    """Runs programs for one job: output into the log, the lock inherited."""

    def __init__(self, log: Log, lock: Lock) -> None:
        self.log, self._lock = log, lock

    def run(
        self,
        argv: t.Sequence[str],
        what: str,
        cure: str = "",
        env: t.Mapping[str, str] | None = None,
        show: t.Callable[[str], str] = str,
        box: sandboxed_run.Build | None = None,
    ) -> list[str]:
        """Run a program and return its lines. Raises UserError saying that `what` failed, why, and the cure.

        `show` shortens a line for the log. With a `box` it runs there; programs that fetch have none.
        """
        self.log.write("$ " + " ".join(argv))
        self.log.write(what)
        end = f": {cure}" if cure else ""
        try:
            status, lines = self._boxed(argv, env or {}, show, box) if box else self._direct(argv, env or {}, show)
        except UserError as exc:
            raise UserError(f"{what} failed ({exc}){end}.") from exc
        except OSError as exc:
            raise UserError(f"{what} failed ({argv[0]}: {exc.strerror}){end or ': run the whole role'}.") from exc
        if status != 0:
            reason = first_error(lines) if any(lines) else f"exit status {status}"
            raise UserError(f"{what} failed ({reason}){end} (the whole log is {self.log.path}).")
        return lines

    def _direct(
        self, argv: t.Sequence[str], env: t.Mapping[str, str], show: t.Callable[[str], str]
    ) -> tuple[int, list[str]]:
        """Return exit status and lines of a program that runs as this process's user."""
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", env={**os.environ, **env}, pass_fds=[self._lock.fileno()],
        ) as child:  # fmt: skip
            lines = self._read(child.stdout or (), show)
        return child.returncode, lines

    def _boxed(
        self, argv: t.Sequence[str], env: t.Mapping[str, str], show: t.Callable[[str], str], box: sandboxed_run.Build
    ) -> tuple[int, list[str]]:
        """Return exit status and lines of a program in a sandbox."""
        pipe, merged = subprocess.PIPE, subprocess.STDOUT
        process = sandboxed_run.Process(argv, box, env, pipe, merged, self._lock.fileno())
        with sandboxed_run.ended_with_us(process), process.output or io.BytesIO() as output:
            lines = self._read((line.decode(errors="replace") for line in output), show)
            status = process.wait()
        return status, [*lines, *([process.complaint] if process.complaint else [])]

    def _read(self, output: t.Iterable[str], show: t.Callable[[str], str]) -> list[str]:
        lines = []
        for line in output:
            lines.append(line.rstrip())
            self.log.write(show(line))
        return lines


def copy_programs(source: pathlib.Path, destination: pathlib.Path) -> None:
    """Copy the files of a folder that was built in a sandbox, with links among them.

    Who built it may have put anything there: raises UserError for what is neither a file nor a link to one beside it.
    """
    destination.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        target = destination / path.name
        if path.is_symlink():
            to = os.readlink(path)
            if "/" in to or not (source / to).is_file():
                raise UserError(f"{path} is a link to {to}, which is no file beside it: do not trust this source")
            target.symlink_to(to)
        elif path.is_file():
            shutil.copyfile(path, target, follow_symlinks=False)
            target.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        elif not path.is_dir():
            raise UserError(f"{path} is neither a file nor a link: do not trust this source")


def sha256(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(8 * MIB):
            digest.update(chunk)
    return digest.hexdigest()


def build_file(program: str) -> str:
    """Return the path of the build.json of the build that a program is of; links are followed."""
    return os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(program))), "build.json")


def build_record(path: str) -> Json:
    """Return what a build.json says; nothing where there is none that can be read."""
    try:
        found = json_file.from_text(json_file.read_text(path) or "null")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def build_key(path: str) -> str | None:
    """Return the key in a build.json, or None where there is none that can be read."""
    found = build_record(path)
    return str(found["key"]) if "key" in found else None


def oldest_files(folder: pathlib.Path, most_mib: int) -> tuple[list[pathlib.Path], int]:
    """Return the oldest files below a folder without which it has at most `most_mib`, and their size in MiB."""
    files = []
    for place, _folders, names in os.walk(folder):
        for name in names:
            status = os.lstat(os.path.join(place, name))
            files.append((status.st_mtime, status.st_blocks * 512, pathlib.Path(place, name)))
    left, old = sum(size for _time, size, _path in files), list[pathlib.Path]()
    before = left
    for _time, size, path in sorted(files):
        if left <= most_mib * MIB:
            break
        old.append(path)
        left -= size
    return old, (before - left) // MIB


def free_mib(path: pathlib.Path) -> int:
    """Return the free space where a path is, or will be."""
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize // MIB


def available_memory_mib() -> int:
    """Return the memory that new programs can use without swapping."""
    with open("/proc/meminfo", encoding="ascii") as file:
        found = re.search(r"^MemAvailable:\s+([0-9]+) kB", file.read(), re.MULTILINE)
    return int(found[1]) // 1024 if found else 0


def compilers(asked: int, memory_mib: int) -> int:
    """Return how many compilers run at once: what was asked, else one per core as far as memory carries them."""
    return asked or max(1, min(len(os.sched_getaffinity(0)), available_memory_mib() // memory_mib))
