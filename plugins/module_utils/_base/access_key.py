# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The API key of a server: given, generated on the host, or none. Private to this collection.

Pure functions, but for generated.
"""

from __future__ import annotations

import re
import secrets
import typing as t

from .errors import UserError

#: The value of the variable for a server that asks for no key.
NONE: t.Final = "none"
SHORTEST: t.Final = 16

# What is one key in a key file of llama-server (# begins a comment, a comma separates), in YAML and in a HTTP header.
_KEY: t.Final = re.compile(r"[!-~]+")
_SEPARATORS: t.Final = ("#", ",")


def wanted(given: str) -> bool:
    """Return whether the server asks for a key: one that is given, or one that the host generates."""
    return given.lower() != NONE


def is_given(given: str) -> bool:
    """Return whether the variable holds the key itself."""
    return wanted(given) and given != ""


def problem(given: t.Any, name: str) -> str | None:
    """Return what is wrong with the value of a variable, never with the value in it; None where nothing is."""
    if not isinstance(given, str):
        return f"{name} is no text; quote it, leave it empty for a generated key, or set it to {NONE}."
    if not is_given(given):
        return None
    if not _KEY.fullmatch(given) or any(character in given for character in _SEPARATORS):
        return f"{name} contains white space, a comma, # or a character that is not ASCII; choose another key."
    if len(given) < SHORTEST:
        return f"{name} has {len(given)} characters; choose a key of at least {SHORTEST}, or leave it empty."
    return None


def check(given: t.Any, name: str) -> None:
    """Raise UserError where `problem` finds one."""
    if found := problem(given, name):
        raise UserError(found)


def text(given: str, now: str | None) -> str:
    """Return the text of the key file: the key that is given, else the one that is there, else a new one; "" for none.

    `now` is the text of the file as it is. A generated key has 256 bits.
    """
    if not wanted(given):
        return ""
    if given:
        return f"{given}\n"
    kept = (now or "").strip()
    return f"{kept}\n" if kept and problem(kept, "") is None else f"{secrets.token_hex(32)}\n"
