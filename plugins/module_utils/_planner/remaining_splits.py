# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The splits that remain after loads that failed. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._split.layer_split import Layers
from .._split.measured_loads import Load
from .._split.split_problem import Candidate, Problem
from . import failed_loads


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
        held = failed_loads.held_mib(problem, loads)
        #: MiB that each device may hold at most, as far as loads tell.
        self.most_mib = failed_loads.budgets(problem, failures)
        if failures and not self._listed(self.most_mib):
            # a device that was blamed without being named may have been innocent
            self.most_mib = failed_loads.budgets(problem, failures, named_only=True)
        #: MiB that a split may need to be chosen or tried: less, where memory ran out twice.
        self.budgets = failed_loads.likely_budgets(problem, failures, held, self.most_mib, 2)
        if not self._listed(self.budgets):
            self.budgets = self.most_mib
        #: The listed splits to choose from, and those of them that anchors are taken from.
        self.listed = self._listed(self.budgets)
        near = failed_loads.likely_budgets(problem, failures, held, self.budgets, 1)
        self.likely = self._listed(near) or self.listed

    def _listed(self, budgets: t.Sequence[int]) -> list[Candidate]:
        """Return the listed and the tried splits that C(budgets) allow and that are not out."""
        fitting = {candidate.layers: candidate for candidate in self.problem.fitting}
        for load in self.loads:
            # with more than two devices what was searched for and tried is not in the list
            if load.layers not in fitting and (searched := self.problem.candidate(load.layers)) is not None:
                fitting[load.layers] = searched
        return [fitting[layers] for layers in sorted(fitting) if self._within(fitting[layers], budgets)]

    def _within(self, candidate: Candidate, budgets: t.Sequence[int]) -> bool:
        """Return whether a split is not out, and has held its layers or needs no more than C(budgets)."""
        if candidate.layers in self.failed:
            return False
        enough = all(used <= budget for used, budget in zip(candidate.mib, budgets, strict=True))
        return enough or candidate.layers in self._ok

    def remains(self, layers: Layers) -> bool:
        """Return whether a split fits, has not failed, nor needs more than a device may hold after others failed."""
        candidate = self.problem.candidate(layers)
        return candidate is not None and self._within(candidate, self.budgets)

    def may_load(self, layers: Layers) -> bool:
        """Return whether a split that has no load yet may load, as far as loads tell; any may where none succeeded."""
        candidate = self.problem.candidate(layers)
        if candidate is None or any(load.layers == layers for load in self.loads):
            return False
        return not self._ok or self._within(candidate, self.most_mib)
