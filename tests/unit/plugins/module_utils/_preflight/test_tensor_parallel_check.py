# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import tensor_parallel_check
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight.tensor_parallel_check import judge, partition

FAST = {
    "id": "GPU-1111", "name": "NVIDIA GeForce RTX 4090", "compute_capability": "8.9",
    "memory_bandwidth_gb_per_s": 1008.1, "memory_total_mib": 24564,
}
SLOW = {
    "id": "GPU-2222", "name": "NVIDIA GeForce RTX 3090", "compute_capability": "8.6",
    "memory_bandwidth_gb_per_s": 936.1, "memory_total_mib": 24576,
}
PAIR = [FAST, SLOW]
VLLM = {"engine": "vllm", "pid": 7, "unit": "v.service", "model": "m", "tensor_parallel_size": 2}


def recorded(fast, slow, blocks=80, name="m"):
    placement = [{"id": "GPU-1111", "layers": fast}, {"id": "GPU-2222", "layers": slow}]
    return {"models": {name: {"model": {"id": name, "block_count": blocks}, "placement": placement}}, "active": name}


def test_a_recorded_split_gives_its_layers_and_the_last_stage_has_the_output():
    assert partition([FAST, SLOW], recorded(43, 38))["counts"] == [43, 37]
    assert partition([SLOW, FAST], recorded(43, 38))["counts"] == [38, 42]
    assert "measured here for m, whose 80 layers are assumed" in partition(PAIR, recorded(43, 38))["source"]


def test_the_active_deployment_wins_over_others():
    both = recorded(43, 38)
    both["models"].update(recorded(40, 25, 64, "other")["models"])
    assert partition(PAIR, both)["counts"] == [43, 37]
    assert partition(PAIR, {**both, "active": "other"})["counts"] == [40, 24]


@pytest.mark.parametrize("record", [None, *(recorded(*split) for split in ((43, 38), (80, 1), (1, 80), (1, 2, 2)))])
@pytest.mark.parametrize("cards", [PAIR, PAIR[::-1]])
def test_whole_layers_that_add_up(record, cards):
    found = partition(cards, record)
    assert sum(found["counts"]) == found["layers"] == (record["models"]["m"]["model"]["block_count"] if record else 80)
    assert min(found["counts"]) >= 1


@pytest.mark.parametrize(
    "record",
    [
        None, "damaged", {}, {"models": {}}, {"models": {"m": {}}}, {"models": None},
        recorded(81, 0),  # on one card: no split to take over
        recorded(5, 3),  # shares of split mode tensor
    ],
)
def test_without_a_record_bandwidth_decides(record):
    found = partition(PAIR, record)
    # as the predictor expects of the two: 1008.1 x 0.793 to 936.1 x 0.730 of 81 layers
    assert found["counts"] == [44, 36]
    assert "bandwidth, not measured" in found["source"]


def test_cards_of_unknown_speed_share_evenly_and_it_says_so():
    cards = [{"id": f"GPU-{number}", "name": name, "memory_total_mib": 8192} for number, name in enumerate("ab")]
    found = partition(cards, None)
    assert found["counts"] == [41, 39]
    assert found["source"] == "nothing: their speed is not known, for a model of 80 layers"


def test_more_cards_than_layers():
    cards = [*PAIR, {**FAST, "id": "GPU-3333"}]
    record = recorded(1, 1, 2)
    record["models"]["m"]["placement"].append({"id": "GPU-3333", "layers": 1})
    with pytest.raises(ValueError, match="2 layers do not give each of 3 cards one"):
        partition(cards, record)
    assert "serve the model from one card, because 2 layers" in judge([VLLM], cards, record, False)[0]["cure"]


def test_tensor_parallelism_on_unlike_cards_is_a_warning_with_a_way_out():
    (found,) = judge([VLLM], PAIR, recorded(43, 38), False)
    assert not found["ok"]
    assert "vLLM (v.service, pid 7)" in found["detail"] and "claim of guides" in found["detail"]
    for words in (
        "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=GPU-2222,GPU-1111 VLLM_PP_LAYER_PARTITION=38,42",
        "NCCL_P2P_DISABLE=1 vllm serve m --tensor-parallel-size 1 --pipeline-parallel-size 2",
        "--disable-custom-all-reduce",
        "38 on the RTX 3090, 42 on the RTX 4090",
    ):
        assert words in found["cure"]
    assert "NCCL_P2P_DISABLE" not in judge([VLLM], PAIR, None, p2p=True)[0]["cure"]


def test_sglang_has_its_own_words():
    (found,) = judge([{**VLLM, "engine": "sglang", "unit": None}], PAIR, None, False)
    assert "SGLang (pid 7)" in found["detail"]
    assert "SGLANG_PP_LAYER_PARTITION=" in found["cure"]
    assert "python -m sglang.launch_server --model-path m --tp-size 1 --pp-size 2" in found["cure"]


@pytest.mark.parametrize(
    "engine",
    [
        {"tensor_parallel_size": None}, {"tensor_parallel_size": 1}, {"visible_devices": "GPU-1111"},
        {"visible_devices": "GPU-22"}, {"visible_devices": "1", "device_order": "PCI_BUS_ID"},
        {"tensor_parallel_size": 1, "pipeline_parallel_size": 2, "layer_partition": "30,18"},
    ],
)
def test_what_is_fine(engine):
    (found,) = judge([{**VLLM, **engine}], PAIR, None, False)
    assert (found["ok"], found["cure"]) == (True, None)


@pytest.mark.parametrize(
    "engine",
    [
        {"visible_devices": "0,1"}, {"visible_devices": "1"},  # without an order that number is either card
        {"visible_devices": "GPU-2222,GPU-1111"}, {"visible_devices": "all"},
    ],
)
def test_what_may_use_both(engine):
    assert not judge([{**VLLM, **engine}], PAIR, None, False)[0]["ok"]


def test_an_even_pipeline_over_unlike_cards_is_told():
    (found,) = judge([{**VLLM, "tensor_parallel_size": 1, "pipeline_parallel_size": 2}], PAIR, None, False)
    assert not found["ok"] and "as many layers each" in found["detail"]


def test_like_cards_and_names_without_a_driver():
    assert judge([VLLM], [FAST, {**FAST, "id": "GPU-3333"}], None, False)[0]["ok"]
    unnamed = [{"name": "NVIDIA GeForce RTX 4090"}, {"name": "NVIDIA GeForce RTX 3090"}]
    assert not judge([VLLM], unnamed, None, False)[0]["ok"]
    assert judge([], PAIR, None, False) == []


def test_what_was_measured_is_said_once():
    found = judge([VLLM, {**VLLM, "unit": "w.service"}], PAIR, None, False)
    assert [tensor_parallel_check.MEASURED in each["detail"] for each in found] == [True, False]
