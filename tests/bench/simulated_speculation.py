"""Simulated machines with drafts on offer: true costs of rounds, true acceptance by position, loads with their noise.

Costs are drawn about what two H200 showed (a round 1.1 to 1.4 tokens of the target, 0.08 to 0.15 more for each token to
verify) and beyond it: steps where the verifying kernel changes, drafts three times dearer than their bytes say.
"""

from __future__ import annotations

import dataclasses
import math
import random
import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner.speculation_search import Search
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split.speculation import (
    NONE,
    Arm,
    Offer,
    ServedLoad,
    TextResult,
)

TEXTS: t.Final = {"code": 0.4, "prose": 0.2, "chat": 0.2, "edit": 0.2}
INDIFFERENCE: t.Final = 0.01


@dataclasses.dataclass
class Machine:
    """One machine: what it offers, and what is true of it."""

    offers: list[Offer]
    target_ms: float
    noise: float
    truth: dict[tuple[str, str, str, str], tuple[float, float, float]]
    acceptance: dict[tuple[tuple[str, str], str], tuple[float, float]]

    def round_ms(self, arm: Arm) -> float:
        """Return the true cost of a round."""
        if arm.kind == NONE:
            return self.target_ms
        begin, slope, bend = self.truth[arm.family]
        return begin + slope * arm.n_max + bend * max(0, arm.n_max - 3)

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
        return ServedLoad(arm, tuple(results))


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
            truth[kind, name, device, ""] = (moved * (1 + overhead) * own, verify * moved + drafting * dearer, bend)
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
        slope = verify * target + offer.draft_ms * math.exp(rng.gauss(0, 0.4))
        truth[other.family] = (target * (1 + overhead), slope, 0.0)
        offers.append(other)
    return dataclasses.replace(found, offers=offers, truth=truth)


def drive(found: Machine, rng: random.Random) -> tuple[Search, list[ServedLoad]]:
    """Measure until the search has enough."""
    loads: list[ServedLoad] = []
    while True:
        search = Search(found.offers, found.target_ms, TEXTS, loads, INDIFFERENCE)
        arm = search.next_arm()
        if arm is None:
            return search, loads
        loads.append(found.load(arm, rng))


def regret_percent(found: Machine, search: Search) -> float:
    """Return by how much longer a token truly takes with what would be served than with the best arm."""
    verdict = search.verdict()
    served = verdict.arm if verdict.verdict == "faster" else Arm()
    return 100 * (found.true_ms(served) / min(map(found.true_ms, found.arms())) - 1)
