# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The record of the drivers that a host had, and which one to go back to. Private to this collection. Pure functions
only.

record  = {schema: 1, states: [state, ...] (oldest first), rollback: null | rollback}
state   = {recorded_at, reason (found | installed | rolled back), version, main, packages: {name: version},
           holds: [name, ...], pin (text of the preferences file, or ""), kernel_next}
rollback = {to: state, from_version, started_at, finished_at (null while it is under way)}
"""

from __future__ import annotations

import json
import typing as t

from . import driver_packages

SCHEMA = 1
REASONS = ("found", "installed", "rolled back")
Table = t.Mapping[str, t.Any]


class DriverRecordError(ValueError):
    """A record that cannot be used, or a way back that does not exist; the message is one sentence without its end."""


def empty() -> dict[str, t.Any]:
    """Return the record of a host on which nothing was recorded."""
    return {"schema": SCHEMA, "states": [], "rollback": None}


def parse(text: str) -> dict[str, t.Any]:
    """Return the record that a file holds. Raises DriverRecordError for a damaged one or one of a newer schema."""
    try:
        record = json.loads(text)
    except ValueError as exc:
        raise DriverRecordError(f"it is no JSON ({exc})") from exc
    if not isinstance(record, dict) or not isinstance(record.get("schema"), int):
        raise DriverRecordError("it has no schema number")
    if record["schema"] > SCHEMA:
        raise DriverRecordError(f"it is of schema {record['schema']}, and this release knows up to {SCHEMA}")
    whole = isinstance(record.get("states"), list) and all(
        isinstance(state, dict) and isinstance(state.get("packages"), dict) and isinstance(state.get("version"), str)
        for state in record["states"]
    )
    if not whole or "rollback" not in record:
        raise DriverRecordError("its states or its rollback are not what this collection writes")
    return record


def snapshot(
    info: Table, main: str, pin: str, reason: str, now: str, holds: t.Sequence[str] | None = None
) -> dict[str, t.Any] | None:
    """Return the state that a host is in, or None where it has no driver package.

    `info` is what nvidia_driver_info returns. Headers, dkms and kernel metapackages are not the driver's and are left
    out; their holds are kept. `main` is the package whose version is the driver's, or "" when not known. `holds` are
    those
    of now, where they changed since `info` was read.
    """
    packages = {
        name: entry["version"]
        for name, entry in info["packages"].items()
        if driver_packages.is_driver(name, entry["source"])
    }
    if not packages:
        return None
    if main not in packages:
        # another driver than this role's: whatever states a branch, most often
        branches = [version for version in packages.values() if driver_packages.branch_of(version)]
        versions = branches or list(packages.values())
        version = max(versions, key=lambda text: (versions.count(text), text))
        main = ""
    else:
        version = packages[main]
    return {
        "recorded_at": now,
        "reason": reason,
        "version": version,
        "main": main,
        "packages": packages,
        "holds": sorted(name for name, entry in info["packages"].items() if entry["held"])
        if holds is None
        else sorted(holds),
        "pin": pin,
        "kernel_next": info["kernel_next"],
    }


def with_state(record: Table, state: Table | None, keep: int) -> dict[str, t.Any]:
    """Return the record with a state at its end. One of the same packages as the last replaces nothing but its reason.

    A state that was found and then installed by the role is the role's from then on; how it came about is kept.
    """
    states = [dict(entry) for entry in record["states"]]
    if state is None:
        return {**record, "states": states}
    if states and states[-1]["packages"] == state["packages"]:
        same = dict(state, recorded_at=states[-1]["recorded_at"])
        if states[-1]["reason"] != "found":
            same["reason"] = states[-1]["reason"]
        if same["reason"] == "found" or not same["main"]:
            same["main"] = states[-1]["main"] or same["main"]
        # holds that somebody released meanwhile are what there is now; the packages decide
        states[-1] = same
    else:
        states.append(dict(state))
    return {**record, "states": states[-max(keep, 2) :]}


def ours(record: Table) -> list[str]:
    """Return the packages of the newest state, when this role made it; else nothing."""
    last = record["states"][-1] if record["states"] else {"reason": "found", "packages": {}}
    return [] if last["reason"] == "found" else sorted(last["packages"])


def target(record: Table, present: t.Mapping[str, str], to: str) -> dict[str, t.Any] | None:
    """Return the state to go back to, or None when the host is there already.

    `present` maps the driver's packages to their installed versions. `to` is a version of the driver, with or
    without its package revision,
    or "" for the newest recorded state before the present one. A rollback that was broken off is gone on with, and one
    that was finished is not undone by asking again. Raises DriverRecordError with what is recorded.
    """
    states, rollback = record["states"], record["rollback"]
    known = ", ".join(dict.fromkeys(state["version"] for state in reversed(states))) or "nothing"
    if to:
        named = [state for state in states if to in (state["version"], driver_packages.upstream(state["version"]))]
        if not named:
            raise DriverRecordError(f"version {to} was not recorded on this host, only {known}")
        chosen = named[-1]
        return None if chosen["packages"] == dict(present) else chosen
    if rollback is not None and rollback["finished_at"] is None:
        return dict(rollback["to"])
    if rollback is not None and rollback["to"]["packages"] == dict(present):
        return None
    earlier = [state for state in states if state["packages"] != dict(present)]
    if not earlier:
        raise DriverRecordError(f"no other driver than the present one was recorded on this host ({known})")
    return earlier[-1]


def begin(record: Table, state: Table, from_version: str, now: str) -> dict[str, t.Any]:
    """Return the record of a host that is on its way back."""
    under_way = record["rollback"]
    if under_way is not None and under_way["finished_at"] is None and under_way["to"]["packages"] == state["packages"]:
        return dict(record)
    rollback = {"to": dict(state), "from_version": from_version, "started_at": now, "finished_at": None}
    return {**record, "rollback": rollback}


def finish(record: Table, now: str) -> dict[str, t.Any]:
    """Return the record of a host that has gone back."""
    if record["rollback"] is None or record["rollback"]["finished_at"] is not None:
        return dict(record)
    return {**record, "rollback": {**record["rollback"], "finished_at": now}}


def overtaken(before: Table, after: Table, now: str) -> dict[str, t.Any]:
    """Return a record to which the role added a state that it installed by itself, not on a way back.

    A rollback that was broken off is not gone on with then: it has ended where the host is at its aim, and else is
    forgotten, or the next rollback would lead past the driver that was installed meanwhile.
    """
    rollback = after["rollback"]
    was, now_is = ([state["packages"] for state in record["states"][-1:]] for record in (before, after))
    if rollback is None or rollback["finished_at"] is not None or now_is == was:
        return dict(after)
    if now_is == [rollback["to"]["packages"]]:
        return finish(after, now)
    return {**after, "rollback": None}


def way_back(
    state: Table, present: t.Mapping[str, str], policies: Table, kept: t.Mapping[str, t.Mapping[str, str]]
) -> dict[str, t.Any]:
    """Return {error, install: {name: version}, files: {name: path}, remove} that brings a host to a state.

    `kept` maps packages to versions to paths of package files on the host. What neither apt's sources nor they have
    cannot
    be restored, and is an error before anything is touched. `policies` is what apt.parse_policy returns.
    """
    install: dict[str, str] = {}
    files: dict[str, str] = {}
    lost = []
    for name, version in state["packages"].items():
        if present.get(name) == version:
            continue
        if version in policies.get(name, {"versions": []})["versions"]:
            install[name] = version
        elif version in kept.get(name, {}):
            install[name] = version
            files[name] = kept[name][version]
        else:
            lost.append(f"{name} {version}")
    if lost:
        return {
            "error": f"Driver {state['version']} cannot be restored: neither the apt sources nor the kept package "
            "files have "
            f"{', '.join(lost[:4])}{' and others' if len(lost) > 4 else ''}; add a source that has them, or choose "
            "another version "
            "with nvidia_driver_rollback_to.",
            "install": {},
            "files": {},
            "remove": [],
        }
    remove = sorted(name for name in present if name not in state["packages"])
    return {"error": "", "install": install, "files": files, "remove": remove}


def kept(record: Table, packages: Table, files: t.Mapping[str, t.Mapping[str, str]]) -> dict[str, t.Any]:
    """Return {fetch: [name=version, ...], folder, folders}: what to keep for going back.

    `packages` are those of nvidia_driver_info, `files` the kept package files by package and version. `folder` is named
    after the present driver, `folders` are those of it and of the state before, which stay.
    """
    present = {
        name: entry["version"] for name, entry in packages.items() if driver_packages.is_driver(name, entry["source"])
    }
    matching = [state for state in record["states"] if state["packages"] == present]
    folder = driver_packages.upstream(matching[-1]["version"]) if matching else ""
    others = [state["version"] for state in record["states"] if state["packages"] != present]
    folders = [folder, *(driver_packages.upstream(version) for version in others[-1:])]
    fetch = [f"{name}={version}" for name, version in present.items() if version not in files.get(name, {})]
    return {"fetch": fetch if folder else [], "folder": folder, "folders": [name for name in folders if name]}


def state_of(record: Table, present: t.Mapping[str, str]) -> dict[str, t.Any] | None:
    """Return the newest recorded state with exactly these packages."""
    return next((dict(state) for state in reversed(record["states"]) if state["packages"] == dict(present)), None)
