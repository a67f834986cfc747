# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How much context, and what does it cost? Private to this collection. Pure functions only.

A row per context and type of the KV cache, with the best split for the objective, what it leaves free, and its speed
with an empty and with a full cache. The last row of a type that does not fit says what is missing.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._base import text
from .._base.types import Json, Mapping
from .._split import context_room, layer_split, memory_plan, model_weights, workload
from .._split.layer_split import Layers
from .._split.types import Model, Serving
from . import expected_speeds, known_costs

_LEAST_CONTEXT: t.Final = 4096


@dataclasses.dataclass(frozen=True)
class Question:
    """What the table is about."""

    model: Model
    serving: Serving
    devices: t.Sequence[Mapping]
    reserve_mib: int
    objective: workload.Objective
    rates: expected_speeds.Rates
    #: What a row tells where experts have to be in RAM; returns None where they need not.
    in_ram: t.Callable[[Serving], Json | None] | None = None


def beside(devices: t.Sequence[Mapping], own_mib: t.Sequence[int]) -> list[Mapping]:
    """Return the devices without the MiB that something else takes of each."""
    return [
        {
            **device,
            **{name: device[name] - own for name in ("free_mib", "budget_mib") if device.get(name) is not None},
        }
        for device, own in zip(devices, own_mib, strict=True)
    ]


def rows(question: Question) -> list[Json]:
    """Return the rows, type by type; each has the fields of C(contexts) in docs/data_formats.md."""
    budgets = memory_plan.budgets_mib(question.devices, question.reserve_mib)
    found = []
    for type_k, type_v in context_room.types(question.model, question.serving):
        serving = t.cast(Serving, {**question.serving, "cache_type_k": type_k, "cache_type_v": type_v})
        most = context_room.largest(question.model, serving, budgets)
        contexts = _contexts(question, most)
        for context in contexts:
            found.append(_row(question, serving, context, budgets))
            if context > most and found[-1]["layers"] is None:
                break  # beyond the first one that does not fit there is nothing to learn
    return found


def _contexts(question: Question, most: int) -> list[int]:
    """Return the contexts to tell of: doubled from step to step, the one that is asked for, and the largest."""
    top = context_room.trained(question.model)
    context = min(_LEAST_CONTEXT, max(context_room.STEP, top // 4))
    found = {question.serving["context_size"], *([most] if most else [])}
    while context <= top:
        found.add(context)
        context *= 2
    return sorted(found)


def _row(question: Question, serving: Serving, context: int, budgets: t.Sequence[int]) -> Json:
    """Return the row of one context and type."""
    served = context_room.with_context(serving, context)
    asked = {name: question.serving[name] for name in ("context_size", "cache_type_k", "cache_type_v")}
    room = context_room.Room(question.model, served, budgets)
    row: Json = {
        "context_size": context,
        "cache_type_k": served["cache_type_k"],
        "cache_type_v": served["cache_type_v"],
        "asked": all(served[name] == value for name, value in asked.items()),  # type: ignore[literal-required]
        "cache_mib": -(-sum(memory_plan.kv_bytes(question.model, served)) // memory_plan.MIB),
    }
    with_experts = None if question.in_ram is None else question.in_ram(served)
    if with_experts is not None:
        return {**row, **_unknown(), **with_experts}
    if not room.fits:
        missing = {question.devices[device]["device"]: mib for device, mib in room.missing().items()}
        return {**row, "layers": None, "left_mib": None, "missing_mib": missing, **_unknown()}
    layers, speeds = _best(question, served, room)
    own = memory_plan.headroom_mib(room.plan.mib(layers), memory_plan.budgets_mib(question.devices, 0))
    # the context of one request, full
    full = speeds.decode(layers, memory_plan.context_cells(served)[0] - 1)
    decode = speeds.decode(layers, 0)
    return {
        **row, "layers": list(layers), "left_mib": own, "missing_mib": None,
        "decode_empty": _per_second(decode), "decode_full": _per_second(full), "ttft_ms": _told(speeds.ttft(layers)),
    }  # fmt: skip


def _unknown() -> Json:
    return {"decode_empty": None, "decode_full": None, "ttft_ms": None}


def _best(
    question: Question, serving: Serving, room: context_room.Room
) -> tuple[Layers, expected_speeds.Speeds]:
    """Return the split to take, by the objective as far as it is known, else the roomiest."""
    objective = question.objective
    # a request can be no deeper than its context
    deepest = memory_plan.context_cells(serving)[0]
    depth = max(0, min(objective.depth_tokens, deepest - objective.prompt_tokens - objective.generated_tokens))
    objective = objective._replace(depth_tokens=depth, prompt_tokens=min(objective.prompt_tokens, deepest))
    speeds = expected_speeds.Speeds(question.model, serving, objective, question.rates)
    if len(room.budgets) <= 2:
        known = [(ms, split) for split in room.listed() if (ms := speeds.objective_ms(split)) is not None]
        return (min(known)[1] if known else room.roomiest()), speeds
    cost = speeds.cost(model_weights.of_model(question.model, serving, speeds.depth))
    best = None if cost is None else room.search.best(cost)
    return best or room.roomiest(), speeds


def _told(time: expected_speeds.Time | None) -> Json | None:
    """Return a time as it is recorded; low and high are null where nothing was measured."""
    if time is None:
        return None
    return {name: None if ms is None else round(ms, 1) for name, ms in (
        ("value", time.ms), ("low", time.low), ("high", time.high)
    )}  # fmt: skip


def _per_second(time: expected_speeds.Time | None) -> Json | None:
    """Return the time of a token as tokens per second."""
    if time is None or not time.ms:
        return None
    ends = (("value", time.ms), ("low", time.high), ("high", time.low))
    return {name: round(1000 / ms, 2) if ms else None for name, ms in ends}


# --- the table -------------------------------------------------------------------------------------------------------


def heads(devices: t.Sequence[Mapping]) -> list[str]:
    """Return the heads of the columns of cells()."""
    left = [f"{device['device']} left" for device in devices]
    return ["context", "KV cache", "layers", *left, "decode/s empty", "decode/s full", "ttft ms", ""]


def cells(row: Mapping) -> list[str]:
    """Return a row as text; one that does not fit has its context, its type and the reason alone."""
    type_k, type_v = row["cache_type_k"], row["cache_type_v"]
    start = [str(row["context_size"]), type_k if type_k == type_v else f"{type_k}/{type_v}"]
    if row["layers"] is None:
        lacks = " and ".join(f"{mib} MiB on {device}" for device, mib in row["missing_mib"].items())
        return [*start, f"does not fit: {lacks} missing"]
    speeds = [_cell(row[name]) for name in ("decode_empty", "decode_full", "ttft_ms")]
    left = (str(mib) for mib in row["left_mib"])
    mark = "asked for" if row["asked"] else ""
    return [*start, layer_split.row_name(row), *left, *speeds, mark]


def _cell(value: Mapping | None) -> str:
    if value is None:
        return "-"
    shown = text.number(value["value"])
    return shown if value["low"] is None else f"{shown} ({text.number(value['low'])} to {text.number(value['high'])})"


def source(rates: expected_speeds.Rates, own_mib: t.Sequence[int] = ()) -> str:
    """Return in one sentence where the speeds come from; C(own_mib): what a draft takes of each device."""
    if rates.error is None:
        return (
            "predicted: what a token reads of weights and KV cache, over the bandwidth that published runs reached;"
            " a byte of a long cache took up to three times as long in published runs"
        )
    depth = "what the cache costs was measured at two depths"
    if rates.cache == known_costs.UNKNOWN_CACHE:
        depth = (
            "no two depths were measured, so a byte of the cache may take half to three times as long as one of weights"
            " (a deployment with split_tuning_depth tells)"
        )
    whose = ", of another model of this architecture and type," if rates.of_kind else ""
    measured = f"the costs that the tuning of {rates.deployment}{whose} measured"
    taken = f"; drafting has its {sum(own_mib)} MiB, and its cache grows with the context, too" if any(own_mib) else ""
    return f"interpolated from {measured}, with intervals of 95 %; {depth}{taken}"


def lines(found: t.Sequence[Mapping], devices: t.Sequence[Mapping]) -> list[str]:
    """Return the table as lines of text."""
    columns = heads(devices)
    body = [columns, *(cells(row) for row in found)]
    padded = [row if len(row) == len(columns) else [*row[:2], *[""] * (len(columns) - 2)] for row in body]
    # a reason is longer than any column
    reasons = ["" if len(row) == len(columns) else f"  {row[-1]}" for row in body]
    aligned = text.columns(padded, right=[0, *range(2, len(columns) - 1)])
    return [line + reason for line, reason in zip(aligned, reasons, strict=True)]
