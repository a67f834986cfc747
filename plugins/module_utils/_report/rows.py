# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rows of the tables of the report: memory, each device alone, measured splits. Private. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.text import DASH, interval, number
from .._base.types import Json, Mapping
from .._planner import context_table
from .._split import placement
from .recorded import device_label, is_chosen, is_default, rate_of, row_name, timing_of


def memory_rows(entry: Mapping, server_devices: t.Sequence[Mapping] | None) -> list[Json]:
    """Return per device, in MiB: planned, the loaded server's own model, KV and compute buffers, free when planned.

    C(limit_mib) is what the plan could use at most: the free memory, or the device's budget where that is smaller.
    C(left_mib) is what of it the loaded server leaves free.
    """
    # The server numbers the CUDA cards that it is shown, so its names need not be those of the plan.
    serving_names = {device["id"]: device["device"] for device in placement.used_devices(entry)}
    loaded: dict[t.Any, Mapping] = {}
    # of an ExLlama, what the card held in the load that was measured: weights, cache and scratch space are not told
    # apart
    measured = [
        {"id": device["id"], "model_mib": card["used_mib"]}
        for device, card in zip(entry["devices"], entry.get("loaded") or (), strict=False)
    ]
    for device in server_devices or measured:
        loaded.setdefault(device.get("id"), device)
        loaded.setdefault(device.get("device"), device)
    rows = []
    decision = entry["decision"]
    for index, device in enumerate(entry["devices"]):
        seen = loaded.get(device["id"]) or loaded.get(serving_names.get(device["id"]))
        parts = {key: (seen or {}).get(key) for key in ("model_mib", "kv_mib", "compute_mib")}
        known = [float(value) for value in parts.values() if value is not None]
        limits = [value for value in (device.get("free_mib"), device.get("budget_mib")) if value is not None]
        planned = decision["mib"][index] if decision.get("mib") else None
        loaded_mib = sum(known) if known else None
        limit_mib = min(limits) if limits else None
        rows.append(
            {
                "device": device["device"],
                "description": device.get("description") or "",
                "layers": decision["layers"][index],
                "planned_mib": planned,
                "loaded_mib": loaded_mib,
                **parts,
                "budget_mib": device.get("budget_mib"),
                "total_mib": device.get("total_mib"),
                "limit_mib": limit_mib,
                "left_mib": limit_mib - loaded_mib if limit_mib is not None and loaded_mib is not None else None,
            }
        )
    return rows


# --- contexts ---


def context_rows(entry: Mapping) -> Json | None:
    """Return heads and cells of the table of contexts, with the source of its speeds; None where there is none.

    A row of three cells does not fit: the last one says what is missing.
    """
    contexts = entry["decision"].get("contexts")
    if not contexts or not contexts["rows"]:
        return None
    return {
        "heads": context_table.heads(entry["devices"]),
        "rows": [context_table.cells(row) for row in contexts["rows"]],
        "source": contexts["source"],
        "prompt_tokens": entry["decision"]["objective"]["prompt_tokens"],
    }


def largest_context(entry: Mapping) -> int | None:
    """Return the largest context that is known to fit with the KV cache in use, or None where that is not known."""
    contexts = entry["decision"].get("contexts")
    asked = next((row for row in contexts["rows"] if row["asked"]), None) if contexts else None
    return None if asked is None else _largest(contexts["rows"]).get(_types(asked))


def spare_context(entry: Mapping) -> list[str]:
    """Return in a sentence per type of KV cache how many more tokens of context fit; empty where that is not known."""
    own = largest_context(entry)
    if own is None:
        return []
    now = int(entry["serving"]["context_size"])
    found = [f"{own - now} more tokens of context fit: up to split_tuning_context_size: {own}."]
    if own <= now:
        found = [f"The context of {now} tokens is the largest that fits with this KV cache."]
    for types, context in _largest(entry["decision"]["contexts"]["rows"]).items():
        if context > own:
            names = f"split_tuning_cache_type_k: {types[0]} and split_tuning_cache_type_v: {types[1]}"
            found.append(f"With {names}, {context - now} more fit: up to {context}.")
    return found


def _largest(contexts: t.Sequence[Mapping]) -> dict[tuple[str, str], int]:
    """Return the largest context that fits by types of K and V."""
    most: dict[tuple[str, str], int] = {}
    for row in contexts:
        if row["layers"] is not None:
            most[_types(row)] = max(most.get(_types(row), 0), row["context_size"])
    return most


def _types(row: Mapping) -> tuple[str, str]:
    return row["cache_type_k"], row["cache_type_v"]


# --- each device alone ---


def probe_rows(entry: Mapping) -> list[Json]:
    """Return what the device probe found, as text, the fastest device first; empty where there was no probe."""
    probe = entry.get("device_probe")
    if not probe:
        return []
    described = {device["id"]: device_label(device) for device in entry["devices"]}
    rows = sorted(probe["devices"], key=lambda row: row["rank"] or len(probe["devices"]) + 1)
    return [
        {
            "device": described.get(row["id"], row["device"]),
            "rank": DASH if row["rank"] is None else str(row["rank"]),
            "ok": row["status"] == "ok",
            "status": row["status"].replace("_", " "),
            "reason": row["reason"] or "",
            "decode": number((row["decode_ms_per_token"] or {}).get("median")),
            "decode_range": interval(
                (row["decode_ms_per_token"] or {}).get("low"), (row["decode_ms_per_token"] or {}).get("high")
            ),
            "bandwidth": number(row["bandwidth_gb_per_s"]),
            "theoretical": number(row["theoretical_bandwidth_gb_per_s"]),
            "prefill": number(row["prefill_tokens_per_second"]),
        }
        for row in rows
    ]


def probe_warning(entry: Mapping) -> str | None:
    """Return the warning of the device probe about the order of the cards, or None."""
    return (entry.get("device_probe") or {}).get("warning")


def table_rows(entry: Mapping) -> list[Json]:
    """Return the measured splits as text, with what marks them: chosen, default."""
    decision = entry["decision"]
    rows = []
    for row in decision.get("table") or []:
        decode = row.get("decode_ms_per_token") if row["status"] == "ok" else None
        rate = rate_of(decode, 1)
        prefill = timing_of(entry, row, "prefill") if row["status"] == "ok" else None
        objective = timing_of(entry, row, "objective") if row["status"] == "ok" else None
        rows.append(
            {
                "layers": row_name(row),
                "ok": row["status"] == "ok",
                "status": row["status"].replace("_", " "),
                "reason": row.get("reason") or "",
                "loads": row.get("loads"),
                "decode": number(decode["mean"]) if decode else DASH,
                "decode_range": interval(decode["low"], decode["high"]) if decode else DASH,
                "decode_predicted": number(decode.get("predicted")) if decode else DASH,
                "rate": number(rate["mean"]) if rate else DASH,
                "prefill": number(prefill["mean"]) if prefill else DASH,
                "prefill_range": interval(prefill["low"], prefill["high"]) if prefill else DASH,
                "objective": number(objective["mean"]) if objective else DASH,
                "objective_range": interval(objective["low"], objective["high"]) if objective else DASH,
                "chosen": is_chosen(entry, row),
                "default": is_default(entry, row),
                "disturbed": len(row.get("disturbed_loads") or []),
            }
        )
    return rows
