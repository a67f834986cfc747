# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the report reads from a recorded deployment. Private to this collection. Pure functions only.

The input is one entry of C(ansible_local.mixed_gpu.models), as docs/data_formats.md describes it. Nothing in this room
measures or reads a clock: the same input gives the same text. page.py renders, and fleet_host.py reads files.
"""

from __future__ import annotations

import typing as t

from .._base.text import vector
from .._base.types import Mapping
from .._split import engines

#: What a chart can show, and the key of a table row for each.
QUANTITIES: t.Final = ("decode", "prefill", "objective")
ROW_KEYS: t.Final = {"decode": "decode_ms_per_token", "prefill": "prefill_ms", "objective": "objective_ms"}


def prompt_tokens_of(entry: Mapping) -> int | None:
    """Return how many tokens the prefill test of a tuning had, or None where the record does not tell."""
    tests = (entry.get("fingerprint_parts") or {}).get("tests")
    if isinstance(tests, (list, tuple)):
        for test in tests:
            if isinstance(test, t.Mapping) and test.get("kind") == "prefill" and test.get("n_prompt"):
                return int(test["n_prompt"])
    decision = entry["decision"]
    rate = decision.get("prefill_tokens_per_second")
    row = row_of(decision, decision["layers"])
    timing = row.get("prefill_ms") if row else None
    if rate and timing:
        return max(1, round(rate * timing["mean"] / 1000))
    return None


def is_chosen(entry: Mapping, row: Mapping) -> bool:
    """Tell whether a row of the table is of what was chosen; with experts in RAM, rows may have the same layers."""
    decision = entry["decision"]
    if list(row["layers"]) != list(decision["layers"]):
        return False
    sizes = (None, decision.get("micro_batch_size"))
    return _experts(row.get("experts_in_ram")) == _experts(decision.get("experts_in_ram")) and (
        row.get("micro_batch_size") in sizes
    )


def is_default(entry: Mapping, row: Mapping) -> bool:
    """Tell whether a row of the table is of the engine's own placement."""
    decision = entry["decision"]
    if list(row["layers"]) != list(decision.get("default_layers") or []):
        return False
    return _experts(row.get("experts_in_ram")) == _experts(decision.get("default_experts_in_ram"))


def _experts(given: Mapping | None) -> t.Any:
    """Return which experts are in RAM and how, whatever number of threads computes them."""
    return given and [given[name] for name in ("blocks", "partial", "no_host", "override")]


def row_name(row: Mapping) -> str:
    """Return a row of the table in a few characters: C(20,13), or C(20,13; 6 in RAM; 512)."""
    name = vector(row["layers"])
    if row.get("experts_in_ram") is None:
        return name
    unpinned = " unpinned" if row["experts_in_ram"]["no_host"] else ""
    return f"{name}; {row['blocks_in_ram']:g} in RAM{unpinned}; {row['micro_batch_size']}"


def row_of(decision: Mapping, layers: t.Sequence[int] | None) -> Mapping | None:
    """Return the row of the table for one split, or None."""
    for row in decision.get("table") or []:
        if layers is not None and list(row["layers"]) == list(layers):
            return row
    return None


def rate_of(timing: Mapping | None, tokens: int | None) -> dict[str, float | None] | None:
    """Turn milliseconds for I(tokens) tokens into tokens per second; low and high change places."""
    if not timing or not tokens:
        return None

    def turn(value: float | None) -> float | None:
        return 1000.0 * tokens / value if value else None

    return {
        "mean": turn(timing.get("mean")),
        "low": turn(timing.get("high")),
        "high": turn(timing.get("low")),
        "predicted": turn(timing.get("predicted")),
    }


def timing_of(entry: Mapping, row: Mapping, quantity: str) -> dict[str, float | None] | None:
    """Return one measured quantity of a table row in the unit a chart shows, or None where it was not measured."""
    timing = row.get(ROW_KEYS[quantity])
    if not timing or timing.get("mean") is None:
        return None
    if quantity == "prefill":
        tokens = prompt_tokens_of(entry)
        if tokens:
            return rate_of(timing, tokens)
    if quantity == "objective":
        return {
            key: (timing[key] / 1000.0 if timing.get(key) is not None else None)
            for key in ("mean", "low", "high", "predicted")
        }
    return {key: timing.get(key) for key in ("mean", "low", "high", "predicted")}


def model_name(entry: Mapping) -> str:
    """Return the name of the served model."""
    return str(entry["model"].get("name") or entry["model"]["id"])


def device_label(device: Mapping) -> str:
    """Return what programs call a device and what it is: CUDA0 NVIDIA GeForce RTX 4090."""
    description = device.get("description") or ""
    return f"{device['device']} {description}".strip()


def when(at: t.Any) -> str:
    """Return a recorded time as people read it: C(2026-11-24 04:35), UTC; "" where there is none."""
    return str(at)[:16].replace("T", " ") if at else ""


def engine_name(entry: Mapping) -> str:
    """Return what people call the engine that an entry was measured with."""
    return engines.of(entry.get("serving") or {}).display


def axis_label(entry: Mapping, quantity: str) -> str:
    """Return the label of the measured axis, with its unit."""
    if quantity == "decode":
        return "decode, ms per token (less is better)"
    if quantity == "prefill":
        tokens = prompt_tokens_of(entry)
        return f"prefill of {tokens} tokens, tok/s (more is better)" if tokens else "prefill, ms (less is better)"
    return f"{entry['decision']['objective']['name']}, s (less is better)"
