# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which power limits to measure, and which of them are worth it. Private to this collection. Pure functions only.

A point is {label, limits_watts: {card_id: watts}}, with `loads` once it was measured: loads of split_benchmark (see
docs/data_formats.md) whose results carry `energy`.

In a layer split the cards take turns, so what a lower limit costs one card adds to the time of a token whatever the
other card does, and so does the energy it saves. One card at a time is therefore enough to predict every combination:
t = t0 + sum(dt_card(limit)), E = E0 + sum(dE_card(limit)). Prompts overlap on the cards, and there it is a guess; so
what is recommended is measured before it is recommended.
"""

from __future__ import annotations

import itertools
import typing as t

from .._base import text
from .._base.errors import UserError
from .._base.fields import is_number
from .._base.types import Json, Mapping

Point = Json

#: Objectives of docs/data_formats.md: which tokens count.
_PROMPT_COUNTS: t.Final = ("prefill", "ttft", "request")
_GENERATED_COUNT: t.Final = ("decode", "agent", "request")


# --- what to measure -------------------------------------------------------------------------------------------------


def plan(
    gpus: t.Sequence[Mapping], fractions: t.Sequence[float],
    limits_watts: t.Mapping[str, t.Sequence[float]],
) -> list[Point]:
    """Return the points to measure: all cards at their highest limit, then each card at each lower one.

    `fractions` are of each card's default limit, raised to what the card accepts; `limits_watts` gives a card's limits
    itself, by UUID. Raises UserError for a card that is not there or cannot be limited, and for limits that it does
    not take.
    """
    unknown = [card_id for card_id in limits_watts if card_id not in {gpu["id"] for gpu in gpus}]
    if unknown:
        here = ", ".join(f"{gpu['id']} ({gpu['name']})" for gpu in gpus)
        raise UserError(f"power limits are given for {unknown[0]}, which is none of the cards in use: {here}")
    limits = {str(gpu["id"]): _limits(gpu, fractions, limits_watts.get(gpu["id"])) for gpu in gpus}
    base = {card_id: values[0] for card_id, values in limits.items()}
    points = [_point(base, gpus)]
    for card_id, values in limits.items():
        points += [_point({**base, card_id: watts}, gpus) for watts in values[1:]]
    return points


def _limits(gpu: Mapping, fractions: t.Sequence[float], given: t.Sequence[float] | None) -> list[float]:
    """The limits of one card, highest first."""
    label = f"{gpu['name']} ({gpu['id']})"
    lowest, highest, default = (gpu[f"power_limit_{name}_watts"] for name in ("min", "max", "default"))
    if lowest is None or highest is None or default is None:
        raise UserError(f"{label} has no power limit that can be set, so there is nothing to measure")
    if given is None:
        if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
            raise UserError(f"the fractions are {list(fractions)}: give numbers above 0, up to 1")
        given = [min(highest, max(lowest, round(default * fraction / 5) * 5)) for fraction in fractions]
    for watts in given:
        if not is_number(watts, lowest, highest):
            raise UserError(f"{label} takes power limits from {lowest:g} to {highest:g} W, and {watts} was asked for")
    return sorted(set(given), reverse=True)


def _point(limits: t.Mapping[str, float], gpus: t.Sequence[Mapping]) -> Point:
    return {"label": label(limits, gpus), "limits_watts": dict(limits)}


def label(limits: t.Mapping[str, float], gpus: t.Sequence[Mapping]) -> str:
    """315 + 280 W, in the order of the cards."""
    return " + ".join(f"{limits[gpu['id']]:g}" for gpu in gpus if gpu["id"] in limits) + " W"


def group(measurements: t.Sequence[Mapping]) -> list[Point]:
    """Return points with all their loads, in the order of their first, from [{label, limits_watts, load}, ...]."""
    points: dict[t.Any, Point] = {}
    for measured in measurements:
        point = {"label": measured["label"], "limits_watts": measured["limits_watts"], "loads": []}
        points.setdefault(_key(measured["limits_watts"]), point)["loads"].append(measured["load"])
    return list(points.values())


# --- what was measured -----------------------------------------------------------------------------------------------


def row(point: Mapping) -> Json:
    """Return what a point's loads say: speed and energy of prompt and generation, None where not measured.

    {label, limits_watts, loads, status, reason, decode, prefill}; decode and prefill are None or {ms_per_token,
    tokens_per_second, joules_per_token, watts: {card_id: W}, source}, over all samples of all loads.
    """
    cards = point["limits_watts"]
    good = [load for load in point["loads"] if load["status"] == "ok"]
    bad = next((load for load in point["loads"] if load["status"] != "ok"), None)
    return {
        "label": point["label"], "limits_watts": cards, "loads": len(good),
        "status": "ok" if good else (bad["status"] if bad else "not measured"),
        "reason": bad["reason"] if bad else None,
        "decode": _phase(good, cards, "n_gen", "n_prompt"), "prefill": _phase(good, cards, "n_prompt", "n_gen"),
    }  # fmt: skip


def _phase(
    loads: t.Sequence[Mapping], cards: t.Collection[str], counted: str, other: str
) -> Json | None:
    """One kind of test over all loads; the energy is that of the swept cards, whatever else is in the box."""
    tokens = 0
    ms = 0.0
    joules: dict[str, float] = {}
    sources: set[str] = set()
    complete = True
    for load in loads:
        for result in load["results"]:
            if result[counted] == 0 or result[other] != 0:
                continue
            tokens += result[counted] * len(result["samples_ms"])
            ms += sum(result["samples_ms"])
            energy = result.get("energy") or {"joules": {}, "source": {}}
            complete = complete and set(cards) <= set(energy["joules"])
            for card_id in set(cards) & set(energy["joules"]):
                joules[card_id] = joules.get(card_id, 0.0) + energy["joules"][card_id]
                sources.add(energy["source"][card_id])
    if tokens == 0:
        return None
    known = complete and bool(joules)
    return {
        "ms_per_token": round(ms / tokens, 4),
        "tokens_per_second": round(1000 * tokens / ms, 2),
        "joules_per_token": round(sum(joules.values()) / tokens, 4) if known else None,
        "watts": {card_id: round(1000 * value / ms, 1) for card_id, value in joules.items()} if known else None,
        "source": " and ".join(sorted(sources)) or None,
    }


def cost(measured: Mapping, objective: Mapping) -> tuple[float, float] | None:
    """Return milliseconds and joules of one request of the objective, or None where something was not measured."""
    prompt = objective["prompt_tokens"] if objective["name"] in _PROMPT_COUNTS else 0
    generated = objective["generated_tokens"] if objective["name"] in _GENERATED_COUNT else 0
    if objective["name"] == "ttft":
        generated = 1
    ms = joules = 0.0
    for tokens, phase in ((prompt, measured["prefill"]), (generated, measured["decode"])):
        if tokens:
            if phase is None or phase["joules_per_token"] is None:
                return None
            ms += tokens * phase["ms_per_token"]
            joules += tokens * phase["joules_per_token"]
    return ms, joules


def choose(
    points: t.Sequence[Point], gpus: t.Sequence[Mapping], objective: Mapping,
    tolerance_percent: float, measured_only: bool,
) -> Json:
    """Return the limits that use the least energy among those that cost at most `tolerance_percent` of speed.

    `points` as plan() gave them, the baseline first, with loads. Returns {rows, limits_watts, label, measured,
    slower_percent, less_energy_percent, noise_percent, why}. `measured` is False for a combination that was only
    predicted: measure it and ask again, with `measured_only`. Raises UserError when the baseline was not measured.
    """
    rows = [row(point) for point in points]
    costs = [cost(measured, objective) if measured["status"] == "ok" else None for measured in rows]
    if costs[0] is None:
        raise UserError(
            f"the cards at their highest limits ({rows[0]['label']}) were not measured:"
            f" {rows[0]['reason'] or 'there is no energy in the results'}"
        )
    base_ms, base_joules = costs[0]
    seen = {_key(points[index]["limits_watts"]): found for index, found in enumerate(costs) if found is not None}
    candidates = {key: (*found, True) for key, found in seen.items()}
    if not measured_only:
        for key, found in _combinations(points, costs, base_ms, base_joules).items():
            candidates.setdefault(key, (*found, False))
    within = {key: found for key, found in candidates.items() if found[0] <= base_ms * (1 + tolerance_percent / 100)}
    best = min(within, key=lambda key: (within[key][1], within[key][0]))
    ms, joules, measured = within[best]
    slower, less = 100 * (ms / base_ms - 1), 100 * (1 - joules / base_joules)
    limits = dict(best)
    name = label(limits, gpus)
    noise = _noise_percent(points[0], objective)
    if best == _key(points[0]["limits_watts"]):
        why = f"No lower limit uses less energy and is at most {tolerance_percent:g} % slower: keep {name}."
    else:
        why = (
            f"{name}: {less:.1f} % less energy per request than {rows[0]['label']}, and"
            f" {abs(slower):.1f} % {'slower' if slower >= 0 else 'faster'} ({'measured' if measured else 'predicted'})."
        )
    if noise is not None and noise > tolerance_percent:
        why += (
            f" The same limits measured at the start and at the end differ by {noise:.1f} %, more than the"
            f" {tolerance_percent:g} % that are allowed: do not rely on it, and look for what disturbs the machine."
        )
    return {
        "rows": rows, "limits_watts": limits, "label": name, "measured": measured, "slower_percent": round(slower, 2),
        "less_energy_percent": round(less, 2), "noise_percent": noise, "why": why,
    }  # fmt: skip


def _key(limits: t.Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple((card_id, float(watts)) for card_id, watts in limits.items())


def _combinations(
    points: t.Sequence[Point], costs: t.Sequence[tuple[float, float] | None], base_ms: float, base_joules: float
) -> dict[tuple[tuple[str, float], ...], tuple[float, float]]:
    """Milliseconds and joules of every combination of limits that were measured on one card at a time."""
    base = points[0]["limits_watts"]
    effects: dict[str, dict[float, tuple[float, float]]] = {
        card_id: {float(watts): (0.0, 0.0)} for card_id, watts in base.items()
    }
    for point, found in zip(points, costs, strict=True):
        changed = [card_id for card_id, watts in point["limits_watts"].items() if watts != base[card_id]]
        if found is not None and len(changed) == 1:
            effects[changed[0]][float(point["limits_watts"][changed[0]])] = (found[0] - base_ms, found[1] - base_joules)
    result = {}
    for chosen in itertools.product(*(options.items() for options in effects.values())):
        key = tuple((card_id, watts) for card_id, (watts, _effect) in zip(effects, chosen, strict=True))
        result[key] = (
            base_ms + sum(effect[0] for _watts, effect in chosen),
            base_joules + sum(effect[1] for _watts, effect in chosen),
        )
    return result


def _noise_percent(point: Mapping, objective: Mapping) -> float | None:
    """How far the loads of a point are apart, in percent of the fastest; None with fewer than two."""
    times = []
    for load in point["loads"]:
        found = cost(row({**point, "loads": [load]}), objective)
        if load["status"] == "ok" and found is not None:
            times.append(found[0])
    return round(100 * (max(times) / min(times) - 1), 2) if len(times) > 1 else None


# --- what people read ------------------------------------------------------------------------------------------------


def table(choice: Mapping, gpus: t.Sequence[Mapping]) -> list[str]:
    """Return the measured points as lines of text."""
    names = " + ".join(str(gpu["name"]).removeprefix("NVIDIA GeForce ") for gpu in gpus)
    head = ["power limits", "decode tok/s", "J/token", "W", "prefill tok/s", "J/token", ""]
    body = []
    for measured in choice["rows"]:
        marks = ["recommended"] if measured["limits_watts"] == choice["limits_watts"] else []
        if measured["status"] != "ok":
            marks.append(f"{measured['status']}: {measured['reason']}")
        decode, prefill = measured["decode"], measured["prefill"]
        watts = sum(decode["watts"].values()) if decode and decode["watts"] else None
        body.append([
            measured["label"], _cell(decode, "tokens_per_second"), _cell(decode, "joules_per_token"),
            "-" if watts is None else f"{watts:.0f}", _cell(prefill, "tokens_per_second"),
            _cell(prefill, "joules_per_token"), ", ".join(marks),
        ])  # fmt: skip
    lines = text.columns([head, *body], right=range(1, len(head) - 1))
    title = f"{names}, one limit lowered at a time (W: the cards while generating)"
    return [title, *(f"  {line}" for line in lines), choice["why"]]


def _cell(phase: Mapping | None, name: str) -> str:
    value = phase[name] if phase else None
    return "-" if value is None else f"{value:.3g}"
