# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The splits that remain after loads that failed. Private to this collection. Pure functions only."""

from __future__ import annotations

import functools
import math
import operator
import typing as t

from .._split import layer_search
from .._split.layer_split import Layers
from .._split.measured_loads import Load
from .._split.split_cost import Cost
from .._split.split_problem import Candidate, Problem
from . import failed_loads

#: Anchors are taken from what is likelier than this to load.
EVEN: t.Final = 0.5


class RemainingSplits:
    """The splits to choose from after some loads, with what each device may hold."""

    def __init__(self, problem: Problem, loads: t.Sequence[Load], may_repeat: bool) -> None:
        """Take all loads so far; C(may_repeat) is whether another one is allowed."""
        self.problem, self.loads = problem, loads
        #: The splits that are out, each with the load that failed, and a failed load to be measured once more.
        self.failed, self.again = failed_loads.settled(loads, may_repeat)
        self._ok = {load.layers for load in loads if load.ok}
        failures = failed_loads.out_of_memory(problem, loads)
        self.out_of_memory_count = len(failures)
        #: The devices that were full; without a name those that most likely were.
        self.full = {failure.device for failure in failures}
        self._held = failed_loads.held_mib(problem, loads)
        self._chances: dict[Layers, float] = {}
        #: What devices hold at most, of more than two of which some were full.
        self._limits = None if problem.two_devices or not failures else failed_loads.limits(problem, loads)
        if self._limits is not None:
            likely = self._limits.boxes()
            self._possible = self.boxes = likely if self._listed(likely) else self._limits.boxes(unlikely=0.0)
            self.listed = self._listed(self.boxes)
            self.likely = [c for c in self.listed if self.chance(c.layers) > EVEN] or self.listed
            return
        most_mib = failed_loads.budgets(problem, failures)
        if failures and not self._listed([most_mib]):
            # a device that was blamed without being named may have been innocent
            most_mib = failed_loads.budgets(problem, failures, named_only=True)
        #: MiB that devices may hold at most, as far as loads tell: within any of these budgets.
        self._possible = [tuple(most_mib)]
        #: MiB that a split may need to be chosen or tried: less, where memory ran out twice.
        budgets = failed_loads.likely_budgets(problem, failures, self._held, most_mib, 2)
        self.boxes = [tuple(budgets)] if self._listed([budgets]) else self._possible
        #: The listed splits to choose from, and those of them that anchors are taken from.
        self.listed = self._listed(self.boxes)
        near = failed_loads.likely_budgets(problem, failures, self._held, self.boxes[0], 1)
        self.likely = self._listed([near]) or self.listed

    def _listed(self, boxes: t.Sequence[t.Sequence[int]]) -> list[Candidate]:
        """Return the listed and the tried splits that any budgets of C(boxes) allow and that are not out."""
        fitting = {candidate.layers: candidate for candidate in self.problem.fitting}
        for load in self.loads:
            # with more than two devices what was searched for and tried is not in the list
            if load.layers not in fitting and (searched := self.problem.candidate(load.layers)) is not None:
                fitting[load.layers] = searched
        return [fitting[layers] for layers in sorted(fitting) if self._within(fitting[layers], boxes)]

    def _within(self, candidate: Candidate, boxes: t.Sequence[t.Sequence[int]]) -> bool:
        """Return whether a split is not out, and has held its layers or needs no more than one of C(boxes)."""
        if candidate.layers in self.failed:
            return False
        enough = any(all(map(operator.le, candidate.mib, budgets)) for budgets in boxes)
        return enough or candidate.layers in self._ok

    def remains(self, layers: Layers) -> bool:
        """Return whether a split fits, has not failed, nor needs more than a device may hold after others failed."""
        candidate = self.problem.candidate(layers)
        return candidate is not None and self._within(candidate, self.boxes)

    def may_load(self, layers: Layers) -> bool:
        """Return whether a split that has no load yet may load, as far as loads tell; any may where none succeeded."""
        candidate = self.problem.candidate(layers)
        if candidate is None or any(load.layers == layers for load in self.loads):
            return False
        return not self._ok or self._within(candidate, self._possible)

    def chance(self, layers: Layers) -> float:
        """Return how likely a split loads, as far as loads tell."""
        if layers in self._ok or not self.full:
            return 1.0
        if layers not in self._chances:
            mib = self.problem.memory.mib(layers)
            self._chances[layers] = self._chance(mib) if self._limits is None else self._limits.chance(mib)
        return self._chances[layers]

    def _chance(self, mib: t.Sequence[int]) -> float:
        """Return the same of two devices: where one was full, any limit between what it held and that may be."""
        beyond = [most + 1 for most in self._possible[0]]
        parts = ((beyond[d] - mib[d]) / max(1, beyond[d] - self._held[d]) for d in self.full)
        return math.prod(min(1.0, max(0.0, part)) for part in parts)

    @functools.cached_property
    def _searches(self) -> list[layer_search.LayerSearch]:
        """The searches among all splits that what failed leaves, listed or not."""
        return [self.problem.search.within(budgets) for budgets in self.boxes]

    def _bests(self, cost: Cost, searches: t.Iterable[layer_search.LayerSearch]) -> list[Layers]:
        return [best for search in searches if (best := search.best(cost, without=self.failed)) is not None]

    def best(self, cost: Cost) -> Layers | None:
        """Return the split of the least cost among all that remain."""
        return min(self._bests(cost, self._searches), key=cost.ms, default=None)

    def best_over(self, cost: Cost, devices: t.Sequence[bool]) -> Layers | None:
        """Return the split of the least cost over some devices, among all that remain."""
        return min(self._bests_over(cost, devices, self._searches), key=cost.ms, default=None)

    def bests_by_turns(self, costs: t.Sequence[Cost], fewer: t.Collection[t.Sequence[bool]]) -> set[Layers]:
        """Return a split of the least cost for each of C(costs), and over each set of devices in C(fewer).

        The budgets take turns: to search within all for each would take too long.
        """
        found: set[Layers] = set()
        for turn, cost in enumerate(costs):
            searches = [self._searches[turn % len(self._searches)]]
            found.update(self._bests(cost, searches))
            found.update(split for devices in fewer for split in self._bests_over(cost, devices, searches))
        return found

    def _bests_over(
        self, cost: Cost, devices: t.Sequence[bool], searches: t.Iterable[layer_search.LayerSearch]
    ) -> list[Layers]:
        masked = ([budget * mine for budget, mine in zip(s.budgets, devices, strict=True)] for s in searches)
        return self._bests(cost, map(self.problem.search.within, masked))

    def near_best(self, cost: Cost, fewer: t.Iterable[t.Sequence[bool]]) -> set[Layers]:
        """Return the splits of the least cost, the roomiest practically as fast, and their neighbours.

        One of the least cost for each of the budgets, and over each set of devices in C(fewer); neighbours differ by
        one layer, moved from one device to another.
        """
        bests = [(best, search) for search in self._searches for best in self._bests(cost, [search])]
        found = {split for devices in fewer for split in self._bests_over(cost, devices, self._searches)}
        if bests:
            found.update(best for best, _search in bests)
            best, search = min(bests, key=lambda pair: cost.ms(pair[0]))
            limit = cost.ms(best) * (1 + self.problem.room_price)
            found.add(search.roomiest(cost, limit, without=self.failed) or best)
        return found.union(*map(layer_search.moved_by_one, found))
