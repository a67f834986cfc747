# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

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
