# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import expected_speeds, known_costs
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    cost_model,
    known_devices,
    layer_weights,
    model_weights,
    network_links,
    workload,
)

SERVING: dict[str, t.Any] = {
    "context_size": 8192, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16",
}  # fmt: skip
QWEN = model_shapes.model("qwen2_5_coder_32b_q4_k_m")
REQUEST = workload.Objective("request", 2048, 256, 0)


def rates(decode: list[float], prefill: list[float] | None, overlap: float = 1.0) -> expected_speeds.Rates:
    fit = {
        "decode_ms_per_layer": decode, "prefill_ms_per_layer": prefill, "prefill_overlap": overlap,
        "average_layer": model_weights.of_average_layer(QWEN, SERVING, 64, 512),
        "error": 0.0, "spread": {},
    }  # fmt: skip
    return expected_speeds.measured(known_costs.of_fit("d", fit, []))


def test_a_device_whose_fitted_cost_is_nothing_has_no_rate() -> None:
    found = rates([0.0, 0.5], [0.2, 0.0])
    assert found.read_bytes[0] is None and found.read_bytes[1]
    assert found.operations[0] and found.operations[1] is None


@pytest.mark.parametrize(("card", "of_70b", "of_8b"), [("rtx3090", 16.29, 111.74), ("rtx4090", 19.06, 127.74)])
@pytest.mark.parametrize("larger_first", [True, False])
def test_another_size_of_a_kind_lies_in_its_interval(
    card: str, of_70b: float, of_8b: float, larger_first: bool
) -> None:
    """Published tokens per second of two cards of a kind (XiongjieDai, GPU-Benchmarks-on-LLM-Inference)."""
    sizes = [("llama_3_3_70b_q4_k_m", of_70b, 81), ("llama_3_1_8b_q4_k_m", of_8b, 33)]
    (tuned, told, layers), (asked, true, own) = sizes if larger_first else sizes[::-1]
    fit = {
        "decode_ms_per_layer": [1000 / told / layers] * 2, "prefill_ms_per_layer": None, "prefill_overlap": None,
        "average_layer": model_weights.of_average_layer(model_shapes.model(tuned), SERVING, 64, 512),
        "error": 0.0, "spread": {},
    }  # fmt: skip
    known = known_costs.of_fit("d", fit, [])._replace(error=known_costs.KIND_ERROR, of_kind=True)
    rates = expected_speeds.measured(known, known_devices.profile_devices(f"{card}_x2"))
    model: t.Any = model_shapes.model(asked)
    found = expected_speeds.Speeds(model, SERVING, REQUEST, rates).decode((own - 1, 1), 64)
    assert found is not None and found.low is not None and found.high is not None
    assert found.low < 1000 / true < found.high
    assert found.ms == pytest.approx(1000 / true, rel=0.12)


@pytest.mark.parametrize("overlap", [1.0, 0.0, 0.4])
def test_measured_costs_give_the_times_of_the_fit_back(overlap: float) -> None:
    decode, prefill = [0.4, 0.9], [4.0, 9.0]
    speeds = expected_speeds.Speeds(QWEN, SERVING, REQUEST, rates(decode, prefill, overlap))
    weights = model_weights.of_model(QWEN, SERVING, 64)
    for layers in ((30, 35), (50, 15), (65, 0)):
        token, prompt = speeds.decode(layers, 64), speeds.ttft(layers)
        assert token is not None and prompt is not None
        assert token.ms == pytest.approx(cost_model.decode_ms(decode, weights.amounts("decode", layers)), rel=1e-4)
        fitted = cost_model.prefill_ms(prefill, weights.amounts("prefill", layers), 4, overlap)
        assert prompt.ms == pytest.approx(fitted, rel=1e-4)
        for time in (token, prompt):
            assert time.low is not None and time.high is not None and time.low < time.ms < time.high


def test_the_search_is_given_the_same_times() -> None:
    equal = {**QWEN, "block_bytes": [300] * 64, "block_read_bytes": [300] * 64, "block_weights": [300] * 64}
    equal |= {"output_bytes": 300, "kv_k_elements_per_token": [0] * 64, "kv_v_elements_per_token": [0] * 64}
    speeds = expected_speeds.Speeds(
        equal, SERVING, REQUEST, expected_speeds.Rates((300.0, 150.0), (600.0, 300.0), (0.0, 0.0), overlap=0.7)
    )
    cost = speeds.cost(layer_weights.equal(65))
    assert cost is not None
    for layers in ((20, 45), (50, 15)):
        found = speeds.objective_ms(layers)
        assert found is not None
        assert cost.ms(layers) == pytest.approx(found, rel=1e-6)


def test_the_network_is_added_to_each_token_and_to_the_stage_of_its_device() -> None:
    link = network_links.assumed("1gbe")
    near = expected_speeds.Rates((300e6, 150e6), (60e9, 30e9), (0.0, 0.0))
    far = expected_speeds.Speeds(QWEN, SERVING, REQUEST, near._replace(links=(link, None)))
    here = far.without_network()
    asked = network_links.work(2048, 512, 0, 2048 + 128, True)
    cost = network_links.costs(QWEN, [30, 35], [link, None], asked)[0]
    token, without = far.decode_ms([30, 35]), here.decode_ms([30, 35])
    assert token is not None and without is not None
    assert token - without == pytest.approx(cost.token_ms + network_links.RPC_MS)
    # the device of the box is twice as slow: of four micro-batches the first alone waits for the network
    prompt, near_prompt = far.ttft_ms([30, 35]), here.ttft_ms([30, 35])
    assert prompt is not None and near_prompt is not None
    assert prompt - near_prompt == pytest.approx(cost.micro_batch_ms)
    bottleneck, least = far.ttft_ms([60, 5]), here.ttft_ms([60, 5])
    more = network_links.costs(QWEN, [60, 5], [link, None], asked)[0]
    assert bottleneck is not None and least is not None
    assert bottleneck - least == pytest.approx(4 * more.micro_batch_ms)
    # behind, what crosses while the lender computes is a stage of its own, here a short one
    behind = expected_speeds.Speeds(QWEN, SERVING, REQUEST, near._replace(links=(None, link)))
    last = network_links.costs(QWEN, [30, 35], [None, link], asked)[1]
    later, sooner = behind.ttft_ms([30, 35]), behind.without_network().ttft_ms([30, 35])
    assert later is not None and sooner is not None and 0 < last.hidden_ms < last.micro_batch_ms
    assert later - sooner == pytest.approx(4 * last.micro_batch_ms - 3 * last.hidden_ms)
    assert far.decode_ms([0, 65]) == here.decode_ms([0, 65]) and far.ttft_ms([0, 65]) == here.ttft_ms([0, 65])


def test_what_is_not_known_is_not_told() -> None:
    speeds = expected_speeds.Speeds(QWEN, SERVING, REQUEST, rates([0.4, 0.9], None))
    assert speeds.decode((30, 35)) is not None and speeds.ttft((30, 35)) is None
    assert speeds.objective_ms((30, 35)) is None and speeds.cost(layer_weights.equal(65)) is None
    decode = expected_speeds.Speeds(QWEN, SERVING, REQUEST._replace(name="decode"), rates([0.4, 0.9], None))
    assert decode.cost(layer_weights.equal(65)) is not None
    half = expected_speeds.Rates((100.0, None), (100.0, None), (0.0, 0.0))
    alone = expected_speeds.Speeds(QWEN, SERVING, REQUEST, half)
    assert alone.decode((65, 0)) is not None and alone.decode((64, 1)) is None
