# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads the variables of a role into a dataclass, checked and typed. Private to this collection. Pure functions only.

Extra variables of the command line (-e) come as text: C("3") is a whole number, C("true") is true.
"""

from __future__ import annotations

import dataclasses
import math
import typing as t

from .types import Json

T = t.TypeVar("T")

_TRUE: t.Final = frozenset({"true", "yes", "on", "1"})
_FALSE: t.Final = frozenset({"false", "no", "off", "0"})


def _whole(value: t.Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
        raise ValueError
    return int(value)


def _number(value: t.Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError
    return number


def _truth(value: t.Any) -> bool:
    word = str(value).lower()
    if word not in _TRUE | _FALSE:
        raise ValueError
    return word in _TRUE


def _text(value: t.Any) -> str:
    if value is None or isinstance(value, (list, tuple, t.Mapping)):
        raise ValueError
    return str(value)


def _whole_or_word(value: t.Any) -> int | str:
    try:
        return _whole(value)
    except (ValueError, TypeError):
        return _text(value)


def _word_or_words(value: t.Any) -> str | list[str]:
    return [_text(item) for item in value] if isinstance(value, (list, tuple)) else _text(value)


def _mapping(value: t.Any) -> Json:
    if not isinstance(value, t.Mapping):
        raise ValueError
    return dict(value)


def _listed(value: t.Any) -> list[t.Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError
    return list(value)


#: Type in an argument spec -> how a value is read, and what it is called.
SPEC_TYPES: t.Final[dict[str, tuple[t.Callable[[t.Any], t.Any], str]]] = {
    "bool": (_truth, "true or false"),
    "dict": (_mapping, "a mapping"),
    "float": (_number, "a number"),
    "int": (_whole, "a whole number"),
    "list": (_listed, "a list"),
    "path": (_text, "a path"),
    "str": (_text, "text"),
}
#: Type of a field -> how it is read, and what it is called.
_KINDS: t.Final[dict[str, tuple[t.Callable[[t.Any], t.Any], str]]] = {
    **{name: SPEC_TYPES[name] for name in ("bool", "float", "int", "str")},
    "int | str": (_whole_or_word, "a whole number or a word"),
    "list[str]": (lambda value: [_text(item) for item in _listed(value)], "a list of words"),
    "list[int]": (lambda value: [_whole(item) for item in _listed(value)], "a list of whole numbers"),
    "list[dict[str, t.Any]]": (lambda value: [_mapping(item) for item in _listed(value)], "a list of dicts"),
    "list[float]": (lambda value: [_number(item) for item in _listed(value)], "a list of numbers"),
    "dict[str, t.Any]": (_mapping, "a dict"),
    "str | list[str]": (_word_or_words, "a word or a list of words"),
}


def read(kind: type[T], variables: t.Mapping[str, t.Any], role: str) -> T:
    """Return a dataclass of variables of a role: one field per variable, named without C(role_); others are ignored.

    Raises ValueError that names the variable, its value and what it must be.
    """
    values = {}
    for field in dataclasses.fields(t.cast(t.Any, kind)):
        name = f"{role}_{field.name}"
        if name not in variables:
            raise ValueError(f"{name} is missing: include the role {role}, which has a default of it")
        convert, words = _KINDS[str(field.type)]
        try:
            values[field.name] = convert(variables[name])
        except (ValueError, TypeError, OverflowError) as exc:
            raise ValueError(f"{name} is {variables[name]!r}: it must be {words}") from exc
    return kind(**values)
