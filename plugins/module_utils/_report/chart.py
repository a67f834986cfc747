# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a chart of the measured splits shows: points, fitted line, bands. Private to this collection. Pure functions."""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._split import cost_model, layer_weights
from .recorded import ROW_KEYS, is_chosen, is_default, prompt_tokens_of, row_name, timing_of


def chart_points(entry: Mapping, quantity: str) -> list[Json]:
    """Return one point per measured split: layers, x (layers on device 0), status, mean, low, high, predicted.

    Beside these its name, and whether it is the chosen one, and the engine's default.
    """
    points = []
    for row in entry["decision"].get("table") or []:
        timing = timing_of(entry, row, quantity) if row["status"] == "ok" else None
        if row["status"] == "ok" and timing is None:
            continue
        point: Json = {"layers": list(row["layers"]), "x": row["layers"][0], "status": row["status"]}
        point.update(name=row_name(row), chosen=is_chosen(entry, row), default=is_default(entry, row))
        point.update(timing or {"mean": None, "low": None, "high": None, "predicted": None})
        points.append(point)
    return points


def has_points(entry: Mapping, quantity: str) -> bool:
    """Tell whether anything was measured of this quantity."""
    return any(point["mean"] is not None for point in chart_points(entry, quantity))


def _modelled(entry: Mapping, quantity: str, layers: t.Sequence[int]) -> float | None:
    """Return the fitted cost of a split in milliseconds, without its constant."""
    decision = entry["decision"]
    fit = decision.get("fit") or {}
    decode = fit.get("decode_ms_per_layer")
    prefill = fit.get("prefill_ms_per_layer")
    if quantity == "decode":
        return _decode_ms(layers, fit) if decode else None
    micro_batch = entry["serving"]["micro_batch_size"]
    if quantity == "prefill":
        tokens = prompt_tokens_of(entry)
        return _prompt_ms(layers, fit, tokens, micro_batch) if prefill and tokens else None
    objective = decision["objective"]
    if objective["name"] not in ("request", "ttft") or not prefill or not decode:
        return None
    prompt = _prompt_ms(layers, fit, objective["prompt_tokens"], micro_batch)
    return prompt + (1 if objective["name"] == "ttft" else objective["generated_tokens"]) * _decode_ms(layers, fit)


def _decode_ms(layers: t.Sequence[int], fit: Mapping) -> float:
    return cost_model.decode_ms(fit["decode_ms_per_layer"], _amounts("decode", layers, fit))


def _amounts(kind: str, layers: t.Sequence[int], fit: Mapping) -> tuple[float, ...]:
    return layer_weights.of_lists(fit.get("weights"), sum(layers)).amounts(kind, layers)


def _prompt_ms(layers: t.Sequence[int], fit: Mapping, tokens: int, micro_batch: int) -> float:
    overlap = fit.get("prefill_overlap")
    batches = cost_model.micro_batches(tokens, micro_batch)
    amounts = _amounts("prefill", layers, fit)
    return cost_model.prefill_ms(fit["prefill_ms_per_layer"], amounts, batches, 1.0 if overlap is None else overlap)


def chart_line(entry: Mapping, quantity: str, span: tuple[int, int]) -> list[tuple[float, float]]:
    """Return the fitted line for two devices as points (x, y), in the unit of the chart.

    The cost model gives a point per integer split when it agrees with the predictions in the table within 1 percent
    (after one constant); otherwise the predictions themselves are joined.
    """
    known = []
    for row in entry["decision"].get("table") or []:
        timing = row.get(ROW_KEYS[quantity])
        if row["status"] == "ok" and timing and timing.get("predicted"):
            known.append((row["layers"], timing["predicted"]))
    if len(known) < 2:
        return []
    constant = _constant(entry, quantity, known)
    if constant is None:
        points = [(float(layers[0]), predicted) for layers, predicted in sorted(known, key=lambda item: item[0][0])]
    else:
        total = sum(entry["decision"]["layers"])
        splits = [(first, total - first) for first in range(span[0], span[1] + 1)]
        modelled = [(float(layers[0]), _modelled(entry, quantity, layers)) for layers in splits]
        points = [(first, value + constant) for first, value in modelled if value is not None]
    return [(x, _shown(entry, quantity, value)) for x, value in points if value > 0]


def _constant(entry: Mapping, quantity: str, known: t.Sequence[tuple[t.Sequence[int], float]]) -> float | None:
    """Return what the model's milliseconds lack on average, or None where it does not follow the predictions."""
    modelled = [_modelled(entry, quantity, layers) for layers, dummy in known]
    pairs = [(predicted, value) for (dummy, predicted), value in zip(known, modelled, strict=True) if value is not None]
    if len(pairs) < len(known):
        return None
    constant = sum(predicted - value for predicted, value in pairs) / len(pairs)
    apart = [abs(predicted - value - constant) / predicted for predicted, value in pairs]
    return constant if max(apart) <= 0.01 else None


def _shown(entry: Mapping, quantity: str, milliseconds: float) -> float:
    """Return milliseconds in the unit of the chart."""
    tokens = prompt_tokens_of(entry)
    if quantity == "prefill" and tokens:
        return 1000.0 * tokens / milliseconds
    return milliseconds / 1000.0 if quantity == "objective" else milliseconds


def chart_span(entry: Mapping) -> tuple[int, int]:
    """Return the first and last number of layers that a two-device chart shows."""
    decision = entry["decision"]
    total = sum(decision["layers"])
    seen = {decision["layers"][0]}
    seen.update(row["layers"][0] for row in decision.get("table") or [])
    if decision.get("default_layers"):
        seen.add(decision["default_layers"][0])
    seen.update(row["layers"][0] for row in entry.get("feasible") or [])
    margin = max(2, round(0.12 * (max(seen) - min(seen))))
    return max(0, min(seen) - margin), min(total, max(seen) + margin)


def infeasible_bands(entry: Mapping, span: tuple[int, int]) -> list[tuple[float, float]]:
    """Return the stretches of the x axis (as intervals) whose splits do not fit in memory.

    Without a list of feasible splits only measured failures count: what ran out of memory, and everything beyond it.
    """
    chosen = entry["decision"]["layers"][0]
    fits = {row["layers"][0] for row in entry.get("feasible") or []}
    if fits:
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
