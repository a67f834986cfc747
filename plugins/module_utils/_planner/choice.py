# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which split is the best, by all that is known, and which one may be better yet. Private to this collection. Pure."""

from __future__ import annotations

import math
import statistics
import typing as t

from .._base import stats
from .._split.layer_split import Layers
from .._split.split_problem import Candidate
from . import anchors, hop_savings, local_misfit
from .evidence import Evidence, is_single, room_of

#: What may be lost, relatively, before one more load is worth it, and before it is worth more than a surer verdict.
WORTH_A_LOAD: t.Final = 0.002
WORTH_MORE: t.Final = 0.004

#: Of more than two devices a better split is looked for so many layers away from the winner, and by every so many-th
#: draw.
NEAR_LAYERS: t.Final = 3
SEARCHED_DRAW: t.Final = 6

#: What a hop may take of the objective, while no split with fewer hops was measured: with cards in one box less.
HOP_SHARE: t.Final = 0.05

#: What a form may miss of a split that is unlike all that were measured (relative standard deviation).
EXPECTED_MISFIT: t.Final = 0.005

#: Of more than two devices a split that loads with this probability is tried without a doubt.
SAFE: t.Final = 0.95

#: A split that has so many loads is not measured again.
MOST_LOADS: t.Final = 3


def _known(evidence: Evidence, layers: Layers) -> bool:
    """Return whether splits over the same devices were measured, or over all."""
    return all(layers) or hop_savings.used(layers) in evidence.savings


def drawn(evidence: Evidence, layers: Layers) -> list[float]:
    """Return the objective by each of the costs that the loads allow, with what loads say beyond the fit (ms)."""
    own, known = evidence.predicted("objective", layers), evidence.objective(layers)
    amounts = evidence.draws[0].amounts(layers) if evidence.draws else ((), ())
    return [known / own * draw.ms_of(layers, *amounts) if own else known for draw in evidence.draws]


def expected(evidence: Evidence, layers: Layers) -> float:
    """Return the objective on average over the costs that the loads allow (ms); of one device alone what is known."""
    known = evidence.draws and _known(evidence, layers)
    return statistics.fmean(drawn(evidence, layers)) if known else evidence.objective(layers)


def settled(evidence: Evidence, winner: Candidate) -> Candidate:
    """Return the split to take of those measured: the winner by the fit, unless another is expected to be faster.

    Few loads may allow several forms of the fit, and the likeliest one alone is not what is expected. Where none of
    them holds, what was measured tells more.
    """
    residual = evidence.objective_residual
    if not _known(evidence, winner.layers) or residual is None or residual > evidence.tolerance("objective"):
        return winner
    measured = [c for c in evidence.candidates if _known(evidence, c.layers) and evidence.count(c.layers)]
    least = min(measured, key=lambda c: (expected(evidence, c.layers), c.layers), default=winner)
    gain = 1 - expected(evidence, least.layers) / expected(evidence, winner.layers)
    return least if gain > WORTH_MORE else winner


def surely_better(evidence: Evidence, chosen: Candidate) -> Candidate | None:
    """Return the split that loads show to be better than the chosen one by more than is nothing; None if none does.

    However the fit sees it. The scatter of loads is that between them and what repetitions let expect; the best of many
    may have been lucky, so each has its share of the 5 %.
    """
    others = [c for c in evidence.candidates if c != chosen and evidence.count(c.layers)]
    count = evidence.count(chosen.layers)
    if not others or not count:
        return None
    best = min(others, key=lambda c: (evidence.measured("objective", c.layers), c.layers))
    ratio = evidence.measured("objective", chosen.layers) / evidence.measured("objective", best.layers)
    quantile = stats.t_quantile(max(3, evidence.noise("objective")[1]), 0.05 / len(others))
    error = evidence.load_noise("objective") * math.sqrt(1 / count + 1 / evidence.count(best.layers))
    return best if math.log(ratio) > quantile * error + evidence.problem.indifference else None


def measured_and_expected(evidence: Evidence, layers: Layers) -> float:
    """Return the objective of a measured split (ms), where the fit was wrong: one load alone may have been lucky."""
    share = evidence.count(layers) / (evidence.count(layers) + 1)
    return evidence.measured("objective", layers) ** share * expected(evidence, layers) ** (1 - share)


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

    Where the winner is one device alone, it is the best over all devices that was not measured.
    """
    if evidence.left <= 0 or not evidence.draws:
        return None
    whole = [c for c in evidence.candidates if all(c.layers)]
    if is_single(winner):
        fresh = [c for c in whole if not evidence.count(c.layers)]
        found = min(fresh, key=lambda c: evidence.objective(c.layers), default=None)
        # it was taken because it was fast, and may only have been lucky
        lucky = 1 + evidence.point_noise("objective") / evidence.count(winner.layers) ** 0.5
        better = found is not None and evidence.objective(found.layers) < lucky * evidence.objective(winner.layers)
        if found is not None and better:
            return found, WORTH_MORE
    others = {c.layers: c for c in (whole if evidence.problem.two_devices else _fresh_of_many(evidence, winner))}
    own = drawn(evidence, winner.layers)
    promises = [(_promise(evidence, winner.layers, own, layers), layers) for layers in others]
    lost, layers = max(promises, default=(0.0, ()))
    return (others[layers], lost) if lost > WORTH_A_LOAD else None


def _promise(evidence: Evidence, winner: Layers, own: t.Sequence[float], layers: Layers) -> float:
    """Return how much less time C(layers) is expected to take where it is the faster, as far as a load may tell.

    What the form of the fit misses grows with the distance from what was measured. A split that was measured is told
    of less by one more load.
    """
    count = evidence.count(layers)
    if count >= MOST_LOADS or layers == winner:
        return 0.0
    far = local_misfit.unlike(layers, evidence.points) if evidence.problem.two_devices and not count else 0.0
    pairs = zip(own, drawn(evidence, layers), strict=True)
    gains = statistics.fmean([stats.expected_gain(mine / its - 1, EXPECTED_MISFIT * far) for mine, its in pairs])
    return gains * evidence.splits.chance(layers) / (1 + count)


def _fresh_of_many(evidence: Evidence, winner: Candidate) -> list[Candidate]:
    """Return the splits that were not measured, near the winner or the best by some costs that the loads allow."""
    found = evidence.splits.bests_by_turns(evidence.draws[::SEARCHED_DRAW], evidence.savings)
    fitting = [evidence.problem.candidate(layers) for layers in sorted(found)]
    likely = [c for c in fitting if c is not None and evidence.remains(c.layers)]
    near = [c for c in evidence.candidates if anchors.distance(c.layers, [winner.layers]) <= NEAR_LAYERS]
    return [c for c in (*near, *likely) if _known(evidence, c.layers) and not evidence.count(c.layers)]


def to_try(evidence: Evidence, winner: Candidate) -> Candidate:
    """Return what is tried for the winner by the fit: of splits that may not load, what promises the most."""
    chance, surely = evidence.splits.chance, 1.0 if evidence.problem.two_devices else SAFE
    if chance(winner.layers) >= surely or not evidence.ok:
        return winner
    safe = [c for c in evidence.candidates if chance(c.layers) >= surely]
    least = min((evidence.objective(c.layers) for c in safe), default=math.inf)
    if math.isinf(least):
        return winner
    promise, _layers, found = max(
        (chance(c.layers) * (1 - evidence.objective(c.layers) / least), c.layers, c) for c in evidence.candidates
    )
    return found if promise > WORTH_A_LOAD else best(evidence, safe)


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
        left = tuple(device in used and device != without for device in range(len(winner.layers)))
        split = evidence.splits.best_over(cost, left)
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
