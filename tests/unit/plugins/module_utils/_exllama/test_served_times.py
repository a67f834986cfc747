# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a serving TabbyAPI is asked, and what its answers say of its speed."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import served_times

ANSWER = {"choices": [{"text": " 21"}], "usage": {"prompt_tokens": 500, "completion_tokens": 1}}


def test_prompts_are_about_as_long_as_wanted_and_differ():
    one, other = served_times.prompt(512, "a"), served_times.prompt(512, "b")
    assert one != other and one == served_times.prompt(512, "a") and 400 < len(one.split()) < 512
    assert served_times.prompt(1, "a")


def test_one_token_tells_the_speed_of_the_prompt_and_many_that_of_generation():
    prompt = served_times.sample(ANSWER, 1, 2.0)
    assert (prompt["prompt_tokens_per_second"], prompt["decode_tokens_per_second"]) == (250.0, None)
    many = {**ANSWER, "usage": {"prompt_tokens": 16, "completion_tokens": 64}}
    generation = served_times.sample(many, 64, 2.0)
    assert (generation["prompt_tokens_per_second"], generation["decode_tokens_per_second"]) == (None, 32.0)
    fewer = {**ANSWER, "usage": {"prompt_tokens": 16, "completion_tokens": 60}}  # as with a draft of four tokens
    assert served_times.sample(fewer, 64, 2.0)["decode_tokens_per_second"] == 30.0
    assert not served_times.whole(65, 64) and not served_times.whole(47, 64) and served_times.whole(1, 8)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"choices": []}, "does not count its tokens"),
        ({**ANSWER, "usage": None}, "does not count its tokens"),
        (ANSWER, "wrote 1 tokens after 500"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_told(answer, words):
    with pytest.raises(ValueError, match=words):
        served_times.sample(answer, 64, 1.0)


def test_an_answer_without_a_text_is_told():
    assert served_times.text_of(ANSWER) == " 21"
    with pytest.raises(ValueError, match="the answer has no text"):
        served_times.text_of({"choices": []})
