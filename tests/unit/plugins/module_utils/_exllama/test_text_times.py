# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a TabbyAPI is asked for texts, and what is read of its answers."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import text_times
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama.text_times import Answer

USAGE = {"prompt_tokens": 31, "prompt_time": 0.1, "completion_tokens": 192, "completion_time": 4.0}


def test_an_answer_has_the_length_that_was_asked_for_and_the_temperature_of_the_server():
    path, body = text_times.request("Say hello.", 192, chat=True)
    assert path == text_times.CHAT and body["messages"] == [{"role": "user", "content": "Say hello."}]
    assert body["min_tokens"] == body["max_tokens"] == 192 and "temperature" not in body
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    path, body = text_times.request("Say hello.", 192, chat=False)
    assert (path, body["prompt"]) == (text_times.PLAIN, "Say hello.") and "messages" not in body


def test_times_are_the_servers_own():
    assert text_times.read({"usage": USAGE}) == Answer(192, 4000.0, 31, 100.0)
    for strange in ({}, {"usage": None}, {"usage": {**USAGE, "completion_time": None}}):
        with pytest.raises(ValueError, match="the answer does not say how long it took"):
            text_times.read(strange)


def test_a_row_leaves_out_the_first_token_of_each_answer():
    row = text_times.row("code", [Answer(192, 4000.0, 31, 100.0), Answer(192, 3000.0, 40, 120.0)], 580, 230)
    assert (row["tokens"], row["decode_ms"], row["prompt_tokens"], row["prompt_ms"]) == (382, 7000.0, 71, 220.0)
    assert (row["drafted"], row["accepted"], row["positions"]) == (580, 230, [])
    with pytest.raises(ValueError, match="the answers to code have 192 tokens in 0 ms"):
        text_times.row("code", [Answer(192, 0.0, 31, 100.0)], 0, 0)
