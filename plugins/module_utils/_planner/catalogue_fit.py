# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the models of the catalogue would give on a host, in a few words each. Private to this collection. Pure.

A prediction for the usual serving profile, from the shapes of the models and the table of known cards.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._models import catalogue, model_shapes
from .._split import layer_split
from . import predictor

RESERVE_MIB: t.Final = 512
#: As the role split_tuning has it.
_QUESTION: t.Final[Json] = {
    "serving": {
        "context_size": 8192, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
        "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16",
    },
    "reserve_mib": RESERVE_MIB,
    "objective": {"name": "request", "prompt_tokens": 1024, "generated_tokens": 256, "depth_tokens": 0},
    "bench": {"prompt_tokens": 1024, "generated_tokens": 128, "repetitions": 1},
}  # fmt: skip


def words(devices: t.Sequence[Mapping]) -> dict[str, str]:
    """Return what each model with a known shape would give on devices of known_devices; nothing without devices."""
    if not devices:
        return {}
    shapes = {name: model.shape for name, model in catalogue.CATALOGUE.items() if model.shape}
    return {name: _words(model_shapes.model(shape), devices) for name, shape in shapes.items()}


def _words(model: Mapping, devices: t.Sequence[Mapping]) -> str:
    prediction = predictor.expect({**_QUESTION, "model": model}, devices)
    best = prediction["best"]
    if prediction["feasible_splits"] == 0:
        return "only with experts in RAM" if model["expert_count"] else "does not fit"
    if best is None:
        return "fits"
    split = layer_split.split_name(best["layers"])
    return f"fits as {split}, about {best['decode_tokens_per_second']:.0f} tokens/s"
