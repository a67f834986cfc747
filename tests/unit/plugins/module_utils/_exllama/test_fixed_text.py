# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The text that every load of an ExLlama is asked about."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import fixed_text

SAID = {"text": "t", "judged_tokens": 95, "nats_per_token": 1, "tokens": [1, 2]}


def test_the_text_fits_into_the_context():
    assert fixed_text.order(8192)["text_tokens"] == fixed_text.TEXT_TOKENS
    # the smallest context of an ExLlama
    assert fixed_text.order(256)["text_tokens"] + fixed_text.ANSWER_TOKENS <= 256
    assert fixed_text.order(128)["text_tokens"] == 96


def test_what_the_worker_says_is_read_or_refused():
    assert fixed_text.checked(SAID) == {**SAID, "nats_per_token": 1.0}
    assert fixed_text.checked({**SAID, "nats_per_token": None})["nats_per_token"] is None
    for wrong in ({"text": "t"}, {**SAID, "tokens": None}, {**SAID, "nats_per_token": "much"}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            fixed_text.checked(wrong)
