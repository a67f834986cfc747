# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which way to speculate, from few served loads. Private to this collection. Pure functions only.

A load is one start of llama-server with one arm, which answers every text once. The costs of rounds and the acceptance
(round_costs.py) predict all arms from the loads so far; the next load is the one whose expected improvement over the
best known arm is largest (Jones, Schonlau and Welch 1998, with the predicted error). The first and the last load run
without speculation, so that a drift of the cards cancels: A B B A.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import typing as t

from .._base import stats
from .._split import cost_model, speculation
from .._split.speculation import Arm, Offer, ServedLoad
from . import round_costs

#: Served loads in all.
MAX_LOADS: t.Final = 5
#: Loads without speculation: the first and the last.
LOADS_WITHOUT: t.Final = 2
#: An arm that promises less than this, relative to the best known, is not worth a load.
WORTH_A_LOAD: t.Final = 0.003
#: The relative scatter between loads that is assumed until some arm was measured twice (measured: 0.5 to 2 %).
USUAL_SCATTER: t.Final = 0.01
#: What an n-gram kind is expected to take before it is measured, relative to none, and the error of that.
UNKNOWN_GAIN: t.Final = 0.97
UNKNOWN_ERROR: t.Final = 0.10
#: Degrees of freedom that this assumption counts for.
USUAL_DEGREES: t.Final = 4


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of speculation: faster, slower or inconclusive, with the arm and by how much less time it takes."""

    verdict: str
    arm: Arm
    comparison: cost_model.Comparison | None


class Search:
    """What the offers and the loads so far say together."""

    def __init__(
        self, offers: t.Sequence[Offer], reference_ms: float, weights: t.Mapping[str, float],
        loads: t.Sequence[ServedLoad], indifference: float, max_loads: int = MAX_LOADS, prompt_tokens: float = 0.0,
    ) -> None:  # fmt: skip
        """Take what may be tried, and the loads that succeeded.

        C(reference_ms): what a token takes with the chosen split by the earlier stages, on the scale of the offers'
        own. C(weights): the share of each kind of text in what is generated. C(prompt_tokens): how many tokens of a
        prompt are waited for with each generated one, 0 where only these count.
        """
        self.loads, self.indifference, self.max_loads = list(loads), indifference, max_loads
        self.prompt_tokens = prompt_tokens
        total = sum(weights.values())
        self.weights = {text: weight / total for text, weight in weights.items()}
        self.without = round_costs.without(self.loads)
        self.with_draft = [load for load in self.loads if load.arm.kind != speculation.NONE]
        scale = statistics.fmean(load.round_ms for load in self.without) / reference_ms if self.without else 1.0
        self.offers = [dataclasses.replace(offer, target_ms=offer.target_ms * scale) for offer in offers]
        lines = [offer for offer in self.offers if offer.kind in speculation.LINE_KINDS]
        self.costs = round_costs.RoundCosts(lines, self.with_draft, USUAL_SCATTER)
        self.acceptance = round_costs.Acceptance(self.with_draft)

    def mix_ms(self, load: ServedLoad) -> float:
        """Return what a token takes in a load (ms), the texts by their weights, with its part of a prompt."""
        of_text = {found.text: found.decode_ms / found.tokens for found in load.results}
        decode = sum(weight * of_text[text] for text, weight in self.weights.items())
        return decode + self.prompt_tokens * load.prompt_ms

    def predicted(self, arm: Arm) -> round_costs.Estimate:
        """Return what a token takes with an arm (ms), the texts by their weights, with its relative error."""
        if arm.kind not in speculation.LINE_KINDS:
            return self._without_a_line(arm)
        cost = self.costs.round_ms(arm)
        parts, variance = [], 0.0
        for text, weight in self.weights.items():
            tokens = self.acceptance.tokens_per_round(arm, text)
            parts.append(weight * cost.value / tokens.value)
            variance += (parts[-1] * tokens.error) ** 2
        value, prompt = sum(parts), self.prompt_tokens * self._prompt_ms(arm)
        error = math.sqrt(variance) / value
        if not self.acceptance.known(arm.source):
            # what is not known of a draft is not known of all texts alike
            error = max(error, self.acceptance.tokens_per_round(arm, next(iter(self.weights))).error)
        return round_costs.Estimate(value + prompt, math.hypot(error, cost.error) * value / (value + prompt))

    def _prompt_ms(self, arm: Arm) -> float:
        """Return what a token of a prompt takes: as with drafts of this source in this mode, else as without."""
        of_arm = (arm.source, arm.mode)
        own = [load.prompt_ms for load in self.with_draft if (load.arm.source, load.arm.mode) == of_arm]
        known = own or [load.prompt_ms for load in self.without]
        return statistics.fmean(known) if known else 0.0

    def _without_a_line(self, arm: Arm) -> round_costs.Estimate:
        """Return what a token takes where no line predicts it: as measured, else a guess of nearly no gain."""
        own = self.of_arm(arm)
        if own:
            return round_costs.Estimate(statistics.fmean(own), USUAL_SCATTER / math.sqrt(len(own)))
        return round_costs.Estimate(UNKNOWN_GAIN * statistics.fmean(map(self.mix_ms, self.without)), UNKNOWN_ERROR)

    def of_arm(self, arm: Arm) -> list[float]:
        """Return what a token took in each load of an arm (ms)."""
        return [self.mix_ms(load) for load in self.loads if load.arm == arm]

    def best_known(self) -> Arm:
        """Return the best arm that was measured, none among them, by all that is known."""
        arms = list(dict.fromkeys(load.arm for load in self.with_draft))
        known = {arm: self.predicted(arm).value for arm in arms}
        known[Arm()] = statistics.fmean(map(self.mix_ms, self.without))
        return min(known, key=lambda arm: known[arm])

    def next_arm(self) -> Arm | None:
        """Return the arm of the next load, or None when nothing is left that is worth one."""
        left = self.max_loads - len(self.loads)
        if not self.without:
            return Arm()
        if left <= 0 or not self.offers:
            return None
        spare = left - max(0, LOADS_WITHOUT - len(self.without))
        if spare > 0 and (fresh := self._promising()) is not None:
            return fresh
        best = self.best_known()
        if best.kind == speculation.NONE:
            return None
        if spare > 0 and len(self.of_arm(best)) < LOADS_WITHOUT:
            return best
        return Arm() if len(self.without) < LOADS_WITHOUT else None

    def _promising(self) -> Arm | None:
        """Return the arm that was not measured and promises most, or None where none is worth a load."""
        best = self.best_known()
        known = min(
            self.predicted(best).value if best.kind != speculation.NONE else math.inf,
            statistics.fmean(map(self.mix_ms, self.without)),
        )
        measured = {load.arm for load in self.loads}
        promise: dict[Arm, float] = {}
        for arm in (arm for offer in self.offers for arm in offer.arms() if arm not in measured):
            if arm.mode and not self.acceptance.known(arm.source):
                continue  # what a draft is worth is learned in the mode whose costs are known better
            promise[arm] = _improvement(known, self.predicted(arm))
        if not promise:
            return None
        chosen = max(promise, key=lambda arm: promise[arm])
        if promise[chosen] < WORTH_A_LOAD * known:
            return None
        if chosen.kind in speculation.LINE_KINDS and not self.acceptance.known(chosen.source):
            # the longest draft shows the acceptance of every position
            return next(offer.arms()[-1] for offer in self.offers if chosen in offer.arms())
        return chosen

    def verdict(self) -> Verdict:
        """Return what became of it. Speculation is kept only where it is faster by the indifference for sure."""
        best = self.best_known()
        if best.kind == speculation.NONE:
            return Verdict("slower", Arm(), None)
        own, without = self.of_arm(best), self.of_arm(Arm())
        deviation, degrees = stats.pooled_spread([own, without, *self._other_arms(best)])
        pooled = (deviation**2 * degrees + USUAL_SCATTER**2 * USUAL_DEGREES) / (degrees + USUAL_DEGREES)
        # the other loads of the same line say what a round of this arm takes as well
        error = min(math.sqrt(pooled / len(own)), self.predicted(best).error)
        half = stats.t_quantile(degrees + USUAL_DEGREES, 0.05) * math.hypot(error, math.sqrt(pooled / len(without)))
        ratio = math.log(self.predicted(best).value / statistics.fmean(without))
        low, percent, high = (100 * (1 - math.exp(ratio + step)) for step in (half, 0.0, -half))
        result = cost_model.Comparison(percent, low, high, 100 * math.expm1(half))
        return Verdict("faster" if low > 100 * self.indifference else "inconclusive", best, result)

    def _other_arms(self, best: Arm) -> t.Iterator[list[float]]:
        for arm in dict.fromkeys(load.arm for load in self.with_draft):
            if arm != best:
                yield self.of_arm(arm)


def _improvement(known: float, predicted: round_costs.Estimate) -> float:
    """Return by how much an arm is expected to fall below C(known), in ms: the part of its distribution below it."""
    error = predicted.value * predicted.error
    z = (known - predicted.value) / error
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    below = 0.5 * math.erfc(-z / math.sqrt(2))
    return error * (z * below + density)
