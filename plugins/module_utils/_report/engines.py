# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One table for all engines of a host. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base import text
from .._split import engines

Json = dict[str, t.Any]

GIB = 1024**3


def rows(record: t.Mapping[str, t.Any]) -> list[Json]:
    """Return one row per deployment of a host's record (docs/data_formats.md), quickest request first.

    C(request_ms) is the time of the recorded objective by the recorded speeds, None where one of them was not measured;
    C(same) tells whether the objective is the first row's, since others cannot be compared.
    """
    found = []
    for name, entry in record["models"].items():
        decision, objective = entry["decision"], entry["decision"]["objective"]
        decode, prefill = decision.get("decode_tokens_per_second"), decision.get("prefill_tokens_per_second")
        found.append(
            {
                "deployment": name,
                "active": name == record.get("active"),
                "engine": engines.of(entry["serving"]).display,
                "size_gib": entry["model"]["size_bytes"] / GIB,
                "context": entry["serving"]["context_size"],
                "layers": list(decision["layers"]),
                "decode": decode,
                "prefill": prefill,
                "request_ms": _request_ms(objective, decode, prefill),
                "objective": objective,
                "loads": decision.get("loads_used"),
            }
        )
    found.sort(key=lambda row: (row["request_ms"] is None, row["request_ms"] or 0.0, row["deployment"]))
    return [{**row, "same": row["objective"] == found[0]["objective"]} for row in found]


def _request_ms(objective: t.Mapping[str, t.Any], decode: float | None, prefill: float | None) -> float | None:
    """Return the milliseconds of a prompt and an answer of the objective's lengths, by the two speeds."""
    prompt, generated = objective["prompt_tokens"], objective["generated_tokens"]
    if (prompt and not prefill) or (generated and not decode):
        return None
    return 1000 * (
        (prompt / prefill if prompt and prefill else 0.0) + (generated / decode if generated and decode else 0.0)
    )


def lines(record: t.Mapping[str, t.Any]) -> list[str]:
    """Return the table as lines of text, with a sentence that says what it compares."""
    table = rows(record)
    if not table:
        return ["Nothing was tuned on this host yet."]
    objective = table[0]["objective"]
    head = ("", "engine", "GiB", "context", "layers", "decode tok/s", "prefill tok/s", "s per request", "loads", "")
    body = [
        (
            row["deployment"],
            row["engine"],
            f"{row['size_gib']:.1f}",
            str(row["context"]),
            text.vector(row["layers"]),
            text.number(row["decode"]),
            text.number(row["prefill"]),
            text.number(row["request_ms"] / 1000 if row["request_ms"] is not None and row["same"] else None),
            str(row["loads"] or text.DASH),
            ", ".join(word for word, on in (("active", row["active"]), ("another objective", not row["same"])) if on),
        )
        for row in table
    ]
    result = [
        f"Measured here, each with its best split. A request is {objective['prompt_tokens']} tokens in and"
        f" {objective['generated_tokens']} out, at a depth of {objective.get('depth_tokens', 0)}.",
        *(f"  {line}" for line in text.columns([head, *body], right={2, 3, 5, 6, 7, 8})),
    ]
    engines = {row["engine"] for row in table}
    if len(engines) == 1:
        other = "exllamav2" if engines == {"llama.cpp"} else "llama_cpp"
        result.append(
            f"Only {engines.pop()} was measured: run the site playbook with mixed_gpu_engine={other} to compare."
        )
    else:
        result.append("Files differ in size and quality; a smaller file is faster for that reason alone.")
    return result
