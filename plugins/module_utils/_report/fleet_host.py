# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a host has recorded of itself, for the table over many hosts. Private to this collection.

Reads files of the host, asks no server and no card, and changes nothing. Texts of files come back as one short line, so
that an answer is small whatever a file holds. fleet_table.py judges.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import typing as t

from .._base import json_file, unit_end
from .._base.errors import UserError
from .._base.text import one_line, vector
from .._base.types import Json, Mapping
from .._driver import driver_versions
from .._hardware import host_hardware
from .._revalidation import due, unattended, upgrade_stages, upgrade_words
from .._split import deployment, engines, fact_record
from . import fleet_rows

#: A file beyond this is none of ours.
MOST_BYTES: t.Final = 32 << 20
MOST_CHARACTERS: t.Final = 200
MOST_ROWS: t.Final = 20
_DAY_SECONDS: t.Final = 86400
_UNITS: t.Final = "etc/systemd/system"
WATCHDOG_UNIT: t.Final = "mixed-gpu-watchdog.service"
RPC_UNITS: t.Final = "ggml-rpc-server-*.service"


@dataclasses.dataclass(frozen=True)
class Places:
    """Where a host has what it recorded; all paths but C(root) are below C(root)."""

    root: str
    state_dir: str
    llama_cpp: str
    exllama: str

    def path(self, *parts: str) -> str:
        """Return a path of the host as this machine sees it."""
        return os.path.join(self.root, *(part.lstrip("/") for part in parts))


def read(places: Places, units: t.Sequence[Mapping] | None, now: str) -> Json:
    """Return what docs/data_formats.md (section fleet) calls a host.

    C(units) are properties of units as systemd says them, None where it was not asked; C(now) is the host's own time,
    as json_file.utc_now writes it. What cannot be read is a sentence of C(problems).
    """
    problems: list[str] = []
    readable = _record(places, problems)
    record = readable or fact_record.empty()
    active = record["active"]
    entry = record["models"].get(active)
    results = _revalidations(places, active, problems)
    driver = due.compare(due.recorded_driver(entry, results), *driver_versions.read(places.root))
    upgrade = upgrade_words.unfinished(_text(places.path(upgrade_stages.PATH), problems))
    wrong = _text(places.path(places.state_dir, "wrong_answers"), problems)
    return {
        "now": now,
        "cards": _cards(places, entry),
        "deployments": _deployments(record) if readable else None,
        "lends": len(glob.glob(places.path(_UNITS, RPC_UNITS))) if entry is None else 0,
        "verdict": _verdict(places, record, results, now, problems),
        "driver": driver["driver"],
        "due": {"now": driver["now"], "why": driver["why"], "cure": driver["cure"]} if driver["needed"] else None,
        "build": _build(places, entry, problems),
        "collection": _short(record.get("collection")),
        "watchdog": _watchdog(places, now, problems),
        "units": [_unit(unit) for unit in units[:MOST_ROWS]] if units is not None else None,
        "upgrade": {name: _short(upgrade[name]) for name in ("why", "cure")} if upgrade["needed"] else None,
        "reboot_required": os.path.exists(places.path("run/reboot-required")),
        "wrong_answers": _short(wrong),
        "problems": problems,
    }


def _short(value: t.Any) -> str | None:
    return None if value is None else one_line(value, MOST_CHARACTERS)


def _unreadable(path: str, error: OSError) -> str:
    return one_line(f"{path} cannot be read ({error.strerror}): use --become", MOST_CHARACTERS)


def _text(path: str, problems: list[str]) -> str | None:
    """Return the text of a file, or None without one, and where it cannot be read."""
    try:
        if os.path.exists(path) and os.path.getsize(path) > MOST_BYTES:
            problems.append(one_line(f"{path} has {os.path.getsize(path)} bytes: move it away", MOST_CHARACTERS))
            return None
        return json_file.read_text(path)
    except OSError as exc:
        problems.append(_unreadable(path, exc))
        return None


def _json(path: str, problems: list[str]) -> Json:
    """Return what a JSON file holds; an empty dict without one, and where it is damaged."""
    text = _text(path, problems)
    if text is None:
        return {}
    try:
        data = json_file.from_text(text)
        if isinstance(data, dict):
            return data
        raise ValueError(f"a {type(data).__name__} instead of a dict")
    except ValueError as exc:
        problems.append(one_line(f"{path} is damaged ({exc}): move it away", MOST_CHARACTERS))
        return {}


def _record(places: Places, problems: list[str]) -> Json | None:
    """Return the host's record, an empty one where there is none, None where it cannot be read."""
    path, before = places.path(fact_record.PATH), len(problems)
    text = _text(path, problems)
    if text is None:
        return fact_record.empty() if len(problems) == before else None
    try:
        return fact_record.FORM.parse(text, path)
    except UserError as exc:
        problems.append(one_line(exc, 2 * MOST_CHARACTERS))
        return None


def _cards(places: Places, entry: Mapping | None) -> list[str]:
    """Return the names of the devices of the served deployment, or of the cards where nothing is served."""
    if entry is not None:
        names = [device.get("description") or device["id"] for device in entry["devices"]]
    else:
        root = places.root.rstrip("/")
        names = [card["name"] or card["device_id"] for card in host_hardware.nvidia_devices(root)]
    return [one_line(name, MOST_CHARACTERS) for name in names[:MOST_ROWS]]


def _deployments(record: Mapping) -> list[Json]:
    """Return the recorded deployments, the served one first."""
    active = record["active"]
    entries = sorted(record["models"].items(), key=lambda item: (item[0] != active, item[0]))
    return [
        {
            "deployment": one_line(name, MOST_CHARACTERS),
            "served": name == active,
            "model": one_line(entry["model"].get("name") or entry["model"].get("id") or name, MOST_CHARACTERS),
            "engine": engines.of(entry["serving"]).display,
            "split_mode": one_line(entry["split_mode"], MOST_CHARACTERS),
            "split": one_line(vector(deployment.layers(entry)), MOST_CHARACTERS),
            "unit": engines.of(entry["serving"]).unit,
            "decode_tokens_per_second": fleet_rows.finite(entry["decision"].get("decode_tokens_per_second")),
            "prefill_tokens_per_second": fleet_rows.finite(entry["decision"].get("prefill_tokens_per_second")),
            "recorded_at": _short(entry.get("recorded_at")),
        }
        for name, entry in entries[:MOST_ROWS]
    ]


def _revalidations(places: Places, active: str | None, problems: list[str]) -> list[Mapping]:
    """Return the revalidations of the served deployment that can be read, newest first."""
    unreadable: list[OSError] = []
    try:
        return list(due.history(places.path(places.state_dir), active, unreadable)) if active else []
    except OSError as exc:
        unreadable.append(exc)
        return []
    finally:
        problems.extend(_unreadable(str(error.filename), error) for error in unreadable)


def _verdict(
    places: Places, record: Mapping, results: list[Mapping], now: str, problems: list[str]
) -> Json | None:
    """Return the newest verdict on the served deployment since it was recorded, or None."""
    active = record["active"]
    entry = record["models"].get(active)
    if entry is None:
        return None
    state = _json(places.path(places.state_dir, "unattended/state.json"), problems)
    outcome = state.get("outcome")
    found = results[:1]
    if isinstance(outcome, dict) and outcome.get("deployment") == active:
        found.append({**outcome, "at": state.get("finished_at")})
    dated = [(_seconds(one.get("at")), one) for one in found]
    since = _seconds(entry.get("recorded_at"))
    known = [(at, one) for at, one in dated if at is not None and (since is None or at > since)]
    if not known:
        return None
    at, newest = max(known, key=lambda pair: pair[0])
    return {
        "verdict": one_line(newest.get("verdict"), MOST_CHARACTERS),
        "accepted": newest.get("accepted") is True,
        "summary": one_line(newest.get("summary"), MOST_CHARACTERS),
        "at": _short(newest["at"]),
        "age_hours": round(max(0.0, unattended.timestamp(now) - at) / 3600, 1),
    }


def _seconds(stamp: t.Any) -> float | None:
    """Return seconds since 1970 of a recorded time, or None for what is none."""
    try:
        return unattended.timestamp(str(stamp))
    except ValueError:
        return None


def _build(places: Places, entry: Mapping | None, problems: list[str]) -> Json | None:
    """Return engine and version of the installed build that serves; llama.cpp's where nothing is recorded."""
    engine = engines.of(entry["serving"] if entry else {})
    folder = places.llama_cpp if engine.family == "llama_cpp" else places.exllama
    record = _json(places.path(folder, engine.build_file), problems)
    if not record:
        return None
    version, key = record.get("version") or "unknown", str(record.get("key") or "")
    return {"engine": engine.display, "version": one_line(version, MOST_CHARACTERS), "key": one_line(key, 12)}


def _watchdog(places: Places, now: str, problems: list[str]) -> Json | None:
    """Return what the watchdog remembers of a day; None where no server is watched and nothing is remembered."""
    watches = os.path.exists(places.path(_UNITS, WATCHDOG_UNIT))
    state = _json(places.path(places.state_dir, "watchdog/state.json"), problems)
    if not watches and not state:
        return None
    since = unattended.timestamp(now) - _DAY_SECONDS
    restarts, stuck, failures = [], [], []
    try:
        for unit, own in state.get("units", {}).items():
            recent = [one for one in own["restarts"] if float(one["at"]) >= since]
            restarts += [(float(one["at"]), unit, one["reason"]) for one in recent]
            stuck += [unit] if own["stuck"] else []
            failures += [unit] if own["failed_at"] is not None and float(own["failed_at"]) >= since else []
    except (AttributeError, KeyError, TypeError, ValueError):
        problems.append("the state of the watchdog is not what it writes: move state.json of the watchdog away")
    last = max(restarts, key=lambda restart: restart[0], default=None)
    return {
        "watches": watches,
        "restarts": len(restarts),
        "reason": _short(f"{last[1]}: {last[2]}") if last else None,
        "stuck": [one_line(unit, MOST_CHARACTERS) for unit in stuck[:MOST_ROWS]],
        "failed": [one_line(unit, MOST_CHARACTERS) for unit in failures[:MOST_ROWS]],
    }


def _unit(properties: Mapping) -> Json:
    """Return name, state, status of a unit, and why it fails; a server's status names lenders that are absent."""
    names = {"unit": "Id", "state": "ActiveState", "status": "StatusText"}
    said = {name: one_line(properties.get(systemd, ""), MOST_CHARACTERS) for name, systemd in names.items()}
    return {**said, "why": one_line(unit_end.why(said["unit"], properties), 2 * MOST_CHARACTERS)}
