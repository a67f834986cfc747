# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What loads of layer splits leave open, before anything is fitted to them. Private to this collection. Pure.

It is all that tells whether loads that were asked for still make sense, and is known much sooner than a fit.
"""

from __future__ import annotations

import typing as t

from .._split.layer_split import Layers
from .._split.measured_loads import Load
from .._split.split_problem import Problem
from . import failed_loads, remaining_splits


class LoadsSoFar:
    """A problem and some loads: how many more there may be, and which splits remain."""

    def __init__(self, problem: Problem, loads: t.Sequence[Load]) -> None:
        """Take all loads so far, in their order."""
        self.problem = problem
        self.loads = list(loads)
        self.left = problem.max_loads + failed_loads.further_loads(problem, self.loads) - len(self.loads)
        self.lost = next((load for load in loads if load.status == "device_lost"), None)
        #: Whether another load is allowed.
        self.allowed = self.left > 0 and self.lost is None
        #: The splits that remain to choose from, those that are out, and a failed load to be measured once more.
        self.splits = remaining_splits.RemainingSplits(problem, self.loads, self.allowed)
        self.failed, self.again = self.splits.failed, self.splits.again
        #: The last of several failures alike, and the splits that tell what these are about once measured again.
        self.alike = failed_loads.alike_in_a_row(self.loads)
        self.witnesses = failed_loads.loaded_before(self.loads) if self.alike else set()

    @property
    def last_failure(self) -> Load:
        """The last load that failed; there must be one."""
        return next(load for load in reversed(self.loads) if not load.ok)

    def next_number(self, layers: Layers) -> int:
        """Return the number that the next load of a split has; one that was set aside keeps its own."""
        return 1 + sum(1 for load in self.loads if load.layers == layers)

    def remains(self, layers: Layers) -> bool:
        """Return whether a split fits, has not failed, nor needs more than a device may hold after others failed."""
        return self.splits.remains(layers)
