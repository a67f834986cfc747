"""Simulated machines with drafts on offer: true costs of rounds, true acceptance by position, loads with their noise.

Costs are drawn about what two H200 showed (a round 1.1 to 1.4 tokens of the target, 0.08 to 0.15 more for each token to
verify) and beyond it: steps where the verifying kernel changes, drafts three times dearer than their bytes say, rounds
of short answers that cost up to 5 % more than those of texts.
"""

from __future__ import annotations

import dataclasses
import math
import random
import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import served_texts
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner.speculation_search import Search
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split.speculation import (
    NONE,
    WHOLE_DRAFTS,
    Arm,
    Offer,
    ServedLoad,
    ShortAnswers,
    TextResult,
)

TEXTS: t.Final = {"code": 0.4, "prose": 0.2, "chat": 0.2, "edit": 0.2}
INDIFFERENCE: t.Final = 0.01


class Costs(t.NamedTuple):
    """What rounds of a family truly take (ms): one without drafts, one with drafts before any, each drafted and each
    checked token, and how much more or less each one checked beyond the third."""

    undrafted: float
    begin: float
    draft: float
    check: float
    bend: float

    def of(self, checked: int, drafted: int) -> float:
        """Return what a round takes."""
        if not checked:
            return self.undrafted
        return self.begin + self.draft * drafted + self.check * checked + self.bend * max(0, checked - 3)


@dataclasses.dataclass
class Machine:
    """One machine: what it offers, and what is true of it."""

    offers: list[Offer]
    target_ms: float
    noise: float
    truth: dict[tuple[str, str, str, str], Costs]
    acceptance: dict[tuple[tuple[str, str], str], tuple[float, float]]

    def round_ms(self, arm: Arm) -> float:
        """Return the true cost of a round."""
        if arm.kind == NONE:
            return self.target_ms
        return self.truth[arm.family].of(arm.n_max, arm.n_max)

    def rates(self, arm: Arm, text: str) -> list[float]:
        """Return the true acceptance by position, unconditional."""
        if arm.kind == NONE:
            return []
        first, decay = self.acceptance[arm.source, text]
        rates, product = [], 1.0
        for position in range(arm.n_max):
            product *= first * decay**position
            rates.append(product)
        return rates

    def true_ms(self, arm: Arm) -> float:
        """Return the true time of a token over the mix."""
        return sum(w * self.round_ms(arm) / (1 + sum(self.rates(arm, text))) for text, w in TEXTS.items())

    def arms(self) -> list[Arm]:
        """Return every arm on offer, none among them."""
        return [Arm(), *(offer.arm(n) for offer in self.offers for n in range(1, offer.most_drafted + 1))]

    def load(self, arm: Arm, rng: random.Random, tokens: int = 384) -> ServedLoad:
        """Measure an arm."""
        common = math.exp(rng.gauss(0, self.noise))
        results = []
        for text in TEXTS:
            rates = self.rates(arm, text)
            counts = [0] * len(rates)
            done = rounds = 0
            while done < tokens:
                reached = rng.random()
                accepted = sum(reached < rate for rate in rates)
                for position in range(accepted):
                    counts[position] += 1
                done, rounds = done + accepted + 1, rounds + 1
            spent = rounds * self.round_ms(arm) * common * math.exp(rng.gauss(0, self.noise / 3))
            results.append(
                TextResult(text, done, spent, rounds * arm.n_max, done - rounds, tuple(c / rounds for c in counts))
            )
        lengths = served_texts.short_lengths(arm.n_max) if arm.n_max else ()
        short = tuple(self._short(arm, length, rng, common) for length in lengths)
        drafting = self.truth[arm.family].draft * common * math.exp(rng.gauss(0, self.noise / 3)) if arm.n_max else 0.0
        return ServedLoad(arm, tuple(results), 0.0, short, drafting)

    def _short(self, arm: Arm, length: int, rng: random.Random, common: float) -> ShortAnswers:
        """Measure answers of so many drafted tokens and two more: the first comes from the prompt."""
        rates, costs = self.rates(arm, next(iter(TEXTS))), self.truth[arm.family]
        rounds = drafts = drafted = 0
        # rounds of short answers may cost somewhat more: their batches differ from one to the next
        spent, dearer = 0.0, random.Random(f"short {arm.family}{self.target_ms}").uniform(1.0, 1.05)
        for _answer in range(served_texts.SHORT_ANSWERS):
            left = length + 1
            while left > 0:
                checked = min(left - 1, arm.n_max)
                reached = rng.random()
                left -= 1 + sum(reached < rate for rate in rates[:checked])
                rounds, drafts, drafted = rounds + 1, drafts + (checked > 0), drafted + checked
                spent += costs.of(checked, arm.n_max if arm.kind in WHOLE_DRAFTS else checked)
        return ShortAnswers(rounds, drafts, drafted, spent * dearer * common * math.exp(rng.gauss(0, self.noise / 3)))


def busy_machine(seed: int) -> Machine:
    """Return a machine that offers drafts in both split modes, or one whose rounds cost what no card was seen to."""
    found = machine(seed)
    return unlike(found, seed) if seed % 2 else with_other_mode(found, seed)


def own_share(*of: t.Hashable) -> float:
    """Return how much of what a round costs beyond a token of the target it costs without drafted tokens as well."""
    return random.Random(f"share {of}").uniform(0.3, 1.0)


def machine(seed: int) -> Machine:
    """Return the machine of a seed."""
    rng = random.Random(seed)
    target = math.exp(rng.uniform(math.log(8), math.log(90)))
    overhead, verify = rng.uniform(0.0, 0.4), rng.uniform(0.02, 0.2)
    sources = rng.choice([["draft"], ["draft"], ["draft", "mtp"], ["mtp"], ["draft", "draft2"]])
    offers, truth, acceptance = [], {}, {}
    for source in sources:
        kind = "draft-mtp" if source == "mtp" else "draft-simple"
        name = "" if source == "mtp" else source
        fast = target * (rng.uniform(0.01, 0.05) if source == "mtp" else rng.uniform(0.03, 0.2))
        devices = ["slow"] if source == "mtp" else rng.choice([["fast"], ["fast", "slow"]])
        dearer = math.exp(rng.gauss(0, 0.4))
        for device in devices:
            drafting = fast * (rng.uniform(1.2, 3.0) if device == "slow" and source != "mtp" else 1.0)
            moved = target * (rng.uniform(1.0, 1.1) if device == "fast" and len(devices) > 1 else 1.0)
            offers.append(Offer(kind, name, device, (40, 41), moved, drafting))
            own = math.exp(rng.gauss(0, 0.02))
            bend = rng.choice([0, 0, 0, rng.uniform(-0.02, 0.05)]) * target
            begin = moved * (1 + overhead) * own
            undrafted = moved * (1 + own_share(seed, name, device) * overhead)
            truth[kind, name, device, ""] = Costs(undrafted, begin, drafting * dearer, verify * moved, bend)
        for text in TEXTS:
            acceptance[(kind, name), text] = (rng.uniform(0.35, 0.95), rng.uniform(0.93, 1.0))
    return Machine(offers, target, rng.choice([0.003, 0.01, 0.02]), truth, acceptance)


def with_other_mode(found: Machine, seed: int) -> Machine:
    """Return a machine on which each draft is on offer in tensor mode as well, where a round costs otherwise."""
    rng = random.Random(f"modes {seed}")
    target = found.target_ms * rng.uniform(0.95, 1.3)
    overhead, verify = rng.uniform(-0.05, 0.4), rng.uniform(0.02, 0.3)
    offers, truth = list(found.offers), dict(found.truth)
    for offer in found.offers:
        other = dataclasses.replace(offer, target_ms=target, mode="tensor")
        # a draft model lies whole on its device in both modes; the model's own blocks are split with it
        draft = found.truth[offer.family].draft * math.exp(rng.gauss(0, 0.4 if offer.kind == "draft-mtp" else 0.1))
        undrafted = target * (1 + own_share(seed, *other.family[1:]) * overhead)
        truth[other.family] = Costs(undrafted, target * (1 + overhead), draft, verify * target, 0.0)
        offers.append(other)
    return dataclasses.replace(found, offers=offers, truth=truth)


class Busy(t.NamedTuple):
    """What else computes on a machine: loads differ by a factor of up to C(loads), texts and short answers within them
    by so much (standard deviation of logarithms)."""

    loads: float = 1.0
    texts: float = 0.0
    short: float = 0.0

    def factor(self, rng: random.Random) -> float:
        """Return by how much one load is slower than another."""
        return math.exp(rng.uniform(0, math.log(self.loads)))

    def disturbed(self, load: ServedLoad, rng: random.Random) -> ServedLoad:
        """Return a load as it is measured there."""
        common = self.factor(rng)

        def slowed(of: t.Any, scatter: float) -> t.Any:
            return dataclasses.replace(of, decode_ms=of.decode_ms * common * math.exp(rng.gauss(0, scatter)))

        results = tuple(slowed(found, self.texts) for found in load.results)
        short = tuple(slowed(found, self.short) for found in load.short)
        drafting = load.draft_ms * common * math.exp(rng.gauss(0, self.texts))
        return dataclasses.replace(load, results=results, short=short, draft_ms=drafting)


#: Machines that compute something else, by what that does.
BUSY: t.Final = {
    "short answers by 40 %": Busy(short=0.4),
    "texts by 20 %, short answers by 40 %": Busy(1.1, 0.2, 0.4),
    "loads up to twofold": Busy(2, 0.02, 0.05),
    "loads up to tenfold, texts by 30 %": Busy(10, 0.3, 0.5),
    "loads up to fiftyfold, short answers by 50 %": Busy(50, 0.1, 0.5),
}


def drive(found: Machine, rng: random.Random, busy: Busy | None = None) -> tuple[Search, list[ServedLoad]]:
    """Measure until the search has enough."""
    loads: list[ServedLoad] = []
    # the stages before had as much to do with what else computes
    reference_ms = found.target_ms * (1.0 if busy is None else math.sqrt(busy.factor(rng) * busy.factor(rng)))
    while True:
        search = Search(found.offers, reference_ms, TEXTS, loads, INDIFFERENCE)
        arm = search.next_arm()
        if arm is None:
            return search, loads
        load = found.load(arm, rng)
        loads.append(load if busy is None else busy.disturbed(load, rng))


def unlike(found: Machine, seed: int) -> Machine:
    """Return a machine whose rounds cost what no card was seen to: verifying a token nearly as much as computing one,
    with steps where a line was expected."""
    rng = random.Random(f"unlike {seed}")
    target, truth = found.target_ms, {}
    verify, overhead = rng.uniform(0.2, 1.3) * target, rng.uniform(0, 1.5)
    for offer in found.offers:
        draft, bend = rng.uniform(0.02, 0.9) * target, rng.uniform(-0.2, 0.4) * verify
        truth[offer.family] = Costs(target * (1 + overhead / 2), target * (1 + overhead), draft, verify, bend)
    return dataclasses.replace(found, truth=truth)


def regret_percent(found: Machine, search: Search) -> float:
    """Return by how much longer a token truly takes with what would be served than with the best arm."""
    verdict = search.verdict()
    served = verdict.arm if verdict.verdict == "faster" else Arm()
    return 100 * (found.true_ms(served) / min(map(found.true_ms, found.arms())) - 1)
