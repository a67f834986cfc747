# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The host's recorded splits (/etc/ansible/facts.d/mixed_gpu.fact). Private to this collection. Pure functions only.

docs/data_formats.md describes the record: schema, active, and one entry per deployment under models.
"""

from __future__ import annotations

import json
import re
import typing as t

from .._base import fingerprints

SCHEMA: t.Final = 1
Record = dict[str, t.Any]
Migration = t.Callable[[Record], Record]
#: Schema number -> function that returns the same record in the next schema. Schema 1 is the first: none yet.
MIGRATIONS: dict[int, Migration] = {}
#: What every entry holds, and of which type.
ENTRY_FIELDS: t.Final[tuple[tuple[str, type], ...]] = (
    ("model", dict),
    ("serving", dict),
    ("devices", list),
    ("placement", list),
    ("split_mode", str),
    ("rpc_endpoints", list),
    ("decision", dict),
    ("fingerprint", str),
    ("fingerprint_parts", dict),
    ("campaign", str),
)


class RecordError(ValueError):
    """A record or an entry that makes no sense; the message says what and where."""


def empty() -> Record:
    """Return the record of a host on which nothing was tuned."""
    return {"schema": SCHEMA, "active": None, "models": {}}


def migrate(record: Record, migrations: t.Mapping[int, Migration] | None = None, current: int = SCHEMA) -> Record:
    """Return the record in the current schema, step by step. Raises RecordError for a newer or an unknown schema."""
    steps = MIGRATIONS if migrations is None else migrations
    schema = record.get("schema")
    if isinstance(schema, bool) or not isinstance(schema, int):
        raise RecordError(f"its schema is {schema!r}, which is no number")
    if schema > current:
        raise RecordError(f"it has schema {schema}, and this version of the collection reads up to {current}")
    while schema < current:
        if schema not in steps:
            raise RecordError(f"it has schema {schema}, which this version of the collection cannot bring to {current}")
        record = {**steps[schema](record), "schema": schema + 1}
        schema += 1
    return record


def parse(text: str) -> Record:
    """Return the record in C(text), migrated to the current schema. Raises RecordError when it is damaged or newer."""
    try:
        data = json.loads(text)
    except ValueError as exc:
        raise RecordError(f"it holds no JSON ({exc})") from exc
    if not isinstance(data, dict):
        raise RecordError(f"it holds a {type(data).__name__} instead of a dict")
    record = migrate(data)
    models = record.get("models")
    if not isinstance(models, dict) or not all(isinstance(entry, dict) for entry in models.values()):
        raise RecordError("its models is no dict of entries")
    active = record.get("active")
    if active is not None and active not in models:
        raise RecordError(f"its active deployment {active!r} has no entry under models")
    return record


def check_deployment(deployment: str) -> str:
    """Return the id of a deployment, or raise RecordError when it could not be a file name and a key."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", deployment):
        raise RecordError(
            f"the deployment {deployment!r} is no usable id: use letters, digits, dots, underscores and hyphens,"
            " at most 200"
        )
    return deployment


def check_entry(entry: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the entry as plain JSON types, or raise RecordError naming the field that is missing or wrong."""
    try:
        result: dict[str, t.Any] = {key: fingerprints.plain(value, f"entry.{key}") for key, value in entry.items()}
    except fingerprints.FingerprintError as exc:
        raise RecordError(str(exc)) from exc
    for field, kind in ENTRY_FIELDS:
        if not isinstance(result.get(field), kind):
            raise RecordError(f"entry.{field} is missing or no {kind.__name__}")
    known = [device.get("id") if isinstance(device, dict) else None for device in result["devices"]]
    for index, place in enumerate(result["placement"]):
        where = f"entry.placement[{index}]"
        if not isinstance(place, dict) or place.get("device") not in known or place.get("device") is None:
            ids = ", ".join(map(str, known)) or "none"
            raise RecordError(f"{where} names no device of entry.devices (their ids are {ids})")
        layers = place.get("layers")
        if isinstance(layers, bool) or not isinstance(layers, int) or layers < 0:
            raise RecordError(f"{where}.layers is {layers!r}, which is no number of layers")
    if not result["placement"] or sum(place["layers"] for place in result["placement"]) == 0:
        raise RecordError("entry.placement puts no layer on any device")
    return result


def same_entry(one: t.Mapping[str, t.Any], other: t.Mapping[str, t.Any]) -> bool:
    """Return whether two entries say the same, whenever they were recorded."""
    return {**one, "recorded_at": None} == {**other, "recorded_at": None}


def with_entry(record: Record, deployment: str, entry: t.Mapping[str, t.Any] | None, active: bool, now: str) -> Record:
    """Return the record with the entry under the deployment.

    An entry that only differs in C(recorded_at) is left as it was; C(entry) None keeps the one that is there, which
    must exist. With C(active) the deployment becomes the one that is served; without, the served one stays.
    """
    models = dict(record["models"])
    before = models.get(deployment)
    if entry is None:
        if before is None:
            there = ", ".join(sorted(models)) or "none"
            raise RecordError(f"there is no entry for {deployment} to make active (there are {there}): tune it first")
    elif before is None or not same_entry(before, entry):
        models[deployment] = {**entry, "recorded_at": entry.get("recorded_at") or now}
    return {**record, "active": deployment if active else record.get("active"), "models": models}


def without_entry(record: Record, deployment: str) -> Record:
    """Return the record without the deployment; nothing is active when it was the active one."""
    models = {name: entry for name, entry in record["models"].items() if name != deployment}
    active = record.get("active")
    return {**record, "active": None if active == deployment else active, "models": models}


def superseded(before: Record, after: Record, deployment: str) -> dict[str, t.Any] | None:
    """Return the entry of the deployment that C(after) no longer has in this form, for the history."""
    old = before["models"].get(deployment)
    return None if old is None or after["models"].get(deployment) == old else old


def history_name(deployment: str, now: str, taken: t.Container[str]) -> str:
    """Return a file name for a superseded entry that is not taken: deployment, time, and a count within the second."""
    stamp = re.sub(r"[^0-9TZ]", "", now)
    count = 0
    while f"{deployment}@{stamp}-{count:03d}.json" in taken:
        count += 1
    return f"{deployment}@{stamp}-{count:03d}.json"


def to_prune(names: t.Iterable[str], deployment: str, keep: int) -> list[str]:
    """Return the oldest history files of the deployment beyond C(keep)."""
    own = sorted(name for name in names if name.startswith(f"{deployment}@") and name.endswith(".json"))
    return own[: max(0, len(own) - keep)]
