# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a boot loader's menu starts: GRUB's grub.cfg and systemd-boot's list. Private. Pure functions only.

GRUB finds its default entry as normal/menu.c does: by number from 0, else by title or id; ">" leads into a submenu
(">>" is one in a title); a submenu without a further step means its first entry, and so does what is not found.
"""

from __future__ import annotations

import re
import shlex
import typing as t

from .._base import json_file

_KERNEL = re.compile(r"\s*(?:linux(?:16|efi)?|module2?)\s+\S*/?vmlinu[xz]-(\S+)")


class Entry(t.NamedTuple):
    """An entry of a menu: the kernel's release that it starts ("" for none of Linux's), or the entries of a submenu."""

    title: str
    ident: str
    release: str
    entries: list[Entry] | None = None


def parse(text: str) -> list[Entry]:
    """Return the entries of a grub.cfg, in order; [] for a text without any."""
    top: list[Entry] = []
    levels: list[list[Entry] | None] = [top]  # of each open brace; None for one that holds no entries
    for line in text.splitlines():
        words = _words(line)
        here = next(level for level in reversed(levels) if level is not None)
        kernel = _KERNEL.match(line)
        if words[:1] in (["menuentry"], ["submenu"]) and words[-1] == "{":
            inner: list[Entry] | None = [] if words[0] == "submenu" else None
            here.append(Entry(words[1], _ident(words), "", inner))
            levels.append(inner)
        elif kernel and here and len(levels) > 1 and not here[-1].release:
            here[-1] = here[-1]._replace(release=kernel[1])
        elif words[-1:] == ["{"]:
            levels.append(None)
        elif words == ["}"] and len(levels) > 1:
            levels.pop()
    return top


def _words(line: str) -> list[str]:
    """Return the words of a line of GRUB's script, [] for one that is none."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return []


def _ident(words: t.Sequence[str]) -> str:
    for place, word in enumerate(words[:-2]):
        if word in ("--id", "$menuentry_id_option"):
            return words[place + 1]
    return ""


def find(menu: t.Sequence[Entry], default: str) -> Entry:
    """Return the entry that a value of GRUB's variable `default` starts, in a menu that is not empty."""
    steps = [step.replace("\0", ">") for step in default.replace(">>", "\0").split(">")]
    level, chosen = menu, menu[0]
    while level:
        chosen = _entry(level, steps.pop(0) if steps else "0")
        level = chosen.entries or []
    return chosen


def _entry(level: t.Sequence[Entry], step: str) -> Entry:
    if step.isascii() and step.isdigit():
        return level[int(step)] if int(step) < len(level) else level[0]
    return next((entry for entry in level if step in (entry.title, entry.ident)), level[0])


def written_default(text: str) -> str | None:
    """Return the value of GRUB_DEFAULT that a grub.cfg was made with ("saved" for the saved entry), or None."""
    said = re.findall(r'^\s*set default="(.*)"$', text, re.MULTILINE)
    values = ["saved" if "saved_entry" in value else value for value in said if "next_entry" not in value]
    return values[-1] if values else None


def shell_value(text: str, name: str) -> str:
    """Return the last value that a file of shell variables, as /etc/default/grub, gives to one of them, or ""."""
    values = [_words(value) for value in re.findall(rf"^\s*(?:export\s+)?{name}=(.*)$", text, re.MULTILINE)]
    return values[-1][0] if values and values[-1] else ""


def systemd_boot(listed: str, one_shot: str, kernels: t.Sequence[str]) -> str:
    """Return the installed kernel that systemd-boot starts, or "" where that is not known.

    `listed` is what `bootctl list --json=short` prints, and `one_shot` the id of the entry for the next boot alone.
    """
    try:
        entries = json_file.from_text(listed or "[]")
    except ValueError:
        return ""
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    wanted = [entry for entry in entries if entry.get("id") == one_shot] if one_shot else [
        entry for entry in entries if entry.get("isDefault")
    ]
    if len(wanted) != 1:
        return ""
    said = [str(wanted[0].get(key) or "") for key in ("version", "linux", "path", "id")]
    named = [kernel for kernel in kernels for text in said if names(text, kernel)]
    return max(named, key=len) if named else ""


def names(text: str, kernel: str) -> bool:
    """Whether a text names a kernel's release, and not a longer one."""
    return bool(re.search(rf"(?<![0-9.]){re.escape(kernel)}(?![A-Za-z0-9+])", text))
