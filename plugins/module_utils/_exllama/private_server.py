# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A private TabbyAPI for a measurement. Private to this collection. It starts a process and reads what it prints.

It is started by the program that exllama-server.service runs (roles/exllamav2/files/exllama_server.py), with the
same settings but for address and key, in the same sandbox.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http
import json
import os
import re
import secrets
import socket
import subprocess
import tempfile
import time
import typing as t

from .._base import sandboxed_run
from .._base.types import Json, Mapping
from .._measuring import outcome
from .._measuring.served_load import EndedError
from . import server_plan

POLL_SECONDS: t.Final = 0.25
STOP_SECONDS: t.Final = 20
_NAME: t.Final = "mixed-gpu-run-tabbyapi"
#: What loguru puts before the words of an error.
_LOGGED: t.Final = re.compile(r"^(?:\S+ +)?(?:ERROR|CRITICAL):\s*")


class Asked(t.Protocol):
    """A client of the server."""

    def status(self, method: str, path: str, body: Json | None = None) -> tuple[int | None, Json]:
        """Return the HTTP status, None without an answer, and the JSON object of the answer."""


@dataclasses.dataclass(frozen=True)
class _WithSettings:
    """A sandbox in which a program has settings and a key as systemd credentials, and a directory of its own."""

    sandbox: sandboxed_run.Box
    folder: str

    def given(self, unit: str, environment: t.Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """Return the properties of its unit and its variables."""
        wanted, variables = self.sandbox.given(unit, environment)
        wanted += [f"LoadCredential={name}:{self.folder}/{name}" for name in ("config.yml", "api_key")]
        # where the start program goes by itself: systemd-run does not replace %t
        wanted += [f"RuntimeDirectory={_NAME}", "RuntimeDirectoryMode=0700"]
        return wanted, variables


class Server:
    """A private TabbyAPI that ends with the block that uses it."""

    def __init__(
        self, command: t.Sequence[str], config: t.Callable[[int], Json], client: t.Callable[[str, str], Asked],
        sandbox: sandboxed_run.Box, environment: Mapping, lock: int, load_timeout_seconds: int,
    ) -> None:  # fmt: skip
        """Take the command of the start program, and what makes TabbyAPI's settings for a port.

        C(client) makes a client of an address and a key; C(lock) is a descriptor that the process keeps open.
        """
        self.command, self.config, self.make_client = list(command), config, client
        self.sandbox, self.environment, self.lock = sandbox, environment, lock
        self.load_timeout_seconds = load_timeout_seconds

    def __enter__(self) -> Server:
        """Start the server and wait until it answers. Raises EndedError, or UserError where it cannot be started."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        key = secrets.token_hex(16)  # a web page in a browser of this host would disturb; it ends with the server
        self.client = self.make_client(f"http://127.0.0.1:{port}", key)
        with contextlib.ExitStack() as started:
            folder = started.enter_context(tempfile.TemporaryDirectory())
            self._log = started.enter_context(tempfile.TemporaryFile())
            for name, text in (("config.yml", json.dumps(self.config(port))), ("api_key", key)):
                with open(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                    file.write(text)
            variables = {**server_plan.ENVIRONMENT, **{name: str(value) for name, value in self.environment.items()}}
            if not sandboxed_run.booted():
                os.mkdir(f"{folder}/runs")
                variables |= {"CREDENTIALS_DIRECTORY": folder, "RUNTIME_DIRECTORY": f"{folder}/runs"}
            self.process = sandboxed_run.Process(
                self.command, _WithSettings(self.sandbox, folder), variables, self._log, subprocess.STDOUT, self.lock,
                stop_seconds=STOP_SECONDS,
            )  # fmt: skip
            started.callback(self.process.end)
            self._wait()
            self._started = started.pop_all()
        return self

    def _wait(self) -> None:
        """Return as soon as the server answers: TabbyAPI listens when its models are loaded. Raises EndedError."""
        deadline = time.monotonic() + self.load_timeout_seconds
        while time.monotonic() < deadline:
            status = self.process.poll()
            if status is not None:
                raise self._ended(status)
            if self.client.status("GET", "/health")[0] == http.HTTPStatus.OK:
                return
            time.sleep(POLL_SECONDS)
        said = f"TabbyAPI had not loaded the model after {self.load_timeout_seconds} seconds and was ended"
        raise EndedError("hung", said)

    def __exit__(self, *_exception: t.Any) -> None:
        self._started.close()

    def text(self, start: int = 0) -> str:
        """Return what the server has printed from a place on, in bytes."""
        self._log.seek(start)
        return self._log.read().decode(errors="replace") + self.process.complaint

    def size(self) -> int:
        """Return how many bytes the server has printed."""
        return os.fstat(self._log.fileno()).st_size

    def asked(self, path: str, body: Json) -> tuple[int, Json]:
        """POST, and return status and object of an answer. Raises EndedError where there is none."""
        status, answer = self.client.status("POST", path, body)
        if status is not None:
            return status, answer
        # a server that died needs a moment to be seen dead
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise self._ended(self.process.wait(timeout=2))
        raise EndedError("hung", f"TabbyAPI runs, but {path} was not answered")

    def _ended(self, status: int) -> EndedError:
        """Return how a server ended by itself, by its last words."""
        said = "\n".join(_LOGGED.sub("error: ", line) for line in self.text().splitlines())
        how = outcome.crash("TabbyAPI", status, said)
        return EndedError(*(outcome.known(said) or ("refused" if status == 1 else "crashed", how)))
