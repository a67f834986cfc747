# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What makes a tuning run again. Private to this collection. Pure functions only.

The parts are everything that can change the result of a tuning and is read without touching a device. They are recorded
in clear; their fingerprint decides. A revalidation asks the same functions what a later tuning would compute.
"""

from __future__ import annotations

import typing as t

from .._base import fingerprints
from .._base.types import Json, Mapping
from . import engines


class Inputs(t.TypedDict, total=False):
    """What a tuning is given. The last three are not part of every tuning."""

    engine: str
    build: str  # key of the engine's build
    model_sha256: str
    driver_version: str | None
    gpus: t.Sequence[Mapping]  # of gpu_facts, all fields
    rpc_endpoints: t.Sequence[str]
    serving: Mapping
    split_modes: t.Sequence[str]
    micro_batches: t.Sequence[int]
    tensor_allreduce: t.Sequence[str]
    objective: Mapping
    tests: t.Sequence[Mapping]
    budgets_mib: Mapping
    reserve_mib: int
    environment: Mapping  # what the inventory adds
    extra: Mapping
    speculation: Mapping  # kinds, drafts by id with their sha256, texts, tokens of each answer
    experts_in_ram: Mapping  # where it is not the default
    model_headers_sha256: str  # of an EXL model: a folder has no hash of its own


#: Names of Inputs that are parts as they are.
_AS_GIVEN: t.Final = (
    "model_sha256",
    "driver_version",
    "rpc_endpoints",
    "serving",
    "split_modes",
    "micro_batches",
    "tensor_allreduce",
    "objective",
    "tests",
    "budgets_mib",
    "reserve_mib",
    "environment",
    "extra",
)
#: What a card contributes: another slot or another power limit can move the best split.
_OF_GPU: t.Final = ("id", "pci_bus_id", "power_limit_watts")
#: Parts of a tuning that the probe of each device alone depends on as well.
OF_PROBE: t.Final = ("llama_cpp", "driver_version", "gpus", "rpc_endpoints", "environment", "extra")


def parts(given: Inputs) -> Json:
    """Return the parts of a tuning. Raises KeyError naming a missing input, UserError for an engine."""
    found: Json = {name: t.cast(Mapping, given)[name] for name in _AS_GIVEN}
    found["gpus"] = _gpus(given["gpus"])
    if given.get("experts_in_ram"):
        found["experts_in_ram"] = given["experts_in_ram"]
    engine = engines.named(given["engine"])
    found[engine.build_part] = given["build"]
    if engine.family == "exllama":
        return {**found, "engine": engine.name, "model_headers_sha256": given["model_headers_sha256"]}
    return {**found, "speculation": given["speculation"]}


def renewed(
    recorded: Mapping, build: str | None, driver_version: str | None, gpus: t.Sequence[Mapping], extra: Mapping
) -> Json:
    """Return what a tuning would compute now: recorded settings, and the host as it is.

    C(extra) replaces the recorded C(extra) unless it is empty. An ExLlama keeps to the cards that it was tuned with.
    """
    engine = engines.named(recorded.get("engine", engines.DEFAULT))
    if engine.family == "exllama":
        present = {gpu["id"]: gpu for gpu in gpus}
        gpus = [present[gpu["id"]] for gpu in recorded["gpus"] if gpu["id"] in present]
    now: Json = {**recorded, engine.build_part: build, "driver_version": driver_version, "gpus": _gpus(gpus)}
    return {**now, "extra": dict(extra)} if extra else now


def probe_parts(of_tuning: Mapping, model_sha256: str, ids: t.Sequence[str], serving: Mapping, tests: t.Any) -> Json:
    """Return the parts of the probe of each device alone, whatever model is tuned.

    C(model_sha256), C(serving) and C(tests) are those of the probe, C(ids) those of the devices in order.
    """
    return {
        **{name: of_tuning[name] for name in OF_PROBE if name in of_tuning},
        "model_sha256": model_sha256,
        "devices": list(ids),
        "serving": serving,
        "tests": tests,
    }


def changed(before: Mapping, now: Mapping) -> list[str]:
    """Return the names of the parts that differ, in alphabetical order."""
    one, other = ({name: fingerprints.canonical(value) for name, value in side.items()} for side in (before, now))
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def due(entry: Mapping | None, deployment: str, now: Mapping, retune: bool) -> str | None:
    """Return in one sentence why a deployment has to be tuned, or None when the recorded split still holds.

    C(entry) is what is recorded for it, C(now) the parts of today.
    """
    if not entry:
        return f"nothing is recorded for {deployment}"
    if retune:
        return "a retune was asked for"
    if entry["fingerprint"] == fingerprints.fingerprint(now):
        return None
    names = changed(entry["fingerprint_parts"], now)
    return f"{', '.join(names) or 'the fingerprint'} changed since {deployment} was measured"


def _gpus(gpus: t.Sequence[Mapping]) -> list[Json]:
    return [{name: gpu[name] for name in _OF_GPU if name in gpu} for gpu in gpus]
