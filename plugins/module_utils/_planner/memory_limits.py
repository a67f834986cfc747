# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What devices hold at most, after loads for which memory ran out. Private to this collection. Pure functions only.

A failure that names no device says that some device was over its limit: one that holds layers there, and more than it
has held in a load that succeeded. Each set of devices that are short, and each limit of them, that explains all
failures is as likely as it was before (Bayes). A device may hold all that is planned, unless it is short: then the
limit lies anywhere from half of that on, and seldom below. Few devices are short at a time.
"""

from __future__ import annotations

import itertools
import math
import typing as t

#: How likely one device more is short.
SHORT: t.Final = 0.05
#: How likely the limit of a short device is below half of its budget.
FAR_BELOW: t.Final = 0.1
#: Limits that are looked at for each short device, by how many devices are short.
LIMITS: t.Final = {1: 12, 2: 6, 3: 4}
#: What explains failures with less of the probability of the likeliest explanation is not searched for splits.
UNLIKELY: t.Final = 0.1
#: How far from what a device has held to what failed the splits to choose from may go.
LEVELS: t.Final = (1.0, 0.6, 0.3)


class Failure(t.NamedTuple):
    """A load for which memory ran out: MiB of each device by the plan, and the devices that may have been full."""

    mib: tuple[int, ...]
    suspects: frozenset[int]


class _Case(t.NamedTuple):
    """The limits of some short devices, and how likely they are before failures tell."""

    short: tuple[int, ...]
    limits: tuple[float, ...]
    weight: float


class MemoryLimits:
    """How likely a split loads, and within which budgets to look for it."""

    def __init__(
        self, budgets: t.Sequence[int], held: t.Sequence[int], failures: t.Sequence[Failure]
    ) -> None:
        """Take what devices may hold by the plan and what they have held, in MiB, and what failed."""
        self.budgets, self._held, self._failures = tuple(budgets), held, failures
        self._cases: list[_Case] = []
        devices = sorted(frozenset[int]().union(*(failure.suspects for failure in failures)))
        for size in LIMITS:
            # three short devices are looked at where two do not explain what failed
            if size < 3 or not self._cases:
                for short in itertools.combinations(devices, size):
                    self._cases += self._explaining(short)
        total = sum(case.weight for case in self._cases)
        self._cases = [case._replace(weight=case.weight / total) for case in self._cases]

    def _explaining(self, short: tuple[int, ...]) -> t.Iterator[_Case]:
        """Yield the limits of short devices that explain what failed."""
        count = LIMITS[len(short)]
        cells = []
        for device in short:
            low, high = float(self._held[device]), float(self.budgets[device])
            # one cell ends below the least that failed, else nothing may explain it; sizes are whole MiB
            least = min(f.mib[device] - 0.5 for f in self._failures if device in f.suspects)
            if len(short) == 1:
                high = min([high, *(failure.mib[device] - 0.5 for failure in self._failures)])
            edges = sorted({*(low + (high - low) * step / count for step in range(count + 1)), min(least, high)})
            ends = list(itertools.pairwise(edges))
            cells.append([((a + b) / 2, self._below(device, b) - self._below(device, a)) for a, b in ends])
        for chosen in itertools.product(*cells):
            limits = tuple(limit for limit, _mass in chosen)
            case = _Case(short, limits, math.prod(SHORT * mass for _limit, mass in chosen))
            if case.weight and all(_explains(case, failure) for failure in self._failures):
                yield case

    def _below(self, device: int, mib: float) -> float:
        """Return how likely the limit of a short device is below C(mib)."""
        share = mib / max(1, self.budgets[device])
        return FAR_BELOW * share + (1 - FAR_BELOW) * max(0.0, 2 * share - 1)

    def chance(self, mib: t.Sequence[int]) -> float:
        """Return how likely a split with so many MiB on the devices loads; 1 where nothing explains what failed."""
        if not self._cases:
            return 1.0
        return sum(case.weight for case in self._cases if all(
            mib[device] <= limit for device, limit in zip(case.short, case.limits, strict=True)
        ))  # fmt: skip

    @property
    def short_count(self) -> int:
        """The fewest devices that explain what failed."""
        return min((len(case.short) for case in self._cases), default=1)

    def boxes(self, unlikely: float = UNLIKELY) -> list[tuple[int, ...]]:
        """Return budgets to look within: any split that loads by some likely explanation is within one of them.

        Likely is what has at least C(unlikely) of the probability of the likeliest. Less of them as well, from what the
        devices have held: what is at the edge of what may load will often fail.
        """
        weights: dict[tuple[int, ...], float] = {}
        for case in self._cases:
            weights[case.short] = weights.get(case.short, 0.0) + case.weight
        found: dict[tuple[int, ...], None] = {} if weights else {self.budgets: None}
        least = unlikely * max(weights.values(), default=0.0)
        for short, weight in sorted(weights.items(), key=lambda pair: -pair[1]):
            for box in self._largest(short, self.budgets, set()) if weight >= least else ():
                for level in LEVELS if len(short) == 1 else LEVELS[:2]:
                    found[self._lowered(box, level)] = None
        return list(found)

    def _lowered(self, box: tuple[int, ...], level: float) -> tuple[int, ...]:
        return tuple(
            top if top == budget else held + int(level * (top - held))
            for top, budget, held in zip(box, self.budgets, self._held, strict=True)
        )

    def _largest(
        self, short: tuple[int, ...], box: tuple[int, ...], seen: set[tuple[int, ...]]
    ) -> list[tuple[int, ...]]:
        """Return the largest budgets that these short devices leave: each failure is over one of them.

        C(seen) are budgets that were looked at: the ways to the same ones double with each failure.
        """
        if box in seen:
            return []
        seen.add(box)
        open_ones = [f for f in self._failures if not any(f.mib[d] > box[d] for d in short)]
        if not open_ones:
            return [box]
        boxes = []
        for device in sorted(open_ones[0].suspects.intersection(short)):
            less = min(box[device], open_ones[0].mib[device] - 1)
            boxes += self._largest(short, (*box[:device], less, *box[device + 1 :]), seen)
        return boxes


def _explains(case: _Case, failure: Failure) -> bool:
    """Return whether a short device that may have been full was over its limit."""
    return any(
        device in failure.suspects and failure.mib[device] > limit
        for device, limit in zip(case.short, case.limits, strict=True)
    )
