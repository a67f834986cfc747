# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which first load with drafts teaches most about all arms. Private to this collection. Pure functions only.

The knowledge gradient (Frazier, Powell and Dayanik 2009) of correlated beliefs: by how much the lowest expected time of
all arms is expected to fall once a load was seen. Costs of rounds are correlated by what families share, acceptance by
its source. Later loads are no longer chosen by it: only lengths up to those of loads can be served.
"""

from __future__ import annotations

import math
import statistics
import typing as t

from .._split import speculation
from .._split.speculation import Arm

if t.TYPE_CHECKING:
    from .speculation_search import Search

#: Of fewer families each is measured anyway.
FEWEST_FAMILIES: t.Final = 3
#: Values of the standard normal distribution of equal weight, over which an expectation is taken.
_POINTS: t.Final = tuple(statistics.NormalDist().inv_cdf((place + 0.5) / 10) for place in range(10))


def first(search: Search) -> Arm | None:
    """Return the arm whose load teaches most, of each family the best by what is expected; None of few families."""
    arms = [arm for offer in search.offers for arm in offer.arms() if arm.kind in speculation.LINE_KINDS]
    expected = {arm: search.predicted(arm).value for arm in arms}
    best: dict[speculation.Family, Arm] = {}
    for arm in sorted(arms, key=lambda arm: expected[arm]):
        best.setdefault(arm.family, arm)
    if len(best) < FEWEST_FAMILIES:
        return None
    errors = {arm: _errors(search, arm) for arm in arms}
    after = {arm: _expected_best(search, arm, expected, errors) for arm in best.values()}
    return min(after, key=lambda arm: after[arm])


def _errors(search: Search, arm: Arm) -> dict[t.Hashable, float]:
    """Return the relative error of what an arm is expected to take, in parts of variance one."""
    errors: dict[t.Hashable, float] = dict(enumerate(search.costs.deviation(arm)))
    return {**errors, arm.source: search.tokens_error(arm)}


def _expected_best(
    search: Search, asked: Arm, expected: t.Mapping[Arm, float], errors: t.Mapping[Arm, t.Mapping[t.Hashable, float]]
) -> float:
    """Return the lowest expected time of a token (ms), none among the arms, as it will be after a load of C(asked)."""
    own = errors[asked]
    scatter = math.hypot(*own.values(), search.scatter)
    steps = {
        arm: value * sum(error * own.get(part, 0.0) for part, error in errors[arm].items()) / scatter
        for arm, value in expected.items()
    }
    lowest = (min(value + steps[arm] * point for arm, value in expected.items()) for point in _POINTS)
    return statistics.fmean(min(search.plain_ms, value) for value in lowest)
