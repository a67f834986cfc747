# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Predictions against every published figure of a pair or a card that was found, each with its source."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import (
    expected_modes,
    expected_speeds,
    predictor,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import known_devices, workload
from ansible_collections.homelab.mixed_gpu.tests.fixtures.dry_run import record

LLAMA, QWEN, CODER = "llama_3_3_70b_q4_k_m", "qwen3_5_27b_q4_k_m", "qwen2_5_coder_32b_q4_k_m"
SMALL, SPARSE, OSS = "llama_3_1_8b_q4_k_m", "qwen3_30b_a3b_q4_k_m", "gpt_oss_20b_mxfp4"
MTP = "sudoingX/qwen38-mtp, README.md and sweeps/multi-gpu.md, August 2026"
DAI = "XiongjieDai, GPU-Benchmarks-on-LLM-Inference, May 2024"
GUIDE = "guide to a mixed RTX 4090 and RTX 3090, 2026-05-07"
PR = "llama.cpp PR 19378"

SERVING: t.Any = {**record.BASE, "context_size": 4096}

#: profile, model, split mode, least and most tokens per second that were published, source
Published = tuple[str, str, str, float, float, str]
Devices = t.Sequence[t.Mapping[str, t.Any]]

#: What the table of known cards and the time of an exchange in tensor mode were made from.
MADE_FROM: list[Published] = [
    ("rtx3090_x2", LLAMA, "layer", 16.29, 16.29, DAI),
    ("rtx4090_x2", LLAMA, "layer", 19.06, 19.06, DAI),
    ("rtx3090_rtx3060_x2", LLAMA, "layer", 10.3, 12.1, "r/LocalLLaMA, R1-Distill-70B Q4, default and tuned -ts"),
    ("rtx5060ti16_x2", QWEN, "layer", 22.1, 23.1, MTP),
    ("rtx5060ti16_x2", QWEN, "tensor", 37.1, 38.3, MTP),
    ("rtx3060_rtx4070super", QWEN, "layer", 21.2, 21.2, PR),
    ("rtx3060_rtx4070super", QWEN, "tensor", 30.1, 30.1, PR),
    ("rtx5080_rtx3090", QWEN, "tensor", 55.6, 55.6, MTP),
    ("rtx3090ti", QWEN, "layer", 41.2, 42.0, MTP),
    ("rtx5090_x2", QWEN, "tensor", 107.5, 107.5, MTP),
    ("p40", OSS, "layer", 72, 72, "llama.cpp PR 16715"),
    ("rtx3090ti", SPARSE, "layer", 167, 167, "smeltcore.com, June 2026"),
    ("rtx3090", SPARSE, "layer", 140.9, 141.9, "multimodalflow.net, Ollama 0.21.0"),
    ("rtx4090", SPARSE, "layer", 196, 196, "runaihome.com, 2026"),
]

#: What it was not made from.
CHECKS: list[Published] = [
    ("rtx4090_rtx3090", LLAMA, "layer", 12, 18, GUIDE),
    ("rtx3090_x2_nvlink", LLAMA, "tensor", 25, 30, GUIDE),
    ("rtx4090_x2", LLAMA, "tensor", 28, 35, GUIDE),
    ("rtx3090", QWEN, "layer", 41.3, 41.3, MTP),
    ("rtx4090", QWEN, "layer", 47.0, 47.7, MTP),
    ("rtx5090", QWEN, "layer", 71.9, 76.9, MTP),
    ("rtx3090", CODER, "layer", 33.9, 33.9, "llama-swap, docs/examples/speculative-decoding, without a draft"),
    ("rtx3080", SMALL, "layer", 106.40, 106.40, DAI),
    ("rtx3080ti", SMALL, "layer", 106.71, 106.71, DAI),
    ("rtx3090", SMALL, "layer", 111.74, 111.74, DAI),
    ("rtx4070ti", SMALL, "layer", 82.21, 82.21, DAI),
    ("rtx4080", SMALL, "layer", 106.22, 106.22, DAI),
    ("rtx4090", SMALL, "layer", 127.74, 127.74, DAI),
    ("rtx5060ti16", SMALL, "layer", 71, 71, "runyard.dev, 2026, Ollama"),
    ("rtx3090", OSS, "layer", 186.3, 186.3, "llama.cpp PR 15631, a prompt in micro-batches of 1"),
    ("rtx4090", OSS, "layer", 225, 225, "runaihome.com, 2026, context 8K"),
    ("rtx5090", OSS, "layer", 298.2, 298.2, "smeltcore.com, 2026"),
]


def expected(profile: str, shape: str, mode: str) -> expected_modes.Range:
    """At little depth, as the published figures are."""
    devices = known_devices.profile_devices(profile)
    prediction = predictor.predict({
        "model": shape, "serving": SERVING, "reserve_mib": 0,
        "objective": {"name": "decode", "prompt_tokens": 0, "generated_tokens": 256, "depth_tokens": 0},
        "bench": {"prompt_tokens": 512, "generated_tokens": 128, "repetitions": 1},
    }, devices, None)  # fmt: skip
    if mode == "layer":
        return expected_modes.layer(prediction["best"]["decode_tokens_per_second"])
    return shared(shape, devices)[0]


def shared(shape: str, devices: Devices) -> tuple[expected_modes.Range, tuple[int, ...]]:
    model: t.Any = model_shapes.model(shape)
    found = expected_modes.tensor(model, SERVING, devices, 0, 128)
    assert found is not None
    return found


def decoding(shape: str, devices: Devices) -> expected_speeds.Speeds:
    model: t.Any = model_shapes.model(shape)
    objective = workload.Objective("decode", 0, 256, 0)
    return expected_speeds.Speeds(model, SERVING, objective, expected_speeds.published(devices))


@pytest.mark.parametrize(("profile", "shape", "mode", "low", "high", "source"), [*MADE_FROM, *CHECKS])
def test_what_was_published_lies_in_what_is_predicted(
    profile: str, shape: str, mode: str, low: float, high: float, source: str
) -> None:
    found = expected(profile, shape, mode)
    if high > 1.1 * low:  # a range of others: our expectation lies in it
        assert low <= found.expected <= high
    else:
        assert found.low <= low and high <= found.high
        assert found.high <= 1.6 * found.low


def test_tensor_mode_is_expected_in_the_parts_that_llama_cpp_has() -> None:
    # 40 heads and 8 of keys, but a block of Q4_K spans two groups
    _speed, parts = shared(CODER, known_devices.profile_devices("rtx4090_rtx3090"))
    assert sum(parts) == 4


def test_launches_count_for_each_block_on_the_card_that_runs_it() -> None:
    """Of a sparse model they are most of a token; a card of another generation takes another time for them."""
    devices = known_devices.profile_devices("rtx4090_rtx3090")
    speeds = decoding(SPARSE, devices)
    ada, ampere = (device["launch_ms"] for device in devices)
    assert ada < ampere
    assert speeds.launch_ms((49, 0)) == pytest.approx(48 * ada)
    assert speeds.launch_ms((20, 29)) == pytest.approx(20 * ada + 28 * ampere)
    without = decoding(SPARSE, [{**device, "launch_ms": 0.0} for device in devices])
    for layers in ((49, 0), (20, 29)):
        whole, reading = speeds.decode_ms(layers), without.decode_ms(layers)
        assert whole is not None and reading is not None
        assert whole - reading == pytest.approx(speeds.launch_ms(layers)) and whole > 2 * reading


def test_a_block_that_only_predicts_further_tokens_launches_nothing() -> None:
    model: t.Any = model_shapes.model("glm_4_5_air_q4_k_m")
    speeds = decoding("glm_4_5_air_q4_k_m", known_devices.profile_devices("rtx5090"))
    assert model["block_count"] == 47 and model["nextn_blocks"] == 1
    assert speeds.launch_ms((48,)) == pytest.approx(46 * speeds.rates.launch_ms[0])
