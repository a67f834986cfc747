# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._diagnosis import expected
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment, workload

FIXTURES = pathlib.Path(__file__).resolve().parents[4] / "fixtures"
PAIR = deployment.expand(json.loads((FIXTURES / "report" / "mixed_70b.json").read_text(encoding="utf-8"))["entry"])


def test_phases_are_the_tests_of_the_record_and_fit_the_context():
    assert expected.phases(PAIR, 2.0) == [
        {"kind": "decode", "prompt_tokens": 1, "generated_tokens": 35},  # two seconds at 17.7 tokens per second
        {"kind": "prefill", "prompt_tokens": 1024, "generated_tokens": 1},
    ]
    small = {**PAIR, "serving": {**PAIR["serving"], "context_size": 64}}
    assert [phase["prompt_tokens"] + phase["generated_tokens"] for phase in expected.phases(small, 60.0)] == [64, 64]
    slots = {**PAIR["serving"], "kv_unified": False, "parallel_slots": 4}
    assert expected.phases({**PAIR, "serving": slots}, 60.0)[1]["prompt_tokens"] == 1024
    assert workload.context_of(slots) == 2048


def test_cards_take_turns_at_a_token_and_the_slower_stage_is_busy_at_a_prompt():
    decode = expected.expected(PAIR, "decode", 1)
    assert decode.ms == pytest.approx(44 * 0.655 + 37 * 0.742)
    assert sum(decode.utilisation()) == pytest.approx(1.0)
    assert decode.utilisation()[0] == pytest.approx(44 * 0.655 / decode.ms)
    prefill = expected.expected(PAIR, "prefill", 1024)  # two micro-batches; the output slot is no work
    stages = [44 * 7.9, 36 * 14.2]
    assert prefill.ms == pytest.approx(sum(stages) + max(stages))
    assert prefill.utilisation() == pytest.approx([2 * stage / prefill.ms for stage in stages])
    long = expected.expected(PAIR, "prefill", 64 * 512)
    assert long.utilisation()[1] > 0.98
    assert long.utilisation()[0] == pytest.approx(stages[0] / stages[1], abs=0.02)
