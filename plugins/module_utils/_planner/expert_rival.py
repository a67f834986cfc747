# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The placement that llama.cpp's own --fit would make, which the winner is confirmed against. Private. Pure.

Where its program has said it, that holds (problem.experts_in_ram.own). Else its rule is followed, common/fit.cpp of
llama.cpp b11312: with a margin of 1024 MiB on every device, blocks without their experts are placed first, as many as
fit on the last devices; then, from the first device on, blocks get their experts back while they fit. So experts in RAM
are those of the last blocks. Threads are as many as the CPU has cores, the micro-batch the configured one.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import itertools
import typing as t

from .._base.types import Mapping
from .._split import expert_placement, memory_plan
from .._split.expert_placement import ExpertPlacement
from . import expert_plane
from .expert_evidence import Evidence
from .expert_loads import Arm

#: What --fit leaves free on every device by default, in MiB.
MARGIN_MIB: t.Final = 1024


def margins_mib(devices: t.Sequence[Mapping]) -> list[int]:
    """Return what --fit is told to leave free on each device: its own default, and what a budget withholds.

    Of a device, or a budget, for which the default would be more than an eighth, an eighth.
    """
    budgets = memory_plan.budgets_mib(devices, 0)
    return [
        device["free_mib"] - budget + min(MARGIN_MIB, budget // 8)
        for device, budget in zip(devices, budgets, strict=True)
    ]


def rival(evidence: Evidence, winner: Arm) -> Arm | None:
    """Return what the winner is compared with: llama.cpp's own placement, or else the best measured other one."""
    own = own_arm(evidence)
    if own is not None and own != winner and not out(evidence, own) and _as_asked(evidence, own):
        return own
    others = [
        arm for run in evidence.ok for arm in evidence.arms_of(run)
        if arm.placement != winner.placement and arm.placement.threads == winner.placement.threads
        and evidence.objectives(arm)
    ]  # fmt: skip
    return evidence.best(others)


def _as_asked(evidence: Evidence, arm: Arm) -> bool:
    """Return whether an arm has as many blocks in RAM as were asked for, and fits what loads say of memory.

    The memory of a placement that the program printed is not counted: it may move what no plan moves.
    """
    mode, placement = evidence.plane.mode, arm.placement
    full = any(run.status == "out_of_memory" for run in evidence.runs)
    if full and not placement.override and not evidence.objectives(arm):
        left = evidence.plane.headroom(placement, arm.micro_batch)
        if min(mib for mib, count in zip(left, placement.layers, strict=True) if count) < 0:
            return False
    return not isinstance(mode, int) or (len(placement.blocks) == mode and placement.partial is None)


def out(evidence: Evidence, arm: Arm) -> bool:
    """Return whether a load of an arm has failed."""
    return any(not run.ok and run.placement == arm.placement for run in evidence.runs)


def own_arm(evidence: Evidence) -> Arm | None:
    """Return llama.cpp's own placement, with its own threads and the configured micro-batch; None without one.

    Of a dense model it leaves whole layers in RAM, with their KV cache, which is not measured.
    """
    if expert_placement.kind_of(evidence.problem.memory.model) != expert_placement.EXPERTS:
        return None
    given = evidence.problem.raw.get("experts_in_ram") or {}
    threads = given.get("default_threads") or evidence.threads
    placement = None
    told = given.get("own")
    if told:
        # of a placement that no load could have, the rule says what is near it
        with contextlib.suppress(ValueError):
            placement = expert_placement.from_json(tuple(told["layers"]), told["experts_in_ram"])
    placement = placement or _by_rule(evidence)
    if placement is None or not placement.any:
        return None
    return Arm(dataclasses.replace(placement, threads=threads, no_host=False), evidence.problem.micro_batch)


def _by_rule(evidence: Evidence) -> ExpertPlacement | None:
    """Return the placement by the rule above, or None where it does not fit what devices may hold."""
    problem = evidence.problem
    margins = margins_mib(problem.raw["devices"])
    free = [device["free_mib"] for device in problem.raw["devices"]]
    plane = expert_plane.Plane(problem, [max(0, mib - margin) for mib, margin in zip(free, margins, strict=True)])
    layers: list[int] = []
    devices, slots, size = len(free), problem.slots, problem.micro_batch
    for device in range(devices - 1):
        left = slots - sum(layers)
        # the first devices take blocks with their experts, as many as they hold
        layers.append(_held(plane, layers, device, left, size))
    layers.append(slots - sum(layers))
    split = tuple(layers)
    if not split[-1]:
        return None
    last = len(split) - 1
    room = plane.room(split, last, size)
    if room is None:
        return None
    blocks = expert_placement.movable_blocks(plane.model, split, last)
    held = [0, *itertools.accumulate(plane.on_device(block) for block in blocks)]
    stay = blocks[: bisect.bisect_right(held, room) - 1]
    return ExpertPlacement(split, tuple(block for block in blocks if block not in stay))


def _held(plane: expert_plane.Plane, before: t.Sequence[int], device: int, left: int, size: int) -> int:
    """Return how many layers with all their experts C(device) holds behind those before it."""
    count = 0
    while count < left:
        behind = [0] * (len(plane.budgets) - device - 2)
        layers = (*before, count + 1, *behind, left - count - 1)
        room = plane.room(layers, device, size)
        blocks = expert_placement.movable_blocks(plane.model, layers, device)
        if room is None or sum(map(plane.on_device, blocks)) > room:
            break
        count += 1
    return count
