# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import chart, recorded


def test_the_fitted_line_goes_through_its_predictions(sandbox: dict[str, t.Any]) -> None:
    entry = sandbox["entry"]
    for quantity in recorded.QUANTITIES:
        line = dict(chart.chart_line(entry, quantity, (8, 26)))
        assert sorted(line) == [float(x) for x in range(8, 27)]
        for row in entry["decision"]["table"]:
            timing = recorded.timing_of(entry, row, quantity)
            if timing:
                assert line[float(row["layers"][0])] == pytest.approx(timing["predicted"], rel=0.01)


def test_predictions_that_do_not_follow_the_model_are_joined_instead(sandbox: dict[str, t.Any]) -> None:
    entry = sandbox["entry"]
    entry["decision"]["fit"]["decode_ms_per_layer"] = [5.0, 0.1]
    line = chart.chart_line(entry, "decode", (8, 26))
    assert [x for x, dummy in line] == [10.0, 17.0, 20.0, 23.0]


def test_bands_cover_exactly_what_memory_forbids(sandbox: dict[str, t.Any]) -> None:
    entry = sandbox["entry"]
    fits = {row["layers"][0] for row in entry["feasible"]}
    bands = chart.infeasible_bands(entry, (0, 33))
    for first in range(34):
        barred = any(start < first < end for start, end in bands)
        assert barred == (first not in fits), first


def test_without_a_list_of_feasible_splits_failures_bar_what_lies_beyond(sandbox: dict[str, t.Any]) -> None:
    entry = sandbox["entry"]
    del entry["feasible"]
    assert chart.infeasible_bands(entry, (8, 26)) == [(23.5, 26.5)]
