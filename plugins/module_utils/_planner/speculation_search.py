# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which way to speculate, from few served loads. Private to this collection. Pure functions only.

A load is one start of llama-server with one arm, which answers every text once, and some shortly: so it tells of all
shorter drafts as well. The costs of rounds and the acceptance (round_costs.py) predict all arms from the loads so far.
The first load with drafts is the one that teaches most (teaching_load.py), each further one that whose expected
improvement over the best known arm is largest (Jones, Schonlau and Welch 1998, with the predicted error). The first and
the last load run without speculation, so that a drift of the cards cancels: A B B A. Where drafts gain more than cards
drift, an arm that promises more takes the place of the last one. Where loads disagree, each tells of its own arm alone,
and what is served had one (decision 0066).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import typing as t

from .._base import stats
from .._split import cost_model, speculation
from .._split.speculation import Arm, Offer, ServedLoad
from . import round_costs, served_scatter, teaching_load

#: Served loads in all.
MAX_LOADS: t.Final = 5
#: Loads without speculation: the first and the last.
LOADS_WITHOUT: t.Final = 2
#: A gain whose interval lies beyond this is kept whatever the last load says: cards drift by less.
SURE_PERCENT: t.Final = 5.0
#: An arm that promises less than this, relative to the best known, is not worth a load.
WORTH_A_LOAD: t.Final = 0.003
#: The share of arms whose gain is not sure that another load lets be kept.
KEPT_BY_ANOTHER_LOAD: t.Final = 0.5
#: The relative scatter between loads that is assumed until some arm was measured twice (measured: 0.5 to 2 %).
USUAL_SCATTER: t.Final = 0.01
#: What an n-gram kind is expected to take before it is measured, relative to none, and the error of that.
UNKNOWN_GAIN: t.Final = 0.97
UNKNOWN_ERROR: t.Final = 0.10
#: Residuals so many times as large as errors are no luck (simulated lines: 1.3 in 99 of 100, 2.1 at most).
TRUSTED_MISFIT: t.Final = 2.0
#: An interval as wide as this factor to each side tells nothing.
NOTHING_TOLD: t.Final = 10.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of speculation: faster, slower or inconclusive, with the arm and by how much less time it takes."""

    verdict: str
    arm: Arm
    comparison: cost_model.Comparison | None


class Search:
    """What the offers and the loads so far say together."""

    usual_scatter: t.ClassVar[float] = USUAL_SCATTER

    def __init__(
        self, offers: t.Sequence[Offer], reference_ms: float, weights: t.Mapping[str, float],
        loads: t.Sequence[ServedLoad], indifference: float, max_loads: int = MAX_LOADS, prompt_tokens: float = 0.0,
        verify: round_costs.Verify = round_costs.VERIFY,
    ) -> None:  # fmt: skip
        """Take what may be tried, and the loads that succeeded.

        C(reference_ms): what a token takes with the chosen split by the earlier stages, on the scale of the offers'
        own. C(weights): the share of each kind of text in what is generated. C(prompt_tokens): how many tokens of a
        prompt are waited for with each generated one, 0 where only these count. C(verify): what verifying a token is
        expected to take.
        """
        self.loads, self.indifference, self.max_loads = list(loads), indifference, max_loads
        self.prompt_tokens = prompt_tokens
        total = sum(weights.values())
        self.weights = {text: weight / total for text, weight in weights.items()}
        self.without = round_costs.without(self.loads)
        self.with_draft = [load for load in self.loads if load.arm.kind != speculation.NONE]
        #: what loads without speculation took, relative to the earlier stages
        self._scale = statistics.fmean(load.round_ms for load in self.without) / reference_ms if self.without else 1.0
        self.offers = [dataclasses.replace(offer, target_ms=offer.target_ms * self._scale) for offer in offers]
        arms = dict.fromkeys(load.arm for load in self.loads)
        self._between = served_scatter.of_loads(map(self.of_arm, arms), self.usual_scatter)
        of_texts = served_scatter.of_texts(self.loads).deviation * math.hypot(*self.weights.values())
        # the relative scatter between loads, at least what that of their texts makes of the mix
        self.scatter = max(self._between.deviation, of_texts)
        lines = [offer for offer in self.offers if offer.kind in speculation.LINE_KINDS]
        self.costs = round_costs.RoundCosts(lines, self.with_draft, self.scatter, verify, of_texts)
        self.acceptance = round_costs.Acceptance(self.with_draft)
        self.plain_ms = statistics.fmean(map(self.mix_ms, self.without)) if self.without else reference_ms

    def mix_ms(self, load: ServedLoad) -> float:
        """Return what a token takes in a load (ms), the texts by their weights, with its part of a prompt."""
        of_text = {found.text: found.decode_ms / found.tokens for found in load.results}
        decode = sum(weight * of_text[text] for text, weight in self.weights.items())
        return decode + self.prompt_tokens * load.prompt_ms

    def predicted(self, arm: Arm) -> round_costs.Estimate:
        """Return what a token takes with an arm (ms), the texts by their weights, with its relative error."""
        if arm.kind not in speculation.LINE_KINDS or (not self.agrees and self.of_arm(arm)):
            return self._without_a_line(arm)
        cost = self.costs.round_ms(arm)
        tokens = self.tokens_per_round(arm)
        value = sum(weight * cost.value / tokens[text] for text, weight in self.weights.items())
        prompt = self.prompt_tokens * self._prompt_ms(arm)
        error = math.hypot(self.tokens_error(arm), cost.error)
        return round_costs.Estimate(value + prompt, error * value / (value + prompt))

    def tokens_per_round(self, arm: Arm) -> dict[str, float]:
        """Return the tokens that a round of an arm gives, by kind of text."""
        return {text: self.acceptance.tokens_per_round(arm, text).value for text in self.weights}

    def tokens_error(self, arm: Arm) -> float:
        """Return the relative error of the tokens that a round of an arm gives, over the mix."""
        errors = {text: self.acceptance.tokens_per_round(arm, text).error for text in self.weights}
        if not self.acceptance.known(arm.source):
            # what is not known of a draft is not known of all texts alike
            return max(errors.values())
        return math.hypot(*(self.weights[text] * error for text, error in errors.items()))

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
            return round_costs.Estimate(statistics.fmean(own), self.scatter / math.sqrt(len(own)))
        return round_costs.Estimate(UNKNOWN_GAIN * self.plain_ms, UNKNOWN_ERROR)

    def of_arm(self, arm: Arm) -> list[float]:
        """Return what a token took in each load of an arm (ms)."""
        return [self.mix_ms(load) for load in self.loads if load.arm == arm]

    @functools.cached_property
    def _longest(self) -> dict[speculation.Family, int]:
        """The longest drafts that were measured of each family."""
        found: dict[speculation.Family, int] = {}
        for load in self.with_draft:
            found[load.arm.family] = max(load.arm.n_max, found.get(load.arm.family, 0))
        return found

    def is_known(self, arm: Arm) -> bool:
        """Return whether loads tell what an arm takes: shorter drafts than those of a load are measured with it."""
        return arm.n_max <= self._longest.get(arm.family, -1)

    @property
    def agrees(self) -> bool:
        """Whether loads bear out the costs of rounds, and one another; else each tells of its own arm alone."""
        return self.costs.misfit <= TRUSTED_MISFIT and not self._between.unusual

    def may_be_served(self, arm: Arm) -> bool:
        """Return whether an arm may be served without a further load.

        It had one of its own, or all loads agree and one with longer drafts of its family was no slower than none.
        """
        if self.of_arm(arm):
            return True
        longer = [load for load in self.with_draft if load.arm.family == arm.family and load.arm.n_max > arm.n_max]
        return self.agrees and any(self.mix_ms(load) < self.plain_ms * (1 + self.scatter) for load in longer)

    def best_known(self, servable: bool = False) -> Arm:
        """Return the best arm that is known, none among them; of all, or of those that may be served."""
        arms = [arm for offer in self.offers for arm in offer.arms() if self.is_known(arm)]
        known = {arm: self.predicted(arm).value for arm in arms if not servable or self.may_be_served(arm)}
        known[Arm()] = self.plain_ms
        return min(known, key=lambda arm: known[arm])

    def next_arm(self) -> Arm | None:
        """Return the arm of the next load, or None when nothing is left that is worth one."""
        left = self.max_loads - len(self.loads)
        if not self.without:
            return Arm()
        if left <= 0 or not self.offers:
            return None
        spare = left - max(0, LOADS_WITHOUT - len(self.without))
        best, served = self.best_known(), self.best_known(servable=True)
        fresh = self._promising() if spare > 0 or self._is_sure() else None
        if spare > 0 and best != served and fresh is None:
            return best
        if spare == 1 and fresh is not None and self._is_worth_more(best, served, fresh):
            return best
        if fresh is not None:
            return fresh
        if served.kind == speculation.NONE:
            return None
        if spare > 0 and len(self.of_arm(served)) < LOADS_WITHOUT:
            return served
        return Arm() if len(self.without) < LOADS_WITHOUT else None

    def _is_sure(self) -> bool:
        """Return whether a second load without would change nothing.

        Drafts gain more than cards drift, and more than the load without is off from what the earlier stages measured.
        """
        result = self.verdict().comparison
        drift = max(SURE_PERCENT, 100 * abs(math.log(self._scale)))
        return self.agrees and result is not None and result.low is not None and result.low > drift

    def _is_worth_more(self, best: Arm, served: Arm, fresh: Arm) -> bool:
        """Return whether the last load with drafts is worth more for the best known arm than for one that is not known.

        What is not sure, or may not be served yet, gains nothing; another load lets about half of such arms be kept.
        """
        if best.kind == speculation.NONE or (best == served and self.verdict().verdict == "faster"):
            return False
        known = self.predicted(best).value
        without = self.plain_ms if best == served or served.kind == speculation.NONE else self.predicted(served).value
        return KEPT_BY_ANOTHER_LOAD * (without - known) > _improvement(known, self.predicted(fresh))

    def _promising(self) -> Arm | None:
        """Return the arm that was not measured and promises most, or None where none is worth a load.

        It is served as it is promised best, for what serves to learn costs and acceptance may turn out the best itself.
        """
        if not self.with_draft and (teaching := teaching_load.first(self)) is not None:
            return teaching
        best = self.best_known()
        known = self.plain_ms if best.kind == speculation.NONE else self.predicted(best).value
        fresh = [arm for offer in self.offers for arm in offer.arms() if not self.is_known(arm)]
        promise = {arm: _improvement(known, self.predicted(arm)) for arm in fresh}
        chosen = max(promise, key=lambda arm: promise[arm], default=None)
        return chosen if chosen is not None and promise[chosen] >= WORTH_A_LOAD * known else None

    def _time_error(self, arm: Arm) -> float:
        """Return the relative error of the time of an arm that may be served, beside the error of its tokens."""
        if arm.kind not in speculation.LINE_KINDS or not self.agrees:
            return self.scatter / math.sqrt(len(self.of_arm(arm)))
        return self.costs.round_ms(arm).error * self.costs.misfit

    def verdict(self) -> Verdict:
        """Return what became of it. Speculation is kept only where it is faster by the indifference for sure."""
        best = self.best_known(servable=True)
        if best.kind == speculation.NONE:
            return Verdict("slower", Arm(), None)
        without = self.scatter / math.sqrt(len(self.without))
        times = math.hypot(self._time_error(best), without)
        # texts of this length tell the share of right tokens so well
        tokens = self.tokens_error(best) if best.kind in speculation.LINE_KINDS else 0.0
        outside = 0.05
        if not self.agrees:
            # scatter grows as residuals do; the best of several by their loads alone may be the luckiest (Bonferroni)
            times *= self.costs.misfit
            outside /= len({load.arm for load in self.with_draft})
        half = math.hypot(stats.t_quantile(self._between.degrees, outside) * times, stats.NORMAL_95 * tokens)
        own = self.of_arm(best)
        value = statistics.fmean(own) if own and statistics.fmean(own) >= self.plain_ms else self.predicted(best).value
        ratio = math.log(value / self.plain_ms)
        if half > math.log(NOTHING_TOLD):
            result = cost_model.Comparison(100 * -math.expm1(ratio), None, None, None)
            return Verdict("inconclusive", best, result)
        low, percent, high = (100 * (1 - math.exp(ratio + step)) for step in (half, 0.0, -half))
        result = cost_model.Comparison(percent, low, high, 100 * math.expm1(half))
        return Verdict("faster" if low > 100 * self.indifference else "inconclusive", best, result)


def _improvement(known: float, predicted: round_costs.Estimate) -> float:
    """Return by how much an arm is expected to fall below C(known), in ms: the part of its distribution below it."""
    return stats.expected_gain(known - predicted.value, predicted.value * predicted.error)
