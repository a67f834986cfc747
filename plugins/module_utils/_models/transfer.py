# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Pure decisions of downloads: what to ask a server for, what its answer means, how to describe progress."""

from __future__ import annotations

import collections
import os
import re
import typing as t
import urllib.parse
from dataclasses import dataclass

from .._base.errors import UserError
from .._base.types import Json, Mapping
from . import file_names, hub_api

MAXIMUM_WAIT_SECONDS = 30.0
MAXIMUM_ASKED_WAIT_SECONDS = 600.0  # the hub counts requests over five minutes
#: What is written at most of a body whose size nobody names. No file on the hub is larger than 50 GB by its own rule.
UNNAMED_LIMIT_BYTES = 128 << 30
SYSTEM_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LENGTH = re.compile(r"[0-9]{1,20}")
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,20})-([0-9]{1,20})|\*)/([0-9]{1,20}|\*)")


# ---- names and figures for people ----------------------------------------------------------------------------------


def shown_url(url: str) -> str:
    """Return a URL without what may be secret in it: user, password, query."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}"


def check_url(url: str) -> None:
    """Raise UserError unless the URL is http or https, names a host, and its path ends in a file name."""
    readable = re.sub(r"//[^/@]*@", "//", url.split("?", 1)[0])
    if not url.isprintable():
        raise UserError(f"The URL {readable!r} has a character that cannot be shown, such as a line end: correct it.")
    try:
        parts = urllib.parse.urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError as exc:
        raise UserError(f"{readable} is no URL ({exc}): correct it.") from exc
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(
            f"{readable!r} is no http or https URL: give one, or name a file that is already on the host by its path."
        )
    if not os.path.basename(parts.path):
        raise UserError(f"{shown_url(url)} names no file: give the whole URL of the file.")


def size_text(n_bytes: float) -> str:
    """Return a size as people read it: ``393 MiB``, ``39.6 GiB``."""
    if n_bytes < 1 << 20:
        return f"{n_bytes / 1024:.0f} KiB"
    if n_bytes < 10 << 30:
        return f"{n_bytes / (1 << 20):.0f} MiB"
    return f"{n_bytes / (1 << 30):.1f} GiB"


def duration_text(seconds: float) -> str:
    """Return a duration as people read it: ``40 s``, ``12 min``, ``2 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def progress_line(what: str, done: int, total: int | None, bytes_per_second: float) -> str:
    """Return one line of progress: bytes, share, rate and time left, short enough for a terminal of 80 columns."""
    start = f"{what}: " if what else ""
    rate = f"{size_text(bytes_per_second)}/s" if bytes_per_second > 0 else "stalled"
    if not total:
        return f"{start}{size_text(done)}, {rate}"
    line = f"{start}{size_text(done)} of {size_text(total)} ({100 * done // total} %), {rate}"
    if bytes_per_second > 0 and done < total:
        line += f", {duration_text((total - done) / bytes_per_second)} left"
    return line


class Rate:
    """Bytes per second over the last ten seconds."""

    def __init__(self) -> None:
        self._points: collections.deque[tuple[float, int]] = collections.deque()

    def add(self, now: float, done: int) -> float:
        """Take in how much was done at ``now`` (seconds, monotonic) and return the rate."""
        if self._points and done < self._points[-1][1]:
            self._points.clear()                      # began again
        self._points.append((now, done))
        while len(self._points) > 2 and now - self._points[0][0] > 10.0:
            self._points.popleft()
        (first, start), (last, end) = self._points[0], self._points[-1]
        return (end - start) / (last - first) if last > first else 0.0


def wait_seconds(attempt: int, first_seconds: float, asked_seconds: float | None) -> float:
    """Return the pause before the next attempt: doubling, at least what the server asks for, both bounded.

    ``asked_seconds``: of retry_wait.asked_seconds().
    """
    wait = min(first_seconds * 2 ** (attempt - 1), MAXIMUM_WAIT_SECONDS)
    return wait if asked_seconds is None else max(wait, min(asked_seconds, MAXIMUM_ASKED_WAIT_SECONDS))


def check_sha256(value: str, owner: str) -> str:
    """Return the SHA-256 in lower case, or raise UserError."""
    value = value.lower()
    if not _SHA256.fullmatch(value):
        raise UserError(f"{owner} has the SHA-256 {value!r}, which is not 64 hexadecimal digits: correct it.")
    return value


# ---- ranges ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What to do with a server's answer.

    ``action``: ``write`` the body from ``offset`` on (0: begin again), ``complete`` (nothing is missing), ``discard``
    what is there and ask again, ``retry`` later, or ``refuse`` for good. ``reason`` is set for the last three.
    ``total``: size of the whole file, when the server names it.
    """

    action: str
    offset: int = 0
    total: int | None = None
    reason: str = ""


def part_state(url: str, wanted: str, headers: t.Mapping[str, str], total: int | None) -> Json:
    """Return what is kept beside a partial file, so that a later run knows what it holds a part of.

    ``wanted``: SHA-256 of the whole content, or the SHA-1 of its git blob, which are of different lengths.
    """
    return {
        "url": shown_url(url),
        "sha256": wanted,
        "etag": headers.get("ETag"),
        "last_modified": headers.get("Last-Modified"),
        "total_bytes": total,
    }


def sound_state(state: Mapping) -> Json:
    """Return of a state only what it can be: whoever may write to the directory may have written it."""
    texts = {
        key: value for key in ("url", "sha256", "etag", "last_modified")
        if isinstance(value := state.get(key), str) and value.isascii() and value.isprintable() and len(value) < 2000
    }  # fmt: skip
    total = state.get("total_bytes")
    return {**texts, "total_bytes": total if file_names.is_size(total) else None}


def can_resume(state: t.Any, wanted: str) -> bool:
    """Whether a partial file may be continued: only if it was begun for the same content."""
    return isinstance(state, dict) and state.get("sha256") == wanted


def range_headers(url: str, offset: int, state: Mapping) -> dict[str, str]:
    """Return the request headers that continue at ``offset``; none when there is nothing to continue.

    If-Range makes the server send the whole file when it has changed. Weak ETags are not allowed there (RFC 9110,
    13.1.5), and another server's validators mean nothing to this one; the final SHA-256 is the judge in any case.
    """
    if not offset:
        return {}
    headers = {"Range": f"bytes={offset}-"}
    if state.get("url") == shown_url(url):
        etag = state.get("etag")
        validator = etag if etag and not etag.startswith("W/") else state.get("last_modified")
        if validator:
            headers["If-Range"] = validator
    return headers


def judge_answer(
    url: str,
    status: int,
    headers: t.Mapping[str, str],
    offset: int,
    known_total: int | None,
    token: bool,
) -> Answer:
    """Decide what to do with a response to a request that continued at ``offset`` (0: asked for the whole file).

    ``token``: whether an access token was sent.
    """
    name = shown_url(url)
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    ranged_total = int(match[3]) if match and match[3] != "*" else None
    coding = headers.get("Content-Encoding", "identity").strip().lower()
    if status in (200, 206) and coding not in ("", "identity"):
        # none was asked for; a few bytes of one can stand for gigabytes
        return Answer("refuse", reason=(
            f"{name} comes with the content coding {coding[:40]!a}, though none was asked for: use another mirror."
        ))  # fmt: skip
    if status == 200:
        length = headers.get("Content-Length", "")
        return Answer("write", 0, int(length) if _LENGTH.fullmatch(length) else None)
    if status == 206:
        if match is None or match[1] is None or int(match[1]) != offset:
            return Answer("discard", reason=f"{name} answered with another range than the one asked for")
        if known_total is not None and ranged_total is not None and known_total != ranged_total:
            return Answer("discard", reason=f"{name} has changed its size")
        total = ranged_total if ranged_total is not None else known_total
        if total is not None and total < offset:
            return Answer("discard", reason=f"{name} has become smaller than what came of it before")
        return Answer("write", offset, total)
    if status == 416 and offset:
        if ranged_total == offset:
            return Answer("complete", offset, ranged_total)
        return Answer("discard", reason=f"{name} cannot be continued at byte {offset}")
    if status in RETRIED_STATUSES:
        trouble = "it limits requests" if status == 429 else "its server is in trouble"
        cure = f"{trouble}: run the play again later, or use a mirror"
        return Answer("retry", reason=f"{name} answered with HTTP status {status}, {cure}")
    cures = {
        401: "it wants a login: choose a file that can be downloaded without one",
        403: "access is refused: check the URL, and whether its licence must be accepted or its link has expired",
        404: "there is no such file: check the URL",
        410: "the file is gone: find its new URL",
        416: "it refuses every range: check the URL, or the proxy in between",
    }
    endpoint, repo = hub_api.repo_page(url)
    revision = url.split("/resolve/", 1)[-1].split("/", 1)[0]
    code = headers.get("X-Error-Code", "")
    refusal = hub_api.refusal(endpoint, repo, revision, status, code, token) if repo and (code or token) else None
    cure = refusal or cures.get(status, "check the URL")
    return Answer("refuse", reason=f"{name} answered with HTTP status {status}, {cure}.")


def judge_size(answer: Answer, name: str, size_bytes: int | None) -> Answer:
    """Refuse to write what cannot become the wanted file, whose size is known."""
    if answer.action != "write" or None in (size_bytes, answer.total) or answer.total == size_bytes:
        return answer
    return Answer("refuse", reason=(
        f"{name} has {answer.total} bytes, and {size_bytes} were expected: the server has another file by that name; "
        "use another mirror, or correct the entry."
    ))  # fmt: skip
