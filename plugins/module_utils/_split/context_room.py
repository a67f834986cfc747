# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How much context fits, and with which types of KV cache. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.types import Mapping
from . import expert_placement, layer_search, layer_split, memory_plan, split_cost
from .layer_split import Layers
from .types import Model, Serving

#: The largest context is a multiple of this.
STEP: t.Final = 1024
#: Bound where a header does not say for which context a model was trained.
_UNTRAINED: t.Final = 131072
_USUAL: t.Final = 8192
#: Types of the KV cache to choose from, the most exact first.
TYPES: t.Final = ("f16", "q8_0", "q4_0")


class Room:
    """The splits of a model under one serving profile over devices with given budgets (MiB)."""

    def __init__(self, model: Model, serving: Serving, budgets_mib: t.Sequence[int]) -> None:
        self.plan = memory_plan.MemoryPlan(model, serving)
        self.budgets = tuple(budgets_mib)
        self.layers = model["block_count"] + 1
        self.search = layer_search.LayerSearch(self.plan, self.budgets, self.layers)

    def listed(self) -> list[Layers]:
        """Return every split of up to two devices that fits."""
        devices = len(self.budgets)
        splits = [
            *layer_split.enumerate_splits(self.layers, devices), *layer_split.single_device_splits(self.layers, devices)
        ]  # fmt: skip
        return [split for split in dict.fromkeys(splits) if min(self.left(split)) >= 0]

    def left(self, layers: Layers) -> list[int]:
        """Return what is left of each budget, as far as a device has layers; its whole budget where it has none."""
        return memory_plan.headroom_mib(self.plan.mib(layers), self.budgets)

    @property
    def fits(self) -> bool:
        """Whether any split fits."""
        return bool(self.listed()) if len(self.budgets) <= 2 else self.search.feasible

    def roomiest(self) -> Layers:
        """Return the split that leaves the most where it is tightest; where none fits the one that misses the least."""
        if not self.fits:
            return self.search.nearest_miss()
        if len(self.budgets) <= 2:
            return max(self.listed(), key=lambda split: (_least(split, self.left(split)), split))
        nothing = (0.0,) * len(self.budgets)
        found = self.search.roomiest(split_cost.Cost(nothing, nothing, nothing), 0.0)
        return found or self.search.nearest_miss()

    def missing(self) -> dict[int, int]:
        """Return the MiB that are missing by device, in the split that comes nearest; empty where one fits."""
        return {device: -left for device, left in enumerate(self.left(self.roomiest())) if left < 0}


def _least(layers: Layers, left: t.Sequence[int]) -> int:
    """Return the least of what is left on the devices in use."""
    return min(room for room, count in zip(left, layers, strict=True) if count)


def trained(model: Model) -> int:
    """Return the context to go up to: what the model was trained for, in whole steps, or a bound without that."""
    return max(STEP, (model.get("context_length_train") or _UNTRAINED) // STEP * STEP)


def usual(model: Model) -> int:
    """Return a context to ask about while the largest is not known."""
    return min(trained(model), _USUAL)


def with_context(serving: Mapping, context_size: int) -> Serving:
    """Return a serving profile with another context."""
    return t.cast(Serving, {**serving, "context_size": context_size})


def largest(model: Model, serving: Mapping, budgets_mib: t.Sequence[int]) -> int:
    """Return the largest context, a multiple of STEP up to what the model was trained for, that fits; 0 for none."""
    low, high = 0, trained(model) // STEP
    while low < high:
        middle = (low + high + 1) // 2
        if Room(model, with_context(serving, middle * STEP), budgets_mib).fits:
            low = middle
        else:
            high = middle - 1
    return low * STEP


def needs_ram(model: Mapping, serving: Mapping, budgets_mib: t.Sequence[int], mode: str | int) -> bool:
    """Return whether weights of a model go into RAM: as many as were asked for, or because it does not fit without.

    C(mode): auto, never or a number of blocks. The largest context (max) is one with which it fits.
    """
    if mode == "never" or not expert_placement.parts_of(model):
        return False
    if isinstance(mode, int):
        return mode > 0
    if not isinstance(serving["context_size"], int):
        return False
    return not Room(t.cast(Model, model), t.cast(Serving, serving), budgets_mib).fits


def types(model: Model, serving: Mapping) -> list[tuple[str, str]]:
    """Return the types of K and V to choose from: what the engine has, the model allows, and the profile asks for.

    llama.cpp reads a quantised V with flash attention alone, and a block of a type must divide a head (b11312,
    llama-context.cpp).
    """
    asked = (str(serving["cache_type_k"]), str(serving["cache_type_v"]))
    heads = [model["key_length"]]
    if model["head_count_kv"]:
        # of blocks that share a number of heads V may be shorter than K
        heads += [max(model["kv_v_elements_per_token"], default=0) // model["head_count_kv"]]
    fused = memory_plan.flash_attention(t.cast(Serving, serving))
    found = [
        (name, name)
        for name in TYPES
        if name == "f16" or (fused and not any(head % memory_plan.CACHE_TYPES[name][0] for head in heads))
    ]
    return found if asked in found else [asked, *found]
