# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import collections
import json
import math
import pathlib
import random
import statistics

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import stats
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import disturbance

FIXTURES = pathlib.Path(__file__).parents[4] / "fixtures" / "llama_bench"
QUIET = [[100.0, 100.4, 99.8], [150.0, 150.9, 149.6], [120.0, 119.5, 120.2], [90.0, 90.2, 89.7]]


def test_a_load_whose_repetitions_scatter_is_found() -> None:
    alarms = disturbance.scattered([*QUIET, [110.0, 160.0, 112.0]], 0.01)
    assert [alarm.load for alarm in alarms] == [4]
    assert "its repetitions scatter by 21." in alarms[0].reason and "the other loads by 1.0 %" in alarms[0].reason


def test_two_disturbed_loads_do_not_hide_each_other_for_ever() -> None:
    disturbed = [[110.0, 160.0, 112.0], [210.0, 300.0, 212.0]]
    assert {alarm.load for alarm in disturbance.scattered([*QUIET, *QUIET, *disturbed], 0.01)} == {8, 9}


def test_a_slow_load_that_is_steady_is_no_reason() -> None:
    assert disturbance.scattered([*QUIET, [500.0, 501.0, 499.0]], 0.01) == []


def test_scatter_that_makes_no_difference_is_no_disturbance() -> None:
    steady = [[100.0, 100.001, 99.999]] * 5
    assert disturbance.scattered([*steady, [100.0, 101.0, 99.5]], 0.01) == []
    assert [alarm.load for alarm in disturbance.scattered([*steady, [100.0, 101.0, 99.5]], 0.0)] == [5]


def test_of_too_few_loads_nothing_is_said() -> None:
    assert disturbance.scattered([[100.0, 100.1, 99.9], [100.0, 200.0, 150.0]], 0.01) == []
    assert disturbance.scattered([[100.0], [200.0], [300.0], [5.0]], 0.01) == []


def test_a_slow_twin_is_found_and_a_fast_one_is_not() -> None:
    alarm = disturbance.far_from_twins([100.0, 101.0, 160.0], (0.01, 2), 0.002, 0.01)
    assert alarm is not None and alarm.load == 2
    assert "59 % slower than its 2 twins" in alarm.reason
    assert disturbance.far_from_twins([100.0, 101.0, 60.0], (0.01, 2), 0.002, 0.01) is None
    assert disturbance.far_from_twins([100.0, 103.0, 99.0], (0.01, 2), 0.002, 0.01) is None
    assert disturbance.far_from_twins([100.0], (0.01, 2), 0.002, 0.01) is None


def test_twins_that_scatter_make_no_outlier() -> None:
    assert disturbance.far_from_twins([100.0, 130.0, 160.0], (0.01, 2), 0.002, 0.01) is None
    assert disturbance.far_from_twins([100.0, 160.0], (0.2, 3), 0.002, 0.01) is None


@pytest.mark.parametrize("noise", [0.002, 0.03])
def test_false_alarms_of_steady_noise_are_rare(noise: float) -> None:
    """Seven loads of three repetitions each, and pairs among three splits: what normal noise sets off in 1500 runs."""
    chance = random.Random(7)
    runs, scatter, far = 1500, 0, 0
    for _run in range(runs):
        times = [100 * math.exp(chance.gauss(0, noise)) for _load in range(7)]
        samples = [[ms * math.exp(chance.gauss(0, noise / 3)) for _repetition in range(3)] for ms in times]
        scatter += bool(disturbance.scattered(samples, 0.001))
        medians = [statistics.median(values) for values in samples]
        others = stats.pooled_spread([medians[2:4], medians[4:6]])
        error = disturbance.repetition_error(samples)
        far += disturbance.far_from_twins(medians[:2], others, error, 0.001) is not None
    # of one load in ALARM of all cases: 1.4 % of seven, and of one pair half of ALARM; and what 1500 runs may stray
    assert scatter / runs < 0.025
    assert far / runs < 0.005


def test_alarms_on_a_recorded_busy_machine() -> None:
    """Eleven sweeps of tg16 over nine splits: each sweep judged for scatter, and each split's loads for a far one.

    It had real neighbours, so these alarms need not be false: 3 of 99 loads, 1 of 90 pairs of neighbouring sweeps.
    """
    sweeps: dict[tuple[int, int], list[list[float]]] = collections.defaultdict(list)
    for line in (FIXTURES / "cpu_isa_pair_decode.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        first = round(float(row["tensor_split"].split("/")[0]))
        sweeps[first, 33 - first].append([ns / 1e6 for ns in row["samples_ns"]])
    assert len(sweeps) == 9 and {len(loads) for loads in sweeps.values()} == {11}
    scatter = sum(
        len(disturbance.scattered([loads[number] for loads in sweeps.values()], 0.01)) for number in range(11)
    )
    far = 0
    splits = list(sweeps)
    for number in range(10):
        pairs = {s: [statistics.median(load) for load in sweeps[s][number:number + 2]] for s in splits}
        error = disturbance.repetition_error(load for s in splits for load in sweeps[s][number:number + 2])
        for split in splits:
            others = stats.pooled_spread(pairs[s] for s in splits if s != split)
            far += disturbance.far_from_twins(pairs[split], others, error, 0.01) is not None
    assert (scatter, far) == (3, 1)
