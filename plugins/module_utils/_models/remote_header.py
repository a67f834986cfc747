# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The header of a GGUF file that is still at its URL. Needs requests (host Python). Private to this collection."""

from __future__ import annotations

import time
import typing as t

from . import download, gguf_header, transfer
from .gguf_header import Header

SECONDS = 60.0                           # for one header: some MB


class HeaderUnknownError(Exception):
    """The header cannot be had now, in one clause; a download says it better, and tries again."""


def fetch(url: str, token: str | None, size_bytes: int | None) -> tuple[Header, bytes, int]:
    """Return the header of a file, the bytes that it was read from, and the size of the file.

    ``size_bytes``: the size where it is known. As many bytes are received as the header has, at most
    gguf_header.MAXIMUM_HEADER_BYTES in SECONDS. Raises UserError where it is no header that can be read, and
    HeaderUnknownError.
    """
    import requests
    import urllib3

    try:
        with download.open_session(token).get(url, stream=True, timeout=(15, 15)) as response:
            if response.status_code != 200:
                raise HeaderUnknownError(f"{transfer.shown_url(url)} answered with status {response.status_code}")
            length = response.headers.get("Content-Length", "")
            if size_bytes is None and not (length.isascii() and length.isdigit() and len(length) < 19):
                raise HeaderUnknownError(f"{transfer.shown_url(url)} does not say how large the file is")
            size = int(length) if size_bytes is None else size_bytes
            return (*_read(response, transfer.shown_url(url), size), size)
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
        raise HeaderUnknownError(f"{transfer.shown_url(url)} cannot be read ({type(exc).__name__})") from exc


def _read(response: t.Any, name: str, size_bytes: int) -> tuple[Header, bytes]:
    """Receive until the header is whole."""
    received, wanted, deadline = bytearray(), 1 << 20, time.monotonic() + SECONDS
    while True:
        while len(received) < min(wanted, size_bytes):
            chunk = download.read_some(response.raw)
            received += chunk
            if not chunk:
                raise HeaderUnknownError(f"{name} ended after {len(received)} of {size_bytes} bytes")
            if time.monotonic() > deadline:
                raise HeaderUnknownError(f"{name} brought {len(received)} bytes within {SECONDS:.0f} s")
        try:
            data = bytes(received)
            return gguf_header.parse(name, data, size_bytes), data
        except gguf_header.MoreNeededError as exc:
            wanted = max(4 * wanted, exc.n_bytes)
