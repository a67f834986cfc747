# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which of two measured splits is taken. Whole campaigns are in test_layer_stage.py."""

from __future__ import annotations

import types

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import layer_decision

ALONE = types.SimpleNamespace(layers=(17, 0))
SHARED = types.SimpleNamespace(layers=(9, 8))


@pytest.mark.parametrize("verdict", ["faster", "inconclusive", "no_difference"])
def test_one_device_alone_is_not_taken_where_it_was_measured_slower(verdict: str) -> None:
    """The fit favours it, one load of it was 28.6 % slower than the default, and the interval excludes zero."""
    evidence = types.SimpleNamespace(
        count=lambda _layers: 1, compare=lambda *_names: types.SimpleNamespace(percent=-28.6, low=-41.0, high=-9.0)
    )
    assert layer_decision._chosen(evidence, ALONE, SHARED, verdict) == (SHARED, ALONE)
