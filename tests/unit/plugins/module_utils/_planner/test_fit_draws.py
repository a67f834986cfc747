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
