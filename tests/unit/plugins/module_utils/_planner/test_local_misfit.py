# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import math

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import local_misfit
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner.local_misfit import Correction, Gap


def test_what_the_form_misses_holds_near_the_split_and_not_far_away() -> None:
    correction = Correction([Gap((20, 20), math.log(1.05), 2), Gap((5, 35), 0.0, 1)], 0.0005, 1)
    assert correction.factor((20, 20)) == pytest.approx(1.05, rel=0.002)
    assert 1.04 < correction.factor((19, 21)) < 1.05
    assert correction.factor((5, 35)) == pytest.approx(1.0, abs=0.002)
    assert correction.factor((38, 2)) < correction.factor((22, 18))


def test_what_noise_explains_is_no_misfit() -> None:
    loud = [Gap((20, 20), 0.03, 1), Gap((5, 35), -0.03, 1), Gap((30, 10), 0.03, 1)]
    assert Correction(loud, 0.05, 2).factor((20, 20)) == pytest.approx(1.0, abs=0.001)
    assert local_misfit.squared(loud, 0.05, 2) < local_misfit.squared(loud, 0.005, 2)


def test_an_exact_fit_may_still_miss() -> None:
    assert local_misfit.squared([Gap((20, 20), 0.0, 1), Gap((5, 35), 0.0, 1)], 0.01, 2) > 0


def test_more_loads_of_a_split_count_for_more() -> None:
    one, four = (Correction([Gap((20, 20), 0.02, loads), Gap((5, 35), 0.0, 1)], 0.01, 1) for loads in (1, 4))
    assert four.factor((20, 20)) > one.factor((20, 20)) > 1
