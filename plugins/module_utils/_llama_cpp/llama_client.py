# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A client of llama-server that explains what went wrong. Private to this collection.

It talks HTTP; read_api_key reads a file.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import time
import typing as t
import urllib.error
import urllib.request

from .._base import json_file
from .._base.types import Json

ERROR_TEXT_CHARACTERS = 300
REFUSAL_BYTES = 16384

_Read = t.TypeVar("_Read")


class ServerError(Exception):
    """One sentence about what the server did not do."""


class ServerOccupiedError(ServerError):
    """The server is there, and does something else: it loads its model, or does not come to answer."""


def read_api_key(path: str | None) -> str | None:
    """Return the first key of a file; None where there is none, or no path."""
    lines = (json_file.read_text(path) or "").splitlines() if path else []
    return next((line for line in lines if line and not line.startswith("#")), None)


def _object(text: bytes) -> Json:
    """Return the JSON object that a text is, {} for anything else."""
    try:
        found = json_file.from_text(text, any_number=True)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def timings(answer: t.Mapping[str, t.Any]) -> Json:
    """Return the numbers among the timings of an answer: another build may say less, or otherwise."""
    found = answer.get("timings")
    numbers = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in numbers if type(value) in (int, float) and math.isfinite(value)}


class Client:
    """One llama-server, or another server that answers with JSON; C(server) is its unit's name, for sentences."""

    def __init__(self, url: str, api_key: str | None, timeout_seconds: int, server: str = "llama-server") -> None:
        self.server = server
        self.url = url.rstrip("/")
        self.headers = {"Content-Type": "application/json"}
        if api_key:
            self.headers["Authorization"] = f"Bearer {api_key}"
        self.timeout_seconds = timeout_seconds
        # a proxy of the environment is not what is to be measured
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @classmethod
    def of_module(cls, module: t.Any, timeout_seconds: int, server: str = "llama-server") -> t.Self:
        """Return the client for the url and the api_key_file of a module, whose logs will not show the key."""
        key = read_api_key(module.params["api_key_file"])
        if key:
            module.no_log_values.add(key)
        return cls(module.params["url"], key, timeout_seconds, server)

    def ask(self, path: str, body: Json | None = None) -> Json:
        """GET, or POST where there is a body, and return the JSON object of the answer. Raises ServerError."""
        parsed = self._ask(path, body)
        if not isinstance(parsed, dict):
            raise ServerError(f"{self.url}{path} gave no JSON object: is it {self.server}?")
        return parsed

    def text(self, path: str) -> str:
        """GET a page that is no JSON. Raises ServerError."""
        return str(self._ask(path, read=lambda page: page.decode(errors="replace")))

    def _ask(
        self, path: str, body: Json | None = None, read: t.Callable[[bytes], t.Any] = json_file.from_text
    ) -> t.Any:
        where = f"{self.url}{path}"
        try:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(where, data=data, headers=self.headers)
            with self.opener.open(request, timeout=self.timeout_seconds) as answer:
                return read(answer.read())
        except urllib.error.HTTPError as exc:
            raise self._http_error(where, exc) from exc
        except TimeoutError as exc:
            raise ServerOccupiedError(
                f"{where} did not answer within {self.timeout_seconds} s: is the server busy with other requests?"
            ) from exc
        except (http.client.HTTPException, ConnectionResetError) as exc:
            raise ServerError(
                f"{where}: the server broke off ({exc}), so it probably died: see journalctl -u {self.server}."
            ) from exc
        except urllib.error.URLError as exc:
            raise ServerError(f"{where} cannot be reached ({exc.reason}): is {self.server} running?") from exc
        except ValueError as exc:
            raise ServerError(f"{where} gave no JSON ({exc}): is it {self.server}?") from exc

    def status(self, method: str, path: str, body: Json | None = None) -> tuple[int | None, Json]:
        """Return the HTTP status, None without an answer, and the JSON object of the answer, {} where it is none."""
        status, answer, text = self._exchange(method, path, body, lambda answer: answer.read())
        return status, answer if text is None else _object(text)

    def events(self, path: str, body: Json) -> tuple[int | None, list[str], Json]:
        """POST for a stream: return the HTTP status, the data of each event, and the object of a refusal, else {}.

        Reading ends with the time of the client.
        """
        deadline = time.monotonic() + self.timeout_seconds

        def read(answer: t.Any) -> list[str]:
            found = []
            for line in answer:
                if time.monotonic() > deadline:
                    break
                if line.startswith(b"data:"):
                    found.append(line.removeprefix(b"data:").strip().decode(errors="replace"))
            return found

        status, refusal, found = self._exchange("POST", path, body, read)
        return status, found or [], refusal

    def content_type(self, path: str) -> tuple[int | None, str]:
        """Return the HTTP status of what a browser asks for, None without an answer, and its type."""
        browser = {"Accept-Encoding": "gzip", "Accept": "text/html"}
        answered = self._exchange("GET", path, None, lambda answer: answer.headers.get_content_type(), browser)
        return answered[0], answered[2] or ""

    def _exchange(
        self,
        method: str,
        path: str,
        body: Json | None,
        read: t.Callable[[t.Any], _Read],
        headers: t.Mapping[str, str] | None = None,
    ) -> tuple[int | None, Json, _Read | None]:
        """Return the HTTP status, None without an answer; the object of a refusal; what C(read) made of an answer."""
        data = None if body is None else json.dumps(body).encode()
        asked = {**self.headers, **(headers or {})}
        request = urllib.request.Request(f"{self.url}{path}", data=data, headers=asked, method=method)
        try:
            with self.opener.open(request, timeout=self.timeout_seconds) as answer:
                return answer.status, {}, read(answer)
        except urllib.error.HTTPError as exc:
            with contextlib.suppress(OSError, http.client.HTTPException):
                return exc.code, _object(exc.read(REFUSAL_BYTES)), None
            return exc.code, {}, None
        except (OSError, http.client.HTTPException):
            return None, {}, None

    def _http_error(self, where: str, error: urllib.error.HTTPError) -> ServerError:
        if error.code == 401:
            return ServerError(f"{where} refuses the API key: name the file with its key in api_key_file.")
        if error.code == 503:
            return ServerOccupiedError(f"{where} is still loading its model: wait until /health answers 200.")
        text = error.read(ERROR_TEXT_CHARACTERS).decode(errors="replace").strip()
        return ServerError(f"{where} answered {error.code}: {text}")

    def slots(self) -> list[Json]:
        """Return what each slot does, as /slots tells it. Raises ServerError."""
        slots = self._ask("/slots")
        if not isinstance(slots, list) or not all(isinstance(s, dict) and "is_processing" in s for s in slots):
            raise ServerError(f"{self.url}/slots does not say what its slots do: is it a llama-server?")
        return slots

    def generate(self, prompt: list[int], count: int) -> Json:
        """Have C(count) tokens generated after a prompt that no cache may answer; return the server's timings."""
        body = {
            "prompt": prompt,
            "n_predict": count,
            "ignore_eos": True,
            "cache_prompt": False,
            "temperature": 0,
            "stream": False,
        }
        return timings(self.ask("/completion", body))

    def busy_slots(self) -> int:
        """Return how many requests the server handles now. Raises ServerError."""
        return sum(1 for slot in self.slots() if slot["is_processing"])

    def context_per_slot(self) -> int:
        """Return the tokens that one slot holds."""
        try:
            return int(self.ask("/props")["default_generation_settings"]["n_ctx"])
        except (KeyError, TypeError, ValueError) as exc:
            raise ServerError(f"{self.url}/props does not name the context of a slot: is it a llama-server?") from exc

    def vocabulary_size(self) -> int:
        """Return how many token ids the model has."""
        try:
            return int(self.ask("/v1/models")["data"][0]["meta"]["n_vocab"])
        except (IndexError, KeyError, TypeError, ValueError) as exc:
            raise ServerError(
                f"{self.url}/v1/models does not name the size of the vocabulary: is it a llama-server?"
            ) from exc
