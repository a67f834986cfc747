# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The API key of a server: given, generated on the host, or none. Private to this collection.

Pure functions, but that text makes up a key.
"""

from __future__ import annotations

import re
import secrets
import typing as t

#: The value of the variable for a server that asks for no key.
NONE: t.Final = "none"
SHORTEST: t.Final = 16

# What is one key in a key file of llama-server (# begins a comment, a comma separates), in YAML and in a HTTP header.
_KEY: t.Final = re.compile(r"[!-~]+")
_SEPARATORS: t.Final = ("#", ",")


def wanted(given: str) -> bool:
    """Return whether the server asks for a key: one that is given, or one that the host generates."""
    return given.lower() != NONE


def given_key(given: str) -> str:
    """Return the key that the variable holds, "" where the host generates one or the server asks for none."""
    return given if wanted(given) else ""


def problem(given: t.Any, name: str) -> str | None:
    """Return what is wrong with the value of a variable, never with the value in it; None where nothing is."""
    if not isinstance(given, str):
        return f"{name} is no text; quote it, leave it empty for a generated key, or set it to {NONE}."
    if not given_key(given):
        return None
    if not _KEY.fullmatch(given) or any(character in given for character in _SEPARATORS):
        return f"{name} contains white space, a comma, # or a character that is not ASCII; choose another key."
    if len(given) < SHORTEST:
        return f"{name} has {len(given)} characters; choose a key of at least {SHORTEST}, or leave it empty."
    return None


def text(given: str, now: str | None) -> str:
    """Return the text of the key file: the key that is given, else the one that is there, else a new one of 256 bits.

    `now` is the text of the file as it is.
    """
    if given:
        return f"{given}\n"
    kept = (now or "").strip()
    return f"{kept}\n" if kept and problem(kept, "") is None else f"{secrets.token_hex(32)}\n"


def connect(url: str, path: str, page: bool) -> str:
    """Return one sentence for clients of a server; `path` is that of the key file, "" for a server without a key.

    A server with a `page` answers a browser.
    """
    if not path and page:
        return f"The server answers everybody who reaches {url}, in a browser with its chat page: it has no key."
    if not path:
        return f"The server answers everybody who reaches {url}, web pages in a browser included: it has no key."
    browsers = f"A browser gets the chat page at {url} and asks for the key. " if page else ""
    command = curl(url, path, "/v1/models")
    return f"{browsers}Clients of {url} send the key that is in {path} (root only): {command}"


def curl(url: str, path: str, endpoint: str) -> str:
    """Return a command that asks an endpoint on the server's host, with the key where `path` is the file of one."""
    header = f"sudo sed 's/^/Authorization: Bearer /' {path} | curl -H @-" if path else "curl"
    return f"{header} {url}{endpoint}"
