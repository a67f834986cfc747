# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Values of variables as files of the host want them, so that none becomes a directive. Private. Pure functions only.

Every value that a template puts into a unit, a udev rule, an ini file or apt's preferences goes through C(escaped).
"""

from __future__ import annotations

import re
import typing as t
import unicodedata

from .errors import UserError

#: How a value is written. `argument`: one word of ExecStart=, `assignment`: one word of Environment=, or the program of
#: ExecStart=; both may hold line breaks and tabs, which systemd's C-style escapes carry. `text`: the rest of a line of
#: a unit. `word`: one of several plain words of a unit, such as units, groups and device nodes, or a version.
#: `ini`: the rest of a line of an ini file. `udev`: what stands between quotes in a udev rule.
FORMS: t.Final = ("argument", "assignment", "text", "word", "ini", "udev")

_PLAIN: t.Final = re.compile(r"[\w@%$+=:,./-]+")
_WORD: t.Final = re.compile(r"[A-Za-z0-9@_:.,/*+~\\-]+")
_VARIABLE: t.Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# they turn the order of what follows around on a screen
_BIDIRECTIONAL: t.Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_CONTROLS: t.Final = ("Cc", "Cs", "Zl", "Zp")
_C_STYLE: t.Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"}
_NAMES: t.Final = {"\n": "line break", "\r": "carriage return", "\t": "tab", "\0": "NUL"}


def control_character(value: str, allowed: str) -> str | None:
    """Return the first character of a text that moves, ends or hides text, but those in `allowed`; else None."""
    for character in value:
        strange = unicodedata.category(character) in _CONTROLS or character in _BIDIRECTIONAL
        if strange and character not in allowed:
            return character
    return None


def refuse_controls(value: str, name: str, allowed: str = "", secret: bool = False) -> None:
    """Raise UserError, which names the variable and, unless `secret`, its value, for a control character."""
    found = control_character(value, allowed)
    if found is None:
        return
    what = f"{_NAMES.get(found, 'control character')} (U+{ord(found):04X})"
    shown = "" if secret else f" in {value[:60]!r}"
    raise UserError(f"{name} contains a {what}{shown}; remove it (a block of YAML, |, ends with a line break).")


def escaped(value: t.Any, form: str, name: str) -> str:
    """Return a value as a file wants it. Raises UserError, which names the variable `name`, where the file cannot.

    `form` is one of FORMS. Raises ValueError for another one.
    """
    text = value if isinstance(value, str) else str(value)
    if form not in FORMS:
        raise ValueError(f"{form} is no form of escaping; use one of {', '.join(FORMS)}")
    refuse_controls(text, name, allowed="\n\t" if form in ("argument", "assignment") else "")
    return _WRITERS[form](text, name)


def assignment(variable: str, value: t.Any, name: str) -> str:
    """Return C(VARIABLE=value) as one word of Environment=. Raises UserError for what is no name of a variable."""
    if not _VARIABLE.fullmatch(variable):
        raise UserError(
            f"{name} sets the variable {variable[:60]!r}; name it with letters, digits and _, the first no digit."
        )
    return escaped(f"{variable}={value}", "assignment", name)


def _argument(text: str, name: str) -> str:
    return _assignment(text.replace("$", "$$"), name)


def _assignment(text: str, _name: str) -> str:
    text = text.replace("%", "%%")
    if _PLAIN.fullmatch(text):
        return text
    return '"' + "".join(_C_STYLE.get(character, character) for character in text) + '"'


def _text(text: str, name: str) -> str:
    if text.rstrip().endswith("\\"):
        raise UserError(f"{name} is {text[:60]!r}, whose \\ would continue the line of a unit; remove the last \\.")
    return text.replace("%", "%%")


def _word(text: str, name: str) -> str:
    # a backslash stays as it is: units are named with \x2d, and the lists of a unit are read without unescaping
    if not _WORD.fullmatch(text) or text.endswith("\\"):
        raise UserError(f"{name} has the entry {text[:60]!r}; write one word of letters, digits and @_:.,/*+~-.")
    return text


def _ini(text: str, name: str) -> str:
    if text != text.strip() or re.search(r"(^|\s)[;#]", text):
        raise UserError(f"{name} is {text[:60]!r}; remove blanks at its ends, and ; and # after a blank.")
    return text


def _udev(text: str, name: str) -> str:
    if '"' in text or "\\" in text:
        raise UserError(f'{name} is {text[:60]!r}; remove " and \\, which a udev rule cannot hold.')
    return text.replace("%", "%%").replace("$", "$$")


_WRITERS: t.Final[dict[str, t.Callable[[str, str], str]]] = {
    "argument": _argument,
    "assignment": _assignment,
    "text": _text,
    "word": _word,
    "ini": _ini,
    "udev": _udev,
}
