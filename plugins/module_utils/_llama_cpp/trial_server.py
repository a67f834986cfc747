# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A private llama-server for a trial. Private to this collection. It starts a process and talks HTTP to it."""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import subprocess
import tempfile
import time
import typing as t

from .._base import sandboxed_run
from .._base.types import Json, Mapping
from .._measuring.served_load import EndedError
from . import llama_client, lost_words, mode_trial

POLL_SECONDS = 0.25
#: How long the server may take to end by itself.
STOP_SECONDS = 20
#: The port was free when it was chosen; somebody else may have been faster.
_PORT_TAKEN = re.compile(r"couldn't bind HTTP server socket")


class TrialError(EndedError):
    """The trial is over; carries status and reason."""


class Server:
    """A private llama-server that ends with the block that uses it."""

    def __init__(
        self, program: str, served: Mapping, sandbox: sandboxed_run.Sandbox, environment: t.Mapping[str, str],
        lock: int, load_timeout_seconds: int, request_timeout_seconds: int, more: t.Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Prepare C(program) for a deployment; C(lock) is a descriptor that it keeps open, to hold the lock as well.

        C(more) are further words of its command.
        """
        self.more = more
        self.program, self.served, self.sandbox, self.environment, self.lock = (
            program, served, sandbox, environment, lock
        )  # fmt: skip
        self.load_timeout_seconds, self.request_timeout_seconds = load_timeout_seconds, request_timeout_seconds
        #: What it has printed, once it has ended.
        self.said = ""

    def __enter__(self) -> Server:
        """Start the server and wait until it answers. Raises TrialError, or UserError where it cannot be started."""
        for _start in range(lost_words.STARTS):
            self._start()
            status = self._ended_while_loading()
            if status is None:
                return self
            text = self.text()
            why = mode_trial.why_it_ended(status, text)
            self.__exit__()
            if not lost_words.lost(status, text) and _PORT_TAKEN.search(text) is None:
                break
        raise TrialError(*why)

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.command, own = mode_trial.server_command(self.program, self.served, port, self.more)
        # a web page in a browser of this host would disturb the trial; the key ends with the server
        key = secrets.token_hex(16)
        own |= {"LLAMA_API_KEY": key}
        self.client = llama_client.Client(f"http://127.0.0.1:{port}", key, self.request_timeout_seconds)
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self.process = sandboxed_run.Process(
            self.command, self.sandbox, {**own, **self.environment}, self.log, subprocess.STDOUT, self.lock,
            stop_seconds=STOP_SECONDS,
        )  # fmt: skip

    def _ended_while_loading(self) -> int | None:
        """Return the exit status of a server that ended, or None as soon as it answers. Raises TrialError."""
        deadline = time.monotonic() + self.load_timeout_seconds
        while time.monotonic() < deadline:
            status = self.process.poll()
            if status is not None:
                return status
            with contextlib.suppress(llama_client.ServerError):
                self.client.ask("/health")
                return None
            time.sleep(POLL_SECONDS)
        self.__exit__()
        raise TrialError(
            "hung", f"llama-server had not loaded the model after {self.load_timeout_seconds} seconds and was ended"
        )

    def __exit__(self, *_exception: t.Any) -> None:
        self.process.end()
        self.said = self.text()
        self.log.close()

    def text(self) -> str:
        """Return what the server has printed."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace") + self.process.complaint

    def answer(self, prompt: t.Any, generated: int) -> Json:
        """Return the greedy answer to a prompt (text or token ids); TrialError where there is none."""
        body = {
            "prompt": prompt, "n_predict": generated, "temperature": 0, "top_k": 1, "seed": 1, "ignore_eos": True,
            "cache_prompt": False, "return_tokens": True, "stream": False,
        }  # fmt: skip
        answer = self.asked("/completion", body)
        if len(answer.get("tokens") or []) != generated:
            raise TrialError(
                "unstable", f"an answer has {len(answer.get('tokens') or [])} tokens instead of {generated}"
            )
        return answer

    def next_token(self, prompt: t.Sequence[int], candidates: int, forced: int) -> Json:
        """Return an answer of one token with its candidates, before sampling; TrialError where there is none.

        The server goes on from the last prompt where this one begins alike. It does not tell the candidates of a token
        that is the beginning of a character, so the token C(forced) is generated, whatever the candidates are.
        """
        body = {
            "prompt": list(prompt), "n_predict": 1, "temperature": 0, "top_k": 1, "n_probs": candidates,
            "logit_bias": [[forced, 10000.0]], "cache_prompt": True, "stream": False,
        }  # fmt: skip
        return self.asked("/completion", body)

    def tokens(self, text: str) -> list[int]:
        """Return the token ids of a text, as the model begins one; TrialError where there are none."""
        found = self.asked("/tokenize", {"content": text, "add_special": True}).get("tokens")
        if not isinstance(found, list) or not all(isinstance(token, int) for token in found):
            raise TrialError("unstable", "llama-server does not make tokens of a text")
        return found

    def asked(self, path: str, body: Json) -> Json:
        """Return what the server answers; TrialError where it died or hangs."""
        with self.its_end():
            return self.client.ask(path, body)

    @contextlib.contextmanager
    def its_end(self) -> t.Iterator[None]:
        """Say by a TrialError how the server ended that does not answer, or that it hangs."""
        try:
            yield
        except llama_client.ServerError as error:
            # a server that died needs a moment to be seen dead
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self.process.wait(timeout=2)
                raise TrialError(*mode_trial.why_it_ended(status, self.text())) from error
            raise TrialError("hung", f"llama-server runs, but {error}") from error
