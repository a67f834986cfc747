# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads fields of dicts that came from outside, and names what is wrong. Private to this collection. Pure functions."""

from __future__ import annotations

import math
import typing as t

from .errors import UserError
from .types import Json

#: No size, time or count here comes near it; floats hold whole numbers exactly up to it.
LARGEST: t.Final = 1 << 53


def field(
    where: str, holder: t.Any, key: str, kinds: type | tuple[type, ...], least: float | None = None,
    most: float = LARGEST,
) -> t.Any:  # fmt: skip
    """Return holder[key] if it is of C(kinds) and from C(least) to C(most); else raise UserError naming the field."""
    if not isinstance(holder, t.Mapping):
        raise UserError(f"{where} must be a dict, not {type(holder).__name__}")
    name = f"{where}.{key}"
    if key not in holder:
        raise UserError(f"{name} is missing")
    value = holder[key]
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    if (isinstance(value, bool) and bool not in wanted) or not isinstance(value, wanted):
        raise UserError(f"{name} must be {' or '.join(_KIND_NAMES[kind] for kind in wanted)}, not {value!r}")
    if isinstance(value, (int, float)):
        check(name, value, -LARGEST if least is None else least, most)
    return value


def check(name: str, value: float, least: float, most: float) -> None:
    """Raise UserError, which names it, for a number that is not from C(least) to C(most)."""
    if not least <= value <= most:  # which NaN is not
        told = f"at least {least:g}" if value < least else f"at most {most}"
        raise UserError(f"{name} must be {told}, not {str(value)[:24]}")


class Positive(float):
    """A number above 0, as a type of check_shape."""


_KIND_NAMES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    Positive: "a number above 0",
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


#: A type, None, [shape] for a list of such, {name: shape} for a dict with at least these fields (one that ends with ?
#: may be missing), {str: shape} for a dict of such, or a tuple of alternatives.
Shape: t.TypeAlias = t.Any
NUMBER: t.Final = (int, float)


def check_shape(where: str, value: t.Any, shape: Shape) -> None:
    """Raise UserError, which names the field below C(where), for a value that is not of a shape."""
    alternatives = shape if isinstance(shape, tuple) else (shape,)
    found = [one for one in alternatives if _is_kind(value, _outer(one))]
    if not found:
        kinds = " or ".join(_KIND_NAMES[_outer(one)] for one in alternatives)
        raise UserError(f"{where} must be {kinds}, not {value!r:.60}")
    inner = found[0]
    if isinstance(inner, list):
        for index, item in enumerate(value):
            check_shape(f"{where}[{index}]", item, inner[0])
    elif isinstance(inner, dict):
        _check_fields(where, value, inner)


def _check_fields(where: str, value: Json, shape: dict[t.Any, Shape]) -> None:
    start = f"{where}." if where else ""
    for name, one in shape.items():
        if name is str:
            for key, item in value.items():
                check_shape(f"{start}{key:.60}", item, one)
        elif name.rstrip("?") in value:
            check_shape(f"{start}{name.rstrip('?')}", value[name.rstrip("?")], one)
        elif not name.endswith("?"):
            raise UserError(f"{start}{name} is missing")


def _outer(shape: Shape) -> type:
    return shape if isinstance(shape, type) else type(shape)


def is_whole(value: t.Any, least: float = -math.inf, most: float = math.inf) -> t.TypeGuard[int]:
    """Return whether a value is a whole number in a range; true and false are none."""
    return _is_kind(value, int) and least <= value <= most


def is_number(value: t.Any, least: float = -math.inf, most: float = math.inf) -> t.TypeGuard[float]:
    """Return whether a value is a number in a range; true, false and NaN are none."""
    return _is_kind(value, NUMBER) and least <= value <= most


def _is_kind(value: t.Any, kind: type | tuple[type, ...]) -> bool:
    if kind is Positive:
        return is_number(value) and 0 < value < math.inf
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
