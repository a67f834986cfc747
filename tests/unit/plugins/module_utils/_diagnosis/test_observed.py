# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._diagnosis.expected import Expected, expected
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._diagnosis.observed import attributed, change
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import cost_model, deployment
from hypothesis import given
from hypothesis import strategies as st

FIXTURES = pathlib.Path(__file__).resolve().parents[4] / "fixtures"
PAIR = deployment.expand(json.loads((FIXTURES / "report" / "mixed_70b.json").read_text(encoding="utf-8"))["entry"])


@given(
    st.lists(st.floats(0.1, 100), min_size=2, max_size=4),
    st.floats(1, 1e4),
    st.integers(1, 8),
    st.floats(0, 1),
)
def test_attributed_time_obeys_the_form_of_the_fit(busy, ms, batches, overlap):
    of_sum, of_max = cost_model.prefill_weights(batches, overlap)
    model = Expected(1.0, (1.0,) * len(busy), of_sum, of_max, batches)
    stages = [own / batches for own in attributed(ms, busy, model)]
    assert of_sum * sum(stages) + of_max * max(stages) == pytest.approx(ms)
    assert [stage / stages[0] for stage in stages] == pytest.approx([own / busy[0] for own in busy])


def test_what_is_left_is_the_only_device_that_is_not_seen():
    assert attributed(50.0, [30.0, None], None) == [30.0, 20.0]
    assert attributed(50.0, [30.0, None, None], None) == [30.0, None, None]
    pipeline = expected(PAIR, "prefill", 1024)
    assert attributed(50.0, [30.0, None], pipeline) == [30.0, None]


@pytest.mark.parametrize(
    ("ratios", "error", "verdict"),
    [
        ([1.0, 1.01, 0.99], 0.0, "as_recorded"),
        ([1.3, 1.31, 1.29], 0.0, "slower"),
        ([0.7, 0.71, 0.69], 0.0, "faster"),
        ([1.3, 1.31, 1.29], 0.4, "within_noise"),  # the record itself is not better known
        ([1.05, 1.051, 1.049], 0.0, "as_recorded"),  # sure, and less than the tolerance
        ([0.5, 2.0, 1.0], 0.0, "within_noise"),
        ([1.5], 0.0, "within_noise"),
        ([], 0.0, "not_seen"),
    ],
)
def test_verdicts(ratios, error, verdict):
    assert change(ratios, error, 10.0).verdict == verdict
