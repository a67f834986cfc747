# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import math

import pytest
import scipy.stats
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import stats
from hypothesis import given, settings
from hypothesis import strategies as st


@given(st.floats(1e-3, 1e4), st.integers(1, 20), st.integers(1, 100))
@settings(max_examples=200, deadline=None)
def test_the_tail_of_f_is_that_of_scipy(ratio: float, over: int, under: int) -> None:
    assert stats.f_tail(ratio, over, under) == pytest.approx(scipy.stats.f.sf(ratio, over, under), rel=1e-8, abs=1e-14)


@pytest.mark.parametrize("outside", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 10, 11, 30, 200])
def test_the_quantile_is_students(degrees: int, outside: float) -> None:
    assert stats.t_quantile(degrees, outside) == pytest.approx(scipy.stats.t.ppf(1 - outside / 2, degrees), rel=1e-8)


def test_the_quantile_needs_a_degree_of_freedom() -> None:
    with pytest.raises(ValueError, match="at least one degree of freedom"):
        stats.t_quantile(0, 0.05)


def test_spread_is_pooled_within_splits() -> None:
    deviation, degrees = stats.pooled_spread([[100, 102], [50, 51], [7]])
    assert degrees == 2
    assert deviation == pytest.approx(math.log(1.02) / math.sqrt(2))
    assert stats.pooled_spread([[100], [50]]) == (0.0, 0)


def test_what_may_be_gained_on_average() -> None:
    assert stats.expected_gain(0.5, 0.0) == 0.5 and stats.expected_gain(-0.5, 0.0) == 0.0
    assert stats.expected_gain(0.0, 1.0) == pytest.approx(1 / math.sqrt(2 * math.pi))
    assert stats.expected_gain(3.0, 0.1) == pytest.approx(3.0) and stats.expected_gain(-3.0, 0.1) < 1e-9
