# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import device_list


def listed(device, description):
    return {"device": device, "backend": device[:-1], "description": description, "total_mib": 9, "free_mib": 9}


RPC_PAIR = [listed("RPC0", "127.0.0.1:51152"), listed("RPC1", "127.0.0.1:51153")]
CUDA_PAIR = [listed("CUDA0", "NVIDIA H200 (dev p0/v0)"), listed("CUDA1", "NVIDIA H200 (dev p0/v1)")]


def devices(found=RPC_PAIR, uuids=()):
    return device_list.identify(found, uuids)


def test_ids_are_endpoints_uuids_or_names():
    assert [device["id"] for device in devices()] == ["127.0.0.1:51152", "127.0.0.1:51153"]
    assert [device["id"] for device in devices(CUDA_PAIR)] == ["CUDA0", "CUDA1"]
    both = [*CUDA_PAIR, listed("RPC0", "h:1"), listed("RPC1", "h:1")]
    assert [device["id"] for device in devices(both, ["GPU-b", "GPU-a"])] == ["GPU-b", "GPU-a", "h:1", "h:1#1"]


def test_uuids_have_to_match_the_cards():
    words = r"names 1 cards \(GPU-a\) but llama.cpp sees 2 CUDA devices \(CUDA0, CUDA1\)"
    with pytest.raises(UserError, match=words):
        devices(CUDA_PAIR, ["GPU-a"])
    with pytest.raises(UserError, match="two devices have the id GPU-a"):
        devices(CUDA_PAIR, ["GPU-a", "GPU-a"])


def test_budgets_are_found_by_id_and_by_name():
    found = device_list.set_budgets(devices(), {"127.0.0.1:51153": 200, "RPC0": "300"})
    assert [device["budget_mib"] for device in found] == [300, 200]
    assert [device["budget_mib"] for device in device_list.set_budgets(devices(), {})] == [None, None]


@pytest.mark.parametrize(
    ("budgets", "words"),
    [
        ({"GPU-x": 1}, r"names GPU-x, which is none of the devices here: RPC0 \(127.0.0.1:51152\), RPC1"),
        ({"CUDA9": 1, "RPC0": 2, "rpc1": 3}, r"budget_mib \(budgets_mib\) names CUDA9, rpc1, which are none of"),
        ({"RPC0": 0}, "a budget is a whole number of MiB"),
        ({"RPC0": 1.5}, "a budget is a whole number of MiB"),
        ({"RPC0": True}, "a budget is a whole number of MiB"),
        ({"RPC0": "lots"}, "a budget is a whole number of MiB"),
        ({"RPC0": 1, "127.0.0.1:51152": 2}, "by id and by name with different values"),
    ],
)
def test_budgets_that_make_no_sense_are_named(budgets, words):
    with pytest.raises(UserError, match=words):
        device_list.set_budgets(devices(), budgets)


@pytest.mark.parametrize(
    ("names", "endpoints", "words"),
    [
        (["CUDA1", "GPU-a", "h:1#1", "Vulkan0", "RPC0"], ["h:1"], None),
        (["h:1"], None, None),
        (["GPU-A", "CUDA2", "h:2"], ["h:1"],
         r"names GPU-A, CUDA2, h:2, which are none of the devices here: CUDA0 \(GPU-a\), CUDA1 \(GPU-b\), h:1$"),
    ],
)  # fmt: skip
def test_budgets_of_cards_that_are_not_there_are_known_before_the_engine_is_asked(names, endpoints, words):
    gpus = {"available": True, "gpus": [{"id": "GPU-a"}, {"id": "GPU-b"}]}
    budgets = dict.fromkeys(names, 9000)
    if words is None:
        device_list.check_budgets(budgets, gpus, endpoints)
    else:
        with pytest.raises(UserError, match=words):
            device_list.check_budgets(budgets, gpus, endpoints)
    device_list.check_budgets(budgets, {"available": False, "gpus": gpus["gpus"][:1]}, ["h:1", "h:2"])


def test_another_order_names_both():
    assert device_list.in_order(devices(), []) == devices()
    assert device_list.in_order(devices(), list(reversed(devices()))) == list(reversed(devices()))
    swapped = [{**one, "device": other["device"]} for one, other in zip(devices(), reversed(devices()), strict=True)]
    words = "found 127.0.0.1:51152, 127.0.0.1:51153, expected 127.0.0.1:51152, 127.0.0.1:51153"
    with pytest.raises(UserError, match=words):
        device_list.in_order(devices(), swapped)


def test_an_endpoint_without_a_device_is_missing():
    assert device_list.missing_endpoints(devices(), ["127.0.0.1:51152", "h:1"]) == ["h:1"]
    cuda_of_that_name = {**devices(CUDA_PAIR)[0], "description": "h:1"}
    assert device_list.missing_endpoints([*devices(), cuda_of_that_name], ["h:1"]) == ["h:1"]
