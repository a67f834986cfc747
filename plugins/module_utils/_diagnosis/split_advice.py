# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which layers of a served split to move, by its record and what was seen of its devices. Private to this collection.

Pure functions only. The costs are those of the record's fit (see _cost_model), scaled for a device that is clearly
slower or faster today; the splits are those that the record says fit.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json
from .._split import layer_search, layer_split, layer_weights, split_cost
from .._split.workload import counted, needed_kinds

#: Fallbacks for records that do not tell.
DECODE_TOKENS = 64
PROMPT_TOKENS = 512

#: A move that gains less than this is not worth a reload; as split_tuning_indifference.
LEAST_GAIN = 0.01
#: A device that waits for a CPU for more than this part of its busy time shares it with somebody.
WAITS_PERCENT = 10.0


def tests_of(entry: Json) -> dict[str, Json]:
    """Return the tests that the fit rests on, by kind; see split_problem.read_problem."""
    tests = (entry.get("fingerprint_parts") or {}).get("tests") or []
    objective = entry["decision"]["objective"]
    depth, prompt = objective.get("depth_tokens") or 0, objective["prompt_tokens"]
    found: dict[str, Json] = {}
    for kind in ("decode", "prefill"):
        of_kind = [test for test in tests if test["kind"] == kind]
        if of_kind and kind == "decode":
            found[kind] = min(of_kind, key=lambda test: abs(test["n_depth"] - depth - prompt))
        elif of_kind:
            found[kind] = min(
                of_kind, key=lambda test: (abs(test["n_depth"] - depth), abs(test["n_prompt"] - prompt))
            )
    return found


def costs_now(entry: Json, observed: t.Sequence[Json]) -> tuple[list[float] | None, list[float] | None, bool]:
    """Return ms per slot of decoding and of prefill as the cards are today, and whether that differs from the record.

    Only what is clearly slower or faster than recorded is scaled; the rest stands as the tuning measured it. So does a
    device that waits for a CPU: it is to get its CPU back, not fewer layers.
    """
    fit = entry["decision"].get("fit") or {}
    costs: dict[str, list[float] | None] = {}
    changed = False
    for kind in ("decode", "prefill"):
        recorded = fit.get(f"{kind}_ms_per_layer")
        own = None if recorded is None else list(recorded)
        phase = next((phase for phase in observed if phase["kind"] == kind), None)
        for row in phase["devices"] if phase else []:
            waits = (row["waiting_percent"] or 0.0) >= WAITS_PERCENT
            if own is not None and row["verdict"] in ("slower", "faster") and row["seen"] and not waits:
                index = next(i for i, device in enumerate(entry["devices"]) if device["id"] == row["id"])
                own[index] *= 1 + row["change_percent"] / 100
                changed = True
        costs[kind] = own
    return costs["decode"], costs["prefill"], changed


def workload(
    entry: Json, objective: str, decode: t.Sequence[float] | None, prefill: t.Sequence[float] | None
) -> split_cost.Cost | None:
    """Return what an objective costs by layers; tokens come from the recorded objective, else from its tests."""
    asked, tests = entry["decision"]["objective"], tests_of(entry)
    tested = tests.get("prefill", {}).get("n_prompt") or asked["prompt_tokens"] or PROMPT_TOKENS
    prompt, generated = counted(
        objective, asked["prompt_tokens"] or tested, asked["generated_tokens"] or DECODE_TOKENS
    )
    needed = needed_kinds(objective)
    if ("decode" in needed and decode is None) or ("prefill" in needed and prefill is None):
        return None
    micro_batch = min(entry["serving"]["micro_batch_size"], entry["serving"]["batch_size"])
    fit = entry["decision"].get("fit") or {}
    weights = layer_weights.of_lists(fit.get("weights"), sum(entry["decision"]["layers"]))
    overlap = fit.get("prefill_overlap", 1.0)
    return split_cost.workload_cost(decode, prefill, prompt, generated, tested, micro_batch, overlap, weights)


def feasible(entry: Json) -> list[Json]:
    """Return the rows {layers, mib, headroom_mib} of the splits that memory allows and that did not fail."""
    failed = [row["layers"] for row in entry["decision"].get("table") or [] if row["status"] != "ok"]
    return [row for row in entry.get("feasible") or [] if row["layers"] not in failed]


def moves(here: t.Sequence[int], there: t.Sequence[int], names: t.Sequence[str]) -> list[Json]:
    """Return how layers get from one split to the other: {layers, from, to} each, the largest heap first."""
    left = {name: a - b for a, b, name in zip(here, there, names, strict=True)}
    found = []
    while any(left.values()):
        giver, taker = max(left, key=lambda name: left[name]), min(left, key=lambda name: left[name])
        count = min(left[giver], -left[taker])
        found.append({"layers": count, "from": giver, "to": taker})
        left[giver] -= count
        left[taker] += count
    return found


def gain(entry: Json, cost: split_cost.Cost, layers: t.Sequence[int], objective: str, changed: bool) -> float:
    """Return how much less time the objective takes with C(layers) than now, as a part of now.

    Where both were measured, and nothing has changed since, the measurement counts and not the fit.
    """
    now = entry["decision"]["layers"]
    if objective == entry["decision"]["objective"]["name"] and not changed:
        table = {tuple(row["layers"]): row.get("objective_ms") for row in entry["decision"].get("table") or []}
        mine, other = table.get(tuple(now)), table.get(tuple(layers))
        if mine and other:
            return 1 - other["mean"] / mine["mean"]
    return 1 - cost.ms(layers) / cost.ms(now)


def least_gain(entry: Json, objective: str, cost: split_cost.Cost) -> float:
    """Return the gain below which a move is not advised: the indifference, or the fit's residual if that is larger.

    That of an objective is made of those of its kinds, as their times make up its time now.
    """
    fit, now = entry["decision"].get("fit") or {}, entry["decision"]["layers"]
    decode_part = sum(ms * count for ms, count in zip(cost.slot_ms, now, strict=True)) / cost.ms(now)
    parts = {"decode": decode_part, "prefill": 1 - decode_part}
    residuals = (part * (fit.get(f"{kind}_residual_percent") or 0.0) / 100 for kind, part in parts.items())
    return max(LEAST_GAIN, sum(residuals))


def advice(entry: Json, observed: t.Sequence[Json]) -> Json:
    """Return which layers to move, or why none: {layers, moves, gains_percent, headroom_mib, why, others, costs}.

    Every split of the record's feasible list is looked at, so the best of them is found; C(gains_percent) are speeds,
    by objective. C(others) are splits that are better for decode or prefill alone.
    """
    decision = entry["decision"]
    none: Json = {"layers": None, "moves": [], "gains_percent": {}, "headroom_mib": None, "others": []}
    none["costs"] = "record"
    objective = decision["objective"]["name"]
    if decision["split_mode"] != "layer":
        return {**none, "why": "in split mode tensor all devices work on every layer: there are no layers to move"}
    if decision.get("experts_in_ram"):
        why = "with weights in RAM memory decides how many layers a device has: a retune looks for a better placement"
        return {**none, "why": why}
    if sum(1 for count in decision["layers"] if count) == 1 and len(decision["layers"]) == 1:
        return {**none, "why": "nothing to move: there is one device"}
    rows = feasible(entry)
    decode, prefill, changed = costs_now(entry, observed)
    costs = "today" if changed else "record"
    cost = workload(entry, objective, decode, prefill)
    if not rows or cost is None:
        what = "which splits fit" if cost is not None else "what a layer costs on each device"
        return {**none, "why": f"nothing to say about layers: the record does not tell {what}; a retune records it"}
    best = _best(entry, cost, rows, objective, changed)
    found: Json = {**none, "costs": costs}
    if best is None:
        found["why"] = _why_nothing(entry, cost, rows, objective, changed)
    else:
        found.update(_move(entry, best, decode, prefill, changed))
        found["why"] = _why_move(entry, found, objective, costs)
    for other in ("decode", "prefill"):
        own = workload(entry, other, decode, prefill)
        row = _best(entry, own, rows, other, changed) if own is not None and other != objective else None
        if row is not None and row["layers"] != found["layers"]:
            found["others"].append({"objective": other, **_move(entry, row, decode, prefill, changed)})
    return found


def _best(
    entry: Json, cost: split_cost.Cost, rows: t.Sequence[Json], objective: str, changed: bool
) -> Json | None:
    """Return the row of the largest gain, the fewest layers moved among equals; None if it is not worth it."""
    now = entry["decision"]["layers"]

    def key(row: Json) -> tuple[float, int]:
        far = sum(abs(a - b) for a, b in zip(row["layers"], now, strict=True))
        return round(gain(entry, cost, row["layers"], objective, changed), 9), -far

    best = max(rows, key=key)
    worth = gain(entry, cost, best["layers"], objective, changed) > least_gain(entry, objective, cost)
    return best if worth and best["layers"] != now else None


def _move(
    entry: Json, row: Json, decode: t.Sequence[float] | None, prefill: t.Sequence[float] | None, changed: bool
) -> Json:
    names = [device["device"] for device in entry["devices"]]
    gains = {}
    for objective in dict.fromkeys(("decode", "prefill", entry["decision"]["objective"]["name"])):
        cost = workload(entry, objective, decode, prefill)
        if cost is not None:
            less = gain(entry, cost, row["layers"], objective, changed)
            gains[objective] = round(100 * (1 / (1 - less) - 1), 1)
    return {
        "layers": row["layers"],
        "moves": moves(entry["decision"]["layers"], row["layers"], names),
        "gains_percent": gains,
        "headroom_mib": dict(zip(names, row["headroom_mib"], strict=True)),
    }


def moves_text(move: Json) -> str:
    """Return a move as people say it: C(move 3 layers from CUDA1 to CUDA0: +1.9 % decode, fits with 410 MiB left)."""
    steps = " and ".join(
        f"{one['layers']} layer{'s' * (one['layers'] > 1)} from {one['from']} to {one['to']}" for one in move["moves"]
    )
    gains = ", ".join(f"{percent:+.1f} % {objective}" for objective, percent in move["gains_percent"].items())
    takers = dict.fromkeys(one["to"] for one in move["moves"])
    left = " and ".join(f"{move['headroom_mib'][name]} MiB left on {name}" for name in takers)
    return f"move {steps}: {gains}; fits with {left}"


def _why_move(entry: Json, move: Json, objective: str, costs: str) -> str:
    basis = "With the devices as they are today" if costs == "today" else "By the record"
    name = layer_split.split_name(move["layers"])
    return (
        f"{moves_text(move)}. {basis}, {name} takes the least time per {unit(objective)} of all splits that fit; "
        "a retune measures it"
    )


def unit(objective: str) -> str:
    return {"decode": "token", "agent": "token", "prefill": "prompt", "ttft": "first token"}.get(objective, objective)


def _why_nothing(
    entry: Json, cost: split_cost.Cost, rows: t.Sequence[Json], objective: str, changed: bool
) -> str:
    """Return why the recorded split stays: what the best other one would gain, and what stops the way beyond."""
    decision, names = entry["decision"], [device["device"] for device in entry["devices"]]
    now = decision["layers"]
    others = [row for row in rows if row["layers"] != now]
    name = layer_split.split_name(now)
    if not others:
        return f"nothing to move: {name} is the only split that fits"
    best = max(others, key=lambda row: gain(entry, cost, row["layers"], objective, changed))
    less = gain(entry, cost, best["layers"], objective, changed)
    other = layer_split.split_name(best["layers"])
    if less > 0:
        reason = (
            f"{other} would take {100 * less:.1f} % less time per {unit(objective)}, which is within the "
            f"{100 * least_gain(entry, objective, cost):.1f} % that the record cannot tell apart"
        )
    else:
        reason = f"{name} is the best that fits, because it takes the least time per {unit(objective)}"
        reason += f" (next {other}, {-100 * less:.1f} % more)"
    fits = {tuple(row["layers"]) for row in rows}
    blocked = []
    for beyond in layer_search.moved_by_one(now):
        if beyond not in fits and all(beyond) and cost.ms(beyond) < cost.ms(now):
            taker = next(i for i, (a, b) in enumerate(zip(now, beyond, strict=True)) if b > a)
            blocked.append(names[taker])
    if blocked:
        full = " and ".join(dict.fromkeys(blocked))
        reason += f"; one layer more on {full} would be faster and does not fit"
    return f"nothing to move: {reason}"
