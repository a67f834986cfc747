# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the host says and does: systemd, processes, and the server over HTTP."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import typing as t
import urllib.error
import urllib.request

from . import progress

PROPERTIES: t.Final = ("ActiveState", "SubState", "InvocationID", "MainPID", "Job", "Result", "StatusText")
#: An answer of /metrics or /slots is a few KiB; nobody may fill the memory of this program.
MOST_BYTES: t.Final = 4 * 1024 * 1024


class KeyRefusedError(Exception):
    """The server does not take the API key."""


def say(priority: int, text: str) -> None:
    """Write one line to the journal, with a priority of syslog(3)."""
    sys.stdout.write(f"<{priority}>{text}\n")
    sys.stdout.flush()


def systemctl(*words: str) -> str:
    """Run systemctl; return what it prints. Raises OSError where that fails."""
    try:
        done = subprocess.run(
            ["systemctl", *words], capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as exc:
        raise OSError(errno.ETIMEDOUT, f"systemctl {words[0]} did not end") from exc
    if done.returncode != 0:
        raise OSError(done.returncode, done.stderr.strip() or f"systemctl {words[0]} failed")
    return done.stdout


def show(*units: str) -> dict[str, dict[str, str]]:
    """Return what systemd says of units, by their names. Raises OSError."""
    wanted = ",".join(("Id", *PROPERTIES))
    found = {}
    for block in systemctl("show", "-p", wanted, *units).split("\n\n"):
        values = dict(line.partition("=")[::2] for line in block.splitlines())
        found[values.get("Id", "")] = values
    return found


def running(unit: t.Mapping[str, str]) -> bool:
    """Return whether a unit runs and nobody starts or stops it now."""
    settled = unit.get("Job", "") in ("", "0")
    return unit.get("ActiveState") == "active" and unit.get("SubState") == "running" and settled


def is_measured(lease: t.Mapping[str, str]) -> bool:
    """Return whether a measurement has the lease, or is about to."""
    return lease.get("ActiveState") not in ("inactive", "failed")


def is_left_alone(found: t.Mapping[str, t.Mapping[str, str]], unit: str, lease: str, start: str) -> bool:
    """Return whether a unit still runs as it was started then, and nobody restarts it or measures."""
    return found[unit].get("InvocationID") == start and running(found[unit]) and not is_measured(found[lease])


def process_state(pid: int, root: str = "/proc") -> str:
    """Return the worst state of a process's threads (proc(5)), empty when it has ended.

    D: it waits in the kernel, T: it was stopped, Z: nothing but its exit status is left.
    """
    letters = []
    with contextlib.suppress(OSError):
        for name in os.listdir(os.path.join(root, str(pid), "task")):
            with contextlib.suppress(OSError), open(os.path.join(root, str(pid), "task", name, "stat")) as file:
                letters.append(file.read().rpartition(")")[2].split()[0])
    return next((letter for letter in "DTtRSIZX" if letter in letters), "")


def started_at(pid: int) -> str:
    """Return when a process was started, in the kernel's ticks; empty when it has ended. A reused id differs in it."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[19]
    return ""


def connections(pid: int) -> str:
    """Return the kernel's table of the connections of a process's network; empty when it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/net/tcp") as file:
        return file.read()
    return ""


def reset_connection(endpoint: str, port: int, seconds: float) -> bool:
    """End a connection from a port of this host that only the other host still knows; return whether it is gone.

    An RPC server serves one client, and waits for ever for one that vanished without a word, since its host lost power
    or the cable was cut. A connection from the same port makes TCP notice (RFC 9293, half-open connections).
    """
    host, _colon, far_port = endpoint.rpartition(":")
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.settimeout(seconds)
        try:
            again.bind(("", port))
            again.connect((host, int(far_port)))
        except ConnectionError:
            return True
        except OSError:  # nobody is there, or this host still knows the connection itself
            return False
    return True


def is_there(pid: int, started: str) -> bool:
    """Return whether a process that was started then is there, and more than its exit status is left."""
    return bool(started) and started_at(pid) == started and process_state(pid) not in ("", "Z", "X")


def _whole(answer: http.client.HTTPResponse, seconds: float) -> str:
    """Return the body of an answer. Raises TimeoutError where it is not there in time: each byte may be in time."""
    deadline, parts, n_bytes = time.monotonic() + seconds, [], 0
    while n_bytes < MOST_BYTES:
        part = answer.read1(MOST_BYTES - n_bytes)
        if not part:
            break
        if time.monotonic() > deadline:
            raise TimeoutError(f"the answer did not end within {seconds:.0f} s")
        parts.append(part)
        n_bytes += len(part)
    return b"".join(parts).decode(errors="replace")


def _json(text: str) -> t.Any:
    """Return a text as JSON. Raises ValueError, also for one that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


class Server:
    """The server over HTTP."""

    def __init__(self, url: str, key: str, timeout_seconds: float) -> None:
        self.url = url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.timeout_seconds = timeout_seconds
        # a proxy of the environment does not reach this host's own server
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str, body: t.Any = None, timeout_seconds: float | None = None) -> tuple[int | None, str]:
        """Return status and text of an answer; no status without one."""
        data = None if body is None else json.dumps(body).encode()
        headers = {**self.headers, "Content-Type": "application/json"} if data else self.headers
        seconds = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        try:
            request = urllib.request.Request(f"{self.url}{path}", data=data, headers=headers)
            with self.opener.open(request, timeout=seconds) as answer:
                return int(answer.status), _whole(answer, seconds)
        except urllib.error.HTTPError as exc:
            exc.close()
            return exc.code, ""
        except (OSError, ValueError, http.client.HTTPException):
            return None, ""

    def metrics(self) -> tuple[str, progress.Reading | None]:
        """Return the kind of the answer of /metrics (stall.Answer), and what it says. Raises KeyRefusedError."""
        status, text = self.get("/metrics")
        if status is None:
            return "silent", None
        if status == 503:
            return "loading", None
        if status in (401, 403):
            raise KeyRefusedError(f"{self.url}/metrics refuses the API key (HTTP status {status})")
        reading = progress.of_metrics(text) if status == 200 else None
        return ("no_metrics", None) if reading is None else ("metrics", reading)

    def slots(self) -> tuple[str, ...]:
        """Return the exact progress of the requests in processing; empty where it cannot be had."""
        _status, text = self.get("/slots")
        try:
            return progress.of_slots(_json(text))
        except ValueError:
            return ()

    def reads_images(self) -> bool:
        """Return whether the model reads images or sound: encoding them moves no counter."""
        _status, text = self.get("/props")
        try:
            modalities = _json(text)["modalities"]
            return any(bool(modalities[name]) for name in ("vision", "audio"))
        except (KeyError, TypeError, ValueError):
            return False

    def gives_token(self, seconds: float) -> bool:
        """Return whether the server generates one token within some seconds."""
        body = {"prompt": "1", "n_predict": 1, "cache_prompt": False}
        status, text = self.get("/completion", body, seconds)
        try:
            return status == 200 and int(_json(text)["tokens_predicted"]) > 0
        except (KeyError, TypeError, ValueError, OverflowError):
            return False
