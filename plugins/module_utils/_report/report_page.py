# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a person reads about a recorded split. Private to this collection. Pure functions only.

The input is always one entry of C(ansible_local.mixed_gpu.models), as docs/data_formats.md describes it, plus what the
running server answered. Nothing here measures, and nothing reads a clock: the same input gives the same text.
"""

from __future__ import annotations

import json
import re
import statistics
import typing as t

from .._base.text import DASH, columns, interval, mebibytes, number, percent, vector
from .._split import cost_model, engines, placement

Json = t.Mapping[str, t.Any]

#: What a chart can show: key in a table row, and whether it is turned into tokens per second.
QUANTITIES: t.Final = ("decode", "prefill", "objective")
ROW_KEYS: t.Final = {"decode": "decode_ms_per_token", "prefill": "prefill_ms", "objective": "objective_ms"}


# --- reading the entry ---


def prompt_tokens_of(entry: Json) -> int | None:
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


def row_of(decision: Json, layers: t.Sequence[int] | None) -> Json | None:
    """Return the row of the table for one split, or None."""
    for row in decision.get("table") or []:
        if layers is not None and list(row["layers"]) == list(layers):
            return row
    return None


def rate_of(timing: Json | None, tokens: int | None) -> dict[str, float | None] | None:
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


def timing_of(entry: Json, row: Json, quantity: str) -> dict[str, float | None] | None:
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


def objective_words(objective: Json) -> str:
    """Say in words what was optimised."""
    prompt, generated = objective["prompt_tokens"], objective["generated_tokens"]
    words = {
        "request": f"a request of {prompt} prompt and {generated} generated tokens",
        "ttft": f"the first token after a prompt of {prompt} tokens",
        "decode": "generating one token",
        "agent": "generating one token for an agent",
        "prefill": "reading a prompt",
    }.get(objective["name"], str(objective["name"]))
    depth = objective.get("depth_tokens")
    return f"{words}, {depth} tokens deep in a conversation" if depth else words


def axis_label(entry: Json, quantity: str) -> str:
    """Return the label of the measured axis, with its unit."""
    if quantity == "decode":
        return "decode, ms per token (less is better)"
    if quantity == "prefill":
        tokens = prompt_tokens_of(entry)
        return f"prefill of {tokens} tokens, tok/s (more is better)" if tokens else "prefill, ms (less is better)"
    return f"{entry['decision']['objective']['name']}, s (less is better)"


def model_name(entry: Json) -> str:
    """Return the name of the served model."""
    return str(entry["model"].get("name") or entry["model"]["id"])


def device_label(device: Json) -> str:
    """Return what programs call a device and what it is: CUDA0 NVIDIA GeForce RTX 4090."""
    description = device.get("description") or ""
    return f"{device['device']} {description}".strip()


# --- the chart's geometry ---


def feasible_layers(entry: Json, feasible: t.Sequence[t.Any] | None = None) -> list[tuple[int, ...]] | None:
    """Return every split that memory allows, or None where nobody wrote it down.

    I(feasible) takes rows of a plan (mappings with C(layers)) or plain splits; without it the entry is searched.
    """
    rows = feasible if feasible else (entry["decision"].get("feasible") or entry.get("feasible"))
    if not rows:
        return None
    return [tuple(row["layers"] if isinstance(row, t.Mapping) else row) for row in rows]


def chart_points(entry: Json, quantity: str) -> list[dict[str, t.Any]]:
    """Return one point per measured split: layers, x (slots on device 0), status, mean, low, high, predicted."""
    points = []
    for row in entry["decision"].get("table") or []:
        timing = timing_of(entry, row, quantity) if row["status"] == "ok" else None
        if row["status"] == "ok" and timing is None:
            continue
        point: dict[str, t.Any] = {"layers": list(row["layers"]), "x": row["layers"][0], "status": row["status"]}
        point.update(timing or {"mean": None, "low": None, "high": None, "predicted": None})
        points.append(point)
    return points


def has_points(entry: Json, quantity: str) -> bool:
    """Tell whether anything was measured of this quantity."""
    return any(point["mean"] is not None for point in chart_points(entry, quantity))


def problem_words(error: Exception) -> str:
    """Say what a malformed entry lacks."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _modelled(entry: Json, quantity: str, layers: t.Sequence[int]) -> float | None:
    """Return the fitted cost of a split in milliseconds, without its constant."""
    decision = entry["decision"]
    fit = decision.get("fit") or {}
    decode = fit.get("decode_ms_per_slot")
    prefill = fit.get("prefill_ms_per_slot")
    if quantity == "decode":
        return _decode_ms(layers, decode) if decode else None
    micro_batch = entry["serving"]["micro_batch_size"]
    if quantity == "prefill":
        tokens = prompt_tokens_of(entry)
        return _prompt_ms(layers, fit, tokens, micro_batch) if prefill and tokens else None
    objective = decision["objective"]
    if objective["name"] not in ("request", "ttft") or not prefill or not decode:
        return None
    prompt = _prompt_ms(layers, fit, objective["prompt_tokens"], micro_batch)
    return prompt + (1 if objective["name"] == "ttft" else objective["generated_tokens"]) * _decode_ms(layers, decode)


def _decode_ms(layers: t.Sequence[int], costs: t.Sequence[float]) -> float:
    return sum(count * cost for count, cost in zip(layers, costs, strict=True))


def _prompt_ms(layers: t.Sequence[int], fit: Json, tokens: int, micro_batch: int) -> float:
    overlap = fit.get("prefill_overlap")
    batches = cost_model.micro_batches(tokens, micro_batch)
    return cost_model.prefill_ms(fit["prefill_ms_per_slot"], layers, batches, 1.0 if overlap is None else overlap)


def chart_line(entry: Json, quantity: str, span: tuple[int, int]) -> list[tuple[float, float]]:
    """Return the fitted line for two devices as points (x, y), in the unit of the chart.

    The cost model gives a point per integer split when it agrees with the predictions in the table within 1 percent
    (after one constant); otherwise the predictions themselves are joined.
    """
    decision = entry["decision"]
    slots = sum(decision["layers"])
    tokens = prompt_tokens_of(entry)

    def shown(milliseconds: float) -> float:
        if quantity == "prefill" and tokens:
            return 1000.0 * tokens / milliseconds
        return milliseconds / 1000.0 if quantity == "objective" else milliseconds

    known = []
    for row in decision.get("table") or []:
        timing = row.get(ROW_KEYS[quantity])
        if row["status"] == "ok" and timing and timing.get("predicted"):
            known.append((row["layers"], timing["predicted"]))
    if len(known) < 2:
        return []
    modelled = [_modelled(entry, quantity, layers) for layers, dummy in known]
    if all(value is not None for value in modelled):
        offsets = [predicted - t.cast(float, value) for (dummy, predicted), value in zip(known, modelled, strict=True)]
        constant = sum(offsets) / len(offsets)
        if all(
            abs(offset - constant) <= 0.01 * predicted
            for offset, (dummy, predicted) in zip(offsets, known, strict=True)
        ):
            line = []
            for first in range(span[0], span[1] + 1):
                value = _modelled(entry, quantity, (first, slots - first))
                if value is not None and value + constant > 0:
                    line.append((float(first), shown(value + constant)))
            return line
    return [(float(layers[0]), shown(predicted)) for layers, predicted in sorted(known, key=lambda item: item[0][0])]


def chart_span(entry: Json, feasible: t.Sequence[t.Any] | None = None) -> tuple[int, int]:
    """Return the first and last number of slots that a two-device chart shows."""
    decision = entry["decision"]
    slots = sum(decision["layers"])
    seen = {decision["layers"][0]}
    seen.update(row["layers"][0] for row in decision.get("table") or [])
    if decision.get("default_layers"):
        seen.add(decision["default_layers"][0])
    seen.update(layers[0] for layers in feasible_layers(entry, feasible) or [])
    margin = max(2, round(0.12 * (max(seen) - min(seen))))
    return max(0, min(seen) - margin), min(slots, max(seen) + margin)


def infeasible_bands(
    entry: Json, span: tuple[int, int], feasible: t.Sequence[t.Any] | None = None
) -> list[tuple[float, float]]:
    """Return the stretches of the x axis (as intervals) whose splits do not fit in memory.

    Without a list of feasible splits only measured failures count: what ran out of memory, and everything beyond it.
    """
    chosen = entry["decision"]["layers"][0]
    allowed = feasible_layers(entry, feasible)
    if allowed is not None:
        fits = {layers[0] for layers in allowed}
        barred = [first for first in range(span[0], span[1] + 1) if first not in fits]
    else:
        failed = [row["layers"][0] for row in entry["decision"].get("table") or [] if row["status"] == "out_of_memory"]
        above = [first for first in failed if first > chosen]
        below = [first for first in failed if first < chosen]
        barred = list(range(span[0], max(below) + 1)) if below else []
        barred += list(range(min(above), span[1] + 1)) if above else []
    bands: list[tuple[float, float]] = []
    for first in sorted(set(barred)):
        if bands and bands[-1][1] >= first - 0.5:
            bands[-1] = (bands[-1][0], first + 0.5)
        else:
            bands.append((first - 0.5, first + 0.5))
    return bands


# --- sentences ---


def placement_words(entry: Json) -> str:
    """Say where the slots are: 45 of 81 layers on CUDA0 and 36 on CUDA1; in tensor mode, 5/8 of every layer on one."""
    decision = entry["decision"]
    slots = sum(decision["layers"])
    parts = [
        f"{count} on {device['device']}"
        for count, device in zip(decision["layers"], entry["devices"], strict=True)
        if count > 0
    ]
    if decision["split_mode"] == "tensor":
        shares = [part.replace(" on ", f"/{slots} on ", 1) for part in parts]
        return f"of every layer {', '.join(shares[:-1])} and {shares[-1]} (split mode tensor)"
    if len(parts) == 1:
        return f"all {slots} layers {parts[0].split(' ', 1)[1]}"
    first = parts[0].replace(" on ", f" of {slots} layers on ", 1)
    return ", ".join([first, *parts[1:-1]]) + f" and {parts[-1]}"


def engine_name(entry: Json) -> str:
    """Return what people call the engine that an entry was measured with."""
    return engines.of(entry.get("serving") or {}).display


def gain_words(entry: Json) -> str:
    """Say in one sentence what the chosen split is worth against the engine's own."""
    decision, engine = entry["decision"], engine_name(entry)
    gain, bounds = decision.get("gain_over_default_percent"), decision.get("gain_interval_percent")
    default = decision.get("default_layers")
    if decision["verdict"] == "only_choice":
        return "It is the only split that was possible, so there is nothing to compare it with."
    if default is None:
        return f"{engine}'s default split does not fit in memory here."
    if list(default) == list(decision["layers"]):
        return f"{engine} would have chosen the same split ({vector(default)})."
    if gain is None:
        return f"{engine}'s default split ({vector(default)}) was not measured."
    within = f" (95% interval {percent(bounds[0])} to {percent(bounds[1])}%)" if bounds else ""
    if decision["verdict"] == "faster":
        return f"It takes {percent(gain)}% less time than {engine}'s default split {vector(default)}{within}."
    if decision["verdict"] == "no_difference":
        return f"No difference that matters to {engine}'s default split {vector(default)}: {percent(gain)}%{within}."
    return f"Whether it beats {engine}'s default split {vector(default)} is not settled: {percent(gain)}%{within}."


def verdict_words(entry: Json) -> str:
    """Return the sentence that the report opens with."""
    opening = placement_words(entry)
    return f"{opening[0].upper()}{opening[1:]}. {gain_words(entry)}"


# --- numbers of the running server ---


def _spread(samples: t.Sequence[Json], key: str) -> dict[str, float] | None:
    """Return mean, low and high of one key over the samples that have it."""
    values = [float(sample[key]) for sample in samples if sample.get(key) is not None]
    if not values:
        return None
    return {"mean": sum(values) / len(values), "low": min(values), "high": max(values)}


def served_tests(served: Json | None) -> list[dict[str, t.Any]]:
    """Summarise what llama_server_benchmark returned: one dict per test.

    Keys: name, prompt_tokens, generated_tokens, skipped_reason, sample_count, and per quantity (ttft_ms,
    prompt_tokens_per_second, decode_tokens_per_second) mean, low and high, or None.
    """
    summary = []
    for test in (served or {}).get("tests") or []:
        samples = test.get("samples") or []
        entry: dict[str, t.Any] = {
            key: test.get(key) for key in ("name", "prompt_tokens", "generated_tokens", "skipped_reason")
        }
        entry["sample_count"] = len(samples)
        for key in ("ttft_ms", "prompt_tokens_per_second", "decode_tokens_per_second"):
            entry[key] = _spread(samples, key)
        summary.append(entry)
    return summary


def served_value(tests: t.Sequence[Json], name: str, key: str) -> float | None:
    """Return the mean of one quantity of one served test, or None."""
    for test in tests:
        if test["name"] == name and test.get(key):
            return float(test[key]["mean"])
    return None


def power_summary(entry: Json, power: Json | None) -> dict[str, t.Any] | None:
    """Summarise what the cards of a deployment drew while the server generated, or None where nobody measured it.

    I(power) has C(readings), a list of cards (uuid, power_draw_watts) seen over time, and C(tests) of the same run. The
    median per card leaves out the readings before the first and after the last token. Returns watts (all cards of the
    deployment together), cards (device and watts) and joules_per_token (watts over tokens per second).
    """
    cards = []
    for device in entry["devices"]:
        seen = sorted(
            float(reading["power_draw_watts"])
            for reading in (power or {}).get("readings") or []
            if reading.get("uuid") == device["id"] and reading.get("power_draw_watts") is not None
        )
        if not seen:
            return None
        cards.append({"device": device["device"], "watts": statistics.median(seen)})
    watts = sum(card["watts"] for card in cards)
    rates = [test["decode_tokens_per_second"] for test in served_tests(power)]
    rate = rates[0]["mean"] if rates and rates[0] else None
    return {"watts": watts, "cards": cards, "joules_per_token": watts / rate if rate else None}


# --- memory ---


def memory_rows(entry: Json, server_devices: t.Sequence[Json] | None) -> list[dict[str, t.Any]]:
    """Return per device, in MiB: planned, the loaded server's own model, KV and compute buffers, free when planned.

    C(limit_mib) is what the plan could use at most: the free memory, or the device's budget where that is smaller.
    C(left_mib) is what of it the loaded server leaves free.
    """
    # The server numbers the CUDA cards that it is shown, so its names need not be those of the plan.
    serving_names = {device["id"]: device["device"] for device in placement.used_devices(entry)}
    loaded: dict[t.Any, Json] = {}
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
                "loaded_layers": (seen or {}).get("layers"),
                "planned_mib": planned,
                "headroom_mib": decision["headroom_mib"][index] if decision.get("headroom_mib") else None,
                "loaded_mib": loaded_mib,
                **parts,
                "free_mib": device.get("free_mib"),
                "budget_mib": device.get("budget_mib"),
                "total_mib": device.get("total_mib"),
                "limit_mib": limit_mib,
                "left_mib": limit_mib - loaded_mib if limit_mib is not None and loaded_mib is not None else None,
            }
        )
    return rows


# --- each device alone ---


def probe_rows(entry: Json) -> list[dict[str, t.Any]]:
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


def probe_warning(entry: Json) -> str | None:
    """Return the warning of the device probe about the order of the cards, or None."""
    return (entry.get("device_probe") or {}).get("warning")


def _probe_lines(entry: Json, width: int) -> list[str]:
    """Return the part of the summary about each device alone."""
    rows = probe_rows(entry)
    if not rows:
        return []
    body = [("", "rank", "ms/token", "GB/s", "in theory", "prefill tok/s")]
    body += [
        (_cut(row["device"], 48), row["rank"], *(row[key] for key in ("decode", "bandwidth", "theoretical", "prefill")))
        for row in rows
    ]
    lines = ["", "Each device alone (a small model of its own; its ratios help to find the split)"]
    lines += [f"  {line}" for line in columns(body, right={1, 2, 3, 4, 5})]
    for row in rows:
        if not row["ok"]:
            lines += _wrapped(f"{row['device']}: {row['status']}, {row['reason']}", width, "  ")
    warning = probe_warning(entry)
    return lines + (_wrapped(f"Warning: {warning}", width, "  ") if warning else [])


# --- expectations ---


def expectation_rows(
    entry: Json, tests: t.Sequence[Json], expectations: t.Sequence[Json], power: Json | None = None
) -> list[dict[str, t.Any]]:
    """Compare published expectations with this host.

    An expectation has name, metric, low, high, unit, source, note, evidence (list of value, rig and source), and says
    what it is about: C(model), a regular expression for the model's id or name, and C(devices), one regular expression
    per device that must be there. What is about another model or other cards is kept, and marked as not applicable.
    With C(comparable) false the two numbers stand side by side without a verdict.
    """
    names = [str(entry["model"].get(key) or "") for key in ("id", "name")]
    described = [device.get("description") or "" for device in entry["devices"]]
    rows = []
    for item in expectations:
        row = {key: item.get(key) for key in ("name", "low", "high", "unit", "source", "note")}
        row["evidence"] = list(item.get("evidence") or [])
        reason = None
        if item.get("model") and not any(re.search(item["model"], name, re.IGNORECASE) for name in names):
            reason = f"not applicable: it is about another model than {model_name(entry)}"
        elif not _cards_match(item.get("devices") or [], described):
            reason = "not applicable: it is about other cards than these"
        value = None if reason else _metric(entry, tests, power, str(item.get("metric")))
        row.update(
            {
                "value": value,
                "applicable": reason is None,
                "state": reason or _state(value, item),
            }
        )
        rows.append(row)
    return rows


def _cards_match(patterns: t.Sequence[str], described: t.Sequence[str]) -> bool:
    """Tell whether each pattern finds a device of its own."""
    left = list(described)
    for pattern in patterns:
        found = next((name for name in left if re.search(pattern, name, re.IGNORECASE)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _state(value: float | None, item: Json) -> str:
    low, high = item.get("low"), item.get("high")
    if value is None:
        return "not measured here"
    if item.get("comparable") is False:
        return "not comparable"
    if low is not None and value < low:
        return "below the expectation"
    if high is not None and value > high:
        return "above the expectation"
    return "as expected"


def _metric(entry: Json, tests: t.Sequence[Json], power: Json | None, metric: str) -> float | None:
    """Return this host's number: C(layer_ratio), C(power_watts), or C(<quantity>@<served test>): C(ttft_ms@at_1k)."""
    if metric == "power_watts":
        return power["watts"] if power else None
    if metric == "layer_ratio":
        layers = entry["decision"]["layers"]
        return layers[0] / layers[1] if len(layers) == 2 and layers[1] else None
    quantity, dummy, name = metric.partition("@")
    return served_value(tests, name, quantity)


# --- the summary at the end of a play ---


def table_rows(entry: Json) -> list[dict[str, t.Any]]:
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
                "layers": vector(row["layers"]),
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
                "chosen": list(row["layers"]) == list(decision["layers"]),
                "default": list(row["layers"]) == list(decision.get("default_layers") or []),
                "disturbed": len(row.get("disturbed_loads") or []),
            }
        )
    return rows


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    """Break a sentence into lines of at most I(width) columns, each after I(indent)."""
    lines, line = [], ""
    for word in text.split():
        if line and len(indent) + len(line) + 1 + len(word) > width:
            lines.append(indent + line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, indent + line] if line else lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def later_stages(decision: Json) -> list[str]:
    """Return a sentence each on the micro-batch and on split mode tensor, where these were measured or asked for."""
    found = []
    if (decision.get("micro_batches") or {}).get("loads"):
        found.append(f"Micro-batch: {decision['micro_batches']['why']}")
    tensor = decision.get("tensor")
    if tensor:
        trial = (tensor.get("trial") or {}).get("results") or [{}]
        words = tensor["why"]
        perplexity = trial[0].get("perplexity") or {}
        if perplexity.get("difference_percent") is not None:
            words += f"; its perplexity differs by {number(abs(perplexity['difference_percent']))} %"
        found.append(f"Split mode tensor: {words}")
    return found


def summary_lines(
    entry: Json,
    served: Json | None = None,
    server_devices: t.Sequence[Json] | None = None,
    url: str | None = None,
    report: str | None = None,
    more: t.Sequence[str] = (),
    width: int = 100,
) -> list[str]:
    """Return a short summary of a recorded deployment, one string per line, at most I(width) columns wide.

    I(more) are lines that say how to look further. URL, paths and those lines are never broken or cut.
    """
    decision = entry["decision"]
    lines = [_cut(f"{model_name(entry)}: {placement_words(entry)}", width)]
    lines += _wrapped(gain_words(entry), width, "  ")
    if decision.get("why"):
        lines += _wrapped(f"Why: {decision['why']}", width, "  ")
    for advice in decision.get("advice") or []:
        lines += _wrapped(f"Note: {advice}", width, "  ")
    for words in later_stages(decision):
        lines += _wrapped(words, width, "  ")
    best = [f"{name} {vector(layers)}" for name, layers in (decision.get("best_by_objective") or {}).items() if layers]
    if best and decision["verdict"] != "only_choice":
        lines += _wrapped(f"Best split for each objective, as far as known: {'; '.join(best)}", width, "  ")

    memory = memory_rows(entry, server_devices)
    lines += ["", "Devices and memory (MiB)"]
    head = ("", "layers", "planned", "loaded", "usable", "left")
    body = [
        (
            _cut(f"{row['device']} {row['description']}".strip(), 48),
            str(row["layers"]),
            mebibytes(row["planned_mib"]),
            mebibytes(row["loaded_mib"]),
            mebibytes(row["limit_mib"]),
            mebibytes(row["left_mib"]),
        )
        for row in memory
    ]
    lines += [f"  {line}" for line in columns([head, *body], right={1, 2, 3, 4, 5})]
    lines += _probe_lines(entry, width)

    rows = table_rows(entry)
    if rows:
        tokens = prompt_tokens_of(entry)
        measured_by = "llama-bench" if engine_name(entry) == "llama.cpp" else f"{engine_name(entry)}'s own speed test"
        lines += ["", f"Measured splits ({measured_by}; lowest to highest in brackets)"]
        head = ("layers", "decode ms/token", "tok/s", "prefill tok/s" if tokens else "prefill ms", "loads", "")
        body = []
        for row in rows:
            own = f"{engine_name(entry)}'s default"
            marks = [word for word, on in (("chosen", row["chosen"]), (own, row["default"])) if on]
            if row["disturbed"]:
                marks.append(f"{row['disturbed']} disturbed, set aside")
            if row["ok"]:
                timing = row["decode"] if row["decode"] == DASH else f"{row['decode']} ({row['decode_range']})"
                body.append((row["layers"], timing, row["rate"], row["prefill"], str(row["loads"]), ", ".join(marks)))
            else:
                body.append((row["layers"], row["status"], DASH, DASH, str(row["loads"] or DASH), ", ".join(marks)))
        lines += [f"  {line}" for line in columns([head, *body], right={2, 3, 4})]

    tests = served_tests(served)
    if tests:
        lines += ["", "Served (what a client of llama-server sees; no prompt cache)"]
        served_body = [("", "prompt", "first token ms", "prompt tok/s", "decode tok/s")]
        for test in tests:
            if not test["sample_count"]:
                continue
            served_body.append(
                (
                    _cut(str(test["name"]), 30),
                    str(test["prompt_tokens"]),
                    number((test["ttft_ms"] or {}).get("mean")),
                    number((test["prompt_tokens_per_second"] or {}).get("mean")),
                    number((test["decode_tokens_per_second"] or {}).get("mean")),
                )
            )
        lines += [f"  {line}" for line in columns(served_body, right={1, 2, 3, 4})]
        for test in tests:
            if not test["sample_count"]:
                lines += _wrapped(
                    f"{test['name']}: skipped, {test['skipped_reason'] or 'no reason given'}", width, "  "
                )

    ways = [(word, value) for word, value in (("URL", url), ("Report", report)) if value]
    if ways or more:
        lines.append("")
        lines += columns(ways)
        lines += list(more)
    # not every terminal of a play shows more than ASCII
    return [line.replace(DASH, "-") for line in lines]


# --- the view behind the HTML page ---


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


def _bar(row: Json) -> dict[str, t.Any]:
    """Return the widths, in percent of the bar, of a device's memory: loaded parts, the plan and the limit."""
    full = max(
        [float(row[key]) for key in ("planned_mib", "loaded_mib", "limit_mib") if row[key] is not None]
        + ([float(row["total_mib"])] if row["total_mib"] and row["budget_mib"] is None else []),
        default=0.0,
    )

    def share(value: float | None) -> float | None:
        return round(100.0 * float(value) / full, 2) if value is not None and full else None

    return {
        "full_mib": mebibytes(full),
        "model": share(row["model_mib"]),
        "kv": share(row["kv_mib"]),
        "compute": share(row["compute_mib"]),
        "planned": share(row["planned_mib"]),
        "limit": share(row["limit_mib"]),
    }


def report_view(
    entry: Json,
    served: Json | None = None,
    server_devices: t.Sequence[Json] | None = None,
    expectations: t.Sequence[Json] = (),
    power: Json | None = None,
) -> dict[str, t.Any]:
    """Return everything that the page shows, as text and bar widths: no decision is left to the template."""
    decision = entry["decision"]
    tests = served_tests(served)
    drawn = power_summary(entry, power)
    memory = memory_rows(entry, server_devices)
    slots = sum(decision["layers"])

    def spread(timing: Json | None) -> dict[str, str] | None:
        return {"mean": number(timing["mean"]), "range": interval(timing["low"], timing["high"])} if timing else None

    tiles = []
    decode = next((test for test in tests if test["decode_tokens_per_second"]), None)
    if decode:
        label = f"served decode, after a {decode['prompt_tokens']} token prompt"
        tiles.append({"value": number(decode["decode_tokens_per_second"]["mean"]), "unit": "tok/s", "label": label})
    elif decision.get("decode_tokens_per_second"):
        tiles.append(
            {"value": number(decision["decode_tokens_per_second"]), "unit": "tok/s", "label": "decode (bench)"}
        )
    first = next((test for test in tests if test["ttft_ms"] and test["prompt_tokens"] >= 512), None)
    if first:
        label = f"to the first token, {first['prompt_tokens']} token prompt"
        tiles.append({"value": number(first["ttft_ms"]["mean"]), "unit": "ms", "label": label})
    if decision.get("gain_over_default_percent") is not None and decision["verdict"] != "only_choice":
        label = f"less time than {engine_name(entry)}'s default split"
        label += {"no_difference": ": no difference that matters", "inconclusive": ": not settled"}.get(
            decision["verdict"], ""
        )
        tiles.append({"value": percent(decision["gain_over_default_percent"]), "unit": "%", "label": label})
    if decision.get("headroom_mib"):
        tightest = min(zip(decision["headroom_mib"], entry["devices"], strict=True), key=lambda pair: pair[0])
        tiles.append(
            {
                "value": mebibytes(tightest[0]),
                "unit": "MiB",
                "label": f"left beyond the reserve on {tightest[1]['device']}, as planned",
            }
        )

    fit = decision.get("fit") or {}
    return {
        "model": model_name(entry),
        "engine": engine_name(entry),
        "verdict": decision["verdict"].replace("_", " "),
        "sentence": verdict_words(entry),
        "why": decision.get("why") or "",
        "objective": objective_words(decision["objective"]),
        "tiles": tiles,
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
            {"device": row["device"], "layers": row["layers"], "percent": round(100.0 * row["layers"] / slots, 2)}
            for row in memory
        ],
        "slots": slots,
        "tensor_split": vector(decision["layers"]),
        "split_mode": decision["split_mode"],
        "memory": [
            {
                **{key: mebibytes(row[key]) for key in row if key.endswith("_mib")},
                "device": row["device"],
                "description": row["description"],
                "layers": row["layers"],
                "loaded_layers": row["loaded_layers"],
                "bar": _bar(row),
            }
            for row in memory
        ],
        "later_stages": later_stages(decision),
        "probe": probe_rows(entry),
        "probe_warning": probe_warning(entry),
        "loaded_known": any(row["loaded_mib"] is not None for row in memory),
        "table": table_rows(entry),
        "prompt_tokens": prompt_tokens_of(entry),
        "objective_name": decision["objective"]["name"],
        "best_by_objective": [
            (name, vector(layers)) for name, layers in (decision.get("best_by_objective") or {}).items() if layers
        ],
        "fit": [
            {
                "device": device["device"],
                "decode": number((fit.get("decode_ms_per_slot") or [None] * len(entry["devices"]))[index]),
                "prefill": number((fit.get("prefill_ms_per_slot") or [None] * len(entry["devices"]))[index]),
            }
            for index, device in enumerate(entry["devices"])
        ]
        if fit
        else [],
        "prefill_form": {
            "pipeline": "a pipeline",
            "serial": "serial: the devices do not overlap",
            "between": f"in between: the devices overlap by {number(100 * (fit.get('prefill_overlap') or 0))}%",
        }.get(fit.get("prefill_form") or ""),
        "advice": list(decision.get("advice") or []),
        "residuals": {key: percent(fit.get(f"{key}_residual_percent")) for key in ("decode", "prefill")},
        "served": [
            {
                "name": test["name"],
                "prompt_tokens": test["prompt_tokens"],
                "generated_tokens": test["generated_tokens"],
                "skipped_reason": test["skipped_reason"],
                "sample_count": test["sample_count"],
                "ttft": spread(test["ttft_ms"]),
                "prompt_rate": spread(test["prompt_tokens_per_second"]),
                "decode_rate": spread(test["decode_tokens_per_second"]),
            }
            for test in tests
        ],
        "power": {
            "watts": number(drawn["watts"]),
            "cards": [{"device": card["device"], "watts": number(card["watts"])} for card in drawn["cards"]],
            "joules_per_token": number(drawn["joules_per_token"]),
        }
        if drawn
        else None,
        "expectations": [
            {**row, "range": f"{row['low']:g} to {row['high']:g}", "value": number(row["value"])}
            for row in expectation_rows(entry, tests, expectations, drawn)
        ],
        "serving": _flat(entry["serving"]),
        "parts": _flat(entry.get("fingerprint_parts") or {}),
        "fingerprint": entry["fingerprint"],
        "campaign": entry["campaign"],
        "recorded_at": entry["recorded_at"],
        "loads_used": decision.get("loads_used"),
        "model_facts": _flat(entry["model"]),
    }
