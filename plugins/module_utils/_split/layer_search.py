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
import typing as t

from . import cost_model
from .layer_split import Layers, output_device, single_device_splits

_NEVER = float("-inf")


class Cost(t.NamedTuple):
    """What a split costs, in ms: sum(slots[i] * slot_ms[i] + blocks[i] * block_ms[i]) + max(blocks[i] * stage_ms[i]).

    The blocks of a device are its slots, less the output slot. Decoding is a sum over slots. A prompt of m
    micro-batches is a sum over blocks, and where they pass through a pipeline, m - 1 times the longest stage. Tensor
    mode is a maximum alone.
    """

    slot_ms: tuple[float, ...]
    block_ms: tuple[float, ...]
    stage_ms: tuple[float, ...]

    def ms(self, layers: t.Sequence[int]) -> float:
        """Return the cost of C(layers)."""
        last = output_device(layers)
        total = self.longest_ms(layers)
        for device, (count, slot_ms, block_ms) in enumerate(zip(layers, self.slot_ms, self.block_ms, strict=True)):
            total += count * slot_ms + (count - (device == last)) * block_ms
        return total

    def longest_ms(self, layers: t.Sequence[int]) -> float:
        """Return the longest stage of C(layers)."""
        last = output_device(layers)
        stages = zip(layers, self.stage_ms, strict=True)
        return max((count - (device == last)) * ms for device, (count, ms) in enumerate(stages))


def workload_cost(
    decode_slot_ms: t.Sequence[float] | None,
    prefill_slot_ms: t.Sequence[float] | None,
    prompt_tokens: int,
    generated_tokens: int,
    tested_tokens: int,
    micro_batch: int,
    overlap: float,
) -> Cost | None:
    """Return what a fit says of a prompt and an answer as coefficients of the layers; None where it says nothing.

    C(tested_tokens) is the prompt that the fit of prefill rests on: micro-batches are as full on average as each prompt
    makes them (see _cost_model.prefill_scale).
    """
    known = decode_slot_ms or prefill_slot_ms
    if not known:
        return None
    slot_ms = block_ms = stage_ms = [0.0] * len(known)
    if generated_tokens and decode_slot_ms:
        slot_ms = [generated_tokens * ms for ms in decode_slot_ms]
    if prompt_tokens and prefill_slot_ms:
        batches = cost_model.micro_batches(prompt_tokens, micro_batch)
        fullness = (prompt_tokens / batches) / (tested_tokens / cost_model.micro_batches(tested_tokens, micro_batch))
        of_sum, of_max = cost_model.prefill_weights(batches, overlap)
        block_ms = [fullness * of_sum * own for own in prefill_slot_ms]
        stage_ms = [fullness * of_max * own for own in prefill_slot_ms]
    counts = any((*slot_ms, *block_ms, *stage_ms))
    return Cost(tuple(slot_ms), tuple(block_ms), tuple(stage_ms)) if counts else None


class DeviceMib(t.Protocol):
    """What one device would hold."""

    @property
    def mib(self) -> int:
        """All of it in MiB."""


class Memory(t.Protocol):
    """The memory of every split, as _memory_plan.MemoryPlan tells it."""

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
            after, counts = list(missing), [0] * (self.slots + 1)
            for start, before in enumerate(missing[: self.slots]):
                if before < far:
                    for count, used in enumerate(mib[start], 1):
                        value = before + max(0, used - budget)
                        if value < after[start + count]:
                            after[start + count], counts[start + count] = value, count
            missing = after
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
        before = self._rooms(whole)
        # the same backwards: rooms and counts by first slot, of the devices from one on
        after: list[list[float]] = [[_NEVER] * self.slots + [float("inf")]]
        onward: list[list[int]] = []
        for device in reversed(range(devices)):
            most, budget, rest = self._most[device], self.budgets[device], after[0]
            rooms, counts = [_NEVER] * (self.slots + 1), [0] * (self.slots + 1)
            for start in range(self.slots + 1):
                best, taken = (_NEVER, 0) if whole else (rest[start], 0)
                for count in range(1, most[start] + 1):
                    room = min(budget - self._rows[start][count - 1], rest[start + count])
                    if room > best:
                        best, taken = room, count
                rooms[start], counts[start] = best, taken
            after.insert(0, rooms)
            onward.insert(0, counts)
        result = []
        for sign in (1, -1):
            for device in range(devices):
                found = max(
                    (
                        (sign * count, room, -start)
                        for start, here in enumerate(before[0][device])
                        if here > _NEVER
                        for count in range(1 if whole else 0, self._most[device][start] + 1)
                        if (room := self._room(device, start, count, here, after[device + 1][start + count])) > _NEVER
                    ),
                    default=None,
                )
                if found is None:
                    return alone
                start, count = -found[2], sign * found[0]
                layers = [*self._trace(before[1][:device], start), count]
                for counts in onward[device + 1 :]:
                    layers.append(counts[sum(layers)])
                result.append(tuple(layers))
        return list(dict.fromkeys((*result, *alone)))

    def _room(self, device: int, start: int, count: int, before: float, after: float) -> float:
        own = self.budgets[device] - self._rows[start][count - 1] if count else float("inf")
        return min(own, before, after)

    def _rooms(self, whole: bool) -> tuple[list[list[float]], list[list[int]]]:
        """Return the most room that the devices before one can leave, by their number and end, and their counts."""
        rooms: list[list[float]] = [[float("inf")] + [_NEVER] * self.slots]
        chosen: list[list[int]] = []
        for device, budget in enumerate(self.budgets):
            before, most = rooms[-1], self._most[device]
            after, counts = ([_NEVER] * (self.slots + 1) if whole else list(before)), [0] * (self.slots + 1)
            for start, left in enumerate(before):
                if left > _NEVER:
                    for count in range(1, most[start] + 1):
                        room = min(left, budget - self._rows[start][count - 1])
                        if room > after[start + count]:
                            after[start + count], counts[start + count] = room, count
            rooms.append(after)
            chosen.append(counts)
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

    def roomiest(
        self, cost: Cost, limit_ms: float, caps: t.Sequence[int] | None = None, without: t.Collection[Layers] = ()
    ) -> Layers | None:
        """Return the split that leaves the most memory where it is tightest, of those that cost at most C(limit_ms).

        Of several with that room, to the MiB, it is the one that costs least. None where no split costs that little.
        """
        result = None
        low, high = 0, max(self.budgets)
        while low <= high:
            room = (low + high) // 2
            found = self._leaving(room).best(cost, caps, without, limit_ms)
            if found is not None and cost.ms(found) <= limit_ms:
                result, low = found, room + 1
            else:
                high = room - 1
        return None if result is None else self._leaving(high).best(cost, caps, without)

    def _leaving(self, room_mib: int) -> LayerSearch:
        """Return the same search with C(room_mib) kept free on each device, which shares what is known of memory."""
        other = LayerSearch(self.memory, [budget - room_mib for budget in self.budgets], self.slots)
        other.__dict__["_rows"] = self._rows
        return other

    def _best(self, cost: Cost, caps: tuple[int, ...], enough_ms: float | None = None) -> Layers | None:
        """Minimise sum + max: the sum alone under a cap on the longest stage, for each cap that may be the best.

        With S(B) the least sum whose stages last at most B, the answer is the least S(B) + B, and S never rises with
        B. So S at the upper end of an interval of caps and the cap at its lower end bound all between them, and the
        interval with the lowest bound is halved until no bound is below what was found.
        """
        first = self._least_sum(cost, caps)
        if first is None or not any(cost.stage_ms):
            return first
        stages = sorted({n * ms for ms, cap in zip(cost.stage_ms, caps, strict=True) for n in range(cap + 1)})
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
            heapq.heappush(waiting, (total + stages[low], low, bisect.bisect_left(stages, stage) - 1, total))
        return best

    def _least_sum(self, cost: Cost, caps: tuple[int, ...], longest_ms: float | None = None) -> Layers | None:
        """Return the split with the least sum of C(cost) and no stage longer than C(longest_ms).

        For each device a heap holds the first slots it could begin with, by what they promise; one that cannot reach
        as far as the end at hand will not reach any later one, and is dropped. The last end is the output slot, which
        is no block.
        """
        far = float("inf")
        sums: list[float] = [0.0, *[far] * self.slots]
        chosen: list[list[int]] = []
        for device, (most, slot_ms, block_ms) in enumerate(zip(self._most, cost.slot_ms, cost.block_ms, strict=True)):
            blocks, stage_ms = self.slots, cost.stage_ms[device]
            if longest_ms is not None and stage_ms > 0:
                blocks = int(longest_ms / stage_ms) + 1
                while blocks * stage_ms > longest_ms:
                    blocks -= 1
            cap, each_ms = min(caps[device], blocks), slot_ms + block_ms
            after, counts = list(sums), [0] * (self.slots + 1)
            heap: list[tuple[float, int]] = []
            for end, before in enumerate(sums[: self.slots]):
                while heap and -heap[0][1] + min(cap, most[-heap[0][1]]) < end:
                    heapq.heappop(heap)
                if heap:
                    value = heap[0][0] + end * each_ms
                    if value < after[end]:
                        after[end], counts[end] = value, end + heap[0][1]
                if before < far:
                    heapq.heappush(heap, (before - end * each_ms, -end))
            for start, before in enumerate(sums[: self.slots]):
                count = self.slots - start
                if count <= min(caps[device], blocks + 1) and (count <= most[start] if start else self._alone[device]):
                    value = before + count * each_ms - block_ms
                    if value < after[self.slots]:
                        after[self.slots], counts[self.slots] = value, count
            sums = after
            chosen.append(counts)
        return self._trace(chosen, self.slots) if sums[self.slots] < far else None


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
