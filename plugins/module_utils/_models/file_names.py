# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Names and sizes of files that somebody else chose, such as a hub. Private to this collection. Pure functions.

docs/decisions/0029-what-a-server-says.md says why.
"""

from __future__ import annotations

import re
import typing as t

from .._base.errors import UserError
from .._base.fields import is_whole

#: No file of a model is larger: it is the limit of a file on ext4 with blocks of 4 KiB (16 TiB).
LARGEST_BYTES = 1 << 44
#: Room in the 255 bytes of a name for what this collection puts beside a file: .part.json, and a manifest's hash.
LONGEST_PART_BYTES = 200
LONGEST_NAME_BYTES = 1024
#: What this collection writes beside a model file, under the file's name and one of these endings.
OWN_ENDINGS = (".part", ".part.json", ".corrupt")
#: Of a repository that is taken whole, the files that an engine reads: weights, configuration, vocabulary, template.
#: Pickled weights (.bin, .pt, .ckpt) and programs (.py) can run code where they are loaded, and no engine reads them.
ENGINE_ENDINGS = (".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".bpe", ".vocab")

_WHOLE = re.compile(
    r"\.(?:gguf|safetensors|bin|pth?|ggml|zip|7z|rar|tar|t?gz|xz|bz2|zst)(?=[-._ ]|[a-z]{2}$|\d{2,5}$)", re.IGNORECASE
)
_PART_WORD = r"(?:part|split|chunk|piece|segment|seg|volume|vol|fragment|frag|slice)"
#: ``.part1of2``, ``-split-a``, ``.partaa``, ``.chunk_003``, ``.1of3``, ``.z01``, ``.00001``, ``.001``, ``.aa``, ``aa``
_SUFFIX = re.compile(
    rf"[-._ ]*(?:{_PART_WORD}[-._ ]*(?:\d{{1,6}}|(?!ial|s$)[a-z]{{1,3}})(?:[-._ ]*of[-._ ]*\d{{1,6}})?"
    r"|\d{1,6}[-._ ]*of[-._ ]*\d{1,6}|[pz]?\d{1,6}|(?P<bare>[a-z]{1,3}))",
    re.IGNORECASE,
)
#: The same before the ending: ``m.part1of2.gguf``, ``m-part1.gguf``, ``m-1of2.gguf``, ``m.part1.rar``. Shards that are
#: files of their own are others: -00001-of-00002.gguf of llama.cpp, and all numbers of safetensors files.
_INNER = re.compile(
    r"[-._ ](?:part|split|chunk|piece)[-._ ]?\d{1,6}of\d{1,6}(?=\.safetensors$)"
    r"|[-._ ]+(?:part|split|chunk|piece)[-._ ]*(?!\d{5}-of-\d{5}\.)\d{1,6}(?:[-._ ]*of[-._ ]*\d{1,6})?"
    r"(?=\.(?:gguf|zip|7z|rar)$)"
    r"|[-._ ]+(?!\d{5}-of-\d{5}\.)\d{1,6}[-._ ]*of[-._ ]*\d{1,6}(?=\.(?:gguf|zip|7z|rar)$)", re.IGNORECASE
)
#: At the end of a name without a known ending: ``m-Q8_0.partaa``.
_WORDED = re.compile(r"[-._ ](?:part|split|chunk|piece)[-._ ]?(?:\d{1,6}(?:of\d{1,6})?|[ab][a-z]{1,2})$", re.IGNORECASE)


# ---- names -----------------------------------------------------------------------------------------------------------


def check_name(name: t.Any, owner: str) -> str:
    """Return the name of a file below a model's directory, or raise UserError where it must not be written there.

    ``owner``: who gives the name, such as ``owner/name`` of a repository.
    """
    if not isinstance(name, str):
        raise UserError(f"{owner} has a file whose name is {_shown(name)}, which is no text: it is not fetched.")
    start = f"{owner} has a file by the name {_shown(name)}"
    parts = name.split("/")
    if "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise UserError(f"{start}, which would leave its directory: it is not fetched.")
    if not name.isprintable():  # controls, line ends, overrides of the writing direction
        raise UserError(f"{start}, which has a character that cannot be shown: it is not fetched.")
    if "$" in name or re.search(r"\{[{%#]", name):      # Ansible expands the former in paths, and Jinja the latter
        raise UserError(f"{start}, which programs on the way would take for a variable: it is not fetched.")
    long = any(len(part.encode()) > LONGEST_PART_BYTES for part in parts)
    if long or len(name.encode()) > LONGEST_NAME_BYTES:
        raise UserError(f"{start}, which is longer than {LONGEST_PART_BYTES} bytes: it is not fetched.")
    return name


def _shown(value: t.Any) -> str:
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:80]}...{text[-30:]}"


def shown_text(text: str, most: int = 200) -> str:
    """Return somebody else's text for a sentence: without what cannot be shown, and not too long."""
    shown = "".join(character if character.isprintable() else " " for character in text).strip()
    return shown if len(shown) <= most else f"{shown[:most]}..."


def check_together(names: t.Collection[str], owner: str) -> None:
    """Raise UserError where files cannot lie side by side, or where one has the name of a file of this collection."""
    given = set(names)
    for name in sorted(given):
        own = next((ending for ending in OWN_ENDINGS if name.lower().endswith(ending)), None)
        if own or name.rpartition("/")[2].startswith((".new-", ".ansible_tmp")):
            raise UserError(
                f"{owner} has a file by the name {_shown(name)}, as this collection names unfinished files: it is not "
                "fetched; name the other files with files."
            )
        above = name.split("/")
        folders = ("/".join(above[:length]) for length in range(1, len(above)))
        file = next((folder for folder in folders if folder in given), None)
        if file is not None:
            raise UserError(
                f"{owner} has both a file {_shown(file)} and a file {_shown(name)} below it: they cannot both be "
                "written; name the files that are wanted with files."
            )


def is_for_engines(name: str) -> bool:
    """Whether a file of a repository that is taken whole is one that an engine reads."""
    return name.lower().endswith(ENGINE_ENDINGS) and not any(part.startswith(".") for part in name.split("/"))


# ---- sizes -----------------------------------------------------------------------------------------------------------


def is_size(value: t.Any) -> bool:
    """Whether a value is a possible size of a file in bytes: a whole number, not true or a text, of at most 16 TiB."""
    return is_whole(value, 0, LARGEST_BYTES)


def check_size(value: t.Any, owner: str) -> None:
    """Raise UserError unless a size that somebody wrote down is None (not known) or a whole number of 0 to 2^62."""
    if value is not None and not is_whole(value, 0, 1 << 62):
        raise UserError(f"{owner} has the size_bytes {_shown(value)}: give a whole number of bytes.")


# ---- raw byte parts --------------------------------------------------------------------------------------------------


def raw_parts(names: t.Iterable[str]) -> dict[str, list[str]]:
    """Return the raw byte parts among names, by the name of the file that they are when joined.

    Parts of split(1) and its like: ``m.gguf.part1of2``, ``m.gguf-split-a``, ``m.gguf.partaa``, ``m.gguf.00001``. The
    shards of llama.cpp (``-00001-of-00002.gguf``) and of safetensors files are whole files of their own, and are none.
    """
    found: dict[str, list[str]] = {}
    bare: dict[str, dict[str, str]] = {}
    for name in sorted(set(names)):
        base, letters = _part_of(name)
        if base and letters:
            bare.setdefault(base, {})[letters] = name
        elif base:
            found.setdefault(base, []).append(name)
    for base, by_letters in bare.items():
        # m.gguf.aa is a part where m.gguf.ab is there, and m.gguf.md is none
        if any(letters in by_letters and f"{letters[:-1]}b" in by_letters for letters in ("a", "aa", "aaa", "xaa")):
            found.setdefault(base, []).extend(sorted(by_letters.values()))
    return found


def _part_of(name: str) -> tuple[str, str]:
    """Return what a name may be a part of, or an empty string, and the letters where nothing else says that it is."""
    if match := _INNER.search(name):
        return name[: match.start()] + name[match.end() :], ""
    for whole in _WHOLE.finditer(name):
        if match := _SUFFIX.fullmatch(name[whole.end() :]):
            return name[: whole.end()], (match["bare"] or "").lower()
    match = _WORDED.search(name)
    return (name[: match.start()], "") if match else ("", "")


def refuse_raw_parts(parts: t.Mapping[str, t.Sequence[str]], owner: str, choice: str) -> t.NoReturn:
    """Raise the UserError about raw byte parts; ``choice`` says what else there is, or is empty."""
    base, first = next(iter(sorted(parts.items())))
    many = len(first)
    word = "one raw byte part" if many == 1 else f"{many} raw byte parts"
    else_ = f" ({choice})" if choice else ""
    raise UserError(
        f"{owner} holds {_shown(base)[1:-1]} in {word} ({', '.join(_shown(name)[1:-1] for name in first[:3])}"
        f"{', ...' if many > 3 else ''}), which no engine loads: choose another file{else_}, or join the parts in "
        "order with cat and give the result as path."
    )
