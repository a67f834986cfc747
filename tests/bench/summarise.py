"""summarise.py SWEEP.json PAGE: compare the chosen split with every split that fits, and write that section."""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
import typing as t

import page

Row = dict[str, t.Any]


def rows_of(sweep: t.Mapping[str, t.Any]) -> list[Row]:
    """Return one row per split: tokens per second of each load (median of its samples) and the request's time in s."""
    objective = sweep["entry"]["decision"]["objective"]
    rows: dict[tuple[int, ...], Row] = {}
    for load in sweep["loads"]:
        row = rows.setdefault(
            tuple(load["layers"]), {"layers": load["layers"], "decode": [], "prefill": [], "request": [], "status": []}
        )
        row["status"].append(load["status"])
        if load["status"] != "ok":
            continue
        ms_per_token = {}
        for result in load["results"]:
            tokens = result["n_prompt"] if result["kind"] == "prefill" else result["n_gen"]
            ms_per_token[result["kind"]] = statistics.median(result["samples_ms"]) / tokens
        row["decode"].append(1000 / ms_per_token["decode"])
        row["prefill"].append(1000 / ms_per_token["prefill"])
        request_ms = sum(
            objective[tokens] * ms_per_token[kind]
            for tokens, kind in (("prompt_tokens", "prefill"), ("generated_tokens", "decode"))
        )
        row["request"].append(request_ms / 1000)
    return [rows[key] for key in sorted(rows)]


def text_of(sweep: t.Mapping[str, t.Any]) -> str:
    """Return the section."""
    entry = sweep["entry"]
    decision = entry["decision"]
    rows = rows_of(sweep)
    good = [row for row in rows if row["decode"]]
    chosen = next(row for row in good if row["layers"] == [place["layers"] for place in entry["placement"]])
    default = next((row for row in good if row["layers"] == decision["default_layers"]), None)

    def mean(row: Row, key: str) -> float:
        return statistics.fmean(row[key])

    def name(row: Row) -> str:
        return "/".join(map(str, row["layers"]))

    best_decode = max(good, key=lambda row: mean(row, "decode"))
    best_request = min(good, key=lambda row: mean(row, "request"))
    spread = statistics.median(
        abs(row["decode"][0] - row["decode"][-1]) / mean(row, "decode") for row in good if len(row["decode"]) > 1
    )
    objective = decision["objective"]
    of_best_decode = mean(chosen, "decode") / mean(best_decode, "decode")
    of_best_request = mean(best_request, "request") / mean(chosen, "request")
    lines = [
        "## Live",
        "",
        "Written by `make bench-live`. Is the split that the tuning chooses the best? Every split that memory allows",
        "is measured twice, in opposite order, by the program and the tests of the tuning, and compared with it.",
        "",
        f"Measured {sweep['started'][:10]} on {sweep['cores']} cores of {sweep['cpu']}, the sandbox of `make demo`:"
        f" two RPC devices, {entry['model']['id']}, {entry['model']['size_bytes'] / 2**20:.0f} MiB,"
        f" {len(good)} splits that fit.",
        "",
        f"- The tuning chose **{name(chosen)}** after {decision['loads_used']} loads;"
        f" the sweep took {len(sweep['loads'])}.",
        f"- Decode: {mean(chosen, 'decode'):.1f} tokens per second, **{of_best_decode:.3f}** of the best of the sweep"
        f" ({mean(best_decode, 'decode'):.1f} at {name(best_decode)}).",
        f"- A request of {objective['prompt_tokens']} + {objective['generated_tokens']} tokens:"
        f" {mean(chosen, 'request'):.2f} s, {of_best_request:.3f} of the best's speed"
        f" ({mean(best_request, 'request'):.2f} s at {name(best_request)}).",
    ]
    if default is not None:
        lines.append(
            f"- llama.cpp's default split {name(default)}: {mean(default, 'decode'):.1f} tokens per second,"
            f" {mean(default, 'request'):.2f} s."
        )
    lines += [
        f"- Two loads of one split differ by {100 * spread:.1f} % in decode (median over the splits):"
        " that is the noise of this machine.",
        "",
        "| split | decode tok/s (two loads) | prefill tok/s | request s | |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if not row["decode"]:
            lines.append(f"| {name(row)} | {', '.join(row['status'])} | | | |")
            continue
        marks = [
            word
            for word, other in (("chosen", chosen), ("default", default), ("best", best_request))
            if other is not None and other["layers"] == row["layers"]
        ]
        lines.append(
            f"| {name(row)} | {' '.join(f'{value:.1f}' for value in row['decode'])} | {mean(row, 'prefill'):.0f}"
            f" | {mean(row, 'request'):.2f} | {', '.join(marks)} |"
        )
    return "\n".join(lines) + "\n"


def main(source: str, target: str) -> None:
    """Read the sweep, write the section and say the result."""
    sweep = json.loads(pathlib.Path(source).read_text(encoding="utf-8"))
    text = text_of(sweep)
    page.write_section(pathlib.Path(target), "live", text)
    print("\n".join(line for line in text.splitlines() if line.startswith("- ")))
    print(f"written to {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
