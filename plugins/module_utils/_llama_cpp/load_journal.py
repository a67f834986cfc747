# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a server logged while it loaded its model, read once per start and kept until the next boot.

The journal is rotated, and grows with each request; the lines of the load are its first, and they do not change.
Private to this collection.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import typing as t

from .._base import json_file, systemd
from .._base.errors import UserError
from .._base.types import Json
from . import allreduce_log, server_log

DIRECTORY: t.Final = "/run/mixed_gpu"
SCHEMA: t.Final = 1
#: A load at the highest verbosity has some thousand lines.
MOST_LINES: t.Final = 20_000
#: A line is not longer, or it is cut: a program may print without an end.
LONGEST_LINE: t.Final = 1024


def path(unit: str, directory: str) -> str:
    """Return the file that keeps the load of a unit."""
    return os.path.join(directory, f"load-{systemd.unit_name(unit)}.json")


def of_start(invocation: str) -> list[str]:
    """Return the journal's fields of one start: what the unit printed, and what systemd says about that start."""
    return [f"_SYSTEMD_INVOCATION_ID={invocation}", "+", f"INVOCATION_ID={invocation}"]


def load(journalctl: str, unit: str, invocation: str, keep: bool, directory: str, pid: int) -> Json:
    """Return what a start of a unit logged about its load (server_log.parse_load), as it was kept, or from the journal.

    With `keep`, right once the load is over, it is kept where all its lines are there. `pid` is the server, whose NCCL
    writes to a file that only it sees. Raises UserError where the journal cannot be read.
    """
    if not invocation:
        return server_log.parse_load("")
    kept = _read(path(unit, directory), invocation)
    if kept is not None:
        return kept
    found = server_log.parse_load(f"{head(journalctl, unit, invocation)}\n{_said_by_nccl(pid)}")
    if keep and found["complete"]:
        _write(path(unit, directory), {"schema": SCHEMA, "invocation_id": invocation, "server": found})
    return found


def head(journalctl: str, unit: str, invocation: str) -> str:
    """Return the first lines of a start, to the end of its load, whatever came after. Raises UserError."""
    command = [journalctl, "--no-pager", "--quiet", "-o", "cat", *of_start(invocation)]
    lines: list[str] = []
    ended = False
    with tempfile.TemporaryFile("w+", errors="replace") as complaints:
        # as a pipe that is left early: --lines=+N is too new for Debian 12
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, text=True, errors="replace"
        ) as process:
            output = t.cast(t.IO[str], process.stdout)
            while len(lines) < MOST_LINES and not (lines and server_log.is_loaded(lines[-1])) and not ended:
                line = output.readline(LONGEST_LINE)
                ended = not line
                lines.append(line)
            if not ended:
                process.kill()
        complaints.seek(0)
        said = complaints.read().strip()
    if ended and process.returncode not in (0, 1):  # 1: no entries
        raise UserError(f"The journal of {unit} cannot be read ({said}): run as root.")
    return "".join(lines)


def _said_by_nccl(pid: int) -> str:
    """Return what NCCL wrote in a server (allreduce_log.NCCL_FILE), "" where it wrote nothing."""
    if not pid:
        return ""
    try:
        # /tmp there is the server's: no link is followed, and a pipe does not hold us
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(f"/proc/{pid}/root{allreduce_log.NCCL_FILE}", flags)
        with open(descriptor, encoding="utf-8", errors="replace") as file:
            return file.read(MOST_LINES * LONGEST_LINE)
    except OSError:
        return ""


def _read(where: str, invocation: str) -> Json | None:
    """Return what was kept of this start, or None; a damaged file is read anew from the journal."""
    try:
        data = json_file.from_text(json_file.read_text(where) or "")
    except (OSError, ValueError):
        return None
    right = isinstance(data, dict) and (data.get("schema"), data.get("invocation_id")) == (SCHEMA, invocation)
    server = data.get("server") if right else None
    return server if isinstance(server, dict) and server.keys() == server_log.parse_load("").keys() else None


def _write(where: str, data: Json) -> None:
    """Keep it where that is possible: as root."""
    try:
        json_file.write_text(where, json_file.to_text(data), 0o644, os.replace)
    except OSError:
        return
