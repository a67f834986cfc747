# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import math
import statistics

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import fit_draws
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner.fit_draws import Fitted
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import cost_model

COSTS = (1.0, 2.0)
SPLITS = ((30.0, 3.0), (3.0, 30.0))


def points(batches: int = 1, overlap: float = 0.0) -> list[cost_model.Point]:
    return [(split, cost_model.prefill_ms(COSTS, split, batches, overlap)) for split in SPLITS]


def spread(draws: list[fit_draws.Draw], split: tuple[float, ...]) -> float:
    return statistics.stdev(math.log(cost_model.decode_ms(draw.costs, split)) for draw in draws)


def test_measured_splits_are_as_sure_as_their_loads() -> None:
    draws = fit_draws.around(Fitted(COSTS, points(), (0.02, 0.02), None))
    for split in SPLITS:
        assert 0.01 < spread(draws, split) < 0.03
    assert draws == fit_draws.around(Fitted(COSTS, points(), (0.02, 0.02), None))
    surer = fit_draws.around(Fitted(COSTS, points(), (0.002, 0.002), None))
    assert spread(surer, SPLITS[0]) < spread(draws, SPLITS[0]) / 5


def test_a_prior_of_the_ratio_tells_what_one_split_cannot() -> None:
    one, open_end = points()[:1], (0.0, 33.0)
    with_prior = fit_draws.around(Fitted(COSTS, one, (0.01,), 0.05))
    without = fit_draws.around(Fitted(COSTS, one, (0.01,), None))
    assert spread(with_prior, SPLITS[0]) < 0.03
    assert spread(with_prior, open_end) < spread(without, open_end) / 3


def test_draws_keep_the_overlap_of_their_fit() -> None:
    drawn = fit_draws.around(Fitted(COSTS, points(4, 0.5), (0.01, 0.01), 0.2, 4, 0.5))
    assert {draw.overlap for draw in drawn} == {0.5}
    assert all(len(draw.costs) == 2 and min(draw.costs) > 0 for draw in drawn)
    assert statistics.fmean(draw.costs[0] for draw in drawn) == pytest.approx(1.0, rel=0.05)


def test_few_loads_that_know_their_noise_badly_leave_more_open() -> None:
    sure = fit_draws.around(Fitted(COSTS, points(), (0.02, 0.02), None))
    doubtful = fit_draws.around(Fitted(COSTS, points(), (0.02, 0.02), None, degrees=3))
    known = fit_draws.around(Fitted(COSTS, points(), (0.02, 0.02), None, degrees=100))
    assert spread(sure, SPLITS[0]) < spread(doubtful, SPLITS[0])
    assert spread(known, SPLITS[0]) == pytest.approx(spread(sure, SPLITS[0]), rel=0.1)


#: Three devices, of which the last is never the longest stage: its cost shows in the sum alone.
THREE = (3.8, 9.7, 3.4)
NEVER_LONGEST = ((34.0, 15.0, 24.0), (20.0, 30.0, 25.0), (30.0, 20.0, 25.0), (40.0, 12.0, 22.0))


def walked(noise: float, degrees: int = 4, overlap: float = 1.0) -> list[fit_draws.Draw]:
    measured = [(split, cost_model.prefill_ms(THREE, split, 4, overlap)) for split in NEVER_LONGEST]
    return fit_draws.walked(Fitted(THREE, measured, (noise,) * 4, 0.5, 4, overlap, degrees), None)


def test_what_a_device_costs_that_is_never_the_longest_stage_is_hardly_known() -> None:
    drawn = walked(0.02)
    assert drawn == walked(0.02) and len(drawn) == fit_draws.DRAWS
    logs = [[math.log(cost / true) for cost, true in zip(draw.costs, THREE, strict=True)] for draw in drawn]
    spreads = [statistics.stdev(column) for column in zip(*logs, strict=True)]
    assert spreads[1] < 0.06 and spreads[2] > 2 * spreads[1]
    # what was measured is known as well as it was measured, whatever the overlap
    for split in NEVER_LONGEST:
        times = [cost_model.prefill_ms(draw.costs, split, 4, draw.overlap) for draw in drawn]
        assert 0.005 < statistics.stdev(map(math.log, times)) < 0.05


def test_quiet_loads_leave_little_open_to_a_walk() -> None:
    drawn = walked(0.002)
    assert {draw.overlap for draw in drawn} <= {0.8, 1.0}
    for device, most in ((0, 0.05), (1, 0.01)):
        assert statistics.stdev(math.log(draw.costs[device]) for draw in drawn) < most


def test_a_walk_goes_through_all_overlaps_that_the_points_allow() -> None:
    assert len({draw.overlap for draw in walked(0.08)}) > 1
