# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a configuration of cards gives with a model: speed and memory, as ranges. Private. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._split import expert_placement
from .._split.card_costs import Configuration
from .._split.types import Model, Serving
from . import expected_modes, predictor

#: Time of a prompt against the prediction: newer builds and cards took as little as this part of it.
FASTEST_PROMPT: t.Final = 0.6
PROMPT_SPREAD: t.Final = 0.12


def serves(configuration: Configuration, model: Model, question: Mapping) -> Json:
    """Return what a configuration gives with a model, or why it does not fit.

    C(question): as predictor.expect takes it, without the model. Speeds are tokens per second, times ms.
    C(blocks_in_ram) and C(ram_mib) say what experts take of RAM, where a model of experts does not fit the cards.
    """
    # a configuration is there to be chosen: one that holds a dense model reads it at the speed of its cards
    in_ram = question.get("experts_in_ram") if expert_placement.kind_of(model) == expert_placement.EXPERTS else None
    prediction = predictor.expect({**question, "model": model, "experts_in_ram": in_ram}, configuration.devices)
    devices = prediction["devices"]
    best = predictor.usable(prediction)
    row: Json = {"configuration": configuration.name, "model": model["name"], "why": prediction["why"]}
    if best is None:
        return {**row, "fits": False, **dict.fromkeys(("layers", "layer", "tensor", "speculation", "ttft_ms"))}
    serving = t.cast(Serving, prediction["serving"])
    row |= {"fits": True, "layers": best["layers"], "memory": predictor.held(model, serving, best, devices)}
    if "experts_in_ram" in best:
        return {**row, **_with_experts_in_ram(best)}
    objective = prediction["objective"]
    depth = objective["depth_tokens"] + objective["prompt_tokens"] + objective["generated_tokens"] // 2
    layer = expected_modes.layer(best["decode_tokens_per_second"])
    shared = expected_modes.tensor(model, serving, devices, question["reserve_mib"], depth)
    tensor = None if shared is None else shared[0]
    fastest = layer if tensor is None or tensor.expected < layer.expected else tensor
    least, most, source = expected_modes.speculation(model)
    ttft = best["ttft_ms"]
    return {
        **row,
        "blocks_in_ram": 0,
        "ram_mib": 0,
        "layer": expected_modes.as_json(layer),
        "tensor": expected_modes.as_json(tensor),
        "tensor_parts": None if shared is None else list(shared[1]),
        "speculation": {"low": fastest.low * least, "high": fastest.high * most, "source": source},
        "ttft_ms": None if ttft is None else [FASTEST_PROMPT * ttft, (1 + PROMPT_SPREAD) * ttft],
        "fastest": "layer" if fastest is layer else "tensor",
    }


def _with_experts_in_ram(best: Mapping) -> Json:
    """Return what is told of a placement with experts in RAM: drafts gained nothing there, tensor mode is refused."""
    low, high = best["decode_interval"]
    speed = expected_modes.Range(low, best["decode_tokens_per_second"], high)
    return {
        "blocks_in_ram": best["blocks_in_ram"], "ram_mib": best["ram_mib"], "layer": expected_modes.as_json(speed),
        "tensor": None,
        "tensor_parts": None, "speculation": None, "ttft_ms": best["ttft_interval"], "fastest": "layer",
    }  # fmt: skip


def per_token(outlay_usd: t.Sequence[float] | None, speed: Mapping) -> list[float] | None:
    """Return dollars for each token per second: least and most; None where the outlay is unknown."""
    if outlay_usd is None:
        return None
    low, high = max(0.0, outlay_usd[0]), max(0.0, outlay_usd[1])
    return [low / speed["high"], high / speed["low"]]
