# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One recorded deployment, an entry of the host's fact. Private to this collection. Pure functions only.

docs/data_formats.md describes an entry. The chosen split stands in it once, as C(placement) by the devices' ids.
"""

from __future__ import annotations

import typing as t

from .._base import fingerprints
from .._base.types import Json, Mapping
from . import allreduce, device_list, engines, expert_placement, fallbacks, model_weights, network_links, tuning_key
from . import placement as placements

#: What an entry takes of the model that was planned for.
_OF_MODEL: t.Final = ("size_bytes", "block_count", "architecture", "file_type", "expert_count")
#: What a planner's decision says that an entry holds in its own fields.
_STORED_ONCE: t.Final = ("layers", "split_mode", "micro_batch_size", "environment", "experts_in_ram")
#: What a server is told of speculation, TabbyAPI of cache_mode and memory_gb; and what a draft keeps in RAM.
_OF_SPECULATION: t.Final = (
    "kind", "draft", "path", "device", "n_max", "cache_type_k", "cache_type_v", "cache_mode", "memory_gb", "ram_bytes",
)  # fmt: skip


class Tuning(t.TypedDict):
    """A finished tuning, from which an entry is made."""

    model: Mapping  # id, path, sha256
    problem: Mapping
    plan: Mapping  # the last answer of the planner: decision, feasible
    loads: t.Sequence[Mapping]
    rpc_endpoints: t.Sequence[str]
    dry_run: Mapping | None
    device_probe: Mapping | None
    probe_settings: Mapping | None  # model_path, serving, tests: how to repeat the probe
    fingerprint_parts: Mapping
    campaign: str


def build(tuning: Tuning) -> Json:
    """Return the entry of a finished tuning, without C(recorded_at).

    Raises KeyError naming a field that is missing, ValueError when no load of an ExLlama placed the chosen layers.
    """
    problem, decision = tuning["problem"], tuning["plan"]["decision"]
    devices, layers, parts = problem["devices"], decision["layers"], tuning["fingerprint_parts"]
    cards = engines.cuda_environment(device_list.cuda_ids(devices))
    experts = expert_placement.from_json(layers, decision.get("experts_in_ram"))
    entry: Json = {
        "model": {
            **tuning["model"],
            **{name: problem["model"][name] for name in _OF_MODEL},
            "blocks_fingerprint": model_weights.blocks_fingerprint(problem["model"]),
        },
        "serving": expert_placement.of_decision(problem["serving"], decision),
        "environment": {**cards, **(decision.get("environment") or {})},
        "devices": list(devices),
        "placement": placements.by_id(devices, layers),
        "split_mode": decision["split_mode"],
        "rpc_endpoints": list(tuning["rpc_endpoints"]),
        "decision": {name: value for name, value in decision.items() if name not in _STORED_ONCE},
        "dry_run": tuning["dry_run"],
        "device_probe": tuning["device_probe"] and {**tuning["device_probe"], **(tuning["probe_settings"] or {})},
        "feasible": tuning["plan"]["feasible"],
        "fingerprint": fingerprints.fingerprint(parts),
        "fingerprint_parts": parts,
        "campaign": tuning["campaign"],
    }
    served = (decision.get("speculation") or {}).get("served")
    if served:
        entry["speculation"] = {name: served[name] for name in _OF_SPECULATION if name in served}
    if experts:
        planned = {"ram_bytes": expert_placement.ram_bytes(problem["model"], experts)}
        entry["experts_in_ram"] = {**(expert_placement.as_json(experts) or {}), **planned}
    without_lenders = fallbacks.of_tuning(problem, decision, tuning["rpc_endpoints"])
    if without_lenders:
        entry["fallbacks"] = without_lenders
    protocol = network_links.protocol((decision.get("network") or {}).get("links") or {})
    if protocol:
        entry["rpc_protocol"] = protocol
    exllama = engines.of(entry["serving"]).family == "exllama"
    return {**entry, **_of_exllama(decision, tuning["loads"])} if exllama else entry


def _of_exllama(decision: Mapping, loads: t.Sequence[Mapping]) -> Json:
    """Return what the load that placed the layers was told and what each card held then."""
    layers, environment = list(decision["layers"]), decision.get("environment") or {}
    for load in reversed(loads):
        same = (load["split_mode"], load.get("environment") or {}) == (decision["split_mode"], environment)
        if load.get("status") == "ok" and same and list(load["layers"]) == layers and "gpu_split_gb" in load:
            # in split mode tensor how cards add up, as exllamav2_tensor_parallel has it
            shared = allreduce.asked(load) if decision["split_mode"] == "tensor" else ""
            return {"gpu_split_gb": load["gpu_split_gb"], "tensor_parallel": shared, "loaded": load["loaded"]}
    raise ValueError(f"no load placed the layers {layers}, so its gpu_split is not known")


class Renewal(t.TypedDict):
    """A configuration in which a recorded split still holds."""

    build: str | None  # key of the llama.cpp build
    rpc_protocol: str  # that this build speaks to lenders, as major.minor; empty where it does not say
    gpus: Mapping  # the fact mixed_gpu_gpus
    extra: Mapping  # replaces the recorded one unless it is empty
    device_probe: Mapping | None  # of today; None keeps the recorded one
    allreduce: t.NotRequired[Mapping | None]  # what the server adds up with; None keeps the recorded one


def renew(entry: Mapping, renewal: Renewal) -> Json:
    """Return the entry as it holds in another configuration, without C(recorded_at).

    How a revalidation repeats the device probe stays as recorded. Raises KeyError naming a field that is missing.
    """
    probe = entry.get("device_probe")
    if renewal["device_probe"]:
        probe = {**(probe or {}), **renewal["device_probe"]}
    cards, before = renewal["gpus"], entry["fingerprint_parts"]
    parts = tuning_key.renewed(
        before, renewal["build"], cards["driver_version"], cards["gpus"], renewal["extra"] or {}
    )
    entry = allreduce.with_seen(entry, renewal.get("allreduce"))
    kept = {name: value for name, value in entry.items() if name != "recorded_at"}
    if "llama_cpp" in tuning_key.changed(before, parts) and kept.pop("rpc_protocol", "") and renewal["rpc_protocol"]:
        kept["rpc_protocol"] = renewal["rpc_protocol"]
    return {
        **kept,
        "fingerprint": fingerprints.fingerprint(parts),
        "fingerprint_parts": parts,
        "device_probe": probe,
    }


def layers(entry: Mapping) -> list[int]:
    """Return the recorded split as layer counts in the order of the entry's devices."""
    return [int(place["layers"]) for place in entry["placement"]]


def served_tests(entry: Mapping) -> list[Json]:
    """Return the tests that measure the recorded placement as it is served.

    With experts in RAM a micro-batch may be larger than the prompt of the tuning's tests, which then are longer.
    """
    tests = entry["decision"].get("tests") or entry["fingerprint_parts"]["tests"]
    return [{name: value for name, value in test.items() if name != "micro_batch_size"} for test in tests]


def expand(entry: Mapping) -> Json:
    """Return the entry with a C(decision) as the planner made it: layers, split mode and micro-batch are in it."""
    return {
        **entry,
        "decision": {
            **entry["decision"],
            "layers": layers(entry),
            "split_mode": entry["split_mode"],
            "micro_batch_size": entry["serving"].get("micro_batch_size"),
            **({"experts_in_ram": entry["experts_in_ram"]} if "experts_in_ram" in entry else {}),
        },
    }
