# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The host's recorded splits. Private to this collection. Pure functions only.

docs/data_formats.md describes the record: schema, active, and one entry per deployment under models.
"""

from __future__ import annotations

import re
import typing as t

from .._base import fingerprints, json_state
from .._base.errors import UserError
from .._base.fields import NUMBER, check_shape
from .._base.types import Json, Mapping
from . import engines
from .types import Entry

SCHEMA: t.Final = 3
PATH: t.Final = "/etc/ansible/facts.d/mixed_gpu.fact"
Record = Json
_TIMES: t.Final = (None, {"mean?": (None, *NUMBER), "low?": (None, *NUMBER), "high?": (None, *NUMBER)})
_FIT: t.Final = {
    "decode_ms_per_layer?": (None, [NUMBER]), "prefill_ms_per_layer?": (None, [NUMBER]), "error?": NUMBER,
    "average_layer?": {"weights_bytes": NUMBER, "cache_bytes": NUMBER},
}  # fmt: skip
_TEST: t.Final = {"kind": str, "n_prompt": int, "n_gen": int, "n_depth": int}
#: What readers take of an entry without looking twice.
_ENTRY: t.Final = {
    "recorded_at?": str,
    "model": {"id?": str, "name?": (None, str), "path": str, "sha256": (None, str)},
    "serving": {
        "context_size?": int, "parallel_slots?": int, "batch_size?": int, "micro_batch_size?": int, "kv_unified?": bool,
        "flash_attention?": str, "cache_type_k?": str, "cache_type_v?": str, "cache_mode?": str,
    },
    "environment": {str: str},
    "devices": [{"id": str, "device": str, "backend": str, "description?": (None, str)}],
    "placement": [{"id": str, "layers": int}], "split_mode": str, "rpc_endpoints": [str],
    "fingerprint": str, "campaign": str,
    "decision": {
        "verdict?": str, "why?": str, "best_by_objective?": (None, {str: (None, [int])}),
        "default_layers?": (None, [int]), "mib?": (None, [NUMBER]), "headroom_mib?": (None, [NUMBER]),
        "gain_interval_percent?": (None, [(None, *NUMBER)]), "advice?": (None, [str]), "fit?": (None, _FIT),
        "table?": (None, [{
            "layers?": [int], "status?": str,
            "decode_ms_per_token?": _TIMES, "prefill_ms?": _TIMES, "objective_ms?": _TIMES,
        }]),
    },
    "feasible?": (None, [{"layers?": [int], "mib?": [NUMBER], "headroom_mib?": [NUMBER]}]),
    "fingerprint_parts": {
        "driver_version?": (None, str), "tests": [_TEST], "environment?": {},
        "gpus?": [{"id?": str, "pci_bus_id?": (None, str)}],
    },
    "fallbacks?": (None, [{
        "absent": [str], "rpc_endpoints": [str], "placement": (None, [{"id": str, "layers": int}]),
        "context_size": (None, int), "mib": (None, [NUMBER]), "slower_percent": (None, *NUMBER), "why": str,
    }]),
    "device_probe?": (None, {"devices": [{"id": str}], "model_path?": str, "tests?": [_TEST]}),
    "experts_in_ram?": (None, {"ram_bytes?": int}),
    "speculation?": (None, {
        "kind?": str, "draft?": str, "path?": (None, str), "device?": (None, str), "n_max?": int, "ram_bytes?": int,
    }),
    "rpc_protocol?": str,
    "loaded?": (None, [{}]),
}  # fmt: skip


class Found(t.TypedDict):
    """The answer of find: the entry, or C(why) there is none to be used."""

    available: bool
    deployment: str | None
    entry: Entry | None
    engine: str | None
    family: str | None
    unit: str | None
    active: str | None
    deployments: list[str]
    why: str | None


def empty() -> Record:
    """Return the record of a host on which nothing was tuned."""
    return {"schema": SCHEMA, "active": None, "models": {}}


def _check(record: Record) -> None:
    models = record.get("models")
    if not isinstance(models, dict) or not all(isinstance(entry, dict) for entry in models.values()):
        raise UserError("its models is no dict of entries")
    for name, entry in models.items():
        check_entry(entry, f"models.{name}")
    if "active" not in record:
        raise UserError("its active is missing")
    active = record["active"]
    if active is not None and (not isinstance(active, str) or active not in models):
        raise UserError(f"its active deployment {active!r} has no entry under models")


FORM: t.Final = json_state.Form(
    SCHEMA, "run the site playbook again: the measurements are kept and reused", _check
)


def find(record: Record, path: str, deployment: str = "", engine: str = "") -> Found:
    """Return the entry of C(deployment), or of the active one when the name is empty.

    C(engine) is C(llama_cpp), C(exllama) (either of its generations), or empty for any. C(path) is the fact file, for
    the sentence C(why).
    """
    models, active = record["models"], record["active"]
    name = deployment or active or ""
    known = ", ".join(sorted(models)) or "nothing"
    entry = models.get(name)
    tuned_with = engines.of(entry["serving"]) if entry else None
    why = None
    if not models:
        why = f"{path} records no deployment: run the site playbook, which measures and records a split"
    elif not name:
        why = f"{path} names no active deployment and holds {known}: run the site playbook, or name a deployment"
    elif entry is None:
        why = f"the deployment {name} is not in {path}, which holds {known}: tune it first, or correct its name"
    elif engine and tuned_with is not None and tuned_with.family != engine:
        why = (
            f"the deployment {name} was tuned with {tuned_with.display}, and a deployment of"
            f" {engines.FAMILIES[engine]} is needed here: run the site playbook with mixed_gpu_engine"
            f" {engines.in_family(engine)[0].site_engine}, or name another deployment"
        )
    return {
        "available": why is None,
        "deployment": name or None,
        "entry": entry if why is None else None,
        "engine": tuned_with.name if tuned_with else None,
        "family": tuned_with.family if tuned_with else None,
        "unit": tuned_with.unit if tuned_with else None,
        "active": active,
        "deployments": sorted(models),
        "why": why,
    }


def served_path(record: Record) -> str | None:
    """Return the path of the active deployment's model, None where nothing is served."""
    return record["models"].get(record["active"], {}).get("model", {}).get("path")


def check_deployment(deployment: str) -> str:
    """Return the id of a deployment, or raise UserError when it could not be a file name and a key."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", deployment):
        raise UserError(
            f"the deployment {deployment!r} is no usable id: use letters, digits, dots, underscores and hyphens,"
            " at most 200"
        )
    return deployment


def check_entry(entry: Mapping, where: str = "entry") -> Entry:
    """Return the entry as plain JSON types, or raise UserError naming the field that is missing or wrong."""
    result: Json = {key: fingerprints.plain(value, f"{where}.{key}") for key, value in entry.items()}
    check_shape(where, result, _ENTRY)
    try:
        engines.of(result["serving"])
    except UserError as exc:
        raise UserError(f"{where}.serving names an {exc}") from exc
    ids, placed = ([row["id"] for row in result[field]] for field in ("devices", "placement"))
    if ids != placed:
        raise UserError(f"{where}.placement is of {placed} and {where}.devices of {ids}: it needs one row per device")
    layers = [place["layers"] for place in result["placement"]]
    if not any(layers):
        raise UserError(f"{where}.placement puts no layer on any device")
    _check_split(f"{where}.placement", layers, len(ids), None)
    total = None if result["split_mode"] == "tensor" else sum(layers)  # of tensor mode it is in shares
    for name, rows in (("feasible", result.get("feasible")), ("decision.table", result["decision"].get("table"))):
        for index, row in enumerate(rows or []):
            _check_split(f"{where}.{name}[{index}].layers", row.get("layers", []), len(ids), total)
    return t.cast(Entry, result)


def _check_split(where: str, layers: t.Sequence[int], count: int, total: int | None) -> None:
    """Raise UserError for what is no split over C(count) devices of C(total) layers, where that is known."""
    if len(layers) != count or min(layers) < 0 or sum(layers) != (total or sum(layers)):
        layered = "" if total is None else f" of {total} layers"
        raise UserError(f"{where} is {list(layers)}, which is no split{layered} over {count} devices")


def repeatable_probe(entry: Mapping) -> Mapping | None:
    """Return the device probe of an entry where it says how each device was measured alone, else None."""
    probe = entry.get("device_probe") or {}
    return probe if probe.keys() >= {"model_path", "tests"} else None


def same_entry(one: Mapping, other: Mapping) -> bool:
    """Return whether two entries say the same, whenever they were recorded."""
    return {**one, "recorded_at": None} == {**other, "recorded_at": None}


def with_entry(record: Record, deployment: str, entry: Mapping | None, active: bool, now: str) -> Record:
    """Return the record with the entry under the deployment.

    An entry that only differs in C(recorded_at) is left as it was; C(entry) None keeps the one that is there, which
    must exist. With C(active) the deployment becomes the one that is served; without, the served one stays.
    """
    models = dict(record["models"])
    before = models.get(deployment)
    if entry is None:
        if before is None:
            there = ", ".join(sorted(models)) or "none"
            raise UserError(f"there is no entry for {deployment} to make active (there are {there}): tune it first")
    elif before is None or not same_entry(before, entry):
        models[deployment] = {**entry, "recorded_at": entry.get("recorded_at") or now}
    return {**record, "active": deployment if active else record.get("active"), "models": models}


def without_entry(record: Record, deployment: str) -> Record:
    """Return the record without the deployment; nothing is active when it was the active one."""
    models = {name: entry for name, entry in record["models"].items() if name != deployment}
    active = record.get("active")
    return {**record, "active": None if active == deployment else active, "models": models}


def superseded(before: Record, after: Record, deployment: str) -> Json | None:
    """Return the entry of the deployment that C(after) no longer has in this form, for the history."""
    old = before["models"].get(deployment)
    return None if old is None or after["models"].get(deployment) == old else old
