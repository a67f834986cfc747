# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a later revalidation compares with. Private to this collection. Pure functions only.

docs/data_formats.md describes the baseline; speed.py says how loads are compared.
"""

from __future__ import annotations

import json
import typing as t

from .._base import fingerprints
from .._split import placement
from . import speed

SCHEMA: t.Final = 1
REASONS: t.Final = ("tuned", "accepted")
#: Loads of the recorded split that a baseline has at least.
LEAST_LOADS: t.Final = 3

Json = dict[str, t.Any]
Dict = t.Mapping[str, t.Any]
TestKey = tuple[str, int, int, int]

_GPU_FIELDS = (
    "uuid",
    "name",
    "pci_bus_id",
    "power_limit_watts",
    "pcie_generation_max",
    "pcie_width",
    "memory_total_mib",
)


class BaselineError(ValueError):
    """A baseline that cannot be used; the message says why."""


def configuration(entry: Dict, build: str, gpus: Dict, host: Dict) -> Json:
    """Return everything in clear that can move the speed of a recorded split and is read without touching a device.

    C(entry) is the fact's, C(build) the key of the llama.cpp build in use, C(gpus) C(mixed_gpu_gpus), C(host) the
    C(host) of host_info.
    """
    return {
        "llama_cpp": build,
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
    }


# --- loads and their tests -------------------------------------------------------------------------------------------


def test_key(test: Dict) -> TestKey:
    """Return what makes two tests comparable, whatever their repetitions."""
    return (str(test["kind"]), int(test["n_prompt"]), int(test["n_gen"]), int(test["n_depth"]))


def test_name(key: TestKey) -> str:
    """Return the name of a test in tables: C(decode), or C(decode at depth 4096)."""
    return key[0] if not key[3] else f"{key[0]} at depth {key[3]}"


def samples(loads: t.Iterable[Dict], key: TestKey) -> list[list[float]]:
    """Return the samples in ms of one test, a list per load that has it and is ok."""
    found = []
    for load in loads:
        if load["status"] == "ok":
            found += [list(result["samples_ms"]) for result in load["results"] if test_key(result) == key]
    return found


def keys(loads: t.Iterable[Dict]) -> list[TestKey]:
    """Return the tests that any of the loads has, decode first."""
    return sorted({test_key(result) for load in loads for result in load["results"]})


def visible_percent(loads: t.Sequence[Dict], most_loads: int) -> dict[str, float | None]:
    """Return, by test, the smallest slowdown that a revalidation of C(most_loads) loads would find."""
    found = {}
    for key in keys(loads):
        own = samples(loads, key)
        found[test_name(key)] = speed.smallest_visible_percent(speed.noise(own), len(own), most_loads)
    return found


def wanted_tests(tests: t.Sequence[Dict], tuned_micro_batch: int, served_micro_batch: int) -> list[Json]:
    """Return the tests of a tuning as the chosen split is served: with its micro-batch where that is another."""
    if tuned_micro_batch == served_micro_batch:
        return [dict(test) for test in tests]
    return [
        {**test, "micro_batch_size": served_micro_batch} if test["kind"] == "prefill" else dict(test) for test in tests
    ]


def _as_served(load: Dict, tests: t.Sequence[Dict]) -> Json | None:
    """Return the load with the results of these tests alone, or None when one is missing."""
    kept = []
    for test in tests:
        size = test.get("micro_batch_size")
        own = [r for r in load["results"] if test_key(r) == test_key(test) and r.get("micro_batch_size") == size]
        if not own:
            return None
        kept.append({name: value for name, value in own[0].items() if name != "micro_batch_size"})
    return {**load, "results": kept}


def step(problem: Dict, decision: Dict, loads: t.Sequence[Dict], most_loads: int, tolerance_percent: float) -> Json:
    """Return how the baseline of a decision goes on: C({done, loads, reference, smallest_visible_percent, why}).

    C(loads) are those of the campaign; of them and of what is asked for here those of the decided split, as it is
    served, are the C(reference). More are wanted until a slowdown of C(tolerance_percent) could be seen, LEAST_LOADS at
    least and C(most_loads) at most. Raises ValueError when there can be no load.
    """
    if most_loads < 1:
        raise ValueError(f"a baseline needs at least one load, not {most_loads}")
    layers, mode = list(decision["layers"]), decision.get("split_mode", "layer")
    environment = decision.get("environment") or {}
    tests = wanted_tests(problem["tests"], problem["serving"]["micro_batch_size"], decision["micro_batch_size"])
    rows = [row for row in decision.get("table", []) if list(row["layers"]) == layers] if mode == "layer" else []
    disturbed = {number for row in rows for number in row.get("disturbed_loads", [])}
    reference: list[Json] = []
    numbers, failed = [0], None
    for load in loads:
        if list(load["layers"]) != layers or load.get("split_mode", "layer") != mode:
            continue
        numbers.append(int(load["load"]))
        if (load.get("environment") or {}) != environment or load.get("purpose") == "tensor_trial":
            continue
        if load["status"] == "ok":
            served = None if load["load"] in disturbed else _as_served(load, tests)
            reference += [served] if served is not None else []
        elif load.get("purpose") == "baseline":
            failed = load
    visible = visible_percent(reference, most_loads)
    name = "/".join(str(count) for count in layers)
    result: Json = {"done": True, "loads": [], "reference": reference, "smallest_visible_percent": visible}
    if failed is not None:
        return {**result, "why": f"{name} fails when it is measured once more: {failed['reason']}"}
    blind = [
        f"{test} {'unknown' if value is None else f'{value:.1f} %'}"
        for test, value in visible.items()
        if value is None or value > tolerance_percent
    ]
    if len(reference) < min(LEAST_LOADS, most_loads) or (blind and len(reference) < most_loads):
        number = max(numbers) + 1
        load = {
            "label": f"{name} load {number} (baseline)", "split_mode": mode, "layers": layers, "load": number,
            "purpose": "baseline", "tests": tests, "environment": environment,
        }  # fmt: skip
        why = f"{len(reference)} loads of {name} so far; " + (
            f"smallest slowdown that could be seen later: {', '.join(blind)}" if visible else "a baseline needs some"
        )
        return {**result, "done": False, "loads": [load], "why": why}
    seen = ", ".join(f"{test} {value:.1f} %" for test, value in visible.items() if value is not None)
    return {
        **result,
        "why": f"baseline of {len(reference)} loads of {name}: a later revalidation can see a slowdown of "
        f"{seen or 'nothing yet'}",
    }


# --- the record ------------------------------------------------------------------------------------------------------


def make(
    deployment: str,
    entry: Dict,
    build: str,
    gpus: Dict,
    host: Dict,
    loads: t.Sequence[Dict],
    reason: str,
    most_loads: int,
) -> Json:
    """Return a baseline; what only a loaded server tells (C(memory), C(served)) is added by complete.

    C(entry), C(build), C(gpus) and C(host) are as for configuration, C(loads) those of the recorded split as it is
    served, C(most_loads) the number that a later revalidation may measure.
    """
    return {
        "schema": SCHEMA,
        "deployment": deployment,
        "recorded_at": entry["recorded_at"],
        "reason": reason,
        "configuration": configuration(entry, build, gpus, host),
        "devices": [dict(device) for device in entry["devices"]],
        "loads": [dict(load) for load in loads],
        "device_probe": entry.get("device_probe"),
        "fit": entry["decision"].get("fit"),
        "memory": None,
        "served": None,
        "smallest_visible_percent": visible_percent(loads, most_loads),
    }


def memory(entry: Dict, server: Dict) -> list[Json] | None:
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


def complete(baseline: Dict, seen_memory: t.Sequence[Dict] | None, served: t.Sequence[Dict] | None) -> Json:
    """Return the baseline with what the loaded server said; what it knew before stays."""
    return {
        **baseline,
        "memory": baseline["memory"] if baseline["memory"] is not None else seen_memory,
        "served": baseline["served"] if baseline["served"] is not None else served,
    }


def check(data: t.Any) -> Json:
    """Return a baseline as plain JSON types. Raises BaselineError for what is none, or of another schema."""
    if not isinstance(data, t.Mapping):
        raise BaselineError(f"it holds a {type(data).__name__} instead of a dict")
    schema = data.get("schema")
    if schema != SCHEMA:
        raise BaselineError(f"it has schema {schema!r}, and this version of the collection reads {SCHEMA}")
    wanted = {
        "deployment": str, "recorded_at": str, "configuration": dict, "loads": list,
        "devices": list,
        "smallest_visible_percent": dict,
    }  # fmt: skip
    plain = t.cast(Json, fingerprints.plain(data, "baseline"))
    for field, kind in wanted.items():
        if not isinstance(plain.get(field), kind):
            raise BaselineError(f"its {field} is missing or no {kind.__name__}")
    for field in ("device_probe", "fit", "memory", "served"):
        if field not in plain:
            raise BaselineError(f"its {field} is missing")
    if not all(isinstance(load, dict) and {"status", "results", "layers"} <= set(load) for load in plain["loads"]):
        raise BaselineError("one of its loads has no status, layers and results")
    return plain


def parse(text: str) -> Json:
    """Return the baseline in a file. Raises BaselineError when it is damaged."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise BaselineError(f"it holds no whole JSON ({error})") from error
    return check(data)
