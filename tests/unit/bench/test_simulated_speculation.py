# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The search over ways to speculate on simulated machines, whose truth is known."""

from __future__ import annotations

import dataclasses
import random
import statistics

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import round_costs, speculation_search
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split.speculation import Arm, Offer, ServedLoad
from ansible_collections.homelab.mixed_gpu.tests.bench import simulated_speculation as simulated

MACHINES = 120


@pytest.fixture(scope="module")
def searches() -> list[tuple[simulated.Machine, speculation_search.Search, list[ServedLoad]]]:
    driven = []
    for seed in range(MACHINES):
        machine = simulated.machine(seed)
        driven.append((machine, *simulated.drive(machine, random.Random(seed))))
    return driven


def test_the_choice_is_near_the_best_of_all_arms(searches) -> None:
    regrets = sorted(simulated.regret_percent(machine, search) for machine, search, _loads in searches)
    assert statistics.median(regrets) == 0
    assert regrets[int(0.9 * MACHINES)] < 2


def test_nothing_that_is_slower_is_kept(searches) -> None:
    for machine, search, _loads in searches:
        verdict = search.verdict()
        if verdict.verdict == "faster":
            assert machine.true_ms(verdict.arm) < machine.target_ms
            assert verdict.comparison is not None and verdict.comparison.low > 100 * simulated.INDIFFERENCE


@pytest.mark.parametrize("busy", simulated.BUSY.values(), ids=simulated.BUSY)
def test_what_is_slower_is_kept_no_oftener_than_intervals_say(busy: simulated.Busy) -> None:
    """Loads that disagree by tens of percent up to factors, on machines that cost what cards do, and on others."""
    wrong, kept = [], 0
    for seed in range(60):
        machine = simulated.busy_machine(seed)
        search, loads = simulated.drive(machine, random.Random(seed), busy)
        verdict = search.verdict()
        slower = machine.true_ms(verdict.arm) > machine.target_ms * (1 + simulated.INDIFFERENCE)
        wrong.append(verdict.verdict == "faster" and slower)
        kept += verdict.verdict == "faster"
        assert len(loads) <= speculation_search.MAX_LOADS
    assert sum(wrong) <= 0.025 * len(wrong)
    # short answers alone are no reason to keep nothing
    assert busy.texts or kept > len(wrong) / 3


def test_few_loads_are_served_and_the_cards_may_drift(searches) -> None:
    for _machine, search, loads in searches:
        kinds = [load.arm.kind for load in loads]
        assert len(loads) <= speculation_search.MAX_LOADS and kinds[0] == "none"
        found = search.verdict().comparison
        if found is not None and found.low < speculation_search.SURE_PERCENT:
            assert kinds[-1] == "none" and kinds.count("none") == 2


def test_where_drafts_win_beyond_doubt_the_last_load_tries_another_one() -> None:
    machine = simulated.with_other_mode(simulated.machine(189), 189)
    search, loads = simulated.drive(machine, random.Random(189))
    assert [load.arm.kind for load in loads].count("none") == 1 and len(loads) == speculation_search.MAX_LOADS
    # the best draft is that of the fifth load; without it the regret was 6 %
    assert search.verdict().arm.family == loads[-1].arm.family and simulated.regret_percent(machine, search) < 2


def test_intervals_hold_as_often_as_they_say(searches) -> None:
    found = []
    for machine, search, _loads in searches:
        verdict = search.verdict()
        if verdict.comparison is not None:
            true = 100 * (1 - machine.true_ms(verdict.arm) / machine.target_ms)
            found.append(verdict.comparison.low <= true <= verdict.comparison.high)
    assert len(found) > MACHINES / 2 and statistics.fmean(found) > 0.93


def test_three_loads_of_a_line_predict_the_other_lengths() -> None:
    offer = Offer("draft-simple", "d", "card", (9, 8), 10.0, 1.0)
    machine = simulated.Machine(
        [offer], 10.0, 0.0, {("draft-simple", "d", "card", ""): simulated.Costs(11.0, 12.0, 0.9, 0.7, 0.0)},
        {(("draft-simple", "d"), text): (0.8, 1.0) for text in simulated.TEXTS},
    )  # fmt: skip
    numbers = random.Random(1)
    loads = [machine.load(offer.arm(n_max), numbers) for n_max in (7, 3, 5)]
    costs = round_costs.RoundCosts([offer], loads, 0.005)
    for n_max in range(1, 8):
        assert costs.round_ms(offer.arm(n_max)).value == pytest.approx(12.0 + 1.6 * n_max, rel=0.02)
    with pytest.raises(KeyError):
        costs.round_ms(Arm("draft-mtp", "", "card", 2))


def test_a_draft_that_is_dearer_than_its_bytes_is_so_on_the_other_device_as_well() -> None:
    fast, slow = (Offer("draft-simple", "d", name, (9, 8), 10.0, ms) for name, ms in (("fast", 0.5), ("slow", 1.0)))
    machine = simulated.Machine(
        [fast], 10.0, 0.0, {fast.family: simulated.Costs(11.0, 11.5, 1.5, 1.0, 0.0)},
        {(fast.arm(0).source, text): (0.8, 1.0) for text in simulated.TEXTS},
    )  # fmt: skip
    before = round_costs.RoundCosts([fast, slow], [], 0.005).round_ms(slow.arm(4))
    loads = [machine.load(fast.arm(n_max), random.Random(1)) for n_max in (3, 5)]
    after = round_costs.RoundCosts([fast, slow], loads, 0.005).round_ms(slow.arm(4))
    assert after.value > before.value + 1.0 and after.error < before.error


@pytest.mark.parametrize("kind", ["draft-simple", "draft-mtp"])
def test_one_load_tells_shorter_drafts_by_its_short_answers(kind: str) -> None:
    """The drafts are dearer than their bytes, a round costs more than is usual, and yet more later on."""
    offer = Offer(kind, "d" if kind == "draft-simple" else "", "card", (9, 8), 10.0, 0.5)
    machine = simulated.Machine(
        [offer], 10.0, 0.0, {offer.family: simulated.Costs(13.0, 14.0, 0.9, 1.8, 0.3)},
        {(offer.arm(0).source, text): (0.8, 1.0) for text in simulated.TEXTS},
    )  # fmt: skip
    load = machine.load(offer.arm(7), random.Random(1))
    assert [short.drafted for short in load.short][0] == 0 and len(load.short) == 5
    missed = {}
    for name, taken in {"with": load, "without": dataclasses.replace(load, short=(), draft_ms=0.0)}.items():
        costs = round_costs.RoundCosts([offer], [taken], 0.005)
        missed[name] = [
            abs(costs.round_ms(offer.arm(n_max)).value / machine.round_ms(offer.arm(n_max)) - 1)
            for n_max in range(1, 8)
        ]
    assert max(missed["with"]) < 0.03 and max(missed["with"]) < max(missed["without"]) / 2


def test_short_answers_that_cost_more_than_texts_are_seen_through() -> None:
    offer = Offer("draft-simple", "d", "card", (9, 8), 10.0, 1.0)
    machine = simulated.Machine(
        [offer], 10.0, 0.0, {offer.family: simulated.Costs(11.0, 12.0, 0.9, 0.7, 0.0)},
        {(offer.arm(0).source, text): (0.8, 1.0) for text in simulated.TEXTS},
    )  # fmt: skip
    load = machine.load(offer.arm(5), random.Random(1))
    dearer = tuple(dataclasses.replace(short, decode_ms=1.1 * short.decode_ms) for short in load.short)
    costs = round_costs.RoundCosts([offer], [dataclasses.replace(load, short=dearer)], 0.005)
    for n_max in range(1, 6):
        assert costs.round_ms(offer.arm(n_max)).value == pytest.approx(12.0 + 1.6 * n_max, rel=0.03)


def test_shorter_drafts_than_those_of_a_load_are_known_by_it(searches) -> None:
    told = 0
    for machine, search, loads in searches:
        measured, verdict = {load.arm for load in loads}, search.verdict()
        if verdict.arm in measured or verdict.arm == Arm():
            continue
        told += 1
        longer = [arm for arm in measured if arm.family == verdict.arm.family and arm.n_max > verdict.arm.n_max]
        assert longer and search.is_known(verdict.arm) and not search.is_known(Arm("draft-mtp", "", "nowhere", 1))
        assert search.predicted(verdict.arm).value == pytest.approx(machine.true_ms(verdict.arm), rel=0.1)
    assert told > MACHINES / 20


def test_both_split_modes_cost_no_more_loads_and_are_nearer_to_the_best() -> None:
    both, one = [], []
    for seed in range(80):
        machine = simulated.machine(seed)
        wider = simulated.with_other_mode(machine, seed)
        search, loads = simulated.drive(wider, random.Random(seed))
        verdict = search.verdict()
        assert len(loads) <= speculation_search.MAX_LOADS
        assert all(load.arm.mode == "" for load in loads if load.arm.kind == "none")
        if verdict.verdict == "faster":
            assert wider.true_ms(verdict.arm) < wider.target_ms
        both.append(simulated.regret_percent(wider, search))
        before = simulated.drive(machine, random.Random(seed))[0].verdict()
        served = before.arm if before.verdict == "faster" else Arm()
        one.append(100 * (wider.true_ms(served) / min(map(wider.true_ms, wider.arms())) - 1))
    assert statistics.median(both) < 0.5
    assert statistics.fmean(both) < 0.4 * statistics.fmean(one)
