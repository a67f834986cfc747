# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The splits that a fit of the cost model is anchored to. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base import least_squares
from .._split.layer_split import Layers
from .._split.split_problem import Candidate
from . import known_costs
from .evidence import Evidence, room_of


def missing_anchors(evidence: Evidence) -> list[Candidate]:
    """Return the splits that are still missing for a fit.

    For each device it is the one with the most layers there; where these do not determine the fit, those farthest from
    all chosen ones follow. Where the costs of an earlier tuning suffice, it is what they favour.
    """
    pool = evidence.pool
    if evidence.carried:
        return [] if evidence.ok else _favoured(evidence, pool)
    chosen = evidence.anchors
    result: list[Candidate] = []
    ends = [_end(pool, device) for device in range(len(evidence.problem.names))]
    if len(ends) > evidence.problem.max_anchors:
        ends = [ends[device] for device in sorted(range(len(ends)), key=lambda d: -ends[d].layers[d])]
    while True:
        known = least_squares.rank(chosen)
        if known >= evidence.problem.max_anchors:
            return result
        useful = [c for c in pool if least_squares.rank([*chosen, c.layers]) > known]
        if not useful:
            return result
        take = next((c for c in ends if c in useful), None)
        if evidence.problem.known is not None and (own := _own_far(evidence, useful)) is not None:
            # after costs that do not hold, what is measured anyway
            take = own
        if chosen and evidence.splits.full:
            # not again and again towards the device that was full
            chance = evidence.splits.chance
            take = max(useful, key=lambda c: (chance(c.layers) * distance(c.layers, chosen), room_of(c), c.layers))
        elif take is None:
            take = max(useful, key=lambda c: (distance(c.layers, chosen), room_of(c), c.layers))
        chosen.append(take.layers)
        result.append(take)


def _favoured(evidence: Evidence, pool: t.Sequence[Candidate]) -> list[Candidate]:
    """Return the best by known costs, and the split farthest from it where the engine's own is no other to compare."""
    cost = known_costs.cost(evidence.problem)
    if cost is None:
        return []
    best = min(pool, key=lambda c: (cost.ms(c.layers), c.layers))
    default = evidence.by_layers.get(evidence.problem.default)
    if default is not None and default != best:
        return [best]
    far = max(pool, key=lambda c: (distance(c.layers, [best.layers]), room_of(c), c.layers))
    return [best] if far == best else [best, far]


def _own_far(evidence: Evidence, useful: t.Sequence[Candidate]) -> Candidate | None:
    """Return the engine's own split, if it is useful and half as far from what was measured as any other."""
    own = next((c for c in useful if c.layers == evidence.problem.default), None)
    if own is None or not evidence.ok:
        return None
    farthest = max(distance(c.layers, evidence.ok) for c in useful)
    return own if 2 * distance(own.layers, evidence.ok) >= farthest else None


def _end(pool: t.Sequence[Candidate], device: int) -> Candidate:
    """Return the split with the most layers on C(device)."""
    return max(pool, key=lambda c: (c.layers[device], room_of(c), c.layers))


def distance(layers: Layers, others: t.Iterable[Layers]) -> int:
    """Return how many layers have to move, at least, to make C(layers) of one of C(others)."""
    return min((sum(abs(a - b) for a, b in zip(layers, o, strict=True)) // 2 for o in others), default=0)


def interior_anchor(evidence: Evidence) -> Candidate | None:
    """Return the further anchor that a poor fit asks for: of the good splits the farthest from the measured ones."""
    residual = evidence.objective_residual
    anchors = {load.layers for load in evidence.loads if load.ok and load.purpose == "anchor"}
    if residual is None or residual <= evidence.tolerance("objective") or len(anchors) > len(evidence.problem.names):
        return None
    fresh = [c for c in evidence.pool if not evidence.count(c.layers)]
    if not fresh:
        return None
    limit = 1.1 * min(evidence.objective(candidate.layers) for candidate in evidence.candidates)
    near = [c for c in fresh if evidence.objective(c.layers) <= limit] or fresh
    return max(near, key=lambda c: (distance(c.layers, evidence.ok), -evidence.objective(c.layers), c.layers))
