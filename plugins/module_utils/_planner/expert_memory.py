# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What devices may hold of placements with experts in RAM, by loads that succeeded and failed. Private. Pure."""

from __future__ import annotations

import math
import typing as t

from .._split.split_problem import Problem
from . import expert_plane, failed_loads
from .expert_loads import Run

#: Loads for which memory ran out, after which what devices may hold is not searched any further.
MOST_SEARCHED: t.Final = 6


class Bounds(t.NamedTuple):
    """MiB by the plan's counting, one per device: to choose from, the most held, and the least that was too much.

    C(failed): how many loads ran out of a device's memory.
    """

    budgets: tuple[int, ...]
    held: tuple[int, ...]
    too_much: tuple[int | None, ...]
    failed: int = 0


def ram_mib(problem: Problem, runs: t.Sequence[Run]) -> int | None:
    """Return the MiB of RAM that experts may have, by the problem and by loads for which it was short; None: any."""
    told = (problem.raw.get("experts_in_ram") or {}).get("ram_mib")
    limits = [] if told is None else [int(told)]
    for run in runs:
        name, missing = run.memory_wanted
        if run.status == "out_of_memory" and name == "CPU":
            limits.append(expert_plane.ram_mib(problem.memory.model, run.placement) - max(1, math.ceil(missing)))
    return min(limits, default=None)


def bounds(problem: Problem, runs: t.Sequence[Run]) -> Bounds:
    """Return what each device may hold after loads for which memory ran out.

    The device that the message names, or else the one with the least planned room, holds less than was planned: by
    what the message says, or by a fiftieth where that is less, and twice as much each further time. Once a load of the
    device succeeded, it is a little over halfway from what it held to what it did not, until MOST_SEARCHED loads
    failed. A device is not blamed that held as much in another load. What llama.cpp's own placements move no plan
    counts, so they tell nothing here.
    """
    budgets = list(problem.budgets)
    plane = expert_plane.Plane(problem, budgets)
    runs = [run for run in runs if not run.placement.override]
    held = _held(plane, runs)
    too_much: list[int | None] = [None] * len(budgets)
    share, failed = 50, 0
    for run in runs:
        if run.status != "out_of_memory" or run.memory_wanted[0] == "CPU":
            continue
        failed += 1
        size = max((size for _kind, size, _threads in run.wanted), default=problem.micro_batch)
        mib = plane.mib(run.placement, size)
        suspects = [d for d, count in enumerate(run.placement.layers) if count and mib[d] > held[d]]
        name, wanted = run.memory_wanted
        named = problem.device_named(name)
        if not suspects:
            continue
        device = named if named in suspects else min(suspects, key=lambda d: (budgets[d] - mib[d], d))
        # what is wanted may be all weights in one piece
        step = max(1, mib[device] // share)
        less = min(step, max(1, math.ceil(wanted))) if named in suspects and wanted else step
        share = max(4, share // 2)
        budgets[device] = min(budgets[device], max(held[device], mib[device] - less))
        known = too_much[device]
        too_much[device] = mib[device] if known is None else min(known, mib[device])
    for device, limit in enumerate(too_much):
        if limit is not None and held[device]:
            middle = held[device] + int(failed_loads.HALFWAY * (limit - held[device]))
            # what stands for llama.cpp's own placement may have held more than the problem allows
            budgets[device] = min(problem.budgets[device], middle if failed < MOST_SEARCHED else held[device])
    return Bounds(tuple(budgets), tuple(held), tuple(too_much), failed)


def _held(plane: expert_plane.Plane, runs: t.Sequence[Run]) -> list[int]:
    """Return the most MiB, by the plan, that each device has held in a load that succeeded."""
    held = [0] * len(plane.budgets)
    for run in runs:
        if run.ok:
            size = max((row.micro_batch for row in run.rows), default=plane.problem.micro_batch)
            held = [max(pair) for pair in zip(held, plane.mib(run.placement, size), strict=True)]
    return held


def chance(memory: Bounds, mib: t.Sequence[int]) -> float:
    """Return how likely devices hold so many MiB: any bound from what one held to what was too much is as likely."""
    found = 1.0
    for own, held, limit in zip(mib, memory.held, memory.too_much, strict=True):
        if limit is not None and own > held:
            found *= max(0.0, (limit - own) / (limit - held))
    return found


def at(memory: Bounds, share: float, budgets: t.Sequence[int]) -> tuple[int, ...]:
    """Return what devices that were full would hold with C(share) of the way from what they held to what was too much.

    C(budgets): those of the problem, which count for the others.
    """
    return tuple(
        own if limit is None or not held else min(own, held + int(share * (limit - 1 - held)))
        for own, held, limit in zip(budgets, memory.held, memory.too_much, strict=True)
    )
