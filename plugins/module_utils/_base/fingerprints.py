# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Canonical JSON and fingerprints. Private to this collection. Pure functions only."""

from __future__ import annotations

import hashlib
import json
import math
import typing as t

from .errors import UserError

Plain: t.TypeAlias = "None | bool | int | float | str | list[Plain] | dict[str, Plain]"


def plain(value: t.Any, where: str = "parts") -> Plain:
    """Return C(value) as plain JSON types, or raise UserError naming the offending place.

    Mappings become dict, lists and tuples become list, and subclasses of str, int and float (templating engines hand
    such values over) become the plain type, so that equal values always have one form.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where} is {value}, which is no JSON number: give a finite number or null")
        return float(value)
    if isinstance(value, t.Mapping):
        result: dict[str, Plain] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise UserError(f"{where} has the key {key!r}, which is no string: quote it")
            result[str(key)] = plain(item, f"{where}.{key}")
        return result
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise UserError(
        f"{where} is of type {type(value).__name__}, which JSON cannot hold: give text, numbers, lists or dicts"
    )


def canonical(value: t.Any) -> str:
    """Return the canonical JSON of C(value): sorted keys, no spaces, ASCII only."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(parts: t.Mapping[str, t.Any]) -> str:
    """Return the SHA-256 of the canonical JSON of C(parts), as 64 hexadecimal digits."""
    if not isinstance(parts, t.Mapping):
        raise UserError(f"a fingerprint is made of a dict of parts, not of a {type(parts).__name__}")
    return hashlib.sha256(canonical(parts).encode("ascii")).hexdigest()
