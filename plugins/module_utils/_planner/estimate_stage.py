# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The memory of a model that our tables do not know, from the engine's dry run. Private to this collection. Pure.

The dry run gives a sum per device, so it is asked about several splits: the difference of two of them is what the
blocks in between hold. What it says becomes corrections of the model, which every plan then counts with.
"""

from __future__ import annotations

import itertools
import typing as t

from .._base.types import Json, Mapping
from .._split import layer_split, memory_plan
from .._split.types import Model, Serving

#: Parts of the blocks whose memory is told apart, each by one more question of about a second.
PARTS: t.Final = 6


def splits(blocks: int, devices: int) -> list[list[int]]:
    """Return the splits to ask about: everything on the first device, and cuts between the first two."""
    rest = [0] * (devices - 1)
    whole = [[blocks + 1, *rest]]
    if devices < 2:
        return whole
    cuts = sorted({round(part * blocks / PARTS) for part in range(1, PARTS)} - {0, blocks})
    return whole + [[cut, blocks + 1 - cut, *rest[1:]] for cut in cuts]


def corrected(model: Model, serving: Serving, answers: t.Sequence[Mapping]) -> Model:
    """Return the model with C(memory_corrections) of the dry run; as it is where the dry run gave no answer.

    C(answers): results of llama_fit_params_info, one for each of splits(), in that order; of those that answered.
    """
    devices = max((len(answer["devices"]) for answer in answers), default=0)
    asked = splits(model["block_count"], devices) if devices else []
    found = [
        (layers, answer["devices"]) for layers, answer in zip(asked, answers, strict=False) if answer["available"]
    ]
    if not found or found[0][0] != asked[0]:
        return model
    plan = memory_plan.MemoryPlan(model, serving)
    whole = found[0][1][0]
    weights = sum(model["block_bytes"]) + model["output_bytes"]
    corrections: Json = {
        "weights": _up(whole["model_mib"]) / weights if weights else 1.0,
        "compute": max(
            _up(answer[device]["compute_mib"]) / memory_plan.compute_bytes(model, serving, layers, device)
            for layers, answer in found
            for device, count in enumerate(layers)
            if count
        ),
        "planned_bytes": list(plan.cache_bytes),
        "cache_bytes": _cache_bytes(plan.cache_bytes, found),
    }
    return t.cast(Model, {**model, "memory_corrections": corrections})


def _up(mib: int) -> int:
    """Return the bytes that a figure of the dry run, which is rounded down, may stand for; nothing is nothing."""
    return (mib + 1) * memory_plan.MIB if mib else 0


def _cache_bytes(ours: t.Sequence[int], found: t.Sequence[tuple[list[int], t.Sequence[Mapping]]]) -> list[int]:
    """Return the cache of each block as the dry run counts it, shared within a part as ours is, or evenly."""
    held = {0: 0, len(ours): _up(found[0][1][0]["kv_mib"])}
    held |= {layers[0]: _up(answer[0]["kv_mib"]) for layers, answer in found[1:]}
    result: list[int] = []
    for (start, before), (end, after) in itertools.pairwise(sorted(held.items())):
        theirs, planned = max(0, after - before), sum(ours[start:end])
        result += [
            -(-theirs * block // planned) if planned else -(-theirs // (end - start)) for block in ours[start:end]
        ]
    return result


def question(layers: t.Sequence[int]) -> str:
    """Return the name of the step that asks about a split."""
    return f"dry run of {layer_split.split_name(layers)}"
