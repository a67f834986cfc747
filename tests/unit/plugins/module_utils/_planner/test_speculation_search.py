# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The search over ways to speculate where loads disagree: with the line of round costs, or with one another."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import served_texts
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import (
    round_costs,
    served_scatter,
    speculation_search,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner.speculation_search import Search
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split.speculation import (
    Arm,
    Offer,
    ServedLoad,
    ShortAnswers,
    TextResult,
)

WEIGHTS = {"a": 0.5, "b": 0.5}
TOKENS = 64
DRAFT = Offer("draft-simple", "d", "card", (3, 2), 1.0, 0.1)
NGRAM = Offer("ngram-simple", "", "", (3, 2), 1.0, 0.0, 0)


def served(arm: Arm, speeds: tuple[float, ...], right: tuple[float, ...] = (0, 0), short: tuple[float, ...] = ()):
    """Return a load, by tokens per second and share of right tokens of each text, and rounds of short answers (ms)."""
    results = []
    for text, speed, share in zip(WEIGHTS, speeds, right, strict=True):
        rounds = round(TOKENS / (1 + share * arm.n_max))
        results.append(TextResult(text, TOKENS, 1000 * TOKENS / speed, rounds * arm.n_max, TOKENS - rounds))
    lengths = served_texts.short_lengths(arm.n_max) if short else ()
    answers = tuple(
        ShortAnswers(6, 6 * bool(length), 6 * length, 6 * taken) for length, taken in zip(lengths, short, strict=True)
    )
    return ServedLoad(arm, tuple(results), 0.0, answers)


def search(
    loads: list[ServedLoad], max_loads: int = 5, reference_ms: float = 1.0, offers: tuple[Offer, ...] = (DRAFT, NGRAM)
) -> Search:
    offered = [dataclasses.replace(offer, target_ms=reference_ms) for offer in offers]
    return Search(offered, reference_ms, WEIGHTS, loads, 0.01, max_loads)


@pytest.mark.parametrize("per_token", [0.3, 0.8, 1.3])
def test_loads_of_a_busy_machine_promise_nothing(per_token: float) -> None:
    """Loads that were measured on two CPU devices: both lengths of the draft took twice as long as none.

    Rounds of its short answers scattered by tens of percent; any of them had the draft be faster for sure.
    """
    for seed in range(20):
        numbers = random.Random(seed)

        def short(n_max: int, numbers: random.Random = numbers) -> tuple[float, ...]:
            lengths = served_texts.short_lengths(n_max)
            return tuple((1 + per_token * length) * math.exp(numbers.gauss(0, 0.4)) for length in lengths)

        found = search([
            served(Arm(), (1075.6, 792.9)),
            served(DRAFT.arm(3), (653.2, 381.7), (0.9, 0.69), short(3)),
            served(NGRAM.arm(0), (1033.7, 1013.4)),
            served(NGRAM.arm(0), (1025.1, 794.4)),
            served(DRAFT.arm(7), (566.9, 435.4), (0.81, 0.59), short(7)),
        ])  # fmt: skip
        verdict = found.verdict()
        assert verdict.verdict != "faster" and verdict.arm.kind != "draft-simple"
        assert not found.agrees and not found.may_be_served(DRAFT.arm(4)) and found.may_be_served(DRAFT.arm(7))


#: A quiet machine where seven tokens are too many, and rounds of short answers tell that two are not.
PLAIN = served(Arm(), (1000, 1000))
LONG = served(DRAFT.arm(7), (800, 800), (0.3, 0.3), tuple(1.0 + 0.4 * length for length in (0, 1, 3, 5, 7)))


def rounds_of(arm: Arm, share: float, ms: float) -> ServedLoad:
    speed = 1000 * TOKENS / (round(TOKENS / (1 + share * arm.n_max)) * ms)
    return served(arm, (speed, speed), (share, share))


def test_a_shorter_draft_than_one_that_is_slower_is_measured_before_it_is_served() -> None:
    long = dataclasses.replace(
        LONG, results=tuple(dataclasses.replace(found, decode_ms=found.rounds * 3.8) for found in LONG.results)
    )
    before = search([PLAIN, long])
    best = before.best_known()
    assert before.agrees and 0 < best.n_max < 7 and not before.may_be_served(best)
    assert before.best_known(servable=True) == Arm() == before.verdict().arm
    # the next load with drafts is its own, or one that promises more; without it nothing is kept
    assert search([PLAIN, PLAIN, long], 4).next_arm() == best
    assert search([PLAIN, PLAIN, long], 5, offers=(DRAFT,)).next_arm() == best
    assert search([PLAIN, PLAIN, long], 3).verdict().verdict == "slower"
    own = rounds_of(best, 0.8, 1.0 + 0.4 * best.n_max)
    assert search([PLAIN, PLAIN, long, own], 4).may_be_served(best)


def test_a_length_within_those_of_faster_loads_needs_no_load_of_its_own() -> None:
    long = rounds_of(DRAFT.arm(7), 0.8, 2.4)
    short = tuple(ShortAnswers(6, 6 * bool(n), 6 * n, 6 * (1.0 + 0.2 * n)) for n in (0, 1, 3, 5, 7))
    found = search([PLAIN, dataclasses.replace(long, short=short), PLAIN])
    assert found.agrees and found.may_be_served(DRAFT.arm(5)) and not found.may_be_served(NGRAM.arm(0))


def test_what_its_own_load_shows_to_be_slower_is_never_kept() -> None:
    """Many rounds of longer drafts accept what its own texts did not; so the fit promises the opposite."""
    own, long = rounds_of(DRAFT.arm(3), 0.0, 1.6), rounds_of(DRAFT.arm(7), 0.9, 9.0)
    more = tuple(
        TextResult(found.text, 50 * found.tokens, 50 * found.decode_ms, 50 * found.drafted, 50 * found.accepted)
        for found in long.results
    )
    found = search([PLAIN, own, dataclasses.replace(long, results=more), PLAIN], offers=(DRAFT,))
    verdict = found.verdict()
    assert found.agrees and found.best_known() == verdict.arm == DRAFT.arm(3)
    assert found.predicted(DRAFT.arm(3)).value < 0.7 * found.plain_ms < found.mix_ms(own)
    assert verdict.verdict == "inconclusive" and verdict.comparison is not None and verdict.comparison.percent < 0


@pytest.mark.parametrize(("three", "seven"), [(3.0, 1.0), (0.2, 0.2)])
def test_rounds_cost_no_less_than_those_of_shorter_drafts_and_of_none(three: float, seven: float) -> None:
    loads = [rounds_of(DRAFT.arm(n), 0.8, ms) for n, ms in ((3, three), (7, seven), (3, three), (7, seven))]
    costs = round_costs.RoundCosts([DRAFT], loads, 0.01)
    rounds = [costs.round_ms(DRAFT.arm(n)).value for n in range(1, 8)]
    assert rounds == sorted(rounds) and rounds[0] >= round_costs.LEAST_ROUND


def test_texts_that_scatter_are_scatter_between_loads_as_well() -> None:
    found = search([served(Arm(), (1000, 500)), served(Arm(), (500, 1000))])
    assert found.mix_ms(found.loads[0]) == found.mix_ms(found.loads[1]) and found.scatter > 0.2


def test_loads_that_differ_as_a_whole_disagree() -> None:
    """Each for itself is a perfect line."""
    loads = [
        dataclasses.replace(
            rounds_of(DRAFT.arm(n), 0.8, slow * (1.0 + 0.2 * n)),
            short=tuple(ShortAnswers(6, 6 * bool(k), 6 * k, 6 * slow * (1.0 + 0.2 * k)) for k in (0, 1, 3, 5, 7)),
        )
        for n, slow in ((7, 1.0), (7, 1.3))
    ]
    assert round_costs.RoundCosts([DRAFT], loads[:1], 0.01).misfit < speculation_search.TRUSTED_MISFIT
    # the residuals alone were 4.3 times as large
    assert round_costs.RoundCosts([DRAFT], loads, 0.01).misfit > 5


def test_short_answers_that_scatter_widen_what_they_tell() -> None:
    loads = [
        dataclasses.replace(
            rounds_of(DRAFT.arm(7), 0.8, 2.4),
            short=tuple(ShortAnswers(6, 6 * bool(n), 6 * n, 6 * (1.0 + 0.2 * n) * noise) for n, noise in taken),
        )
        for taken in (
            [(0, 1.0), (1, 1.0), (3, 1.0), (5, 1.0), (7, 1.0)], [(0, 1.4), (1, 0.7), (3, 1.5), (5, 0.8), (7, 1.3)],
        )
    ]  # fmt: skip
    quiet, noisy = (round_costs.RoundCosts([DRAFT], [load], 0.01).round_ms(DRAFT.arm(2)).error for load in loads)
    assert noisy > 2 * quiet


def test_a_load_without_that_the_earlier_stages_contradict_is_repeated() -> None:
    """Drafts seem to gain more than cards drift, but the only load without may have been the slow one."""
    loads = [PLAIN, rounds_of(DRAFT.arm(3), 0.8, 1.4)]
    assert search(loads, 3).next_arm() == DRAFT.arm(7)
    assert search(loads, 3, reference_ms=0.4).next_arm() == Arm()


def test_loads_that_contradict_what_is_usual_count_alone() -> None:
    usual = speculation_search.USUAL_SCATTER
    assert served_scatter.of_loads([[1.0, 1.03]], usual).degrees == 1 + served_scatter.USUAL_DEGREES
    wild = served_scatter.of_loads([[1.0, 1.5]], usual)
    assert wild.unusual and wild.degrees == 1 and wild.deviation == pytest.approx(math.log(1.5) / math.sqrt(2))
    assert served_scatter.of_loads([], usual) == (usual, served_scatter.USUAL_DEGREES, False)


def test_texts_that_are_dear_in_every_load_are_no_scatter() -> None:
    alike = [served(Arm(), (1000, 500)), served(Arm(), (800, 400))]
    assert served_scatter.of_texts(alike).deviation < served_scatter.USUAL_OF_TEXTS
    unlike = [served(Arm(), (1000, 500)), served(Arm(), (500, 900))]
    assert served_scatter.of_texts(unlike).deviation > 0.2


def anything(arm: Arm, numbers: random.Random) -> ServedLoad:
    """Return a load that may have any times, however absurd."""

    def ms() -> float:
        return math.exp(numbers.uniform(-7, 12))

    results = []
    for text in WEIGHTS:
        tokens = numbers.choice([1, 2, 64, 300])
        accepted = numbers.randrange(tokens) if arm.kind != "none" else 0
        rates = tuple(sorted((numbers.random() for _place in range(arm.n_max)), reverse=True))
        positions = numbers.choice([(), rates])
        results.append(TextResult(text, tokens, ms(), (tokens - accepted) * arm.n_max, accepted, positions))
    short = tuple(
        ShortAnswers(
            numbers.choice([0, 1, 6]), numbers.randrange(7), numbers.randrange(40), numbers.choice([0.0, ms()])
        )
        for _length in range(numbers.randrange(6) if arm.n_max else 0)
    )
    return ServedLoad(arm, tuple(results), ms(), short, numbers.choice([0.0, ms()]))


def test_no_times_however_absurd_end_the_search_otherwise() -> None:
    for seed in range(150):
        numbers = random.Random(seed)
        offers = [DRAFT, NGRAM, Offer("draft-mtp", "", "card", (3, 2), 1.3, 0.02, numbers.randrange(1, 8), "tensor")]
        loads: list[ServedLoad] = []
        while True:
            found = Search(offers, math.exp(numbers.uniform(-3, 6)), WEIGHTS, loads, 0.01)
            verdict = found.verdict() if loads else None
            arm = found.next_arm()
            if arm is None:
                break
            loads.append(anything(arm, numbers))
        assert len(loads) <= speculation_search.MAX_LOADS and verdict is not None
        if verdict.verdict == "faster":
            assert found.may_be_served(verdict.arm) and found.predicted(verdict.arm).value < found.plain_ms
