# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What apt prints, and what is said about a step of apt that failed. Private to this collection.

Pure but for `update_lists`, which runs apt-get. All texts are those of LC_ALL=C.UTF-8 (`ENVIRONMENT`).
"""

from __future__ import annotations

import re
import time
import typing as t

from .._base.types import Json

Run = t.Callable[[list[str]], tuple[int, str, str]]

ENVIRONMENT: t.Final = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "APT_LISTCHANGES_FRONTEND": "none"}
#: How long another program that uses apt or dpkg is waited for.
LOCK_SECONDS: t.Final = 600
CURE: t.Final = "check the host's network and its apt sources, then run the play again"

_INSTALL = re.compile(r"Inst (\S+?)(?::\S+)? (?:\[(\S+)\] )?\((\S+) ")
_REMOVE = re.compile(r"(?:Remv|Purg) (\S+?)(?::\S+)? (?:\[(\S+)\])?")
_UNKNOWN = re.compile(
    r"E: (?:Unable to locate package (\S+)|Package '?([^'\s]+)'? has no installation candidate"
    r"|Version '[^']*' for '([^']+)' was not found)"
)


def parse_simulation(text: str) -> list[dict[str, str]]:
    """Return what `apt-get -s` says it would do, one dict per package: {action (install or remove), name, from, to}."""
    actions = []
    for line in text.splitlines():
        if found := _INSTALL.match(line):
            actions.append({"action": "install", "name": found[1], "from": found[2] or "", "to": found[3]})
        elif found := _REMOVE.match(line):
            actions.append({"action": "remove", "name": found[1], "from": found[2] or "", "to": ""})
    return actions


def parse_policy(text: str) -> dict[str, Json]:
    """Return what `apt-cache policy` says, by package: {installed, candidate, versions}.

    `installed` and `candidate` are "" for none. `versions` are those that can be fetched, newest first: one that is
    only installed, and in no source any more, is left out.
    """
    answers: dict[str, Json] = {}
    entry: Json = {}
    version = ""
    for line in text.splitlines():
        if line and not line[0].isspace() and line.endswith(":"):
            entry = answers.setdefault(line[:-1].split(":")[0], {"installed": "", "candidate": "", "versions": []})
            version = ""
        elif stated := re.match(r"  (Installed|Candidate): (\S+)", line):
            entry[stated[1].lower()] = "" if stated[2] == "(none)" else stated[2]
        elif listed := re.match(r"(?: \*\*\*|    ) (\S+) -?[0-9]+", line):
            version = listed[1]
        elif version and (origin := re.match(r"        +-?[0-9]+ (\S+)", line)):
            fetched = origin[1] != "/var/lib/dpkg/status"
            entry["versions"] += [version] if fetched and version not in entry["versions"] else []
    return answers


def reason(out: str, err: str) -> str:
    """Return why apt refused or failed, on one line."""
    lines = [line.strip() for line in (out + "\n" + err).splitlines()]
    depends = [line for line in lines if re.search(r"(Depends|Conflicts|Breaks|PreDepends): ", line)]
    errors = [line[3:] for line in lines if line.startswith("E: ")]
    return " / ".join((depends[:3] + errors)[:5])[:600] or "no message"


def update_problem(returncode: int, out: str, err: str) -> str:
    """Return why `apt-get update` could not fetch every package list, or "": a source out of reach is a warning."""
    lines = [line.strip() for line in (out + "\n" + err).splitlines()]
    failed = [line[3:] for line in lines if line.startswith(("E: ", "W: Failed to fetch "))]
    if not failed:
        return f"apt-get update ended with {returncode}" if returncode else ""
    return " / ".join(failed[:3])[:400]


def update_lists(run: Run, wait_seconds: float = LOCK_SECONDS) -> str:
    """Fetch the package lists; return why some could not be fetched, or "".

    `run` runs a command with `ENVIRONMENT` and returns its return code, output and error output. Unlike dpkg's lock,
    apt does not wait for the lock of the lists, which an unattended upgrade may hold: tried for `wait_seconds`.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        returncode, out, err = run(["apt-get", "-q", "update"])
        if "Could not get lock" not in err or time.monotonic() >= deadline:
            return update_problem(returncode, out, err)
        time.sleep(5)


def unknown_packages(err: str) -> list[str]:
    """Return the packages that apt does not know, or not in the wanted version."""
    found = [next(name for name in match if name) for match in _UNKNOWN.findall(err)]
    return list(dict.fromkeys(found))


def failure(names: t.Sequence[str], why: str, changed: bool, cure: str) -> str:
    """Return one message about a step of apt that failed: what, why, what became of it, cure.

    `names` are the packages that were to be installed or removed; `changed` says whether apt had begun. Without a
    `cure` it is CURE.
    """
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    what = f"The package{'s' if len(names) > 1 else ''} {shown} could not be installed: {why}."
    became = "apt's whole output is in /var/log/apt/term.log" if changed else "Nothing was changed"
    return f"{what} {became}; {cure or CURE}."
