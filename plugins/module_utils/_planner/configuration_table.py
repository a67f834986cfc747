# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Configurations of cards as text: a table per model, what else fits, and the advice. Private. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base import text
from .._base.types import Json, Mapping
from .._split import card_costs, layer_split
from . import configurations, expected_modes

_NONE: t.Final = "-"


def lines(comparison: Mapping) -> list[str]:
    """Return a comparison as of planning as lines of text."""
    shown = ["PREDICTION, nothing was measured: configurations side by side"]
    for model in comparison["models"]:
        shown += ["", *_of_model(comparison, model)]
    shown += ["", "What else fits (tokens per second in the faster mode, as expected):", *_others(comparison)]
    shown += ["", *comparison["advice"], ""]
    return [*shown, *_sources(comparison)]


def _of_model(comparison: Mapping, model: str) -> list[str]:
    serving = comparison["serving"]
    shown = [
        f"{model}, context {serving['context_size']}, KV cache {serving['cache_type_k']}/{serving['cache_type_v']}:"
    ]
    heads = ["configuration", "layers", "layer/s", "tensor/s", "drafting/s", "ttft ms", "W layer", "W tensor", "$"]
    heads.append("$ per tok/s")
    body = [heads]
    by_name = {each["name"]: each for each in comparison["configurations"]}
    for row in comparison["rows"]:
        if row["model"] == model:
            body.append(_cells(row, by_name[row["configuration"]]))
    for measured in comparison["measured"]:
        if measured["model"] == model:
            body.append(_measured_cells(measured, len(heads)))
    return [*shown, *(f"  {line}" for line in text.columns(body, right=range(2, len(heads))))]


def _cells(row: Mapping, each: Mapping) -> list[str]:
    watts = [text.span(each["watts"][mode]) for mode in ("layer", "tensor")]
    money = text.span(each["outlay_usd"])
    if not row["fits"]:
        return [row["configuration"], "does not fit", *([_NONE] * 4), *watts, money, _NONE]
    speed = row[row["fastest"]]
    return [
        row["configuration"], layer_split.row_name(row),
        *(ranged(row[name]) for name in ("layer", "tensor", "speculation")), text.span(row["ttft_ms"]), *watts, money,
        text.span(configurations.per_token(each["outlay_usd"], speed)),
    ]  # fmt: skip


def _measured_cells(measured: Mapping, columns: int) -> list[str]:
    """Return the row of what this host has measured."""
    speed = text.number(measured["decode_tokens_per_second"], _NONE)
    layer, tensor = (speed, _NONE) if measured["split_mode"] == "layer" else (_NONE, speed)
    name = f"measured here: {measured['cards']}"
    start = [name, layer_split.split_name(measured["layers"]), layer, tensor]
    return [*start, *([_NONE] * (columns - len(start)))]


def _others(comparison: Mapping) -> list[str]:
    names = [each["name"] for each in comparison["configurations"]]
    body = [["model", *names]]
    for model, by_name in comparison["others"].items():
        cells = [by_name[name] for name in names]
        body.append([model, *(value if isinstance(value, str) else text.number(value, _NONE) for value in cells)])
    return [f"  {line}" for line in text.columns(body, right=range(1, len(names) + 1))]


def _sources(comparison: Mapping) -> list[str]:
    """Return where the figures come from."""
    prices = {card: said for each in comparison["configurations"] for card, said in each["price_sources"].items()}
    drafting = dict.fromkeys(row["speculation"]["source"] for row in comparison["rows"] if row["speculation"])
    return [
        "  layer/s, tensor/s: tokens per second, least to most; drafting/s: in the faster mode with speculation; ttft:"
        " time to the first token; W: what the cards draw; $: to pay for them",
        "  in RAM: blocks whose experts the CPU computes (MiB of RAM, which no price contains), with"
        f" {comparison['ram_speed']}",
        f"  tensor/s: reading in parallel, and two exchanges per block ({expected_modes.ALLREDUCE_SOURCE})",
        *(f"  {each['name']}: NVLink enters no figure" for each in comparison["configurations"] if each["nvlink"]),
        *(f"  drafting/s: {source}" for source in drafting),
        f"  W: {card_costs.DRAWN:.0%} of the power limits and more ({card_costs.DRAWN_SOURCE})",
        *(f"  $ of {card}: {source}" for card, source in sorted(prices.items())),
    ]


def ranged(found: Mapping | None) -> str:
    """Return a range of speeds as text."""
    return _NONE if found is None else text.span([found["low"], found["high"]])


def measured(record: Mapping, models: t.Mapping[str, Mapping]) -> list[Json]:
    """Return what a host has recorded of these models, by their shown names, from its record (docs/data_formats.md)."""
    found = []
    for entry in record["models"].values():
        own, decision = entry["model"], entry["decision"]
        for name, model in models.items():
            same = all(own.get(key) == model[key] for key in ("architecture", "block_count", "file_type"))
            if same and decision.get("decode_tokens_per_second"):
                found.append({
                    "model": name,
                    "cards": " + ".join(device["description"] for device in entry["devices"]),
                    "layers": [placed["layers"] for placed in entry["placement"]],
                    "split_mode": entry["split_mode"],
                    "decode_tokens_per_second": decision["decode_tokens_per_second"],
                })
    return found
