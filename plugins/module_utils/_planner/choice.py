# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which split is the best, by all that is known, and which one may be better yet. Private to this collection. Pure."""

from __future__ import annotations

import statistics
import typing as t

from .._split.layer_split import Layers
from .._split.split_problem import Candidate
from . import fit_draws
from .evidence import Evidence, is_single, room_of

#: What may be lost, relatively, before one more load is worth it, and before it is worth more than a surer verdict.
WORTH_A_LOAD: t.Final = 0.002
WORTH_MORE: t.Final = 0.004

#: Of more than two devices the best splits by so many draws are looked at as well.
SEARCHED_DRAWS: t.Final = 6

#: What a hop may take of the objective, while no split with fewer hops was measured: with cards in one box less.
HOP_SHARE: t.Final = 0.05

#: How many layers away from the winner a better split is looked for.
NEAR_LAYERS: t.Final = 3


def drawn(evidence: Evidence, layers: Layers) -> list[float]:
    """Return the objective by each of the costs that the loads allow, with what loads say beyond the fit (ms)."""
    own, expected = evidence.predicted("objective", layers), evidence.objective(layers)
    return [expected / own * draw.ms(layers) if own else expected for draw in evidence.draws]


def loss(evidence: Evidence, layers: Layers, other: Layers) -> float:
    """Return how much longer, relatively, C(layers) is expected to take where C(other) is faster; 0 without a fit."""
    pairs = zip(drawn(evidence, layers), drawn(evidence, other), strict=True)
    return statistics.fmean([max(0.0, own / its - 1) for own, its in pairs] or [0.0])


def limit(evidence: Evidence, among: t.Iterable[Candidate]) -> float:
    """Return the objective up to which a split may be taken for its room instead of the fastest of C(among)."""
    return min(evidence.objective(candidate.layers) for candidate in among) * (1 + evidence.problem.room_price)


def best(evidence: Evidence, among: t.Sequence[Candidate]) -> Candidate:
    """Return the best of C(among): the fastest, or the roomiest of those that are practically as fast.

    Neither by the fit nor by what the loads allow beside it may that cost more than the price of room. Of these one
    that is being confirmed stays the best, so that noise does not move the target. One device alone is not given up for
    room: what is predicted for it contains a hop that it does not make.
    """
    fastest = min(among, key=lambda c: (evidence.objective(c.layers), c.layers))
    if is_single(fastest):
        return fastest
    most, price = limit(evidence, among), evidence.problem.room_price
    equal = [c for c in among if evidence.objective(c.layers) <= most]
    equal = [c for c in equal if loss(evidence, c.layers, fastest.layers) <= price]
    confirming = {load.layers for load in evidence.loads if load.purpose == "confirm"}
    equal = [c for c in equal if c.layers in confirming] or equal
    return min(equal, key=lambda c: (-room_of(c), evidence.objective(c.layers), c.layers))


def rival(evidence: Evidence, winner: Candidate, among: t.Sequence[Candidate]) -> Candidate | None:
    """Return what the winner is compared with: the engine's own split, else the best measured other one."""
    default = evidence.by_layers.get(evidence.problem.default)
    if default is not None and default in among and default != winner:
        return default
    others = [c for c in among if c != winner and c.layers in evidence.ok]
    return min(others, key=lambda c: (evidence.objective(c.layers), c.layers), default=None)


def may_be_better(evidence: Evidence, winner: Candidate) -> tuple[Candidate, float] | None:
    """Return the split that is worth a load before the winner is taken, with what is lost without it; None if none is.

    It is one near the winner; where that is one device alone, the best over all devices that was not measured.
    """
    if evidence.left <= 0 or not evidence.draws:
        return None
    fresh = [c for c in evidence.candidates if all(c.layers) and not evidence.count(c.layers)]
    if is_single(winner):
        found = min(fresh, key=lambda c: evidence.objective(c.layers), default=None)
        # it was taken because it was fast, and may only have been lucky
        lucky = 1 + evidence.point_noise("objective") / evidence.count(winner.layers) ** 0.5
        better = found is not None and evidence.objective(found.layers) < lucky * evidence.objective(winner.layers)
        return (found, WORTH_MORE) if found is not None and better else None
    near = [*(c for c in fresh if _near(c, winner)), *_best_by_draws(evidence)]
    losses = [(loss(evidence, winner.layers, c.layers), c.layers, c) for c in near]
    lost, _layers, found = max(losses, default=(0.0, (), None))
    return (found, lost) if found is not None and lost > WORTH_A_LOAD else None


def _near(candidate: Candidate, winner: Candidate) -> bool:
    moved = sum(abs(a - b) for a, b in zip(candidate.layers, winner.layers, strict=True)) // 2
    return moved <= NEAR_LAYERS


def _best_by_draws(evidence: Evidence) -> list[Candidate]:
    """Return the best splits by some of the costs that the loads allow."""
    found = {evidence.best_of_all(draw) for draw in evidence.draws[:: fit_draws.DRAWS // SEARCHED_DRAWS]}
    fitting = [evidence.problem.candidate(layers) for layers in sorted(filter(None, found))]
    return [c for c in fitting if c is not None and evidence.remains(c.layers) and not evidence.count(c.layers)]


def fewer_devices(evidence: Evidence, winner: Candidate) -> Candidate | None:
    """Return the split over one device less than the winner that is worth a load, of more than two; None if none is.

    What the fit says of it contains hops that it does not make. How much they take tell splits with fewer hops.
    """
    cost, used = evidence.cost("objective"), [device for device, count in enumerate(winner.layers) if count]
    if evidence.left <= 0 or cost is None or len(winner.layers) < 3 or len(used) < 3:
        return None
    if "decode" not in evidence.problem.kinds:
        return None
    share = _hop_share(evidence)
    found: list[tuple[float, Candidate]] = []
    for without in used:
        budgets = [
            budget if device in used and device != without else 0
            for device, budget in enumerate(evidence.splits.budgets)
        ]
        split = evidence.problem.search.within(budgets).best(cost, without=evidence.failed)
        candidate = None if split is None else evidence.problem.candidate(split)
        if candidate is not None and not is_single(candidate) and not evidence.count(candidate.layers):
            found.append((cost.ms(candidate.layers) * (1 - share * _hops_saved(candidate.layers)), candidate))
    least, best = min(found, key=lambda pair: pair[0], default=(0.0, None))
    worth = evidence.objective(winner.layers) * (1 - WORTH_MORE)
    return best if best is not None and least < worth and evidence.remains(best.layers) else None


def _hops_saved(layers: Layers) -> int:
    return sum(1 for count in layers if not count)


def _hop_share(evidence: Evidence) -> float:
    """Return which share of the objective a hop takes."""
    saved = []
    for layers in evidence.ok:
        predicted = evidence.predicted("objective", layers)
        if not all(layers) and predicted and evidence.load_means("objective", layers):
            saved.append((1 - evidence.measured("objective", layers) / predicted) / _hops_saved(layers))
    return max(0.0, statistics.fmean(saved)) if saved and evidence.pool_is_whole else HOP_SHARE
