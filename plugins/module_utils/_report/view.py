# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Everything that the HTML page of a deployment shows, as text and bar widths. Private. Pure functions only."""

from __future__ import annotations

import json
import typing as t

from .._base.text import DASH, interval, less_time, mebibytes, number, percent, vector
from .._base.types import Json, Mapping
from . import connecting, deployments, made_by, rows, trend_rows, words
from .mode_rows import mode_rows
from .recorded import engine_name, model_name, prompt_tokens_of, when
from .served_rows import expectation_rows, served_power, served_tests
from .speculation_rows import speculation_rows, texts
from .untried import untried

View = Json

_VERDICTS: t.Final = {"no_difference": ": no difference that matters", "inconclusive": ": not settled"}


class Seen(t.NamedTuple):
    """What the host says beside the record; everything can be missing.

    C(server) is what llama_server_info returned, C(gpus) the fact mixed_gpu_gpus, C(machine) the C(host) of host_info,
    C(served) the stored results of llama_server_benchmark, C(recorded) what split_record returned with state=query.
    """

    server: Mapping | None = None
    gpus: Mapping | None = None
    machine: Mapping | None = None
    served: Mapping | None = None
    recorded: Mapping | None = None

    @property
    def devices(self) -> t.Sequence[Mapping]:
        """Return memory per device as the loaded server reports it; empty where it does not run."""
        ready = self.server is not None and self.server["state"] == "ready"
        return self.server["server"]["devices"] if ready and self.server else []


def report_view(
    entry: Mapping, seen: Seen, expectations: t.Sequence[Mapping], host: str, url: str, connect: str
) -> View:
    """Return everything that the page shows: no decision is left to the template.

    C(url) is where llama-server listens; C(connect) is what serving_proof said of another server.
    """
    decision = entry["decision"]
    tests = served_tests(seen.served)
    power, power_reason = served_power(seen.served)
    watts = ((seen.served or {}).get("power") or {}).get("watts")
    return {
        "host": host,
        "connection": connecting.connection(seen.server, url, host, connect),
        "chats": (seen.server or {}).get("chats"),
        "model": model_name(entry),
        "engine": engine_name(entry),
        "verdict": decision["verdict"].replace("_", " "),
        "sentence": words.verdict_words(entry),
        "why": decision.get("why") or "",
        "objective": words.objective_words(decision["objective"]),
        "later_stages": words.later_stages(decision),
        "tiles": _tiles(entry, tests),
        **_devices(entry, seen),
        "contexts": rows.context_rows(entry),
        "spare_context": rows.spare_context(entry),
        "untried": untried(entry),
        "deployments": deployments.rows(seen.recorded),
        "revalidations": trend_rows.rows(seen.recorded),
        "variables": made_by.variables(entry),
        "probe": rows.probe_rows(entry),
        "probe_warning": rows.probe_warning(entry),
        **_splits(entry),
        "served": [_served_row(test) for test in tests],
        "served_at": when((seen.served or {}).get("measured_at")),
        "power": power,
        "power_reason": power_reason,
        "expectations": [
            {**row, "range": f"{row['low']:g} to {row['high']:g}", "value": number(row["value"])}
            for row in expectation_rows(entry, tests, expectations, watts)
        ],
        "versions": _versions(seen),
        "serving": _flat(entry["serving"]),
        "parts": _flat(entry.get("fingerprint_parts") or {}),
        "fingerprint": entry["fingerprint"],
        "recorded_at": when(entry["recorded_at"]),
        "effort": words.effort_words(entry),
        "model_facts": _flat(entry["model"]),
    }


def _tiles(entry: Mapping, tests: t.Sequence[Mapping]) -> list[dict[str, str]]:
    """Return the large numbers at the top, as far as they are known."""
    decision = entry["decision"]
    tiles = []
    decode = next((test for test in tests if test["decode_tokens_per_second"]), None)
    if decode:
        label = f"served decode, after a {decode['prompt_tokens']} token prompt"
        tiles.append((number(decode["decode_tokens_per_second"]["mean"]), "tok/s", label))
    elif decision.get("decode_tokens_per_second"):
        tiles.append((number(decision["decode_tokens_per_second"]), "tok/s", "decode (bench)"))
    first = next((test for test in tests if test["ttft_ms"] and test["prompt_tokens"] >= 512), None)
    if first:
        label = f"to the first token, {first['prompt_tokens']} token prompt"
        tiles.append((number(first["ttft_ms"]["mean"]), "ms", label))
    if decision.get("gain_over_default_percent") is not None and decision["verdict"] != "only_choice":
        size, word, _interval = less_time(decision["gain_over_default_percent"])
        label = f"{word} time than {engine_name(entry)}'s default split{_VERDICTS.get(decision['verdict'], '')}"
        tiles.append((size, "%", label))
    most = rows.largest_context(entry)
    fits = "" if most is None else f"; up to {most} fit with this KV cache"
    tiles.append((str(entry["serving"]["context_size"]), "tokens", f"of context{fits}"))
    return [{"value": value, "unit": unit, "label": label} for value, unit, label in tiles]


def _devices(entry: Mapping, seen: Seen) -> View:
    """Return the devices, how the layers are split over them, and their memory."""
    decision = entry["decision"]
    memory = rows.memory_rows(entry, seen.devices)
    total = sum(decision["layers"])
    return {
        "devices": [
            {
                "device": device["device"],
                "id": device["id"],
                "backend": device.get("backend") or DASH,
                "description": device.get("description") or DASH,
                "total_mib": mebibytes(device.get("total_mib")),
                "free_mib": mebibytes(device.get("free_mib")),
                "budget_mib": mebibytes(device.get("budget_mib"), "none"),
            }
            for device in entry["devices"]
        ],
        "split": [
            {"device": row["device"], "layers": row["layers"], "percent": round(100.0 * row["layers"] / total, 2)}
            for row in memory
        ],
        "layers": total,
        "tensor_split": vector(decision["layers"]),
        "split_mode": decision["split_mode"],
        "memory": [
            {
                **row,
                **{key: mebibytes(row[key]) for key in row if key.endswith("_mib")},
                "bar": _bar(row),
            }
            for row in memory
        ],
        "loaded_known": any(row["loaded_mib"] is not None for row in memory),
        "state": seen.server["state"] if seen.server else "unknown",
    }


def _bar(row: Mapping) -> View:
    """Return the widths, in percent of the bar, of a device's memory: loaded parts, the plan and the limit."""
    full = max(
        [float(row[key]) for key in ("planned_mib", "loaded_mib", "limit_mib") if row[key] is not None]
        + ([float(row["total_mib"])] if row["total_mib"] and row["budget_mib"] is None else []),
        default=0.0,
    )
    parts = ("model", "kv", "compute", "planned", "limit")
    values = {name: row[f"{name}_mib"] for name in parts}
    return {
        name: round(100.0 * float(value) / full, 2) if value is not None and full else None
        for name, value in values.items()
    }


def _splits(entry: Mapping) -> View:
    """Return the measured splits, the fit, and the best split by objective."""
    decision = entry["decision"]
    fit = decision.get("fit") or {}
    none: list[float | None] = [None] * len(entry["devices"])
    costs = zip(
        entry["devices"],
        fit.get("decode_ms_per_layer") or none,
        fit.get("prefill_ms_per_layer") or none,
        strict=True,
    )
    return {
        "table": rows.table_rows(entry),
        "modes": mode_rows(entry),
        "speculation": speculation_rows(entry),
        "speculation_texts": texts(entry),
        "prompt_tokens": prompt_tokens_of(entry),
        "objective_name": decision["objective"]["name"],
        "best_by_objective": [
            (name, vector(layers)) for name, layers in (decision.get("best_by_objective") or {}).items() if layers
        ],
        "fit": [
            {"device": device["device"], "decode": number(decode), "prefill": number(prefill)}
            for device, decode, prefill in costs
            if fit
        ],
        "prefill_form": {
            "pipeline": "a pipeline",
            "serial": "serial: the devices do not overlap",
            "between": f"in between: the devices overlap by {number(100 * (fit.get('prefill_overlap') or 0))}%",
        }.get(fit.get("prefill_form") or ""),
        "residuals": {key: percent(fit.get(f"{key}_residual_percent")) for key in ("decode", "prefill")},
        "advice": list(decision.get("advice") or []),
    }


def _served_row(test: Mapping) -> View:
    """Return one served test with its quantities as text."""
    return {
        **{key: test[key] for key in ("name", "prompt_tokens", "generated_tokens", "skipped_reason", "sample_count")},
        "ttft": _spread(test["ttft_ms"]),
        "prompt_rate": _spread(test["prompt_tokens_per_second"]),
        "decode_rate": _spread(test["decode_tokens_per_second"]),
    }


def _spread(timing: Mapping | None) -> dict[str, str] | None:
    return {"mean": number(timing["mean"]), "range": interval(timing["low"], timing["high"])} if timing else None


def _versions(seen: Seen) -> list[tuple[str, str]]:
    """Return the versions of what serves."""
    build = (seen.server or {}).get("server", {}).get("build")
    gpus, machine = seen.gpus or {}, seen.machine or {}
    return [
        ("llama.cpp that serves", build or "unknown"),
        ("NVIDIA driver", gpus.get("driver_version") or "none"),
        ("CUDA of the driver", gpus.get("cuda_driver_version") or "none"),
        ("System", (machine.get("os") or {}).get("pretty_name") or "unknown"),
        ("Kernel", machine.get("kernel") or "unknown"),
    ]


def _flat(value: t.Any, path: str = "") -> list[tuple[str, str]]:
    """Flatten nested mappings into (dotted key, text) pairs, in order of keys; lists of plain values stay one line."""
    if isinstance(value, t.Mapping):
        pairs: list[tuple[str, str]] = []
        for key in sorted(value, key=str):
            pairs += _flat(value[key], f"{path}.{key}" if path else str(key))
        return pairs
    if isinstance(value, (list, tuple)):
        if any(isinstance(item, t.Mapping) for item in value):
            return [(path, json.dumps(item, sort_keys=True, ensure_ascii=False)) for item in value]
        return [(path, ", ".join("none" if item is None else str(item) for item in value) or "none")]
    if value is None:
        return [(path, "none")]
    return [(path, str(value).lower() if isinstance(value, bool) else str(value))]
