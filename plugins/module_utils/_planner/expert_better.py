# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which placement with experts in RAM may be better than the best one by the fit. Private. Pure functions only.

The first loads have about the same split, with few experts in RAM. Of cards that are unlike they tell a sum: what each
card takes, and what more experts in RAM would take, stays open, and with it whether one card with all other experts in
RAM is faster. So what is lost without a load is worked out over the costs that the loads allow (expert_costs.Fit).
"""

from __future__ import annotations

import statistics
import typing as t

from . import expert_memory, expert_plane
from .expert_evidence import Evidence
from .expert_loads import Arm

#: What may be lost, relatively, before one more load is worth it.
WORTH_A_LOAD: t.Final = 0.004

#: How far beyond what a device has held towards what was too much placements are looked for.
SHARES: t.Final = (0.3, 0.6, 0.95)


def loss(evidence: Evidence, best: Arm, other: Arm) -> float:
    """Return how much less C(other) is expected to take, where it is the better one; 0 without a fit."""
    own, its = evidence.drawn(best), evidence.drawn(other)
    gains = [max(0.0, 1 - one / two) for one, two in zip(its, own, strict=False)]
    return statistics.fmean(gains) if gains else 0.0


def may_be_better(evidence: Evidence, best: Arm, arms: t.Iterable[Arm]) -> Arm | None:
    """Return which of C(arms) without a load is worth one before C(best) is taken; None if none is."""
    losses = [(loss(evidence, best, arm), arm) for arm in arms if arm != best and not evidence.objectives(arm)]
    most, found = max(losses, key=lambda pair: pair[0], default=(0.0, None))
    return found if most > WORTH_A_LOAD else None


def may_hold_more(evidence: Evidence, best: Arm) -> Arm | None:
    """Return the placement that is worth a load although memory may run out; None where none is.

    What it saves counts as likely as the devices hold it. After MOST_SEARCHED failures no further one is risked.
    """
    memory, plane = evidence.memory, evidence.plane
    if memory.failed >= expert_memory.MOST_SEARCHED:
        return None
    found: list[tuple[float, Arm]] = []
    for share in SHARES:
        budgets = expert_memory.at(memory, share, evidence.problem.budgets)
        if budgets == plane.budgets:
            continue
        wider = expert_plane.Plane(evidence.problem, budgets, plane.ram_mib)
        arms = evidence.candidates(best.placement.no_host, wider)
        arm = evidence.best(arm for arm in arms if not evidence.objectives(arm))
        if arm is not None:
            likely = expert_memory.chance(memory, plane.mib(arm.placement, arm.micro_batch))
            found.append((likely * (1 - evidence.objective(arm) / evidence.objective(best)), arm))
    most, other = max(found, key=lambda pair: pair[0], default=(0.0, None))
    return other if most > WORTH_A_LOAD else None
