# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Exact searches among all splits of a model over many devices. Private to this collection. Pure functions only.

Three devices and 129 slots have 8256 splits, eight have 10^11: too many to list. But a device holds one contiguous
range of slots, and what it holds and costs depends on that range alone. So dynamic programming over (devices so far,
slots they use) considers every split in O(devices * slots^2) steps, exactly: see docs/decisions/0006-exact-search.md.

One thing is assumed of memory: from a given first slot on, a device that holds more slots never needs less memory. The
one exception, all slots on one device alone, is looked at by itself: it needs no buffers for passing on.
"""

from __future__ import annotations

import bisect
import functools
import heapq
import itertools
import operator
import typing as t

from . import layer_weights
from .layer_split import Layers, output_device, single_device_splits
from .split_cost import Cost

_NEVER = float("-inf")
_FAR = float("inf")


class DeviceMib(t.Protocol):
    """What one device would hold."""

    @property
    def mib(self) -> int:
        """All of it in MiB."""


class Memory(t.Protocol):
    """The memory of every split, as memory_plan.MemoryPlan tells it."""

    def device(self, layers: t.Sequence[int], device: int) -> DeviceMib:
        """Return what one device holds under C(layers)."""


class LayerSearch:
    """All splits of one model over given devices in their order; a device may hold nothing."""

    def __init__(self, memory: Memory, budgets_mib: t.Sequence[int], slots: int) -> None:
        """Take what splits need (a MemoryPlan), what each device may hold, and the slots of the model.

        C(memory) is asked about one of three devices: before, on and after a range of slots.
        """
        self.memory = memory
        self.budgets = tuple(budgets_mib)
        self.slots = slots

    def _range_mib(self, start: int, count: int) -> int:
        if len(self.budgets) == 1:
            return self.memory.device((count,), 0).mib
        return self.memory.device((start, count, self.slots - start - count), 1).mib

    @functools.cached_property
    def _rows(self) -> list[list[int]]:
        """MiB by first slot and count less one, as far as the largest device could hold it; without all slots."""
        largest = max(self.budgets)
        rows = []
        for start in range(self.slots):
            row: list[int] = []
            for count in range(1, self.slots - max(1, start) + 1):
                mib = self._range_mib(start, count)
                if mib > largest:
                    break
                row.append(mib)
            rows.append(row)
        return rows

    @functools.cached_property
    def _most(self) -> list[list[int]]:
        """How many slots fit at most, by device and first slot; none after the last slot."""
        rows = [list(itertools.accumulate(row, max)) for row in self._rows]
        return [[*(bisect.bisect_right(row, budget) for row in rows), 0] for budget in self.budgets]

    @functools.cached_property
    def _alone(self) -> list[bool]:
        """Whether all slots fit, by device."""
        mib = self._range_mib(0, self.slots)
        return [mib <= budget for budget in self.budgets]

    def fits(self, layers: t.Sequence[int]) -> bool:
        """Return whether a split fits."""
        if self.slots in layers:
            return min(layers) >= 0 and sum(layers) == self.slots and self._alone[output_device(layers)]
        start = 0
        for device, count in enumerate(layers):
            if count < 0 or count > self._most[device][start]:
                return False
            start += count
        return start == self.slots

    @functools.cached_property
    def feasible(self) -> bool:
        """Whether any split fits."""
        return self.count() > 0

    def count(self) -> int:
        """Return how many splits fit."""
        ways = [1] + [0] * self.slots
        for most in self._most:
            # every first slot adds its ways to a run of ends: note where the run begins and stops
            steps = [0] * (self.slots + 2)
            for start, number in enumerate(ways):
                steps[start] += number
                steps[start + most[start] + 1] -= number
            ways = list(itertools.accumulate(steps))[: self.slots + 1]
        return ways[self.slots] + sum(self._alone)

    def nearest_miss(self) -> Layers:
        """Return the split with the fewest MiB missing, summed over the devices; 0 of them where one fits."""
        mib = [
            [self._range_mib(start, count) for count in range(1, self.slots - start + 1)]
            for start in range(self.slots)
        ]
        far = float("inf")
        missing: list[float] = [0, *[far] * self.slots]
        chosen: list[list[int]] = []
        for budget in self.budgets:
            steps = (
                (start + count, count, before + max(0, used - budget))
                for start, before in enumerate(missing[: self.slots])
                if before < far
                for count, used in enumerate(mib[start], 1)
            )
            missing, counts = _best_ends(missing, steps, operator.lt)
            chosen.append(counts)
        return self._trace(chosen, self.slots)

    @staticmethod
    def _trace(chosen: t.Sequence[t.Sequence[int]], end: int) -> Layers:
        """Return the counts of the devices in C(chosen), by device and end, that lead to C(end)."""
        layers = []
        for counts in reversed(chosen):
            layers.append(counts[end])
            end -= counts[end]
        return tuple(reversed(layers))

    def extremes(self, whole: bool = True) -> list[Layers]:
        """Return for each device the split with the most slots there, then for each that with the fewest.

        Of several the roomiest: the one with the most memory left where it is tightest. C(whole) leaves out splits in
        which a device holds nothing; otherwise the placements on one device that fit follow. Empty where nothing fits.
        """
        devices = len(self.budgets)
        singles = single_device_splits(self.slots, devices)
        alone = [] if whole and devices > 1 else [single for single in singles if self.fits(single)]
        rooms, chosen = self._rooms_before(whole)
        after, onward = self._rooms_after(whole)
        result = []
        for sign, device in itertools.product((1, -1), range(devices)):
            found = max(
                (
                    (sign * count, room, -start)
                    for start, here in enumerate(rooms[device])
                    if here > _NEVER
                    for count in range(1 if whole else 0, self._most[device][start] + 1)
                    if (room := self._room(device, start, count, here, after[device + 1][start + count])) > _NEVER
                ),
                default=None,
            )
            if found is None:
                return alone
            layers = [*self._trace(chosen[:device], -found[2]), sign * found[0]]
            for following in onward[device + 1 :]:
                layers.append(following[sum(layers)])
            result.append(tuple(layers))
        return list(dict.fromkeys((*result, *alone)))

    def _room(self, device: int, start: int, count: int, before: float, after: float) -> float:
        own = self.budgets[device] - self._rows[start][count - 1] if count else float("inf")
        return min(own, before, after)

    def _rooms_before(self, whole: bool) -> tuple[list[list[float]], list[list[int]]]:
        """Return the most room that the devices before one can leave, by their number and end, and their counts."""
        rooms: list[list[float]] = [[float("inf")] + [_NEVER] * self.slots]
        chosen: list[list[int]] = []
        for budget, most in zip(self.budgets, self._most, strict=True):
            before = rooms[-1]
            steps = (
                (start + count, count, min(left, budget - self._rows[start][count - 1]))
                for start, left in enumerate(before)
                if left > _NEVER
                for count in range(1, most[start] + 1)
            )
            after, counts = _best_ends([_NEVER] * (self.slots + 1) if whole else before, steps, operator.gt)
            rooms.append(after)
            chosen.append(counts)
        return rooms, chosen

    def _rooms_after(self, whole: bool) -> tuple[list[list[float]], list[list[int]]]:
        """Return the same backwards: the room that the devices from one on can leave, by first slot, and the counts."""
        rooms: list[list[float]] = [[_NEVER] * self.slots + [float("inf")]]
        chosen: list[list[int]] = []
        for budget, most in reversed(list(zip(self.budgets, self._most, strict=True))):
            rest = rooms[0]
            steps = (
                (start, count, min(budget - self._rows[start][count - 1], rest[start + count]))
                for start in range(self.slots + 1)
                for count in range(1, most[start] + 1)
            )
            before, counts = _best_ends([_NEVER] * (self.slots + 1) if whole else rest, steps, operator.gt)
            rooms.insert(0, before)
            chosen.insert(0, counts)
        return rooms, chosen

    def best(
        self,
        cost: Cost,
        caps: t.Sequence[int] | None = None,
        without: t.Collection[Layers] = (),
        enough_ms: float | None = None,
    ) -> Layers | None:
        """Return the split that costs least, with at most C(caps) slots on the devices; None where none is left.

        With C(enough_ms) any one that costs no more will do, and any other only tells that there is none.

        Splits in C(without) are passed over: any other one has fewer slots on some device, so the best of those with
        fewer on the first, on the second... is taken.
        """
        limits = tuple(caps if caps is not None else (self.slots,) * len(self.budgets))
        waiting: list[tuple[float, Layers, Layers]] = []
        asked = {limits}
        fresh = [limits]
        while True:
            for below in fresh:
                found = self._best(cost, below, enough_ms)
                if found is not None:
                    heapq.heappush(waiting, (cost.ms(found), found, below))
            if not waiting:
                return None
            _ms, found, below = heapq.heappop(waiting)
            if found not in without:
                return found
            fewer = {(*below[:d], count - 1, *below[d + 1 :]) for d, count in enumerate(found) if count}
            fresh = sorted(fewer - asked)
            asked |= fewer

    def roomiest(self, cost: Cost, limit_ms: float, without: t.Collection[Layers] = ()) -> Layers | None:
        """Return the split that leaves the most memory where it is tightest, of those that cost at most C(limit_ms).

        Of several with that room, to the MiB, it is the one that costs least. None where no split costs that little.
        """
        result = None
        low, high = 0, max(self.budgets)
        while low <= high:
            room = (low + high) // 2
            found = self._leaving(room).best(cost, None, without, limit_ms)
            if found is not None and cost.ms(found) <= limit_ms:
                result, low = found, room + 1
            else:
                high = room - 1
        return None if result is None else self._leaving(high).best(cost, without=without)

    def within(self, budgets_mib: t.Sequence[int]) -> LayerSearch:
        """Return the same search with lower budgets, which shares what is known of memory."""
        other = LayerSearch(self.memory, budgets_mib, self.slots)
        other.__dict__["_rows"] = self._rows
        return other

    def _leaving(self, room_mib: int) -> LayerSearch:
        """Return the same search with C(room_mib) kept free on each device."""
        return self.within([budget - room_mib for budget in self.budgets])

    def _best(self, cost: Cost, caps: tuple[int, ...], enough_ms: float | None) -> Layers | None:
        """Minimise sum + max: the sum alone under a cap on the longest stage, for each cap that may be the best.

        With S(B) the least sum whose stages last at most B, the answer is the least S(B) + B, and S never rises with
        B. So S at the upper end of an interval of caps and the cap at its lower end bound all between them, and the
        interval with the lowest bound is halved until no bound is below what was found.
        """
        first = self._least_sum(cost, caps)
        if first is None or not any(cost.stage_ms):
            return first
        held = self._weights(cost).prefill
        amounts = sorted({round(b - a, 6) for a, b in itertools.combinations_with_replacement(held, 2)})
        stages = sorted({amount * ms for ms in cost.stage_ms for amount in amounts})
        best, least, stage = first, cost.ms(first), cost.longest_ms(first)
        # (bound, lowest stage, highest stage, least sum at or beyond the highest)
        total = least - stage
        waiting = [(total + stages[0], 0, bisect.bisect_left(stages, stage) - 1, total)]
        while waiting:
            bound, low, high, total = heapq.heappop(waiting)
            if bound >= least * (1 - 1e-12) or (enough_ms is not None and (least <= enough_ms or bound > enough_ms)):
                break
            if low > high:
                continue
            middle = (low + high) // 2
            heapq.heappush(waiting, (total + stages[min(middle + 1, high)], middle + 1, high, total))
            found = self._least_sum(cost, caps, stages[middle])
            if found is None:
                continue
            value, stage = cost.ms(found), cost.longest_ms(found)
            if value < least:
                best, least = found, value
            total = value - stage
            below = min(middle, bisect.bisect_left(stages, stage)) - 1
            heapq.heappush(waiting, (total + stages[low], low, below, total))
        return best

    def _weights(self, cost: Cost) -> layer_weights.LayerWeights:
        return cost.weights or layer_weights.equal(self.slots)

    def _least_sum(self, cost: Cost, caps: tuple[int, ...], longest_ms: float | None = None) -> Layers | None:
        """Return the split with the least sum of C(cost) and no stage longer than C(longest_ms).

        A first slot from which a device cannot reach the end at hand reaches no later one, and is dropped.
        """
        sums: list[float] = [0.0, *[_FAR] * self.slots]
        chosen: list[list[int]] = []
        for device, cap in enumerate(caps):
            sums, counts = self._sums_with(device, cost, sums, self._reach(device, cost, cap, longest_ms))
            chosen.append(counts)
        return self._trace(chosen, self.slots) if sums[self.slots] < _FAR else None

    def _reach(self, device: int, cost: Cost, cap: int, longest_ms: float | None) -> list[int]:
        """Return the last end that a device may reach from each first slot, by its cap and the longest stage."""
        stage_ms, held = cost.stage_ms[device], self._weights(cost).prefill
        reach = [min(start + cap, self.slots) for start in range(self.slots)]
        if longest_ms is not None and stage_ms > 0:
            limit = longest_ms / stage_ms * (1 + 1e-9) + 1e-6
            reach = [min(end, bisect.bisect_right(held, held[start] + limit) - 1) for start, end in enumerate(reach)]
        return reach

    def _sums_with(
        self, device: int, cost: Cost, sums: t.Sequence[float], reach: t.Sequence[int]
    ) -> tuple[list[float], list[int]]:
        """Return the least sums by end with one device more, which reaches C(reach) from each first slot, and counts.

        The heap holds the first slots that the device could begin with, by what they promise.
        """
        most, weights = self._most[device], self._weights(cost)
        slot_ms, block_ms = cost.slot_ms[device], cost.block_ms[device]
        before_ms = [slot_ms * n + block_ms * m for n, m in zip(weights.decode, weights.prefill, strict=True)]
        after, counts = list(sums), [0] * (self.slots + 1)
        heap: list[tuple[float, int]] = []
        for end, before in enumerate(sums):
            while heap and min(reach[-heap[0][1]], most[-heap[0][1]] - heap[0][1]) < end:
                heapq.heappop(heap)
            if heap and (value := heap[0][0] + before_ms[end] + cost.hop_ms) < after[end]:
                after[end], counts[end] = value, end + heap[0][1]
            if before < _FAR and end < self.slots:
                heapq.heappush(heap, (before - before_ms[end], -end))
        # all layers on one device need no buffers for passing on, so they fit where the range as a part does not
        alone = before_ms[self.slots] + cost.hop_ms + sums[0]
        if self._alone[device] and reach[0] == self.slots and alone < after[self.slots]:
            after[self.slots], counts[self.slots] = alone, self.slots
        return after, counts


def _best_ends(
    before: t.Sequence[float],
    steps: t.Iterable[tuple[int, int, float]],
    better: t.Callable[[float, float], bool],
) -> tuple[list[float], list[int]]:
    """Return the best value by end and the count that leads there, from steps (end, count, value) of one device.

    C(before) is what stays where no step is better: the device holds nothing then.
    """
    after, counts = list(before), [0] * len(before)
    for end, count, value in steps:
        if better(value, after[end]):
            after[end], counts[end] = value, count
    return after, counts


def moved_by_one(layers: t.Sequence[int]) -> list[Layers]:
    """Return the splits that differ from C(layers) by one slot, moved from one device to another."""
    result = []
    for giver, count in enumerate(layers):
        for taker in range(len(layers)):
            if count and taker != giver:
                moved = list(layers)
                moved[giver] -= 1
                moved[taker] += 1
                result.append(tuple(moved))
    return result
