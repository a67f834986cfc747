# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import cost_model


@pytest.mark.parametrize(
    ("prompt", "micro_batch", "batches"), [(1, 512, 1), (512, 512, 1), (513, 512, 2), (1024, 512, 2), (700, 512, 2)]
)
def test_micro_batches(prompt: int, micro_batch: int, batches: int) -> None:
    assert cost_model.micro_batches(prompt, micro_batch) == batches


def test_prefill_is_a_sum_for_one_micro_batch_and_the_slowest_stage_for_many() -> None:
    assert cost_model.prefill_ms((1.0, 3.0), (20, 10), 1, 1.0) == 50
    assert cost_model.prefill_ms((1.0, 3.0), (20, 10), 1000, 1.0) / 1000 == pytest.approx(30, rel=0.01)


def test_prefill_without_overlap_is_a_sum_for_any_number_of_micro_batches() -> None:
    assert cost_model.prefill_ms((1.0, 3.0), (20, 10), 8, overlap=0.0) == 8 * 50
    assert cost_model.prefill_ms((1.0, 3.0), (20, 10), 8, overlap=0.5) == (8 * 50 + 50 + 7 * 30) / 2


def test_scaling_to_another_prompt() -> None:
    assert cost_model.prefill_scale((1.0, 2.0), (20, 13), 1024, 1024, 512, 1.0) == 1
    assert cost_model.prefill_scale(None, (20, 13), 1024, 4096, 512, 1.0) == 4
    # one stage: nothing overlaps, so twice the tokens take twice the time
    assert cost_model.prefill_scale((1.0, 2.0), (32, 0), 1024, 2048, 512, 1.0) == pytest.approx(2)
    # balanced stages hide the second behind the first: 9 steps instead of 3
    assert cost_model.prefill_scale((1.0, 1.0), (16, 16), 1024, 4096, 512, 1.0) == pytest.approx(9 / 3)
    # serial ones do not
    assert cost_model.prefill_scale((1.0, 1.0), (16, 16), 1024, 4096, 512, 0.0) == pytest.approx(4)
    # 300 of 512 tokens are a short micro-batch
    assert cost_model.prefill_scale((1.0, 1.0), (32, 0), 512, 300, 512, 1.0) == pytest.approx(300 / 512)


def test_comparison() -> None:
    result = cost_model.compare([90, 90], [100, 100], (0.01, 2))
    assert result.percent == pytest.approx(10)
    assert result.low is not None and result.high is not None and result.smallest_visible is not None
    assert result.low < 10 < result.high
    assert result.smallest_visible == pytest.approx(4.4, abs=0.1)
    scaled = cost_model.compare([90, 90], [100, 100], (0.01, 2), 0.03)
    assert scaled.percent == result.percent and scaled.low is not None and scaled.low < result.low
    assert cost_model.compare([90], [100], (0.0, 0)) == (pytest.approx(10), None, None, None)
