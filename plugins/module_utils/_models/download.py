# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Download of one file in several attempts, each continuing where the last one stopped. Needs requests (host Python).

Private to this collection. The decisions are those of transfer.py; this file does the input and output.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import typing as t
import urllib.parse

from .._base.errors import UserError
from .._base.types import Json, Mapping
from . import disk, file_names, part_file, retry_wait, transfer

PROGRESS_SECONDS = 2.0
WORTHWHILE_BYTES = 8 << 20               # an attempt that brought this much does not count as failed
NETWORK_CHUNK_BYTES = 1 << 16
SLOWEST_BYTES_PER_SECOND = 1024         # less than this, over the time that a server may be silent, counts as silence


class Progress:
    """Adds a line to the log every two seconds, also while nothing arrives."""

    def __init__(self, log: str | None) -> None:
        self._log = log
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._rate = transfer.Rate()
        self.what: str | None = None                     # a download has no name, to be short
        self.done, self.total = 0, 0
        if log:
            os.makedirs(os.path.dirname(os.path.abspath(log)), mode=0o755, exist_ok=True)
            with open(log, "w", encoding="utf-8"):
                pass
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def start(self, what: str | None, total: int | None, done: int = 0) -> None:
        """Begin to count something else."""
        self.what, self.total, self.done = what, total or 0, done
        self._rate = transfer.Rate()
        self._rate.add(time.monotonic(), done)

    def tick(self, done: int) -> None:
        """Say how far it is."""
        self.done = done

    def say(self, line: str) -> None:
        """Write one line."""
        if self._log:
            with open(self._log, "a", encoding="utf-8") as handle:
                handle.write(f"{line}\n")

    def _run(self) -> None:
        while not self._stop.wait(PROGRESS_SECONDS):
            if self.what is not None:
                rate = self._rate.add(time.monotonic(), self.done)
                self.say(transfer.progress_line(self.what, self.done, self.total, rate))

    def close(self) -> None:
        """Stop writing."""
        self._stop.set()
        if self._thread:
            self._thread.join()


def explain(exc: Exception, url: str) -> tuple[bool, str]:
    """Return whether another attempt may help, and one clause that says what went wrong and what to do."""
    import requests
    import urllib3

    host = urllib.parse.urlsplit(url).hostname
    causes: list[BaseException] = []
    pending: list[t.Any] = [exc]
    while pending:                                       # requests wraps urllib3, which wraps the socket's error
        cause = pending.pop()
        if isinstance(cause, BaseException) and cause not in causes:
            causes.append(cause)
            pending += [*cause.args, getattr(cause, "reason", None), cause.__cause__]

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    detail = file_names.shown_text(str(causes[-1])) or type(causes[-1]).__name__
    unresolved = getattr(urllib3.exceptions, "NameResolutionError", None)  # since urllib3 2
    if unresolved is not None and caused_by(unresolved):
        return True, f"the name {host} cannot be resolved: check the host's network, its DNS, and the URL"
    if isinstance(exc, requests.exceptions.ProxyError):
        return True, f"the proxy cannot be used ({detail}): check the proxy variables of the environment"
    if caused_by(requests.exceptions.SSLError, urllib3.exceptions.SSLError):
        return False, f"TLS with {host} failed ({detail}): check the host's clock and its CA certificates"
    if isinstance(exc, requests.exceptions.ConnectTimeout):
        return True, f"{host} does not answer: check the network, the firewall, and the URL"
    if isinstance(exc, TimeoutError):
        return True, f"{host} {exc}: run the play again to continue, or use a mirror"
    if isinstance(exc, requests.exceptions.Timeout) or caused_by(urllib3.exceptions.ReadTimeoutError):
        return True, f"{host} fell silent: run the play again to continue"
    if caused_by(urllib3.exceptions.NewConnectionError):
        return True, f"{host} cannot be reached ({detail}): check the network, and whether the server runs"
    if caused_by(urllib3.exceptions.ProtocolError, requests.exceptions.ConnectionError):
        return True, f"{host} closed the connection early: run the play again to continue"
    return False, f"the request failed ({detail}): check the URL"


def _authorise(token: str, request: t.Any) -> t.Any:
    """Add the token to a request, in the way of requests' auth functions: an entry in .netrc then does not."""
    request.headers["Authorization"] = f"Bearer {token}"
    return request


def _leave_redirect_body(response: t.Any, *_arguments: t.Any, **_options: t.Any) -> None:
    """Close a redirect before requests reads its whole body, however long that is."""
    if response.is_redirect:
        response.close()


def read_some(raw: t.Any) -> bytes:
    """Return what has arrived of a body: reading a number of bytes would wait for them, however slowly they come."""
    if hasattr(raw, "read1"):
        return bytes(raw.read1(NETWORK_CHUNK_BYTES))
    with raw._error_catcher():                           # urllib3 before 2 has none, and names errors here
        return bytes(raw._fp.read1(NETWORK_CHUNK_BYTES))


def open_session(token: str | None) -> t.Any:
    """Return an HTTP session: no compression (ranges count stored bytes), the system's certificate authorities."""
    import requests

    session = requests.Session()
    session.hooks["response"].append(_leave_redirect_body)
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": "homelab.mixed_gpu"})
    if os.path.exists(transfer.SYSTEM_CA_BUNDLE):
        session.verify = transfer.SYSTEM_CA_BUNDLE
    if token:
        # requests drops this header where a redirect leads to another host, as the hub's do
        session.auth = functools.partial(_authorise, token)
    return session


class Download:
    """One file that comes from a URL, written to an unfinished file beside its place."""

    def __init__(
        self,
        params: Mapping,
        part: part_file.PartFile,
        progress: Progress,
        result: Json,
        need: t.Callable[[int, str], None],
        token: str | None,
        move: t.Callable[[str, str], t.Any] | None,
    ) -> None:
        """Take the options of the module model_file, and where its result is kept.

        ``need`` raises UserError unless so many bytes are free; ``move`` publishes a small file in one step, None
        in check mode, in which nothing is written.
        """
        self.url, self.name = params["url"], transfer.shown_url(params["url"])
        self.params, self.part = params, part
        self.progress, self.result, self.need, self.move = progress, result, need, move
        self.token = token
        self.failures, self.furthest, self.restarted = 0, 0, False

    def fetch(self, wanted: str) -> None:
        """Fill the unfinished file with the content whose hash is ``wanted``. Raises UserError."""
        session, discarded = open_session(self.token), False
        self.furthest = self.result["resumed_bytes"] = self.part.resumable(wanted)[0]
        self.progress.say(f"asking {urllib.parse.urlsplit(self.url).hostname}")
        while True:
            answer, asked_seconds = self.attempt(session, wanted)
            if answer.action in ("write", "complete"):
                return
            if answer.action == "refuse":
                raise UserError(answer.reason)
            if answer.action == "discard" and not discarded:
                discarded = True
                self.part.forget()
                continue
            self.wait(answer, wanted, asked_seconds)

    def attempt(self, session: t.Any, wanted: str) -> tuple[transfer.Answer, float | None]:
        """Ask once and receive what comes. Returns what the answer means, and how long the server asks to wait."""
        import http.client

        import requests
        import urllib3

        offset, state = self.part.resumable(wanted)
        self.result["attempts"] += 1
        silent = self.params["timeout_seconds"]
        headers = transfer.range_headers(self.url, offset, state)
        try:
            with session.get(self.url, stream=True, timeout=(min(15, silent), silent), headers=headers) as response:
                answer = transfer.judge_answer(
                    self.url, response.status_code, response.headers, offset, state.get("total_bytes"),
                    session.auth is not None,
                )  # fmt: skip
                answer = transfer.judge_size(answer, self.name, self.params["size_bytes"])
                self.receive(response, answer, offset, wanted)
                return answer, retry_wait.asked_seconds(response.headers, time.time())
        except UserError:
            raise
        except (
            requests.exceptions.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, ValueError,
            TimeoutError,
        ) as exc:  # fmt: skip
            again, clause = explain(exc, self.url)
            failure = f"{self.name} cannot be downloaded: {clause}"
            answer = transfer.Answer("retry" if again else "refuse", reason=failure if again else f"{failure}.")
            return answer, None

    def wait(self, answer: transfer.Answer, wanted: str, asked_seconds: float | None) -> None:
        """Wait before the next attempt. Raises UserError after too many failures in a row."""
        kept = self.part.resumable(wanted)[0]
        if kept >= self.furthest + WORTHWHILE_BYTES:
            self.failures, self.furthest = 1, kept
        else:
            self.failures += 1
        if self.failures >= self.params["attempts"] or answer.action != "retry":
            tail = ""
            if self.restarted:
                tail = "; the server cannot continue a cut transfer and began again each time"
            elif kept and self.move:
                tail = f"; {transfer.size_text(kept)} are kept for the next run"
            raise UserError(f"{answer.reason} ({self.result['attempts']} attempts{tail}).")
        pause = transfer.wait_seconds(self.failures, self.params["retry_seconds"], asked_seconds)
        self.progress.start(None, 0)
        self.progress.say(f"next attempt in {transfer.duration_text(pause)}: {answer.reason}")
        time.sleep(pause)

    def receive(self, response: t.Any, answer: transfer.Answer, offset: int, wanted: str) -> None:
        """Write the body, if that is what the answer is, to the unfinished file of ``offset`` bytes.

        Raises what requests raises, and UserError.
        """
        if answer.action != "write":
            return
        if offset > answer.offset:
            self.restarted = True
            self.progress.say("the server does not continue, beginning again")
        kept = self.part.size()
        total = answer.total
        self.result["size_bytes"] = total
        if self.result["missing_bytes"] == 0:
            self.result["missing_bytes"] = None if total is None else total - answer.offset
        if total is not None:
            # what is thrown away because the server begins again makes room, too
            self.need(max(0, total - answer.offset - (kept - answer.offset)), self.name)
        if self.move is None:
            return
        if answer.offset == 0:
            self.result["resumed_bytes"] = 0
        disk.make_parents(self.part.path)
        state = transfer.part_state(self.url, wanted, response.headers, total)
        if answer.offset == 0:
            self.part.forget()  # never a state that speaks of older bytes
        self.part.write_state(state, self.move)
        done = self.write(response, answer.offset, total)
        total = total if total is not None else self.params["size_bytes"]
        # urllib3 before 2 says nothing of a connection that was cut
        if total is not None and done < total:
            import requests

            raise requests.exceptions.ConnectionError(f"the connection ended after {done} of {total} bytes")

    def write(self, response: t.Any, done: int, total: int | None) -> int:
        """Append the body to the unfinished file, synced to the disk, and return the bytes that it has then.

        Raises UserError, and leaves nothing behind, where more comes than is wanted or than the disk may take, and
        TimeoutError where next to nothing comes.
        """
        limit = self.params["size_bytes"] if self.params["size_bytes"] is not None else total
        self.progress.start("", limit, done)
        with self.part.open(done) as writer:
            since, before = time.monotonic(), done
            while chunk := read_some(response.raw):
                self.check_room(done, len(chunk), limit)
                writer.write(chunk)
                done += len(chunk)
                self.progress.tick(done)
                if (seconds := time.monotonic() - since) < self.params["timeout_seconds"]:
                    continue
                if done - before < SLOWEST_BYTES_PER_SECOND * seconds:
                    raise TimeoutError(f"sent {done - before} bytes in {seconds:.0f} s")
                since, before = time.monotonic(), done
            writer.flush()
            os.fsync(writer.fileno())
        return done

    def check_room(self, done: int, more: int, limit: int | None) -> None:
        """Raise UserError, and remove what came, unless so many bytes more may be written after ``done``."""
        problem = ""
        if limit is not None and done + more > limit:
            problem = f"sends more than the {limit} bytes that the file has: use another mirror, or correct the entry"
        elif limit is None and done + more > transfer.UNNAMED_LIMIT_BYTES:
            most = transfer.size_text(transfer.UNNAMED_LIMIT_BYTES)
            problem = f"names no size and sends more than {most}: use a mirror that names the size of its files"
        elif limit is None:
            try:
                self.need(more, self.name)
            except UserError:
                problem = (
                    f"names no size, and has sent {transfer.size_text(done)} when only the reserve of "
                    f"{self.params['reserve_mib']} MiB was left on the disk: free some space, choose another "
                    "directory, or use a mirror that names the size of its files"
                )
        if problem:
            self.part.forget()
            raise UserError(f"{self.name} {problem}; what came was removed.")
