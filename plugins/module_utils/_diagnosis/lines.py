# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A diagnosis as lines of text. Private to this collection. Pure functions only."""

from __future__ import annotations

import textwrap
import typing as t

from .._base.text import columns, number
from .._base.types import Json
from . import split_advice

#: ansible-playbook breaks longer lines.
WIDTH = 78
MARKS = {"problem": "!", "note": "-", "ok": " "}
WORDS = {
    "as_recorded": "as recorded",
    "within_noise": "within noise",
    "not_seen": "not comparable",
    "not_measured": "not measured",
}


def table(result: Json) -> list[str]:
    """Return the lines of a diagnosis of docs/data_formats.md."""
    lines = _wrapped(f"{WORDS.get(result['verdict'], result['verdict'])}: {result['summary']}", "", "  ")
    for phase in result["phases"]:
        if phase["skipped_reason"] is None or phase["skipped_reason"] != result["busy"]:
            lines += ["", *_phase(phase)]
    cards = _cards(result)
    if cards:
        lines += ["", "Cards at work", *cards]
    shown = [one for one in result["findings"] if one["severity"] != "ok"]
    lines += ["", "Findings" if shown else "No findings: nothing holds a device up"]
    for one in shown:
        lines += _wrapped(f"{MARKS[one['severity']]} {one['subject']}: {one['detail']}", "  ", "    ")
        if one["cure"]:
            lines += _wrapped(f"do: {one['cure']}", "    ", "        ")
    if result["lenders"]:
        lines += ["", "Lenders", *(line for said in result["lenders"] for line in _wrapped(said, "  ", "  "))]
    advice = result["advice"]
    lines += ["", "Layers", *_wrapped(advice["why"], "  ", "  ")]
    for other in advice["others"]:
        lines += _wrapped(f"for {other['objective']} alone: {split_advice.moves_text(other)}", "  ", "    ")
    if result["rules"]:
        lines += ["", "Rules of thumb, and what was measured"]
    for rule in result["rules"]:
        agrees = {True: "agrees", False: "says otherwise", None: "does not apply"}[rule["agrees"]]
        lines += _wrapped(f"{rule['rule']} ({agrees})", "  ", "    ")
        for name in ("says", "measured", "why"):
            lines += _wrapped(f"{name}: {rule[name]}", "    ", "        ")
    return lines


def would_send(url: str, entry: Json, phases: t.Sequence[Json], seconds: float) -> list[str]:
    """Return what a diagnosis would do, for check mode."""
    names = " and ".join(device["device"] for device in entry["devices"])
    if not phases:
        return _wrapped(f"Would send nothing, and read the cards of {names}, the journal and the record.", "", "  ")
    words = ", ".join(
        f"{phase['kind']} ({phase['prompt_tokens']} tokens of prompt, {phase['generated_tokens']} generated)"
        for phase in phases
    )
    return [
        f"Would send to {url} for about {seconds:g} s each, again and again:",
        *_wrapped(f"{words}.", "  ", "  "),
        f"Would watch {names} meanwhile. Nothing is changed.",
    ]


def _phase(phase: Json) -> list[str]:
    """Return what was seen of one phase: a sentence, and a table of the devices."""
    unit = "token" if phase["kind"] == "decode" else f"prompt of {phase['prompt_tokens']} tokens"
    if phase["skipped_reason"] and not phase["blocks"]:
        return _wrapped(f"{phase['kind']}: {phase['skipped_reason']}", "", "  ")
    head = f"{phase['kind']}: {_number(phase['ms'])} ms per {unit}, {_number(phase['tokens_per_second'])} tok/s"
    if phase["expected_ms"] is not None:
        head += f"; expected {_number(phase['expected_ms'])} ms, {_change(phase)}"
    if phase["depth_tokens"]:
        head += f"; the record is of a depth of {phase['depth_tokens']} tokens, so times do not compare"
    if phase["drafted"]:
        head += "; the record is of a server without drafts, so times do not compare"
    if phase["overlapped"]:
        head += f"; {phase['overlapped']} parts left out, other requests came in between"
    rows = [["", "layers", "busy", "exp.", "share", "exp.", "ms/layer", "time"]]
    rows += [
        [
            row["device"],
            str(row["layers"]),
            _percent(row["utilisation_percent"]),
            _percent(row["expected_utilisation_percent"]),
            _percent(row["share_percent"]),
            _percent(row["expected_share_percent"]),
            _number(row["ms_per_layer"]),
            _change(row) + ("" if row["seen"] else ", not seen"),
        ]
        for row in phase["devices"]
    ]
    return [*_wrapped(head, "", "  "), *(f"  {line}" for line in columns(rows, range(1, 7)))]


def _change(row: Json) -> str:
    """Return a change with interval and verdict: C(+12 % (+8..+16) slower)."""
    word = str(WORDS.get(row["verdict"], row["verdict"]))
    if row["change_percent"] is None:
        return word
    low_high = row["interval_percent"]
    interval = f" ({low_high[0]:+.0f}..{low_high[1]:+.0f})" if low_high else ""
    return f"{row['change_percent']:+.0f} %{interval} {word}"


def _cards(result: Json) -> list[str]:
    """Return the table of what the cards did, a row per card and phase."""
    names = {device["id"]: device["device"] for device in result["devices"]}
    rows = [["", "", "utilisation", "W", "degrees C", "SM MHz", "PCIe", "clocks held down by"]]
    for kind, cards in result["cards"].items():
        for card_id, card in cards.items():
            seen = card["sampled"]
            if not seen["count"]:
                continue
            link = [seen[key]["max"] if seen[key] else "?" for key in ("pcie_generation", "pcie_width")]
            reasons = [name for name in seen["throttle_reasons"] or [] if name != "gpu_idle"]
            rows.append(
                [
                    names.get(card_id, card_id),
                    kind,
                    _mean(seen["utilization_gpu_percent"], " %"),
                    _mean(seen["power_draw_watts"], ""),
                    "-" if seen["temperature_celsius"] is None else f"{seen['temperature_celsius']['max']:g}",
                    _mean(seen["clock_sm_mhz"], ""),
                    f"{link[0]} x{link[1]}",
                    ", ".join(reasons) or "nothing",
                ]
            )
    return [f"  {line}" for line in columns(rows, range(2, 6))] if len(rows) > 1 else []


def _mean(quantity: Json | None, unit: str) -> str:
    return "-" if quantity is None else f"{quantity['mean']:.0f}{unit}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} %"


def _number(value: float | None) -> str:
    return f"{value:.3f}" if value is not None and abs(value) < 1 else number(value, "-")


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    kept = text.replace(" %", "\u00a0%")  # a number stays with its sign
    lines = textwrap.wrap(kept, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines]
