# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the running server delivered, and published claims beside that. Private to this collection. Pure functions."""

from __future__ import annotations

import re
import typing as t

from .._base.text import DASH, number
from .._base.types import Json, Mapping


def _spread(samples: t.Sequence[Mapping], key: str) -> dict[str, float] | None:
    """Return mean, low and high of one key over the samples that have it."""
    values = [float(sample[key]) for sample in samples if sample.get(key) is not None]
    if not values:
        return None
    return {"mean": sum(values) / len(values), "low": min(values), "high": max(values)}


def served_tests(served: Mapping | None) -> list[Json]:
    """Summarise what llama_server_benchmark returned: one dict per test.

    Keys: name, prompt_tokens, generated_tokens, skipped_reason, sample_count, and per quantity (ttft_ms,
    prompt_tokens_per_second, decode_tokens_per_second) mean, low and high, or None.
    """
    summary = []
    for test in (served or {}).get("tests") or []:
        samples = test.get("samples") or []
        entry: Json = {
            key: test.get(key) for key in ("name", "prompt_tokens", "generated_tokens", "skipped_reason")
        }
        entry["sample_count"] = len(samples)
        for key in ("ttft_ms", "prompt_tokens_per_second", "decode_tokens_per_second"):
            entry[key] = _spread(samples, key)
        summary.append(entry)
    return summary


def served_power(served: Mapping | None) -> tuple[dict[str, t.Any] | None, str | None]:
    """Return what all cards drew, as text, or why that is not known.

    Keys: watts, cards (device, with its host where it is lent, and watts), joules_per_token,
    tokens_per_second_per_watt.
    """
    power = (served or {}).get("power") or {"reason": "not measured yet"}
    if power["reason"]:
        return None, str(power["reason"]).rstrip(".")
    joules = power["joules_per_token"]
    cards = [
        {
            "device": f"{card['device']} of {card['host']}" if "host" in card else str(card["device"]),
            "watts": number(card["watts"]),
        }
        for card in power["cards"]
    ]
    rate = f"{1 / joules:.2g}" if joules else DASH
    found = {"watts": number(power["watts"]), "cards": cards, "joules_per_token": number(joules)}
    return {**found, "tokens_per_second_per_watt": rate}, None


def served_value(tests: t.Sequence[Mapping], name: str, key: str) -> float | None:
    """Return the mean of one quantity of one served test, or None."""
    for test in tests:
        if test["name"] == name and test.get(key):
            return float(test[key]["mean"])
    return None


def expectation_rows(
    entry: Mapping, tests: t.Sequence[Mapping], expectations: t.Sequence[Mapping], power_watts: float | None
) -> list[Json]:
    """Compare published expectations with this host.

    An expectation has name, metric, low, high, unit, source, note, evidence (list of value, rig and source), and says
    what it is about: C(model), a regular expression for the model's id or name, and C(devices), one regular expression
    per device that must be there. What is about another model or other cards is left out. With C(comparable) false the
    two numbers stand side by side without a verdict. I(power_watts) is the draw of the cards while the server
    generates.
    """
    names = [str(entry["model"].get(key) or "") for key in ("id", "name")]
    described = [device.get("description") or "" for device in entry["devices"]]
    rows = []
    for item in expectations:
        if item.get("model") and not any(re.search(item["model"], name, re.IGNORECASE) for name in names):
            continue
        if not _cards_match(item.get("devices") or [], described):
            continue
        row = {key: item.get(key) for key in ("name", "low", "high", "unit", "source", "note")}
        value = _metric(entry, tests, power_watts, str(item.get("metric")))
        evidence = list(item.get("evidence") or [])
        rows.append({**row, "evidence": evidence, "value": value, "state": _state(value, item)})
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


def _state(value: float | None, item: Mapping) -> str:
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


def _metric(entry: Mapping, tests: t.Sequence[Mapping], power_watts: float | None, metric: str) -> float | None:
    """Return this host's number: C(layer_ratio), C(power_watts), or C(<quantity>@<served test>): C(ttft_ms@at_1k)."""
    if metric == "power_watts":
        return power_watts
    if metric == "layer_ratio":
        layers = entry["decision"]["layers"]
        return layers[0] / layers[1] if len(layers) == 2 and layers[1] else None
    quantity, dummy, name = metric.partition("@")
    return served_value(tests, name, quantity)
