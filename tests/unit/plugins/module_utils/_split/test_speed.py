# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The statistics of a revalidation: known values, and simulated series with known slowdowns."""

from __future__ import annotations

import importlib.util
import math
import pathlib
import random

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import stats
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import speed as statistics

BENCH = pathlib.Path(__file__).parents[4] / "bench" / "revalidation.py"
SPEC = importlib.util.spec_from_file_location("bench_revalidation", BENCH)
assert SPEC and SPEC.loader
simulated = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(simulated)

RUNS = 250


@pytest.mark.parametrize("between", [0.25, 0.5, 1.0])
def test_at_little_noise_nothing_is_found_where_nothing_is(between):
    found, _loads = simulated.shares(between, 0, RUNS)
    assert found.get("regressed", 0) <= 0.01 and found.get("improved", 0) <= 0.01
    assert found["ok"] >= 0.9


@pytest.mark.parametrize("between", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("slowdown", [5, 10])
def test_at_little_noise_a_slowdown_is_found(between, slowdown):
    found, loads = simulated.shares(between, slowdown, RUNS)
    assert found.get("regressed", 0) >= 0.95 and loads <= 4


def test_at_much_noise_it_says_that_it_does_not_know():
    found, loads = simulated.shares(4.0, 0, RUNS)
    assert found["inconclusive"] > 0.5 and found.get("regressed", 0) < 0.05 and loads > 4
    calm, noisy = (statistics.smallest_visible_percent((spread, 8), 4, 6) for spread in (0.005, 0.04))
    assert calm is not None and noisy is not None and calm < 3 < 8 * calm == pytest.approx(noisy, rel=0.1)


def test_one_load_on_each_side_without_repetitions_tells_nothing():
    change = statistics.compare([[10.0]], [[20.0]], 3.0)
    assert change.verdict == "inconclusive" and change.percent == pytest.approx(100) and change.low is None
    assert statistics.smallest_visible_percent((0.0, 0), 1, 1) is None
    with pytest.raises(ValueError, match="nothing to compare"):
        statistics.compare([], [[1.0]], 3.0)


def test_no_interval_reaches_where_a_time_would_vanish():
    for factor in (1.0, 1.3, 3.0, 10.0):  # two loads each, which differ by this much
        now = [[10.0, 10.01, 9.99], [10.0 * factor, 10.02 * factor, 9.98 * factor]]
        change = statistics.compare([[10.0, 10.01, 9.99], [10.0 / factor, 10.01 / factor]], now, 3.0)
        assert change.low is None or change.low > -50.1
        assert factor < 3 or (change.verdict, change.low) == ("inconclusive", None)


def test_repetitions_have_an_interval_of_their_own():
    percent, low, high = statistics.repeated([10.0, 10.1, 9.9], [11.0, 11.1, 10.9])
    assert low is not None and high is not None and 0 < low < percent < high < 15
    assert statistics.repeated([10.0], [11.0]) == (pytest.approx(10.0), None, None)
    assert statistics.repeated([10.0, 30.0], [11.0, 90.0])[1] is None


def test_a_small_real_change_is_no_regression():
    before = [[10.0, 10.01, 9.99], [10.01, 10.0, 10.0], [9.99, 10.0, 10.01], [10.0, 10.0, 10.01]]
    now = [[10.1, 10.11, 10.09], [10.1, 10.1, 10.11], [10.09, 10.1, 10.1]]
    change = statistics.compare(before, now, 3.0)
    assert change.low is not None and change.low > 0 and change.verdict == "ok"
    assert statistics.compare(before, now, 0.5).verdict == "regressed"
    assert statistics.compare(now, before, 0.5).verdict == "improved"


def test_one_disturbed_load_among_three_is_set_aside_and_three_slow_ones_are_not():
    source = random.Random(4)

    def load(level):
        return [level * (1 + source.gauss(0, 0.003)) for _repetition in range(4)]

    before = [load(50) for _load in range(4)]
    disturbed = [load(50), load(75), load(50)]
    assert list(statistics.set_aside(before, disturbed)) == [1]
    assert not statistics.set_aside(before, [load(75), load(75), load(75)])
    # of two that differ nobody knows which is right
    assert not statistics.set_aside(before, [load(50), load(75)])
    jittery = [load(50), [50.0, 90.0, 40.0, 61.0], load(50)]
    assert list(statistics.set_aside(before, jittery)) == [1]


def test_the_noise_of_few_loads_is_helped_out_by_repetitions():
    steady = [[10.0, 10.0], [10.0, 10.0]]
    shaky = [[10.0, 10.5], [10.2, 10.3]]
    assert statistics.noise(steady)[0] == 0 and statistics.noise(shaky)[1] == 4
    assert statistics.noise(shaky)[0] > stats.pooled_spread([statistics.medians(shaky)])[0]
    many = [[10.0 + 0.1 * place, 10.0 + 0.1 * place] for place in range(7)]
    assert statistics.noise(many) == stats.pooled_spread([statistics.medians(many)])
    assert math.isinf(statistics.half_width((0.01, 0), 2, 2))
