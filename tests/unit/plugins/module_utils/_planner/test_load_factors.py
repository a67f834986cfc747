# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import load_factors


def test_what_both_tests_show_was_the_load() -> None:
    slow = load_factors.of_loads([(0.04, 0.04), (0.0, 0.0), (-0.04, -0.04), (0.0, 0.0)])
    assert slow[0] == pytest.approx(-slow[2])
    assert 0.02 < slow[0] < 0.04
    assert slow[1] == pytest.approx(0)


def test_what_one_test_shows_counts_less_and_what_they_deny_not_at_all() -> None:
    common, alone = load_factors.of_loads([(0.04, 0.04), (-0.04, -0.04)]), load_factors.of_loads([(0.04, 0.0)] * 2)
    against = load_factors.of_loads([(0.04, -0.04), (-0.04, 0.04)] * 4)
    assert alone == [0.0, 0.0], "all loads alike are no slow load"
    assert against == pytest.approx([0.0] * 8)
    assert common[0] > 0.01


def test_loads_that_the_fit_meets_were_not_slow() -> None:
    assert load_factors.of_loads([(0.0, 0.0)] * 3) == [0.0] * 3
