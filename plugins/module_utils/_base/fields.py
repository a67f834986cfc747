# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads fields of dicts that came from outside, and names what is wrong. Private to this collection. Pure functions."""

from __future__ import annotations

import typing as t

from .errors import UserError


def field(where: str, holder: t.Any, key: str, kinds: type | tuple[type, ...], least: float | None = None) -> t.Any:
    """Return holder[key] if it is of C(kinds) and at least C(least); else raise UserError naming the field."""
    if not isinstance(holder, t.Mapping):
        raise UserError(f"{where} must be a dict, not {type(holder).__name__}")
    name = f"{where}.{key}"
    if key not in holder:
        raise UserError(f"{name} is missing")
    value = holder[key]
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    if (isinstance(value, bool) and bool not in wanted) or not isinstance(value, wanted):
        raise UserError(f"{name} must be {' or '.join(_KIND_NAMES[kind] for kind in wanted)}, not {value!r}")
    if least is not None and isinstance(value, (int, float)) and value < least:
        raise UserError(f"{name} must be at least {least}, not {value!r}")
    return value


_KIND_NAMES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "a dict",
    type(None): "null",
}


def choice(where: str, value: t.Any, known: t.Iterable[str]) -> str:
    """Return C(value) if it is one of C(known); else raise UserError naming the field."""
    names = list(known)
    if value not in names:
        raise UserError(f"{where} must be one of {', '.join(names)}, not {value!r}")
    return str(value)
