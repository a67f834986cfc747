# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The arithmetic of the benchmark of the watchdog."""

from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "bench"))
import watchdog_cost


def test_the_overhead_of_many_looks_is_shared_out():
    pairs = [[105.0, 100.0]] * 5 + [[100.0, 105.0]] * 4
    mean, half, median = watchdog_cost.overhead_percent(pairs, 1 / 50)
    assert mean == pytest.approx(100 / 50 * 0.04879 / 9, rel=1e-3)
    assert median == pytest.approx(100 / 50 * 0.04879, rel=1e-3)
    assert half == pytest.approx(0.0793, rel=0.01)  # 2.306 standard errors of nine pairs


def test_the_section_names_what_was_measured():
    text = watchdog_cost.text({"pairs": [[101.0, 100.0], [102.0, 100.0]], "looks_per_second": 10, "poll_seconds": 5})
    assert "2 pairs of requests" in text and "divided by 50" in " ".join(text.split())
