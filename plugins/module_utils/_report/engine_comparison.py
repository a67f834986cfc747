# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One table for all engines of a host. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base import text
from .._base.types import Json, Mapping
from .._split import deployment, engines

GIB: t.Final = 1024**3


def compare(record: Mapping) -> Json:
    """Return {deployments, lines}: a row per deployment of a host's record, quickest request first, and the table.

    C(request_ms) is the time of the recorded objective by the recorded speeds, None where a speed was not measured;
    C(same_objective) tells whether the objective is the first row's, since others cannot be compared.
    """
    rows = [_row(name, entry, name == record.get("active")) for name, entry in record["models"].items()]
    rows.sort(key=lambda row: (row["request_ms"] is None, row["request_ms"] or 0.0, row["deployment"]))
    for row in rows:
        row["same_objective"] = row["objective"] == rows[0]["objective"]
    return {"deployments": rows, "lines": _lines(rows)}


def _row(name: str, entry: Mapping, active: bool) -> Json:
    """Return what is compared of one deployment."""
    decision = entry["decision"]
    decode, prefill = decision.get("decode_tokens_per_second"), decision.get("prefill_tokens_per_second")
    return {
        "deployment": name,
        "active": active,
        "engine": engines.of(entry["serving"]).display,
        "size_gib": round(entry["model"]["size_bytes"] / GIB, 1),
        "context_size": entry["serving"]["context_size"],
        "layers": deployment.layers(entry),
        "decode_tokens_per_second": decode,
        "prefill_tokens_per_second": prefill,
        "request_ms": _request_ms(decision["objective"], decode, prefill),
        "objective": decision["objective"],
        "loads": decision.get("loads_used"),
    }


def _request_ms(objective: Mapping, decode: float | None, prefill: float | None) -> float | None:
    """Return the milliseconds of a prompt and an answer of the objective's lengths, by the two speeds."""
    prompt, generated = objective["prompt_tokens"], objective["generated_tokens"]
    if (prompt and not prefill) or (generated and not decode):
        return None
    return 1000 * (
        (prompt / prefill if prompt and prefill else 0.0) + (generated / decode if generated and decode else 0.0)
    )


def _lines(rows: t.Sequence[Json]) -> list[str]:
    """Return the table as lines of text, with a sentence that says what it compares."""
    if not rows:
        return ["Nothing was tuned on this host yet."]
    objective = rows[0]["objective"]
    head = ("", "engine", "GiB", "context", "layers", "decode tok/s", "prefill tok/s", "s per request", "loads", "")
    lines = [
        f"Measured here, each with its best split. A request is {objective['prompt_tokens']} tokens in and"
        f" {objective['generated_tokens']} out, at a depth of {objective.get('depth_tokens', 0)}.",
        *(f"  {line}" for line in text.columns([head, *map(_cells, rows)], right={2, 3, 5, 6, 7, 8})),
    ]
    names = {row["engine"] for row in rows}
    if len(names) > 1:
        return [*lines, "Files differ in size and quality; a smaller file is faster for that reason alone."]
    other = "exllamav2" if names == {"llama.cpp"} else "llama_cpp"
    return [
        *lines,
        f"Only {names.pop()} was measured: run the site playbook with mixed_gpu_engine={other} to compare.",
    ]


def _cells(row: Json) -> tuple[str, ...]:
    """Return one line of the table."""
    seconds = row["request_ms"] / 1000 if row["request_ms"] is not None and row["same_objective"] else None
    marks = (("active", row["active"]), ("another objective", not row["same_objective"]))
    return (
        row["deployment"],
        row["engine"],
        f"{row['size_gib']:.1f}",
        str(row["context_size"]),
        text.vector(row["layers"]),
        text.number(row["decode_tokens_per_second"]),
        text.number(row["prefill_tokens_per_second"]),
        text.number(seconds),
        str(row["loads"] or text.DASH),
        ", ".join(word for word, on in marks if on),
    )
