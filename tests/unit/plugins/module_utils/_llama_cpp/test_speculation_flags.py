# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Flags of speculation, and the counters that llama-server b11312 printed for an answer of 64 tokens."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import speculation_flags

METRICS = """\
llamacpp:spec_decode_num_draft_tokens_total 125
llamacpp:spec_decode_num_accepted_tokens_total 30
# TYPE llamacpp:spec_decode_num_drafts_total counter
llamacpp:spec_decode_num_drafts_total 32
# TYPE llamacpp:spec_decode_num_accepted_tokens_per_pos_total counter
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 17
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="1"} 9
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="2"} 3
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="3"} 1
"""
LATER = METRICS.replace("_drafts_total 32", "_drafts_total 42").replace('{position="0"} 17', '{position="0"} 22')
DEPLOYMENT = {
    "serving": {"gpu_layers": 99},
    "devices": [
        {"id": "GPU-2", "device": "CUDA1", "backend": "CUDA"}, {"id": "GPU-1", "device": "CUDA0", "backend": "CUDA"},
        {"id": "h:1", "device": "RPC0", "backend": "RPC"},
    ],
    "placement": [{"id": "GPU-2", "layers": 9}, {"id": "GPU-1", "layers": 9}, {"id": "h:1", "layers": 9}],
    "rpc_endpoints": ["h:1"],
}  # fmt: skip
DRAFT = {
    "kind": "draft-simple", "n_max": 3, "path": "/m/d.gguf", "device": "GPU-1", "cache_type_k": "q8_0",
    "cache_type_v": "f16",
}  # fmt: skip


def test_counters_are_read_by_position() -> None:
    assert speculation_flags.counters(METRICS) == (32, [17, 9, 3, 1])
    assert speculation_flags.counters("") == (0, [])
    assert speculation_flags.counted(METRICS) == (125, 30, 32) and speculation_flags.counted("") == (0, 0, 0)
    assert speculation_flags.drafts(METRICS, LATER) == 10
    assert speculation_flags.rates("", METRICS) == [0.5312, 0.2812, 0.0938, 0.0312]
    assert speculation_flags.rates(METRICS, LATER) == [0.5, 0.0, 0.0, 0.0]
    assert speculation_flags.rates(METRICS, METRICS) == []


def test_a_counter_of_more_than_six_digits_is_read_and_its_differences_are_not_known() -> None:
    large = METRICS.replace("draft_tokens_total 125", "draft_tokens_total 5.12346e+06")
    large = large.replace("drafts_total 32", "drafts_total 1.28e+06").replace('"0"} 17', '"0"} 1e+06')
    assert speculation_flags.counted(large) == (5_123_460, 30, 1_280_000)
    assert speculation_flags.counters(large) == (1_280_000, [1_000_000, 9, 3, 1])
    assert speculation_flags.drafts(large, large) is None and speculation_flags.rates(METRICS, large) == []


def test_what_drafting_took_is_read_from_the_log() -> None:
    """As b11312 prints it at -lv 4 after each answer, of all answers so far."""
    begin = "0.12.572.549 I spec common_specu: statistics     draft-simple: #calls(b,g,a) = "
    log = (
        f"{begin}  61    102    102, #gen drafts =    102, #acc drafts =    62, #gen tokens =    273, #acc tokens ="
        "   153, #mean acc len = 2.50, #acc rate/pos = (0.608, 0.422), dur(b,g,a) = 0.037, 77.677, 0.153 ms\n"
        f"{begin}  62    105    105, #gen drafts =    105, #acc drafts =    63, #gen tokens =    282, #acc tokens ="
        "   154, #mean acc len = 2.47, #acc rate/pos = (0.600, 0.410), dur(b,g,a) = 0.038, 79.376, 0.155 ms\n"
    )
    assert speculation_flags.drafting(log) == {"drafts": 105, "drafted": 282, "draft_ms": 79.376}
    assert speculation_flags.drafting("") is None and speculation_flags.drafting(log.replace("dur(", "")) is None


def test_a_draft_lies_whole_on_its_device_by_the_name_that_the_server_sees() -> None:
    words = speculation_flags.arguments({**DEPLOYMENT, "speculation": DRAFT})
    assert words == [
        "--spec-type", "draft-simple", "--spec-draft-n-max", "3", "-md", "/m/d.gguf", "-devd", "CUDA1", "-ngld", "99",
        "-ctkd", "q8_0", "-ctvd", "f16",
    ]  # fmt: skip
    on_rpc = speculation_flags.arguments({**DEPLOYMENT, "speculation": {**DRAFT, "device": "h:1"}})
    assert on_rpc[on_rpc.index("-devd") + 1] == "RPC0"
    with pytest.raises(ValueError, match="the draft is placed on GPU-9, which is not among the recorded devices"):
        speculation_flags.arguments({**DEPLOYMENT, "speculation": {**DRAFT, "device": "GPU-9"}})


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (None, []),
        ({"kind": "none", "n_max": 0}, []),
        ({"kind": "ngram-mod", "n_max": 0}, ["--spec-type", "ngram-mod"]),
        ({"kind": "draft-mtp", "n_max": 2, "path": ""}, ["--spec-type", "draft-mtp", "--spec-draft-n-max", "2"]),
    ],
)
def test_kinds_without_a_model_have_few_flags(told, words) -> None:
    assert speculation_flags.arguments({**DEPLOYMENT, "speculation": told}) == words
