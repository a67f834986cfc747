# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What loads that failed rule out. Private to this collection. Pure functions only.

Out of memory rules out the split, and every one that needs as much on the device that was full. That is the device
which the message names. A device is never blamed that held as much in another load. Without a name it is, of two
devices, the one that explains all such loads, with the least planned room; of more, each explanation counts as much as
it is likely (memory_limits.py). How much less a device can hold is not known: of two, the next split to try needs what
the message says less, or lies halfway to what the device has held.

Any other failure is measured once more before the split is out: a driver that hiccuped says nothing about a split.
Three failures alike in a row say that something else is broken, and end the campaign, unless a split that has loaded
before loads again.
"""

from __future__ import annotations

import itertools
import re
import typing as t

from .._split.layer_split import Layers
from .._split.measured_loads import Load
from .._split.split_problem import LOADS_PER_DEVICE, Problem
from . import memory_limits
from .expert_loads import Run

#: A load of a layer split, or of a placement with experts in RAM.
AnyLoad = t.TypeVar("AnyLoad", Load, Run)

#: So many failures alike, one after the other, are not about splits.
ALIKE: t.Final = 3

#: How far the next split goes from what a device has held towards what failed.
HALFWAY: t.Final = 0.6


class OutOfMemory(t.NamedTuple):
    """A load for which memory ran out: the device that was full, and whether the message named it."""

    device: int
    named: bool
    #: MiB that the plan counts on the device, and MiB that the message says were wanted beyond (0: it does not say)
    planned_mib: int
    wanted_mib: float


def out_of_memory(problem: Problem, loads: t.Sequence[Load]) -> list[OutOfMemory]:
    """Return what can be said of each load for which memory ran out, in their order."""
    held = held_mib(problem, loads)
    full = [load for load in loads if load.status == "out_of_memory"]
    plans = {load.layers: problem.memory.mib(load.layers) for load in full}
    suspects = {
        load.layers: {d for d, count in enumerate(load.layers) if count and plans[load.layers][d] > held[d]}
        for load in full
    }
    found: list[OutOfMemory] = []
    unnamed = [
        load.layers for load in full if problem.device_named(load.memory_wanted[0]) not in suspects[load.layers]
    ]
    for load in full:
        mib, own = plans[load.layers], suspects[load.layers]
        name, wanted = load.memory_wanted
        named = problem.device_named(name)
        if named in own:
            found.append(OutOfMemory(named, True, mib[named], wanted))
        elif own:
            # the fewest devices that explain all: one of those that may have been full in every such load
            common = set.intersection(*(suspects[layers] for layers in unnamed)) or own
            among = [layers for layers in unnamed if common <= suspects[layers]]
            tightest = min(common, key=lambda d: (max(problem.budgets[d] - plans[layers][d] for layers in among), d))
            found.append(OutOfMemory(tightest, False, mib[tightest], 0.0))
    return found


def limits(problem: Problem, loads: t.Sequence[Load]) -> memory_limits.MemoryLimits:
    """Return what more than two devices hold at most, by all loads so far."""
    held = held_mib(problem, loads)
    failures = []
    for load in {load.layers: load for load in loads if load.status == "out_of_memory"}.values():
        mib = problem.memory.mib(load.layers)
        suspects = {d for d, count in enumerate(load.layers) if count and mib[d] > held[d]}
        named = {d for d in suspects if d == problem.device_named(load.memory_wanted[0])}
        if suspects:
            failures.append(memory_limits.Failure(tuple(mib), frozenset(named or suspects)))
    return memory_limits.MemoryLimits(problem.budgets, held, failures)


def further_loads(problem: Problem, loads: t.Sequence[Load]) -> int:
    """Return how many loads a campaign has beyond its limit: what a full device holds is one unknown more."""
    full = {failure.device for failure in out_of_memory(problem, loads)}
    count = len(full) if problem.two_devices or not full else limits(problem, loads).short_count
    return LOADS_PER_DEVICE * count


def held_mib(problem: Problem, loads: t.Sequence[Load]) -> list[int]:
    """Return the most MiB, by the plan, that each device has held in a load that succeeded."""
    held = [0] * len(problem.names)
    for layers in {load.layers for load in loads if load.ok}:
        held = [max(pair) for pair in zip(held, problem.memory.mib(layers), strict=True)]
    return held


def budgets(problem: Problem, failures: t.Sequence[OutOfMemory], named_only: bool = False) -> list[int]:
    """Return the budget of each device, less where memory ran out: a MiB below what was planned there."""
    result = list(problem.budgets)
    for failure in failures:
        if failure.named or not named_only:
            result[failure.device] = min(result[failure.device], failure.planned_mib - 1)
    return result


def likely_budgets(
    problem: Problem, failures: t.Sequence[OutOfMemory], held: t.Sequence[int], allowed: t.Sequence[int], least: int
) -> list[int]:
    """Return what each device may well hold, where memory ran out on it at least C(least) times; else C(allowed).

    After the first time that is what the message says less, if it says so; otherwise, and after the second time, a
    little over half of the way from what the device has held (C(held)) to what failed: of two layers between, one.
    """
    result = list(allowed)
    for device in range(len(problem.names)):
        own = [failure for failure in failures if failure.device == device]
        if len(own) < least:
            continue
        smallest = min(own, key=lambda failure: failure.planned_mib)
        half = held[device] + int(HALFWAY * (smallest.planned_mib - held[device]))
        less = smallest.planned_mib - int(smallest.wanted_mib) - 1
        named = len(own) == 1 and smallest.wanted_mib > 0
        result[device] = min(allowed[device], max(half, less) if named else half)
    return result


def settled(loads: t.Sequence[Load], may_repeat: bool) -> tuple[dict[Layers, Load], Load | None]:
    """Return the splits that are out, each with its first failure, and a failed load to be measured once more.

    C(may_repeat) is whether loads are left for that.
    """
    out: dict[Layers, Load] = {}
    again = None
    for layers in dict.fromkeys(load.layers for load in loads if not load.ok):
        own = [load for load in loads if load.layers == layers]
        bad = [load for load in own if not load.ok]
        full = next((load for load in bad if load.status == "out_of_memory"), None)
        if full is not None or len(bad) > 1:
            out[layers] = full or bad[0]
        elif own[-1] is bad[0] and may_repeat:
            again = again or bad[0]
        elif len(own) == 1:
            out[layers] = bad[0]
    return out, again


def alike_in_a_row(loads: t.Sequence[AnyLoad]) -> AnyLoad | None:
    """Return the last load where it and those before it failed in the same way, other than by memory; else None."""
    last = loads[-ALIKE:]
    if len(last) < ALIKE or any(load.ok or load.status == "out_of_memory" for load in last):
        return None
    ways = {(load.status, re.sub(r"\d+(\.\d+)?", "#", load.reason)) for load in last}
    return last[-1] if len(ways) == 1 else None


def loaded_before(loads: t.Sequence[Load]) -> set[Layers]:
    """Return the splits that tell whether failures alike are about splits, once measured again.

    They have loaded. None where one of these has failed since the last load that succeeded: then it is no matter of
    splits.
    """
    ok = {load.layers for load in loads if load.ok}
    since = itertools.takewhile(lambda load: not load.ok, reversed(loads))
    return set() if any(load.layers in ok for load in since) else ok
