# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Canonical JSON and fingerprints. Private to this collection. Pure functions only."""

from __future__ import annotations

import hashlib
import json
import math
import typing as t

Json: t.TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"


class FingerprintError(ValueError):
    """A value that has no canonical form; the message names where it is."""


def plain(value: t.Any, where: str = "parts") -> Json:
    """Return C(value) as plain JSON types, or raise FingerprintError naming the offending place.

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
            raise FingerprintError(f"{where} is {value}, which is no JSON number: give a finite number or null")
        return float(value)
    if isinstance(value, t.Mapping):
        result: dict[str, Json] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise FingerprintError(f"{where} has the key {key!r}, which is no string: quote it")
            result[str(key)] = plain(item, f"{where}.{key}")
        return result
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise FingerprintError(
        f"{where} is of type {type(value).__name__}, which JSON cannot hold: give text, numbers, lists or dicts"
    )


def canonical(value: t.Any) -> str:
    """Return the canonical JSON of C(value): sorted keys, no spaces, ASCII only."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(parts: t.Mapping[str, t.Any]) -> str:
    """Return the SHA-256 of the canonical JSON of C(parts), as 64 hexadecimal digits."""
    if not isinstance(parts, t.Mapping):
        raise FingerprintError(f"a fingerprint is made of a dict of parts, not of a {type(parts).__name__}")
    return hashlib.sha256(canonical(parts).encode("ascii")).hexdigest()
