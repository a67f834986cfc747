# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import nvml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import lent_devices
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watch import power

DEVICES = [{"device": "CUDA0", "id": "GPU-1"}, {"device": "CUDA1", "id": "GPU-2"}]


def readings(**watts):
    return {f"GPU-{key[1:]}": [{"power_draw_watts": value} for value in values] for key, values in watts.items()}


def test_power_is_the_median_of_each_card():
    # the first and the last reading are of before and after the answer
    seen = readings(_1=[31, 262, 268, 265, 270], _2=[25, 248, 251, None, 252, 255])
    assert power.drawn(DEVICES, seen, 17.2) == {
        "watts": 516.0,
        "cards": [
            {"device": "CUDA0", "id": "GPU-1", "watts": 265.0}, {"device": "CUDA1", "id": "GPU-2", "watts": 251.0},
        ],
        "joules_per_token": 30.0,
    }
    assert power.drawn(DEVICES, seen, None)["joules_per_token"] is None


def test_power_of_a_part_of_the_cards_is_no_power():
    assert power.drawn(DEVICES, readings(_1=[250]), 17.3) is None
    assert power.drawn(DEVICES, readings(_1=[250], _2=[None]), 17.3) is None


ENDPOINT = "192.168.1.20:50052"
GROUP = [
    {"device": "CUDA0", "id": "GPU-1", "backend": "CUDA"}, {"device": "RPC0", "id": ENDPOINT, "backend": "RPC"},
]  # fmt: skip
LENDERS = {
    "pc2": {"servers": [{"endpoint": ENDPOINT, "card": {"id": "GPU-9"}}]},
    "pc3": {"servers": [{"endpoint": "192.168.1.21:50052", "card": None}]},
}
LOAD = {"reason": None, "cards": [{"device": "CUDA0", "id": "GPU-1", "watts": 300.0}], "tokens_per_second": 20.0}


def looks(**sampled):
    gpu = {"id": "GPU-9", "sampled": sampled}
    return lent_devices.Looks({"pc2": {"gpus": [gpu], "reason": None}}, {})


def test_power_of_a_group_is_that_of_all_cards():
    seen = looks(power_draw_watts={"min": 190.0, "mean": 200.0, "max": 210.0})
    assert power.of_group(GROUP, LENDERS, LOAD, seen) == {
        "reason": None, "watts": 500.0, "joules_per_token": 25.0,
        "cards": [
            {"device": "CUDA0", "id": "GPU-1", "watts": 300.0},
            {"device": "RPC0", "id": ENDPOINT, "host": "pc2", "watts": 200.0},
        ],
    }


@pytest.mark.parametrize(
    ("load", "seen", "reason"),
    [
        ({"reason": "no driver"}, looks(), "no driver"),
        (LOAD, looks(), "pc2 was not seen: it does not say what its card draws"),
        (
            LOAD, lent_devices.Looks({"pc2": nvml.unavailable("No driver answers: install one.")}, {}),
            "pc2 was not seen: No driver answers: install one.",
        ),
        (
            LOAD, lent_devices.Looks({}, {"pc2": lent_devices.Unseen("no route to host", "wake it")}),
            "pc2 was not seen: no route to host",
        ),
        (LOAD, lent_devices.Looks({}, {}), "pc2 was not seen: it is not in the inventory"),
    ],
)
def test_power_of_a_part_of_a_group_is_no_power(load, seen, reason):
    found = power.of_group(GROUP, LENDERS, load, seen)
    assert found == {"reason": reason}


def test_only_lenders_whose_cards_are_used_are_watched_and_none_where_a_device_is_no_card():
    assert power.lending(GROUP, LENDERS) == ["pc2"] and power.own(GROUP) == GROUP[:1]
    local = {"device": "RPC1", "id": "127.0.0.1:50052", "backend": "RPC"}
    assert power.lending([*GROUP, local], LENDERS) == []
    other = {"device": "RPC1", "id": "192.168.1.21:50052", "backend": "RPC"}
    assert power.lending([*GROUP, other], LENDERS) == []
    assert power.lending(GROUP[:1], LENDERS) == []
