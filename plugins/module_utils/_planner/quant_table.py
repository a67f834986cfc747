# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which quant of a repository fits on which cards, and what it would give. Private to this collection. Pure functions.

A prediction by the headers alone, nothing was downloaded.
"""

from __future__ import annotations

import typing as t

from .._base import text
from .._base.types import Json, Mapping
from .._split import context_room, layer_search, layer_split, memory_plan
from . import expert_prediction, known_costs, predicted_network, prediction_table, predictor, ram_speed

GB: t.Final = 10**9


def rows(
    models: t.Sequence[Mapping], question: Mapping, devices: t.Sequence[Mapping],
    known: t.Mapping[str, known_costs.Known | None] | None,
) -> list[Json]:  # fmt: skip
    """Return a row per quant.

    C(models): of module hub_models_info. C(question): as predictor.expect takes it, without the model. C(known): what
    an earlier tuning has measured, by quant. A row has C(quant), C(files), C(size_bytes), C(problem) (one sentence, or
    None), C(alone_on) (devices that hold it alone), C(layers), C(mib) and C(left_mib) per device, C(blocks_in_ram)
    (blocks with weights that have no room there), C(ram_mib) (what they and the token embedding take of RAM),
    C(context_size) (the largest that fits with none in RAM, in tokens; 0 for none), and the speeds of a prediction with
    the deployment that they were C(measured_by). Without a split that fits these are None, and C(missing_mib) says how
    much it lacks.
    What a row says of each device is in the order of C(devices), also where a tuning of it would take another order.
    """
    return [_row(model, question, devices, (known or {}).get(model["quant"])) for model in models]


def _row(
    found: Mapping, question: Mapping, devices: t.Sequence[Mapping], known: known_costs.Known | None
) -> Json:
    row: Json = {name: found[name] for name in ("quant", "files", "size_bytes", "problem")}
    if found["model"] is None:
        return {**row, "alone_on": [], "missing_mib": 0, "context_size": 0, **_nothing(), "notes": None}
    model = found["model"]
    asked = {**question, "model": model}
    own = predictor.in_order(asked, devices)
    ids = [device["id"] for device in own]

    def listed(each: t.Sequence[t.Any]) -> list[t.Any]:
        return [each[ids.index(device["id"])] for device in devices]

    prediction = predictor.expect(asked, devices, known)
    serving, reserve_mib = prediction["serving"], prediction["reserve_mib"]
    plan = memory_plan.MemoryPlan(model, serving)
    alone = [
        device["device"]
        for index, device in enumerate(devices)
        if plan.mib(_only(index, len(devices), model["block_count"] + 1))[index]
        <= memory_plan.budgets_mib([device], reserve_mib)[0]
    ]
    usable = predictor.usable(prediction)
    told = _nothing() if usable is None else {
        "layers": listed(usable["layers"]),
        "mib": listed(usable["mib"]),
        "memory": listed(predictor.held(model, serving, usable, own)),
        "left_mib": listed(memory_plan.headroom_mib(usable["mib"], memory_plan.budgets_mib(own, 0))),
        **{name: usable[name] for name in _SPEEDS},
        "measured_by": prediction["measured_by"],
        "blocks_in_ram": usable.get("blocks_in_ram", 0),
        "ram_mib": usable.get("ram_mib", 0),
    }
    budgets = memory_plan.budgets_mib(own, reserve_mib)
    missing = [] if usable is not None else _missing(plan, budgets, model["block_count"] + 1)
    return {
        **row, "problem": None if usable is not None else str(prediction["why"]), "alone_on": alone,
        "missing_mib": sum(missing), "context_size": context_room.largest(model, serving, budgets), **told,
        "notes": model["notes"],
    }  # fmt: skip


def _missing(plan: memory_plan.MemoryPlan, budgets: t.Sequence[int], layers: int) -> list[int]:
    """Return the MiB that each device lacks in the split that comes nearest."""
    nearest = layer_search.LayerSearch(plan, budgets, layers).nearest_miss()
    return [-left for left in memory_plan.headroom_mib(plan.mib(nearest), budgets) if left < 0]


_SPEEDS: t.Final = (
    "decode_tokens_per_second", "decode_interval", "prefill_tokens_per_second", "ttft_ms", "ttft_interval",
)  # fmt: skip


def _nothing() -> Json:
    return dict.fromkeys(("layers", "mib", "memory", "left_mib", "blocks_in_ram", "ram_mib", "measured_by", *_SPEEDS))


def _only(device: int, devices: int, layers: int) -> tuple[int, ...]:
    return tuple(layers if other == device else 0 for other in range(devices))


# --- the table -------------------------------------------------------------------------------------------------------


def lines(repo: str, found: t.Sequence[Json], question: Mapping, devices: t.Sequence[Mapping]) -> list[str]:
    """Return the rows as text, with what they are about before and what follows from them behind."""
    serving, objective = question["serving"], question["objective"]
    shown = [
        f"PREDICTION, nothing was downloaded: {len(found)} quant{'' if len(found) == 1 else 's'} of {repo}",
        f"  context {serving['context_size']} tokens, {serving['parallel_slots']} slot(s), KV cache"
        f" {serving['cache_type_k']}/{serving['cache_type_v']}, {question['reserve_mib']} MiB to be kept free per"
        f" device; {objective['prompt_tokens']} tokens in and {objective['generated_tokens']} out",
        *(prediction_table.device_line(device) for device in devices),
    ]
    names = [device["device"] for device in devices]
    heads = ["quant", "GB", "fits alone on", "split", *(f"{name} left" for name in names)]
    heads += ["most context", "decode/s", "ttft ms"]
    body = [heads, *(_cells(row, len(names)) for row in found)]
    shown += [f"  {line}" for line in text.columns(body, right={1, *range(4, len(heads))})]
    shown += [
        "  GB: 10^9 bytes to download; left: MiB; most context: tokens that fit with this KV cache; decode/s: tokens"
        " per second; ttft: time to the first token",
        prediction_table.SPREAD_LINE,
        *(f"  {row['quant']}: speeds are intervals of 95 %, by what {row['measured_by']} measured here"
          for row in found if row["measured_by"]),
        *(_of_ram(question, devices) if any(row["blocks_in_ram"] for row in found) else []),
        *(f"  {row['quant']}: {row['problem']}" for row in found if row["notes"] is None),
        f"{advice(found)}.",
    ]
    notes = dict.fromkeys(note for row in found for note in row["notes"] or ())
    return [*shown, *(f"Note: {note}" for note in notes)]


def _cells(row: Json, devices: int) -> list[str]:
    start = [row["quant"], f"{row['size_bytes'] / GB:.1f}", ", ".join(row["alone_on"]) or "-"]
    if row["layers"] is None:
        lacks = f"{row['missing_mib']} MiB missing" if row["missing_mib"] else "-"
        return [*start, lacks, *(["-"] * devices), str(row["context_size"] or "-"), "-", "-"]
    return [
        *start, layer_split.row_name(row), *(str(mib) for mib in row["left_mib"]),
        str(row["context_size"] or "-"), _speed(row["decode_tokens_per_second"], row["decode_interval"]),
        _speed(row["ttft_ms"], row["ttft_interval"]),
    ]  # fmt: skip


def _speed(value: float | None, ends: t.Sequence[float] | None) -> str:
    return text.number(value, "-") if ends is None else text.span(ends)


def _of_ram(question: Mapping, devices: t.Sequence[Mapping]) -> list[str]:
    """Return what is to be known of the rows with experts in RAM."""
    low, high = expert_prediction.PROMPT_RANGE
    return [
        "  in RAM: blocks whose experts, or FFN weights, the CPU computes (MiB of RAM, with the token embedding);"
        " decode/s and ttft are ranges then",
        f"  decode/s: {ram_speed.of(question.get('experts_in_ram')).source}",
        f"  ttft: {low:g} to {high:g} times what copying them for each micro-batch takes, as in runs",
        *(f"  {line}" for line in predicted_network.left_out(devices)),
    ]


def advice(found: t.Sequence[Json]) -> str:
    """Return what follows from the rows, in one sentence without a full stop."""
    able = [row for row in found if row["layers"] is not None and not row["blocks_in_ram"]]
    partly = [row for row in found if row["blocks_in_ram"]]
    if not able and partly:
        least = min(partly, key=lambda row: (row["blocks_in_ram"], -int(row["size_bytes"])))
        return (
            f"None of them fits the devices alone; with weights in RAM {least['quant']} needs the fewest there, of"
            f" {least['blocks_in_ram']:g} blocks"
        )
    if not able:
        least = min(found, key=lambda row: int(row["size_bytes"]))
        return (
            f"None of them fits: the smallest is {least['quant']} with {least['size_bytes'] / GB:.1f} GB; take a"
            " smaller model, a smaller context or KV cache, or more memory"
        )
    largest = max(able, key=lambda row: int(row["size_bytes"]))
    alone = max((row for row in able if row["alone_on"]), key=lambda row: int(row["size_bytes"]), default=None)
    said = f"{largest['quant']} is the largest that fits"
    if alone is largest:
        return f"{said}, and {largest['alone_on'][0]} alone holds it"
    return said if alone is None else f"{said}; {alone['quant']} is the largest that one card holds alone"
