# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the models of the catalogue would give on a host, in a few words each. Private to this collection. Pure.

A prediction for the usual serving profile, from the shapes of the models and the table of known cards.
"""

from __future__ import annotations

import typing as t

from .._base import text
from .._base.types import Json, Mapping
from .._models import catalogue, model_shapes
from .._split import expert_placement, layer_split
from . import predictor

USUAL_CONTEXT: t.Final = 8192
#: As the role split_tuning has it.
_SERVING: t.Final[Json] = {
    "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512, "flash_attention": "on",
    "cache_type_k": "f16", "cache_type_v": "f16",
}  # fmt: skip
_QUESTION: t.Final[Json] = {
    "reserve_mib": 512,
    "objective": {"name": "request", "prompt_tokens": 1024, "generated_tokens": 256, "depth_tokens": 0},
    "bench": {"prompt_tokens": 1024, "generated_tokens": 128, "repetitions": 1},
}


def words(devices: t.Sequence[Mapping], experts_in_ram: Mapping | None) -> dict[str, str]:
    """Return what each model with a known shape would give on devices of known_devices; nothing without devices.

    C(experts_in_ram): as in a problem, where a model of experts that does not fit may have some of them in RAM.
    """
    if not devices:
        return {}
    shapes = {name: model.shape for name, model in catalogue.CATALOGUE.items() if model.shape}
    return {name: _words(shape, devices, experts_in_ram) for name, shape in shapes.items()}


def usable(
    shape: str, devices: t.Sequence[Mapping], context_size: int, experts_in_ram: Mapping | None = None
) -> Json | None:
    """Return the row of the prediction to serve a well-known model with, or None where it does not fit."""
    question = {**_QUESTION, "serving": {**_SERVING, "context_size": context_size}, "model": shape}
    return predictor.usable(predictor.expect({**question, "experts_in_ram": experts_in_ram}, devices))


def _words(shape: str, devices: t.Sequence[Mapping], experts_in_ram: Mapping | None) -> str:
    row = usable(shape, devices, USUAL_CONTEXT, experts_in_ram)
    name = expert_placement.name_of(model_shapes.model(shape))
    if row is None:
        return "does not fit" if experts_in_ram is None else f"does not fit, even with {name} in RAM"
    speed, split = row["decode_tokens_per_second"], layer_split.split_name(row["layers"])
    if row.get("blocks_in_ram"):
        fits = f"fits as {split} with {row['blocks_in_ram']:g} blocks' {name} in RAM ({row['ram_mib']} MiB)"
        return fits if speed is None else f"{fits}, {text.span(row['decode_interval'])} tokens/s"
    return f"fits as {split}" if speed is None else f"fits as {split}, about {speed:.0f} tokens/s"
