# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The placements of a model with experts, or FFN weights, in RAM: integers, and what memory leaves of them.

Private. Pure functions only. A placement is a number of layers per device and the blocks whose experts are in RAM. What
a block less in RAM saves is far more than any split of the layers does, so of each split only the placement with the
fewest experts in RAM is a candidate: a plane of (split, micro-batch), in which the experts in RAM follow from memory.
They belong to layers of the first device in use, over whose link prompts copy them, unless only other devices have room
for fewer layers. Of one block, some parts may stay on the device.
"""

from __future__ import annotations

import bisect
import itertools
import typing as t

from .._base.errors import UserError
from .._base.fields import is_whole
from .._split import expert_placement, memory_plan
from .._split.expert_placement import ExpertPlacement
from .._split.layer_split import Layers
from .._split.split_problem import Problem
from .._split.types import Model, Serving

#: Micro-batches that are looked at beside the configured ones: the larger they are, the fewer copies a prompt makes.
LARGE_MICRO_BATCHES: t.Final = (1024, 2048, 4096)
#: With more than two devices, how many layers fewer than fit each device but the first may hold.
SLACK_LAYERS: t.Final = 2

#: What a placement, beside its micro-batch, is known by.
Key = tuple[Layers, tuple[int, ...], tuple[str, ...]]


def key_of(placement: ExpertPlacement) -> Key:
    """Return what tells placements apart, whatever computes them: layers, blocks, and parts of one more."""
    partial = placement.partial
    more = () if partial is None else (str(partial.block), *partial.parts)
    return placement.layers, placement.blocks, (*more, placement.override)


def ram_mib(model: Model, placement: ExpertPlacement) -> int:
    """Return the MiB of weights in RAM: experts and token embedding, a started one counted whole."""
    return -(-expert_placement.ram_bytes(model, placement) // memory_plan.MIB)


def mode_of(problem: Problem) -> str | int:
    """Return what is wanted: C(auto), C(never), or how many blocks have their experts (or FFN weights) in RAM."""
    given = problem.raw.get("experts_in_ram") or {}
    mode = given.get("mode", "auto")
    if mode in ("auto", "never") or is_whole(mode, 0):
        return t.cast("str | int", mode)
    raise UserError(f"problem.experts_in_ram.mode must be auto, never or a number of blocks, not {mode!r}")


def movable_count(problem: Problem) -> int:
    """Return how many blocks have weights that could be in RAM; none for another engine than llama.cpp."""
    if problem.engine != "llama.cpp":
        return 0
    return len(expert_placement.all_in_ram(problem.memory.model).blocks)


def wanted(problem: Problem) -> bool:
    """Return whether experts go into RAM: as many as were asked for, or because the model does not fit without."""
    mode = mode_of(problem)
    if mode == "never" or not movable_count(problem):
        if isinstance(mode, int) and mode:
            raise UserError(
                f"split_tuning_experts_in_ram is {mode}, but the model has neither experts nor FFN weights that "
                "could be in RAM: use auto"
            )
        return False
    if isinstance(mode, int):
        return mode > 0
    return not memory_plan.fits(problem.memory, problem.splits, problem.budgets)


def micro_batches(problem: Problem) -> list[int]:
    """Return the micro-batches worth looking at, smallest first: of a prompt the first that takes it as a whole.

    Smaller ones than the configured one save little memory and cost much. An objective without a prompt has no other.
    """
    base = problem.micro_batch
    prompt, _generated = problem.counted(problem.objective)
    tokens = max(prompt, problem.depth_tokens)
    context = memory_plan.context_cells(problem.memory.serving)[0]
    if not prompt or problem.prefill_test is None:
        return [base]
    configured = problem.raw.get("micro_batches") or []
    sizes = sorted({base, *(size for size in (*configured, *LARGE_MICRO_BATCHES) if base < size <= context)})
    return [size for size, smaller in zip(sizes, [0, *sizes], strict=False) if smaller < tokens]


def serving_at(problem: Problem, micro_batch: int) -> Serving:
    """Return the serving profile with another micro-batch; the batch is never smaller."""
    serving = problem.memory.serving
    batch = max(serving["batch_size"], micro_batch)
    return {**serving, "micro_batch_size": micro_batch, "batch_size": batch}


class Plane:
    """The placements of one problem within budgets of MiB, one per device, and the MiB of RAM that experts may have."""

    def __init__(self, problem: Problem, budgets: t.Sequence[int], ram_mib: int | None = None) -> None:
        self.problem, self.budgets = problem, tuple(budgets)
        self.model = problem.memory.model
        by_part = expert_placement.parts_of(self.model)
        self.parts = tuple(part for part in expert_placement.PARTS if part in by_part)
        self.expert_bytes = [sum(by_part[part][b] for part in self.parts) for b in range(self.model["block_count"])]
        self.ram_mib = ram_mib
        # cards copy experts for prompts, RPC devices leave them to the CPU
        self.copied = problem.raw["devices"][0].get("backend") != "RPC"
        self.mode = mode_of(problem)
        self._candidates: dict[int, list[ExpertPlacement]] = {}
        self._bare: dict[int, memory_plan.MemoryPlan] = {}

    def _all_in_ram(self, micro_batch: int) -> memory_plan.MemoryPlan:
        """Return the memory with all experts in RAM, the least that a device can hold of its layers."""
        if micro_batch not in self._bare:
            whole = expert_placement.all_in_ram(self.model)
            serving = serving_at(self.problem, micro_batch)
            self._bare[micro_batch] = memory_plan.MemoryPlan(self.model, serving, experts=whole, copied=self.copied)
        return self._bare[micro_batch]

    def mib(self, placement: ExpertPlacement, micro_batch: int) -> list[int]:
        """Return the MiB of each device."""
        serving = serving_at(self.problem, micro_batch)
        return memory_plan.MemoryPlan(self.model, serving, experts=placement, copied=self.copied).mib(placement.layers)

    def headroom(self, placement: ExpertPlacement, micro_batch: int) -> list[int]:
        """Return what is left of each budget, in MiB."""
        return memory_plan.headroom_mib(self.mib(placement, micro_batch), self.budgets)

    def room(self, layers: Layers, device: int, micro_batch: int) -> int | None:
        """Return the bytes that C(device) has for experts; None where not even the rest of its layers fits."""
        held = self._all_in_ram(micro_batch).device(layers, device)
        room = self.budgets[device] * memory_plan.MIB - held.weights - held.kv - held.compute
        return room if room >= 0 or not layers[device] else None

    def least(self, layers: Layers, micro_batch: int, spill: bool = False) -> ExpertPlacement | None:
        """Return the placement with these layers and the fewest experts in RAM, or None where none fits.

        They belong to layers of the first device in use; with C(spill) to those of any. A part of a block stays on its
        device where that has room for it.
        """
        first = next(device for device, count in enumerate(layers) if count)
        counts, partial = [0] * len(layers), None
        for device in range(len(layers)):
            room = self.room(layers, device, micro_batch)
            if room is None:
                return None
            blocks = expert_placement.movable_blocks(self.model, layers, device)
            # of the last n blocks
            held = [0, *itertools.accumulate(self.on_device(block) for block in reversed(blocks))]
            stay = bisect.bisect_right(held, room) - 1
            counts[device] = len(blocks) - stay
            if counts[device] and device != first and not spill:
                return None
            if counts[device] and partial is None:
                parts = self._parts_in_ram(blocks[counts[device] - 1], room - held[stay])
                partial = (device, parts) if parts else None
                counts[device] -= 1 if parts else 0
        placement = expert_placement.place(self.model, layers, counts, partial)
        left = self.headroom(placement, micro_batch)
        if not placement.any and min(mib for mib, own in zip(left, layers, strict=True) if own) < 0:
            # with nothing in RAM prompts are pipelined, which takes more
            blocks = expert_placement.movable_blocks(self.model, layers, first)
            parts = self._parts_in_ram(blocks[0], self.on_device(blocks[0])) if blocks else ()
            if not parts:
                return None
            placement = expert_placement.place(self.model, layers, [0] * len(layers), (first, parts))
        return self._within_ram(placement)

    def exact(self, layers: Layers, micro_batch: int, count: int) -> ExpertPlacement | None:
        """Return the placement with the experts of C(count) blocks in RAM, or None where it does not fit."""
        first = next(device for device, own in enumerate(layers) if own)
        if count > len(expert_placement.movable_blocks(self.model, layers, first)):
            return None
        placement = expert_placement.on_first_device(self.model, layers, count)
        left = self.headroom(placement, micro_batch)
        if min(mib for mib, own in zip(left, layers, strict=True) if own) < 0:
            return None
        return self._within_ram(placement)

    def on_device(self, block: int, in_ram: int = 0) -> int:
        """Return the bytes that the experts of a block have on a device, without those C(in_ram)."""
        return int((self.expert_bytes[block] - in_ram) * self.problem.memory.weight_factor)

    def _parts_in_ram(self, block: int, room: int) -> tuple[str, ...]:
        """Return the fewest bytes of parts of a block that must be in RAM; none where it has to be there as a whole."""
        sizes = expert_placement.parts_of(self.model)
        choices = [
            (sum(sizes[part][block] for part in parts), parts)
            for count in range(1, len(self.parts))
            for parts in itertools.combinations(self.parts, count)
        ]
        fitting = [choice for choice in choices if self.on_device(block, choice[0]) <= room]
        return min(fitting)[1] if fitting else ()

    def _within_ram(self, placement: ExpertPlacement) -> ExpertPlacement | None:
        if self.ram_mib is not None and ram_mib(self.model, placement) > self.ram_mib:
            return None
        return placement

    def candidates(self, micro_batch: int) -> list[ExpertPlacement]:
        """Return the placements to choose from at a micro-batch, one per split."""
        if micro_batch not in self._candidates:
            splits = self.splits(micro_batch)
            if isinstance(self.mode, int):
                found = [self.exact(layers, micro_batch, self.mode) for layers in splits]
            else:
                found = [self.least(layers, micro_batch) for layers in splits]
                if not any(found):
                    found = [self.least(layers, micro_batch, spill=True) for layers in self.problem.splits]
            self._candidates[micro_batch] = [placement for placement in found if placement is not None]
        return self._candidates[micro_batch]

    def splits(self, micro_batch: int) -> list[Layers]:
        """Return the splits to look at: all of two devices; of more those at and near what the later devices hold."""
        slots, devices = self.problem.slots, len(self.budgets)
        if devices == 1:
            return [(slots,)]
        if devices == 2:
            return [(count, slots - count) for count in range(slots + 1)]
        return sorted(set(self._filled(devices - 1, (), micro_batch)))

    def _filled(self, device: int, behind: Layers, micro_batch: int) -> t.Iterator[Layers]:
        """Yield splits whose devices from the last on hold as many layers as fit, some fewer, or none."""
        left = self.problem.slots - sum(behind)
        if device == 0:
            yield (left, *behind)
            return
        most = self._most(device, behind, micro_batch)
        counts = {count for count in range(most - SLACK_LAYERS, most + 1) if count > 0} | {0}
        if isinstance(self.mode, int):
            counts |= set(range(0, most, max(1, most // 6)))
        for count in sorted(counts):
            yield from self._filled(device - 1, (count, *behind), micro_batch)

    def _most(self, device: int, behind: Layers, micro_batch: int) -> int:
        """Return how many layers with all their experts C(device) holds at most, in front of those behind it."""
        left = self.problem.slots - sum(behind)
        low, high = 0, left
        while low < high:
            middle = (low + high + 1) // 2
            layers = (left - middle, *([0] * (device - 1)), middle, *behind)
            room = self.room(layers, device, micro_batch)
            blocks = expert_placement.movable_blocks(self.model, layers, device)
            if room is not None and sum(map(self.on_device, blocks)) <= room:
                low = middle
            else:
                high = middle - 1
        return low
