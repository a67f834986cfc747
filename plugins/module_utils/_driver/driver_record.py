# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The record of the drivers that a host had, and which driver to go back to. Private to this collection.

Pure functions only. A record has no other schema than `SCHEMA`.
"""

from __future__ import annotations

import typing as t

from .._base import json_state
from .._base.errors import UserError
from .._base.types import Mapping
from .driver_packages import branch_of, own_versions, upstream
from .driver_types import Package, Step

SCHEMA: t.Final = 1
KEEP_STATES: t.Final = 20
Reason = t.Literal["found", "installed", "rolled back"]
REASONS: t.Final = t.get_args(Reason)
Kept = t.Mapping[str, t.Mapping[str, str]]


class State(t.TypedDict):
    """A driver that the host had. `main` is the package that states its version, or "" for somebody else's driver."""

    recorded_at: str
    reason: Reason
    version: str
    main: str
    packages: dict[str, str]
    holds: list[str]
    pin: str  # text of the preferences file, or ""
    kernel_next: str


class Rollback(t.TypedDict):
    """A way back; `finished_at` is None while it is under way."""

    to: State
    from_version: str
    started_at: str
    finished_at: str | None


class Record(t.TypedDict):
    """The file. `states` are oldest first."""

    schema: int
    states: list[State]
    rollback: Rollback | None


class Present(t.NamedTuple):
    """What a host has now: packages as driver_packages.parse_dpkg returns them, and texts of the pin and the kernel."""

    packages: t.Mapping[str, Package]
    pin: str
    kernel_next: str


def empty() -> Record:
    """Return the record of a host on which nothing was recorded."""
    return {"schema": SCHEMA, "states": [], "rollback": None}


_STATE: t.Final = {
    "version": str, "packages": {str: str}, "recorded_at": str, "reason": str, "main": str, "holds": [str],
    "pin": str, "kernel_next": str,
}  # fmt: skip
_SHAPE: t.Final = {
    "states": [_STATE],
    "rollback": (None, {"to": _STATE, "from_version": str, "started_at": str, "finished_at": (None, str)}),
}  # fmt: skip
FORM: t.Final = json_state.Form(SCHEMA, "run the play again: what is installed now is recorded", shape=_SHAPE)


def parse(text: str | None, path: str) -> Record:
    """Return the record that a file holds; None is no file. Raises UserError for a damaged one or another schema."""
    return empty() if text is None else t.cast(Record, FORM.parse(text, path))


def snapshot(present: Present, main: str, reason: Reason, now: str) -> State | None:
    """Return the state that a host is in, or None where it has no driver package.

    Headers, dkms and kernel metapackages are not the driver's and are left out; their holds are kept. `main` is the
    package whose version is the driver's, or "" when not known.
    """
    packages = own_versions(present.packages)
    if not packages:
        return None
    if main in packages:
        version = packages[main]
    else:
        # another driver than this role's: the version that most of its packages have
        versions = [version for version in packages.values() if branch_of(version)] or list(packages.values())
        version = max(versions, key=lambda text: (versions.count(text), text))
        main = ""
    return {
        "recorded_at": now,
        "reason": reason,
        "version": version,
        "main": main,
        "packages": packages,
        "holds": sorted(name for name, entry in present.packages.items() if entry["held"]),
        "pin": present.pin,
        "kernel_next": present.kernel_next,
    }


def with_state(record: Record, state: State | None) -> Record:
    """Return the record with a state at its end. A state with the packages of the last one takes its place.

    A state that was found and then installed by the role is the role's from then on; its reason is kept.
    """
    states = [*record["states"]]
    if state is None:
        return {**record, "states": states}
    if states and states[-1]["packages"] == state["packages"]:
        last = states[-1]
        same: State = {**state, "recorded_at": last["recorded_at"]}
        if last["reason"] != "found":
            same["reason"] = last["reason"]
        if same["reason"] == "found" or not same["main"]:
            same["main"] = last["main"] or same["main"]
        # holds that somebody released meanwhile are what there is now; the packages decide
        states[-1] = same
    else:
        states.append(state)
    return {**record, "states": states[-KEEP_STATES:]}


def ours(record: Record) -> list[str]:
    """Return the packages of the newest state, when this role made it; else nothing."""
    if not record["states"] or record["states"][-1]["reason"] == "found":
        return []
    return sorted(record["states"][-1]["packages"])


def target(record: Record, present: t.Mapping[str, str], to: str) -> State | None:
    """Return the state to go back to, or None when the host is there already.

    `present` maps the driver's packages to their installed versions. `to` is a version of the driver, with or without
    its package revision, or "" for the newest recorded state before the present one. A rollback that was interrupted is
    continued, and a finished one is not undone by asking again. Raises UserError with what is recorded.
    """
    states, rollback = record["states"], record["rollback"]
    known = ", ".join(dict.fromkeys(state["version"] for state in reversed(states))) or "nothing"
    if to:
        named = [state for state in states if to in (state["version"], upstream(state["version"]))]
        if not named:
            raise UserError(
                f"There is no driver to go back to: version {to} was not recorded on this host, only {known}."
            )
        chosen = named[-1]
        return None if chosen["packages"] == dict(present) else chosen
    if rollback is not None and rollback["finished_at"] is None:
        return rollback["to"]
    if rollback is not None and rollback["to"]["packages"] == dict(present):
        return None
    earlier = [state for state in states if state["packages"] != dict(present)]
    if not earlier:
        raise UserError(
            "There is no driver to go back to: no other driver than the present one was recorded on this host "
            f"({known})."
        )
    return earlier[-1]


def begin(record: Record, state: State, from_version: str, now: str) -> Record:
    """Return the record of a host that is on its way back."""
    under_way = record["rollback"]
    if under_way is not None and under_way["finished_at"] is None and under_way["to"]["packages"] == state["packages"]:
        return record
    rollback: Rollback = {"to": state, "from_version": from_version, "started_at": now, "finished_at": None}
    return {**record, "rollback": rollback}


def finish(record: Record, now: str) -> Record:
    """Return the record of a host that has gone back."""
    rollback = record["rollback"]
    if rollback is None or rollback["finished_at"] is not None:
        return record
    return {**record, "rollback": {**rollback, "finished_at": now}}


def overtaken(before: Record, after: Record, now: str) -> Record:
    """Return a record to which the role added a state that it installed by itself, not on a way back.

    A rollback that was interrupted is not continued then: it has ended where the host has the driver that it led to,
    and is forgotten elsewhere, or the next rollback would lead past the driver that was installed meanwhile.
    """
    rollback = after["rollback"]
    was, now_is = ([state["packages"] for state in record["states"][-1:]] for record in (before, after))
    if rollback is None or rollback["finished_at"] is not None or now_is == was:
        return after
    if now_is == [rollback["to"]["packages"]]:
        return finish(after, now)
    return {**after, "rollback": None}


def way_back(state: State, present: t.Mapping[str, str], policies: t.Mapping[str, Mapping], kept_files: Kept) -> Step:
    """Return the step of apt that brings a host to a state.

    `kept_files` maps packages to versions to paths of package files on the host, `policies` is what apt.parse_policy
    returns. Raises UserError, before anything is touched, where neither has a package.
    """
    install: dict[str, str] = {}
    files: dict[str, str] = {}
    lost = []
    for name, version in state["packages"].items():
        if present.get(name) == version:
            continue
        if version in policies.get(name, {"versions": []})["versions"]:
            install[name] = version
        elif version in kept_files.get(name, {}):
            install[name] = version
            files[name] = kept_files[name][version]
        else:
            lost.append(f"{name} {version}")
    if lost:
        raise UserError(
            f"Driver {state['version']} cannot be restored: neither the apt sources nor the kept package files have "
            f"{', '.join(lost[:4])}{' and others' if len(lost) > 4 else ''}; add a source that has them, or choose "
            "another version with nvidia_driver_rollback_to."
        )
    remove = sorted(name for name in present if name not in state["packages"])
    return {"version": state["version"], "install": install, "files": files, "remove": remove}


class Keeping(t.NamedTuple):
    """Package files to keep for going back: name=version of those to download, into which folder, folders that stay."""

    download: list[str]
    folder: str
    folders: list[str]


def keeping(record: Record, present: t.Mapping[str, str], kept_files: Kept) -> Keeping:
    """Return which package files to keep: those of the present driver and of the state before.

    `folder` is named after the present driver, and "" where that is not recorded.
    """
    matching = [state for state in record["states"] if state["packages"] == dict(present)]
    folder = upstream(matching[-1]["version"]) if matching else ""
    others = [state["version"] for state in record["states"] if state["packages"] != dict(present)]
    folders = [folder, *(upstream(version) for version in others[-1:])]
    download = [f"{name}={version}" for name, version in present.items() if version not in kept_files.get(name, {})]
    return Keeping(download if folder else [], folder, [name for name in folders if name])


def state_of(record: Record, present: t.Mapping[str, str]) -> State | None:
    """Return the newest recorded state with exactly these packages."""
    return next((state for state in reversed(record["states"]) if state["packages"] == dict(present)), None)
