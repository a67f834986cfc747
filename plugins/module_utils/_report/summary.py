# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The summary of a recorded deployment as lines of text. Private to this collection. Pure functions only."""

from __future__ import annotations

import textwrap
import typing as t

from .._base.text import DASH, columns, mebibytes, number, terminal_line, vector
from .._base.types import Mapping
from . import rows
from .mode_rows import mode_rows
from .recorded import engine_name, model_name, prompt_tokens_of
from .served_rows import served_power, served_tests
from .speculation_rows import speculation_rows, texts
from .words import gain_words, later_stages, placement_words

#: Columns of one line.
WIDTH: t.Final = 100


def summary_lines(
    entry: Mapping, served: Mapping | None, server_devices: t.Sequence[Mapping] | None, chats: Mapping | None
) -> list[str]:
    """Return a short summary of a recorded deployment, one string per line, at most WIDTH columns wide."""
    lines = [
        *_decision_lines(entry),
        *_memory_lines(entry, server_devices),
        *_probe_lines(entry),
        *_table_lines(entry),
        *_mode_lines(entry),
        *_speculation_lines(entry),
        *_chat_lines(chats),
        *_served_lines(served),
    ]
    return [terminal_line(line) for line in lines]


def _decision_lines(entry: Mapping) -> list[str]:
    """Return what was chosen, and why."""
    decision = entry["decision"]
    lines = [_cut(f"{model_name(entry)}: {placement_words(entry)}", WIDTH)]
    lines += _wrapped(gain_words(entry))
    if decision.get("why"):
        lines += _wrapped(f"Why: {decision['why']}")
    for advice in decision.get("advice") or []:
        lines += _wrapped(f"Note: {advice}")
    for words in later_stages(decision):
        lines += _wrapped(words)
    best = [f"{name} {vector(layers)}" for name, layers in (decision.get("best_by_objective") or {}).items() if layers]
    if best and decision["verdict"] != "only_choice":
        lines += _wrapped(f"Best split for each objective, as far as known: {'; '.join(best)}")
    return lines


def _memory_lines(entry: Mapping, server_devices: t.Sequence[Mapping] | None) -> list[str]:
    """Return the table of memory per device."""
    body: list[tuple[str, ...]] = [("", "layers", "planned", "loaded", "usable", "left")]
    body += [
        (
            _cut(f"{row['device']} {row['description']}".strip(), 48),
            str(row["layers"]),
            *(mebibytes(row[f"{name}_mib"]) for name in ("planned", "loaded", "limit", "left")),
        )
        for row in rows.memory_rows(entry, server_devices)
    ]
    return ["", "Devices and memory (MiB)", *_table(body, right={1, 2, 3, 4, 5})]


def _table_lines(entry: Mapping) -> list[str]:
    """Return the table of the measured splits."""
    measured = rows.table_rows(entry)
    if not measured:
        return []
    engine = engine_name(entry)
    measured_by = "llama-bench" if engine == "llama.cpp" else f"{engine}'s own speed test"
    prefill = "prefill tok/s" if prompt_tokens_of(entry) else "prefill ms"
    body = [("layers", "decode ms/token", "tok/s", prefill, "loads", "")]
    body += [_table_row(row, f"{engine}'s default") for row in measured]
    title = f"Measured splits ({measured_by}; lowest to highest in brackets)"
    return ["", title, *_table(body, right={2, 3, 4})]


def _table_row(row: Mapping, default: str) -> tuple[str, str, str, str, str, str]:
    """Return the cells of one measured split."""
    marks = [word for word, on in (("chosen", row["chosen"]), (default, row["default"])) if on]
    if row["disturbed"]:
        marks.append(f"{row['disturbed']} disturbed, set aside")
    if not row["ok"]:
        return row["layers"], row["status"], DASH, DASH, str(row["loads"] or DASH), ", ".join(marks)
    timing = row["decode"] if row["decode"] == DASH else f"{row['decode']} ({row['decode_range']})"
    return row["layers"], timing, row["rate"], row["prefill"], str(row["loads"]), ", ".join(marks)


def _mode_lines(entry: Mapping) -> list[str]:
    """Return the table of both split modes, and why an arm failed; empty where tensor mode was not measured."""
    measured = mode_rows(entry)
    if not measured:
        return []
    prefill = "prefill tok/s" if prompt_tokens_of(entry) else "prefill ms"
    body = [("mode", "adds up with", "decode ms/token", "tok/s", prefill, "time", "")]
    body += [
        tuple(row[name] for name in ("mode", "adds_up", "decode", "rate", "prefill", "time", "verdict"))
        for row in measured
    ]
    lines = ["", "Both split modes (time of a request against layer mode)", *_table(body, right={2, 3, 4, 5})]
    for row in measured:
        if row["why"]:
            lines += _wrapped(f"{row['mode']}: {row['why']}")
    return lines


def _chat_lines(chats: Mapping | None) -> list[str]:
    """Return what the running server was proved to answer: the result of serving_proof."""
    return ["", *_wrapped(chats["line"])] if chats else []


def _speculation_lines(entry: Mapping) -> list[str]:
    """Return the table of the ways to speculate; empty where none was measured."""
    measured = speculation_rows(entry)
    if not measured:
        return []
    kinds = texts(entry)
    body: list[tuple[str, ...]] = [("", *kinds, "prompt", "time", "")]
    told: list[str] = []
    # names and four kinds of text have no room side by side
    for place, row in enumerate(measured, 1):
        speeds = row["speeds"] or [DASH] * len(kinds)
        body.append((str(place), *speeds, row["prompt"], row["time"], "served" if row["chosen"] else ""))
        rounds = f"tokens per round: {row['rounds']}" if row["rounds"] else ""
        told += _wrapped(f"{place}: {'; '.join(filter(None, (row['name'], rounds, row['why'])))}")
    title = "Speculation (tok/s by kind of text, and the share of drafted tokens that were right)"
    return ["", title, *_table(body, set(range(1, len(kinds) + 3))), *told]


def _served_lines(served: Mapping | None) -> list[str]:
    """Return what the running server delivered, and what was not measured."""
    tests = served_tests(served)
    if not tests:
        return []
    body: list[tuple[str, ...]] = [("", "prompt", "first token ms", "prompt tok/s", "decode tok/s")]
    skipped = []
    for test in tests:
        if not test["sample_count"]:
            skipped += _wrapped(f"{test['name']}: skipped, {test['skipped_reason'] or 'no reason given'}")
            continue
        means = (
            number((test[key] or {}).get("mean"))
            for key in ("ttft_ms", "prompt_tokens_per_second", "decode_tokens_per_second")
        )
        body.append((_cut(str(test["name"]), 30), str(test["prompt_tokens"]), *means))
    title = "Served (what a client of llama-server sees; no prompt cache)"
    return ["", title, *_table(body, right={1, 2, 3, 4}), *skipped, *_power_lines(served)]


def _power_lines(served: Mapping | None) -> list[str]:
    """Return what all cards drew while an answer was generated; nothing where that is not known."""
    power, _reason = served_power(served)
    if power is None:
        return []
    cards = ", ".join(f"{card['device']} {card['watts']} W" for card in power["cards"])
    return _wrapped(
        f"Power: {power['watts']} W for all cards ({cards}), {power['joules_per_token']} J per token,"
        f" {power['tokens_per_second_per_watt']} tokens per second per watt"
    )


def _table(body: t.Sequence[t.Sequence[str]], right: t.Container[int]) -> list[str]:
    """Return a table, indented."""
    return [f"  {line}" for line in columns(body, right)]


def _probe_lines(entry: Mapping) -> list[str]:
    """Return the table of each device alone, and the warning of the device probe."""
    probed = rows.probe_rows(entry)
    if not probed:
        return []
    body = [("", "rank", "ms/token", "GB/s", "in theory", "prefill tok/s")]
    body += [
        (_cut(row["device"], 48), row["rank"], row["decode"], row["bandwidth"], row["theoretical"], row["prefill"])
        for row in probed
    ]
    lines = ["", "Each device alone (a small model of its own; its ratios help to find the split)"]
    lines += _table(body, right={1, 2, 3, 4, 5})
    for row in probed:
        if not row["ok"]:
            lines += _wrapped(f"{row['device']}: {row['status']}, {row['reason']}")
    warning = rows.probe_warning(entry)
    return lines + (_wrapped(f"Warning: {warning}") if warning else [])


def _wrapped(text: str) -> list[str]:
    """Break a sentence into indented lines of at most WIDTH columns; a longer word stays whole."""
    return textwrap.wrap(
        text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
