# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How far two devices are apart, and which one is wrong."""

from __future__ import annotations

import math
import random
import types

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import answer_check, answer_run
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.trial_server import TrialError
from hypothesis import given
from hypothesis import strategies as st

TOLERANCE = 15.0


def position(seed, scale=1.0, noise=0.0, count=64):
    """Return candidates out of 500 tokens, with rounding noise as a share of the scale."""
    chosen, rounding = random.Random(seed), random.Random(f"{seed} {noise}")
    logits = {token: scale * (chosen.gauss(0, 1) + noise * rounding.gauss(0, 1)) for token in range(500)}
    total = math.log(sum(math.exp(value) for value in logits.values()))
    top = sorted(((token, value - total) for token, value in logits.items()), key=lambda one: -one[1])
    return top[:count]


def answers(seed, scale=1.0, noise=0.0):
    text, own = (
        [position(f"{seed} {name} {i}", scale, noise) for i in range(count)] for name, count in (("t", 8), ("o", 16))
    )
    return answer_check.Answers(text, own)


def greedy(placement):
    return [top[0][0] for top in placement.own]


RIGHT = answers("right")
FULL, HUNG = TrialError("out_of_memory", "9 MiB of RAM are missing"), TrialError("hung", "no answer")


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0, 10.0])
def test_rounding_and_garbage_lie_apart_for_flat_and_for_sure_models(scale):
    right = answers("right", scale).positions
    rounded = answer_check.difference_percent(right, answers("right", scale, 0.01).positions)
    garbage = answer_check.difference_percent(right, answers("garbage", scale).positions)
    assert 0 < rounded < TOLERANCE < 60 < garbage


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_the_difference_is_symmetric_and_zero_of_equals(one, other):
    left, right = [position(one)], [position(other)]
    assert answer_check.difference_percent(left, right) == pytest.approx(answer_check.difference_percent(right, left))
    assert answer_check.difference_percent(left, left) == 0


def test_candidates_of_one_value_each_differ_without_bound():
    flat = [[(token, -4.0) for token in range(64)]]
    assert answer_check.difference_percent(flat, [[(token, -5.0) for token in range(64)]]) == answer_check.MOST_PERCENT
    assert answer_check.is_flat(flat) and not answer_check.is_flat([position(1)])


def test_the_worst_token_counts():
    tops = [[(1, math.log(0.6)), (2, math.log(0.3)), (3, math.log(0.1))]] * 3
    assert answer_check.least_share([1, 1, 1], tops) == (1.0, 0)
    share, place = answer_check.least_share([1, 2, 1], tops)
    assert (round(share, 6), place) == (0.5, 1)
    # one that is not listed is at most as likely as the last one
    share, place = answer_check.least_share([1, 2, 9], tops)
    assert (round(share, 6), place) == (round(1 / 6, 6), 2)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({}, "no probabilities"),
        ({"completion_probabilities": []}, "no probabilities"),
        ({"completion_probabilities": [{"top_logprobs": []}]}, "no probabilities"),
        ({"completion_probabilities": [{"top_logprobs": [{"id": 1, "logprob": None}]}]}, "no numbers"),
        ({"completion_probabilities": [{"top_logprobs": [{"id": 1, "logprob": math.nan}]}]}, "no numbers"),
    ],
)
def test_an_answer_without_numbers_is_told(answer, words):
    with pytest.raises(ValueError, match=words):
        answer_check.parse(answer)


def test_impossible_tokens_stay_finite():
    lowest = -3.4028234663852886e38
    top = answer_check.parse({"completion_probabilities": [{"top_logprobs": [{"id": 1, "logprob": lowest}]}]})
    assert top == [(1, -60.0)]


def seen(placement, processor="right", **alone):
    placed = answers(placement)
    told = {name: answers(seed, noise=0.01) for name, seed in alone.items()}
    return answer_check.Seen(
        greedy(placed), placed, told, None if processor is None else answers(processor, noise=0.005)
    )


@pytest.mark.parametrize(
    ("found", "culprits"),
    [
        (seen("garbage", a="right", b="right"), []),
        (seen("garbage", None, a="right", b="right"), []),
        (seen("garbage", a="right", b="wrong"), ["b"]),
        (seen("wrong", a="right", b="wrong"), ["b"]),
        (seen("right", a="wrong", b="right"), ["a"]),
        (seen("garbage", a="wrong", b="worse"), None),
        # two devices cannot be told apart, as the wrong one spoils the placement
        (seen("wrong", None, a="right", b="wrong"), None),
        (seen("garbage", None, a="right", b="wrong"), None),
        (seen("garbage", None, a="right"), None),
        # of three, two that agree are right
        (seen("garbage", None, a="right", b="wrong", c="right"), ["b"]),
        (seen("garbage", None, a="right", b="wrong", c="worse"), None),
        (seen("garbage", None, a="right", b="right", c="wrong", d="wrong"), None),
    ],
)
def test_who_is_wrong(found, culprits):
    assert answer_check.suspicious(found, TOLERANCE)
    assert answer_check.culprits(found, TOLERANCE) == culprits


def deployment(backend="CUDA", mode="layer", layers=(10, 7), **environment):
    devices = [
        {"id": name, "backend": backend, "description": f"Card {name}", "device": f"{backend}{i}"}
        for i, name in enumerate("ab")
    ]
    placement = [{"id": name, "layers": count} for name, count in zip("ab", layers, strict=True)]
    return {"devices": devices, "environment": environment, "split_mode": mode, "placement": placement}


def test_a_right_placement_has_no_cures():
    result = answer_check.judge(deployment(), seen("right", None, a="right", b="right"), {}, TOLERANCE)
    assert (result["status"], result["reason"], result["cures"]) == ("ok", None, [])
    assert [one["id"] for one in result["compared"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("entry", "words", "absent"),
    [
        (deployment(), ["GGML_CUDA_NO_PEER_COPY", "iommu=pt", "driver_rollback"], ["NCCL", "GGML_CUDA_P2P in"]),
        (deployment(GGML_CUDA_P2P="0"), ["no GGML_CUDA_P2P in split_tuning_environment"], ["NCCL"]),
        (deployment(mode="tensor"), ["NCCL_P2P_DISABLE: '1'", "GGML_CUDA_ALLREDUCE: none"], []),
        (deployment(mode="tensor", NCCL_P2P_DISABLE="1"), ["GGML_CUDA_ALLREDUCE: none"], ["NCCL_P2P"]),
        (deployment("RPC"), ["RPC server of another build"], ["iommu", "NCCL"]),
    ],
)
def test_garbled_data_comes_with_the_switch_of_each_cause(entry, words, absent):
    result = answer_check.judge(entry, seen("garbage", a="right", b="right"), {}, TOLERANCE)
    assert result["status"] == "wrong" and result["reason"].startswith("data between the devices is garbled")
    cures = "; ".join(result["cures"])
    assert all(word in cures for word in words) and not any(word in cures for word in absent)
    assert answer_check.sentence({}, result, {}).startswith(f"{result['reason']}. Known causes and cures: ")


def test_a_wrong_card_is_named():
    result = answer_check.judge(deployment(), seen("garbage", a="right", b="wrong"), {}, TOLERANCE)
    assert result["reason"].startswith("Card b (b) computes wrong") and result["culprits"] == ["b"]
    assert "clocks" in result["cures"][0]


def test_a_wrong_card_alone_in_the_placement_is_named():
    result = answer_check.judge(deployment(layers=(17, 0)), seen("garbage", b="right"), {}, TOLERANCE)
    assert result["culprits"] == ["a"]


def test_nothing_to_compare_with_is_unknown():
    alone = answer_check.Seen(greedy(RIGHT), RIGHT, {})
    result = answer_check.judge(deployment(), alone, {"a": FULL, "b": FULL, "CPU": HUNG}, TOLERANCE)
    assert (result["status"], "Card a (a): 9 MiB" in result["reason"]) == ("unknown", True)
    # where memory is missing, the next check would find the same
    result = answer_check.judge(deployment(), alone, {"a": FULL, "b": FULL, "CPU": FULL}, TOLERANCE)
    assert result["status"] == "incomparable"


def test_who_could_not_be_asked_is_named():
    entry = deployment()
    result = answer_check.judge(entry, seen("right", None, a="right"), {"b": FULL}, TOLERANCE)
    said = answer_check.sentence(entry, result, {"b": FULL})
    assert said.endswith(" % apart; not asked were Card b (b): 9 MiB of RAM are missing")


ONE = {**deployment(), "devices": deployment()["devices"][:1], "placement": [{"id": "a", "layers": 17}]}
FLAT = answer_check.Answers([[(token, -4.0) for token in range(64)]] * 8, [[(1, -4.0), (2, -4.0)]] * 16)


def test_one_card_is_compared_with_the_processor():
    result = answer_check.judge(ONE, seen("right", None, CPU="right"), {}, TOLERANCE)
    assert result["status"] == "ok" and "what the CPU computes alone" in answer_check.sentence({}, result, {})
    result = answer_check.judge(ONE, seen("garbage", None, CPU="right"), {}, TOLERANCE)
    assert (result["status"], result["culprits"]) == ("wrong", ["a"])
    assert result["reason"].startswith("Card a (a) computes wrong: log-probabilities differ")
    # of several, of which none could be asked, the CPU names none
    result = answer_check.judge(deployment(), seen("garbage", None, CPU="right"), {"a": HUNG, "b": HUNG}, TOLERANCE)
    assert (result["status"], result["culprits"]) == ("wrong", [])
    assert result["reason"].startswith("the devices or what is between them compute wrong")


def test_one_card_with_nobody_to_compare_with():
    failures = {"CPU": FULL}
    result = answer_check.judge(ONE, answer_check.Seen(greedy(RIGHT), RIGHT, {}), failures, TOLERANCE)
    assert result["status"] == "incomparable" and "(CPU: 9 MiB of RAM are missing)" in result["reason"]
    assert answer_check.sentence({}, result, {}).startswith("there is nothing to compare the placement with: nobody")
    # what is flat is wrong all the same
    result = answer_check.judge(ONE, answer_check.Seen([1] * 16, FLAT, {}), failures, TOLERANCE)
    assert (result["status"], result["culprits"]) == ("wrong", ["a"])
    assert "the same probability" in result["reason"]


def asked_of(tokens, context, text_tokens, generated):
    """Return the questions to a server that makes so many tokens of the text, and has so many in a slot."""
    client = types.SimpleNamespace(context_per_slot=lambda: context)
    server = types.SimpleNamespace(client=client, tokens=lambda text: list(range(tokens)))
    return answer_run.questions(server, text_tokens, generated)


def test_questions_fit_into_a_slot():
    asked = asked_of(1000, 4096, 256, 64)
    assert (asked.ends[0], asked.ends[-1], len(asked.ends), asked.context) == (32, 256, 8, 336)
    assert asked_of(70, 4096, 256, 64).ends == [32, 64]
    assert asked_of(1000, 256, 256, 64).ends == [32, 64, 96, 128, 160]
    with pytest.raises(TrialError, match="no room"):
        asked_of(1000, 100, 256, 64)


def test_the_text_is_ascii_and_long_enough():
    assert answer_run.TEXT.isascii() and len(answer_run.TEXT) > 1300
