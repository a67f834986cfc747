# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What splits over fewer devices save. Private to this collection. Pure functions only.

A split that leaves a device out makes fewer hops, which a fit to splits over all devices cannot know. It is fitted with
the others all the same, less what its devices save. That is what its loads say against the fit to the other splits,
shrunk by how sure that fit is there, and by how much a hop may take at most (the mean of two normal distributions).
"""

from __future__ import annotations

import math
import statistics
import typing as t

from .._split import cost_model
from .._split.layer_split import Layers
from . import fit_draws

if t.TYPE_CHECKING:
    from .evidence import Evidence

#: Whether each device is in use.
Used = tuple[bool, ...]

#: What the hops between devices take of a token: this share at most, and so many ms. Over Ethernet 2 ms of a token of
#: 4 ms were seen. Of a prompt it is less by far, which makes as many hops in a longer time.
DECODE_SHARE: t.Final = 0.4
DECODE_MS: t.Final = 2.5
PREFILL_SHARE: t.Final = 0.05


class Saving(t.NamedTuple):
    """The logarithm of what splits over some devices take by what the fit says, and the variance of that."""

    log: float
    variance: float


#: By kind of test, decode or prefill.
Savings = dict[str, Saving]


def used(layers: Layers) -> Used:
    """Return which devices a split uses."""
    return tuple(count > 0 for count in layers)


def partial(layers: Layers) -> bool:
    """Return whether a split leaves a device out and has a hop all the same."""
    return 1 < sum(map(bool, layers)) < len(layers)


def of_evidence(evidence: Evidence) -> dict[Used, Savings]:
    """Return what is saved, by the devices in use, from a fit to splits over all devices alone; none without one."""
    draws = {kind: own for kind in ("decode", "prefill") if (own := fit_draws.drawn_costs(evidence, kind))}
    found: dict[Used, Savings] = {}
    for devices in {used(layers) for layers in evidence.ok if partial(layers)} if draws else ():
        splits = [layers for layers in evidence.ok if used(layers) == devices]
        found[devices] = {kind: _saving(evidence, kind, splits, own) for kind, own in draws.items()}
    return found


def factor(evidence: Evidence, kind: str, layers: Layers) -> float:
    """Return what a split takes by what the fit to C(kind) says (or objective); 1 where that is unknown."""
    own = evidence.savings.get(used(layers))
    if own is None:
        return 1.0
    if kind != "objective":
        return math.exp(own[kind].log) if kind in own else 1.0
    said = {part: evidence.predicted(part, layers) for part in own}
    less = {part: ms and ms * math.exp(own[part].log) for part, ms in said.items()}
    before = evidence.objective_ms(layers, said.get("decode"), said.get("prefill"))
    return evidence.objective_ms(layers, less.get("decode"), less.get("prefill")) / before if before else 1.0


def _saving(
    evidence: Evidence, kind: str, splits: t.Sequence[Layers], draws: t.Sequence[fit_draws.Draw]
) -> Saving:
    """Return what the splits over some devices save."""
    amounts = [evidence.problem.weights.amounts(kind, split) for split in splits]
    predicted = {split: ms for split in splits if (ms := evidence.predicted(kind, split))}
    said = statistics.fmean(math.log(evidence.measured(kind, split) / ms) for split, ms in predicted.items())
    drawn = [statistics.fmean(math.log(_ms(evidence, kind, draw, held)) for held in amounts) for draw in draws]
    noise = evidence.point_noise(kind)
    unsure = statistics.pvariance(drawn) + noise**2 / sum(map(evidence.count, splits))
    most = PREFILL_SHARE
    if kind == "decode":
        most = min(DECODE_SHARE, DECODE_MS / statistics.fmean(evidence.measured(kind, split) for split in splits))
    # nine of ten are within two standard deviations of the mean
    expected, before = -most / 4 * (kind == "decode"), (most / 2) ** 2
    # a hop never makes anything faster: where loads say so, they or those of the fit were lucky
    log = min(0.0, (said * before + expected * unsure) / (before + unsure))
    return Saving(log, before * unsure / (before + unsure))


def _ms(evidence: Evidence, kind: str, draw: fit_draws.Draw, held: cost_model.Amounts) -> float:
    """Return what a split takes by drawn costs."""
    test = evidence.problem.prefill_test
    if kind == "decode" or test is None:
        return cost_model.decode_ms(draw.costs, held)
    batches = cost_model.micro_batches(test.n_prompt, evidence.problem.micro_batch)
    return cost_model.prefill_ms(draw.costs, held, batches, draw.overlap)


def nearest(evidence: Evidence, kind: str, devices: Used) -> float:
    """Return how much longer splits over devices that none was measured over take than the fit says.

    What those that use nearly the same devices show holds; otherwise each of these would look better than those.
    """
    ratios: dict[int, list[float]] = {}
    for other in evidence.ok:
        predicted = evidence.predicted(kind, other)
        if predicted and evidence.load_means(kind, other):
            differing = sum(a != (b > 0) for a, b in zip(devices, other, strict=True))
            fitted = other in evidence.points
            ratio = factor(evidence, kind, other) if fitted else evidence.measured(kind, other) / predicted
            ratios.setdefault(differing, []).append(ratio)
    return statistics.fmean(ratios[min(ratios)]) if ratios else 1.0
