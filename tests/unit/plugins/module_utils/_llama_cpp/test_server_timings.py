# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import server_timings

# recorded: 4 prompt tokens, 16 generated
TIMINGS = {
    "cache_n": 0,
    "prompt_n": 4,
    "prompt_ms": 99.454,
    "prompt_per_token_ms": 24.8635,
    "prompt_per_second": 40.21959901059787,
    "predicted_n": 16,
    "predicted_ms": 320.505,
    "predicted_per_token_ms": 21.367,
    "predicted_per_second": 46.801141947863535,
}


def test_sample_agrees_with_the_rates_of_the_server():
    sample = server_timings.sample(TIMINGS, 4)
    assert sample["ttft_ms"] == 99.454
    assert sample["prompt_tokens_per_second"] == pytest.approx(TIMINGS["prompt_per_second"], abs=1e-3)
    assert sample["decode_tokens_per_second"] == pytest.approx(TIMINGS["predicted_per_second"], abs=1e-3)
    assert sample["generated_tokens"] == 16


def test_single_token_has_no_decode_speed():
    sample = server_timings.sample({**TIMINGS, "predicted_n": 1, "predicted_ms": 0.001}, 4)
    assert sample["decode_tokens_per_second"] is None


@pytest.mark.parametrize(
    "change",
    [{"cache_n": 3, "prompt_n": 1}, {"prompt_n": 5}, {"prompt_ms": 0}, {"predicted_n": 0}, {"prompt_ms": None}],
)
def test_unusable_timings_are_refused(change):
    with pytest.raises(ValueError, match="server|timings"):
        server_timings.sample({**TIMINGS, **change}, 4)


@pytest.mark.parametrize("vocabulary_size", [2, 512, 128256])
def test_prompts_are_valid_exact_and_unique(vocabulary_size):
    first = server_timings.prompt_tokens(1000, vocabulary_size, "a")
    assert len(first) == 1000
    assert all(0 <= token < vocabulary_size for token in first)
    assert first == server_timings.prompt_tokens(1000, vocabulary_size, "a")
    if vocabulary_size > 2:
        assert first[:8] != server_timings.prompt_tokens(1000, vocabulary_size, "b")[:8]


def test_a_test_fits_exactly_or_is_explained():
    test = {"prompt_tokens": 2000, "generated_tokens": 48}
    assert server_timings.does_not_fit(test, 2048) is None
    assert server_timings.does_not_fit(test, 2047) == "needs 2048 tokens and a slot of this server has 2047"
