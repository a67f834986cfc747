# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Answers of llama-server's /metrics and /slots."""

from __future__ import annotations

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watchdog import progress

ANSWER = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 312
llamacpp:prompt_tokens_cached_total 0
llamacpp:prompt_seconds_total 1.5
llamacpp:tokens_predicted_total 96
llamacpp:n_decode_total {decodes}
llamacpp:n_tokens_max 128
llamacpp:spec_decode_num_draft_tokens_total 0
# TYPE llamacpp:prompt_tokens_seconds gauge
llamacpp:prompt_tokens_seconds {gauge}
llamacpp:requests_processing {processing}
llamacpp:requests_deferred 4
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{{position="0"}} 3
"""


def read(decodes="99", gauge="12.5", processing=1):
    return progress.of_metrics(ANSWER.format(decodes=decodes, gauge=gauge, processing=processing))


def test_requests_and_counters_are_read():
    reading = read()
    assert reading.processing == 1
    assert reading.counters == ("99", "312", "0", "96", "0")
    assert not reading.coarse


def test_requests_that_wait_while_no_slot_is_busy_count():
    assert read(processing=0).processing == 4
    assert progress.of_metrics("llamacpp:requests_processing 0\nllamacpp:n_decode_total 1\n").processing == 0


def test_a_gauge_that_a_scrape_resets_is_no_progress():
    assert read(gauge="12.5").counters == read(gauge="0").counters


def test_from_a_million_on_six_digits_are_coarse():
    assert not read("999999").coarse
    assert read("1e+06").coarse
    assert read("1.23457e+06").coarse


def test_other_texts_are_no_metrics():
    assert progress.of_metrics("") is None
    assert progress.of_metrics("ok") is None
    for number in ("inf", "nan", "1e999"):
        assert progress.of_metrics(f"llamacpp:requests_processing {number}\nllamacpp:n_decode_total 1\n") is None
    assert progress.of_metrics("llamacpp:requests_processing x\nllamacpp:n_decode_total 1\n") is None


def test_a_counter_that_a_build_lacks_is_no_error():
    text = "llamacpp:requests_processing 1\nllamacpp:n_decode_total 4\n"
    assert progress.of_metrics(text).counters[0] == "4"


def slot(processed, decoded, processing=True):
    return {
        "id": 0, "id_task": 7, "is_processing": processing, "n_prompt_tokens_processed": processed,
        "next_token": [{"n_decoded": decoded, "n_remain": 5}],
    }  # fmt: skip


def test_each_token_of_prompt_and_answer_changes_what_slots_say():
    seen = {progress.of_slots([slot(*counts)]) for counts in ((0, 0), (2048, 0), (2048, 1))}
    assert len(seen) == 3


def test_of_slots_only_those_in_use_count():
    assert progress.of_slots([slot(1, 1, processing=False)]) == ()
    for other in (None, {}, {"error": 1}, [1], []):
        assert progress.of_slots(other) == ()
