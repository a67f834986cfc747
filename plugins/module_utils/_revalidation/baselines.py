# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a later revalidation compares with. Private to this collection. Pure functions only.

docs/data_formats.md describes the baseline; _split/speed.py says how loads are compared.
"""

from __future__ import annotations

import typing as t

from .._base import fingerprints, json_state
from .._base.errors import UserError
from .._base.fields import NUMBER, Positive, check_shape
from .._base.types import Json, Mapping
from .._split import acceptance, allreduce, engines, placement
from .._split.load_tests import visible_percent

SCHEMA: t.Final = 1
REASONS: t.Final = ("tuned", "accepted")


_GPU_FIELDS = (
    "id",
    "name",
    "pci_bus_id",
    "power_limit_watts",
    "pcie_generation_max",
    "pcie_width",
    "memory_total_mib",
)


def configuration(
    entry: Mapping, build: str | None, gpus: Mapping, host: Mapping, versions: Mapping | None = None,
    lenders: Mapping | None = None,
) -> Json:
    """Return everything in clear that can move the speed of a recorded split and is read without touching a device.

    C(entry) is the fact's, C(build) the key of the engine's build in use, C(gpus) C(mixed_gpu_gpus), C(host) the
    C(host) of host_info, C(versions) what split_tuning_info says of an ExLlama's build, C(lenders) what
    lent_devices.configuration returned of hosts that lend devices.
    """
    engine = engines.of(entry["serving"])
    split: Json = {"gpu_split_gb": list(entry["gpu_split_gb"])} if "gpu_split_gb" in entry else {}
    shared = allreduce.recorded(entry)
    if shared is not None:
        split["allreduce"] = allreduce.words(shared)
    if entry.get("speculation"):
        split["speculation"] = dict(entry["speculation"])
    return {
        engine.build_part: build,
        **(versions or {}),
        **split,
        "model_sha256": entry["model"]["sha256"],
        "driver_version": gpus.get("driver_version"),
        "cuda_driver_version": gpus.get("cuda_driver_version"),
        "kernel": host.get("kernel"),
        "firmware": host.get("firmware"),
        "gpus": [{name: gpu.get(name) for name in _GPU_FIELDS} for gpu in gpus.get("gpus", [])],
        "rpc_endpoints": list(entry["rpc_endpoints"]),
        "serving": dict(entry["serving"]),
        "split_mode": entry["split_mode"],
        "placement": [dict(place) for place in entry["placement"]],
        "environment": dict(entry.get("environment") or {}),
        **({"lenders": dict(lenders)} if lenders else {}),
    }


# --- the record ------------------------------------------------------------------------------------------------------


def make(
    deployment: str,
    entry: Mapping,
    build: str,
    gpus: Mapping,
    host: Mapping,
    loads: t.Sequence[Mapping],
    reason: str,
    most_loads: int,
    recorded_at: str = "",
    versions: Mapping | None = None,
    lenders: Mapping | None = None,
) -> Json:
    """Return a baseline; what only a loaded server tells (C(memory), C(served), C(acceptance)) is added by complete.

    C(entry), C(build), C(gpus), C(host), C(versions) and C(lenders) are as for configuration, C(loads) those of the
    recorded split as it is served, C(most_loads) the number that a later revalidation may measure, C(recorded_at) when
    they were measured unless that is when the entry was recorded.
    """
    return {
        "schema": SCHEMA,
        "deployment": deployment,
        "recorded_at": recorded_at or entry["recorded_at"],
        "reason": reason,
        "configuration": configuration(entry, build, gpus, host, versions, lenders),
        "devices": [dict(device) for device in entry["devices"]],
        "loads": [dict(load) for load in loads],
        "device_probe": entry.get("device_probe"),
        "fit": entry["decision"].get("fit"),
        "memory": loaded(entry, loads),
        "served": None,
        "answer": None,
        "acceptance": None,
        "smallest_visible_percent": visible_percent(loads, most_loads),
    }


def loaded(entry: Mapping, loads: t.Sequence[Mapping]) -> list[Json] | None:
    """Return what each card held in the last load that says it, beside the plan, as C(memory); None of llama.cpp.

    The worker of an ExLlama tells it; TabbyAPI does not.
    """
    cards = next((load["loaded"] for load in reversed(loads) if load.get("loaded")), None)
    if cards is None:
        return None
    said = dict(zip([device["id"] for device in entry["devices"]], cards, strict=True))
    return [
        {
            "id": plan["id"],
            "planned_mib": plan["mib"],
            "loaded_mib": said[plan["id"]]["used_mib"],
            "free_mib": said[plan["id"]]["free_mib"],
        }
        for plan in placement.used_devices(entry)
    ]


def memory(entry: Mapping, server: Mapping) -> list[Json] | None:
    """Return what a loaded server says of each device's memory, beside the plan; None while it says nothing.

    C(server) is llama_server_info's C(server). What a device does not say is None.
    """
    if not server.get("complete"):
        return None
    said = {device[name]: device for device in server["devices"] for name in ("device", "id")}
    rows = []
    for plan in placement.used_devices(entry):
        own = said.get(plan["device"] if plan["backend"] == "CUDA" else plan["id"], {})
        rows.append({
            "id": plan["id"],
            "planned_mib": plan["mib"],
            "loaded_mib": own.get("total_mib"),
            "free_mib": own.get("free_mib"),
        })  # fmt: skip
    return rows


def complete(
    baseline: Mapping,
    seen_memory: t.Sequence[Mapping] | None,
    served: t.Sequence[Mapping] | None,
    answer: str | None,
    right: Mapping | None,
) -> Json:
    """Return the baseline with what the loaded server said; what it knew before stays.

    C(right) is C(acceptance) of draft_acceptance_info.
    """
    said = {"memory": seen_memory, "served": served, "answer": answer, "acceptance": right}
    return {**baseline, **{name: new if baseline[name] is None else baseline[name] for name, new in said.items()}}


_NUMBER: t.Final = (None, *NUMBER)
_CARD: t.Final = {"id": str, "name": (None, str), "power_limit_watts?": _NUMBER, "pcie_width?": (None, int)}
_MOST: t.Final = (None, {"max": NUMBER})
_SHAPE: t.Final = {
    "deployment": str, "recorded_at": str, "devices": [{"id": str}],
    "configuration": {
        "gpus": [_CARD], "serving": {}, "lenders?": {str: {"driver_version": (None, str), "cards": [_CARD]}},
        "speculation?": (None, {}),
    },
    "loads": [{
        "status": str, "layers": [int],
        "results": [{"kind": str, "n_prompt": int, "n_gen": int, "n_depth": int, "samples_ms": [Positive]}],
        "conditions?": (None, {str: {
            "pcie_generation?": _MOST, "pcie_width?": _MOST, "throttle_reasons?": (None, [str]),
        }}),
        "answers?": (None, {"text": str, "nats_per_token": _NUMBER, "tokens": [int]}),
    }],
    "smallest_visible_percent": {str: _NUMBER}, "fit": (None, {}),
    "device_probe": (None, {"devices": [{
        "id": str, "prefill_tokens_per_second?": (None, Positive),
        "decode_ms_per_token?": (None, {"median": Positive, "low": Positive, "high": Positive}),
    }]}),
    "memory": (None, [{"id": str, "loaded_mib": _NUMBER, "free_mib": _NUMBER}]),
    "served": (None, [{"name": str, "samples": [{
        "prompt_tokens_per_second?": _NUMBER, "decode_tokens_per_second?": _NUMBER,
    }]}]),
    "answer": (None, str),
    "acceptance": (None, {"texts": str, "rows": [{"drafted": int, "accepted": int, "drafts": int}]}),
}  # fmt: skip


def _check(data: Json) -> None:
    check_shape("", data, _SHAPE)
    for index, load in enumerate(data["loads"]):
        for at, result in enumerate(load["results"]):
            if not result["samples_ms"]:
                raise UserError(f"loads[{index}].results[{at}].samples_ms is empty")


FORM: t.Final = json_state.Form(
    SCHEMA, "make a new baseline with the playbook revalidate and -e accept=true", _check
)


def path(state_dir: str, deployment: str) -> str:
    """Return the file of a deployment's baseline."""
    return f"{state_dir}/baselines/{deployment}.json"


def checked(data: t.Any) -> Json:
    """Return a baseline as plain JSON types. Raises UserError for what is none."""
    plain = t.cast(Json, fingerprints.plain(data, "baseline"))
    _check(plain)
    return plain


def incomplete(baseline: Mapping | None) -> bool:
    """Return whether a baseline lacks what only a loaded server says."""
    if baseline is None:
        return False
    lacks_acceptance = acceptance.comparable(baseline["configuration"]) and baseline["acceptance"] is None
    return baseline["memory"] is None or baseline["served"] is None or lacks_acceptance
