# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import hop_savings
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner.evidence import Evidence
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import measured_loads, split_problem
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._planner.test_layer_stage import (
    Pair,
    make_problem,
)

WHOLE = ([20, 10, 3], [10, 20, 3], [3, 10, 20])


def evidence_of(pair: Pair, *splits: list[int]) -> Evidence:
    problem = make_problem((420, 420, 420))
    checked = split_problem.read_problem(problem)
    loads = [pair.measure({
        "label": str(layers), "split_mode": "layer", "layers": layers, "load": 1, "purpose": "anchor",
        "tests": problem["tests"],
    }) for layers in splits]  # fmt: skip
    return Evidence(checked, measured_loads.read_loads(checked, loads))


@pytest.mark.parametrize("hop", [0.0, 0.5, 1.0])
def test_one_split_without_a_device_tells_what_others_without_it_take(hop: float) -> None:
    pair = Pair((0.5, 0.8, 1.1), (4.0, 6.0, 8.0), hop=hop)
    evidence = evidence_of(pair, *WHOLE, [20, 13, 0])
    assert evidence.fitted((14, 19, 0)) and not evidence.fitted((20, 0, 13))
    for split in ((14, 19, 0), (27, 6, 0)):
        assert evidence.value("decode", split) == pytest.approx(pair.decode_ms(split), rel=0.01)


def test_a_hop_less_costs_nothing_where_a_load_was_slowed() -> None:
    class Slowed(Pair):
        def decode_ms(self, layers: t.Sequence[int]) -> float:
            return super().decode_ms(layers) * (1 if all(layers) else 1.1)

    evidence = evidence_of(Slowed((0.5, 0.8, 1.1), (4.0, 6.0, 8.0)), *WHOLE, [15, 15, 3], [20, 13, 0])
    assert evidence.savings[True, True, False]["decode"].log == 0


def test_splits_without_a_device_tell_the_costs_of_the_others() -> None:
    """With a long hop the mean of such splits says little, and their differences say the costs all the same."""
    fewer = ([28, 5, 0], [5, 28, 0], [26, 7, 0], [7, 26, 0])

    def error(seed: int, *more: list[int]) -> float:
        pair = Pair((0.5, 0.8, 1.1), (4.0, 6.0, 8.0), noise=0.02, seed=seed, hop=1.0)
        fit = evidence_of(pair, *WHOLE, *more).decode_fit
        assert fit is not None
        return abs(fit[1] / fit[0] - 0.8 / 0.5)

    assert sum(error(seed, *fewer) for seed in range(20)) < 0.9 * sum(error(seed) for seed in range(20))


def test_one_device_alone_is_no_point_of_the_fit() -> None:
    evidence = evidence_of(Pair((0.5, 0.8, 1.1), (4.0, 6.0, 8.0), hop=1.0), *WHOLE, [33, 0, 0])
    assert not evidence.savings and not hop_savings.partial((33, 0, 0)) and hop_savings.partial((20, 13, 0))
