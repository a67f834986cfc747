# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is said of answers that are not those of the baseline."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import text_answers
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.described_exllama import (
    answers as said,
)
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.described_exllama import (
    exllama_load,
)
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.described_pair import load

BEFORE = [exllama_load(number, nats) for number, nats in enumerate((1.249, 1.251, 1.25))]


@pytest.mark.parametrize(
    ("nats", "verdict", "words"),
    [
        (1.25, "ok", "as likely as in the baseline (1.250 -> 1.250 nats a token), and the first 3 of 3"),
        (1.26, "ok", "1.250 -> 1.260"),
        (1.29, "broken", "less likely than in the baseline"),
        # a prompt that sees its own future is more likely, and as wrong
        (1.1, "broken", "more likely than in the baseline"),
        (None, "broken", "is no number"),
    ],
)
def test_a_text_is_as_likely_as_before_or_something_is_broken(nats, verdict, words):
    found = text_answers.checked(BEFORE, [exllama_load(1), exllama_load(2, nats)])
    assert found["verdict"] == verdict and words in found["detail"]
    assert text_answers.wrong(BEFORE, [exllama_load(2, nats)]) == (verdict == "broken")


def test_other_tokens_are_told_and_accuse_nobody():
    other = {**exllama_load(1), "answers": said(tokens=(7, 5, 9))}
    found = text_answers.checked(BEFORE, [other])
    assert found["verdict"] == "ok" and "the first 1 of 3 answered tokens are the same" in found["detail"]


def test_what_cannot_be_compared_is_open():
    other = {**exllama_load(1), "answers": {**said(), "text": "t2"}}
    assert text_answers.checked(BEFORE, [other])["verdict"] == "inconclusive"
    apart = [exllama_load(1, 1.25), exllama_load(2, 2.0)]
    assert "answer differently" in text_answers.checked(apart, [exllama_load(1)])["detail"]


def test_where_nothing_is_known_there_is_no_check():
    assert text_answers.checked(None, [exllama_load(1)]) is None
    # of llama.cpp
    assert text_answers.checked([load(1)], [load(2)]) is None
    assert text_answers.served(None, {"served_answer": "x", "loads": []}) is None
    assert text_answers.served({"answer": None}, {"served_answer": "x", "loads": []}) is None
    assert text_answers.served({"answer": "x"}, {"served_answer": None, "loads": []}) is None
