# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A prediction of the splits of one model as text. Private to this collection. Pure functions only."""

from __future__ import annotations

import math
import typing as t

from .._base import text
from .._base.types import Json, Mapping
from .._split import layer_split, network_links
from . import context_table, expected_modes

#: How far the plan may be off llama.cpp's dry run, and free memory off what published logs show: the width of marginal.
MARGIN_MIB: t.Final = 256

#: Share of a token's time that launching kernels takes in a model that is said to be bound by it.
LAUNCH_BOUND: t.Final = 0.25

#: What published runs were beside what is predicted of a model that is on the cards.
SPREAD_LINE: t.Final = f"  decode/s: published runs were up to {expected_modes.SPREAD:.0%} slower and faster"
#: Beside a prediction that launches decide.
PUBLISHED_LAUNCHES: t.Final = (
    "published for Qwen3-30B-A3B at Q4_K_M on one card: 141 tokens per second on an RTX 3090, 167 on an RTX 3090 Ti, up"
    " to 196 on an RTX 4090"
)


def subject(question: Mapping, devices: t.Sequence[Mapping], measured_by: str | None) -> Json:
    """Return what every prediction says of its question, the raw problem: what C(head) shows."""
    model = question["model"]
    return {
        "prediction": True,
        "measured_by": measured_by,
        "model": {
            **{key: model[key] for key in ("name", "architecture", "file_type", "block_count", "notes")},
            "context_length_train": model.get("context_length_train", 0),
        },
        **{key: question[key] for key in ("serving", "objective", "reserve_mib")},
        "devices": [dict(device) for device in devices],
    }


def head(prediction: Mapping) -> list[str]:
    """Return what a prediction is about, with or without experts in RAM: model, serving, work and devices."""
    model, serving, objective = prediction["model"], prediction["serving"], prediction["objective"]
    measured, in_ram = prediction["measured_by"], prediction.get("experts_in_ram")
    what = f"PREDICTION from what {measured} measured" if measured else "PREDICTION, nothing was measured"
    name = " ".join(filter(None, (model["name"], model["file_type"])))
    # with experts in RAM each row has its own
    micro_batch = "" if in_ram else f" micro-batch {serving['micro_batch_size']},"
    trained = model.get("context_length_train") or serving["context_size"]
    beyond = f" (the model was trained for {trained})" if serving["context_size"] > trained else ""
    return [
        f"{what}: {name}{f', with {in_ram} in RAM' if in_ram else ''}",
        f"  context {serving['context_size']} tokens{beyond}, {serving['parallel_slots']} slot(s), KV cache"
        f" {serving['cache_type_k']}/{serving['cache_type_v']},{micro_batch}"
        f" {prediction['reserve_mib']} MiB to be kept free per device",
        f"  one request at a time, {objective['prompt_tokens']} tokens in and {objective['generated_tokens']} out, at a"
        f" depth of {objective['depth_tokens']}; best for: {objective['name']}",
        *(device_line(device, "" if measured else _speed_words(device)) for device in prediction["devices"]),
    ]


def lines(prediction: Mapping) -> list[str]:
    """Return a prediction as lines of text."""
    model, devices, measured = prediction["model"], prediction["devices"], prediction["measured_by"]
    shown = head(prediction)
    heads = ["layers", *(f"{device['device']} (left)" for device in devices)]
    heads += ["decode/s", "prompt/s", "ttft ms", "memory"]
    body = [heads]
    best = prediction["best"]
    for row in prediction["rows"]:
        marks = []
        if best and row["layers"] == best["layers"]:
            marks.append("best")
        if row["layers"] == prediction["default_layers"]:
            marks.append("default")
        body.append([
            layer_split.split_name(row["layers"]),
            *(f"{mib} ({left:+d})" for mib, left in zip(row["mib"], row["headroom_mib"], strict=True)),
            _number(row["decode_tokens_per_second"], 1, row["decode_interval"]),
            _number(row["prefill_tokens_per_second"], 0),
            _number(row["ttft_ms"], 0, row["ttft_interval"]), ", ".join([row["verdict"], *marks]),
        ])
    shown += text.columns(body, right=range(len(heads) - 1))
    shown += [
        "  MiB per device, (left) of the free memory; decode/s and prompt/s: tokens per second; ttft: time to the first"
        " token",
        "  fits: the reserve stays free; tight: into the reserve; marginal: too much, but by no more than"
        f" {MARGIN_MIB} MiB; default: llama.cpp's own split by free memory",
        *([] if measured else [SPREAD_LINE]),
        f"{prediction['why']}.",
        *([f"Network: {prediction['network']['why']}."] if prediction["network"] else []),
        *contexts(prediction),
    ]
    if best and best["launch_ms"] >= LAUNCH_BOUND * (best["decode_ms_per_token"] or math.inf):
        shown.append(
            f"Note: {best['launch_ms']:.1f} of the {best['decode_ms_per_token']:.1f} ms of each token go into launching"
            f" the kernels of {model['block_count']} blocks; {PUBLISHED_LAUNCHES}."
        )
    shown += [f"Note: {note}" for note in model["notes"]]
    for device in {} if measured else {device["description"]: device for device in devices}.values():
        shown += [f"{device['description']}: {source}" for source in device["sources"]]
    return shown


def _speed_words(device: Mapping) -> str:
    speed = device["bandwidth_gb_per_s"]
    words = f", {speed:g} GB/s of which {device['fraction']:.0%} are expected" if speed else ", speed unknown"
    words += f", {device['prefill_tflops']:g} TFLOP/s for prompts" if device["prefill_tflops"] else ""
    return words


def device_line(device: Mapping, speed: str = "") -> str:
    """Return a device with its free memory, and how one of another host is reached."""
    link = device.get("link")
    far = "" if link is None else f"; of another host, over the {network_links.named(link)}"
    return f"  {device['device']} {device['description']}: {device['free_mib']} MiB free{speed}{far}"


def contexts(prediction: Mapping) -> list[str]:
    """Return the table of contexts with its title."""
    told, objective = prediction["contexts"], prediction["objective"]
    if not told["rows"]:
        return []
    return [
        "How much context, and what does it cost? The best split of each, MiB left of the free memory, tokens per",
        f"second with an empty and a full cache, time to the first token of a prompt of {objective['prompt_tokens']}:",
        *context_table.lines(told["rows"], prediction["devices"]),
        f"  Speeds are {told['source']}.",
    ]


def _number(value: float | None, digits: int, interval: t.Sequence[float] | None = None) -> str:
    if value is None:
        return "-"
    ends = "" if interval is None else f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"
    return f"{value:.{digits}f}{ends}"
