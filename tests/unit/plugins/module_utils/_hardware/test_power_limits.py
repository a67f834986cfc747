# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import power_limits
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._programs import apply_power_limits


def card(uuid, name, watts=350.0, **changes):
    return {
        "id": uuid, "name": f"NVIDIA GeForce {name}", "power_limit_watts": watts, "power_limit_min_watts": 100.0,
        "power_limit_max_watts": 366.0, "power_limit_default_watts": 350.0, "clock_graphics_max_mhz": 2100,
        "persistence_mode": True, **changes,
    }  # fmt: skip


BOX = [card("GPU-a", "RTX 4090", 450.0, power_limit_max_watts=600.0), card("GPU-b", "RTX 3090")]


def resolve(limits=None, by_name=None, clocks=None, cards=None):
    return power_limits.settings(cards or BOX, limits or {}, by_name or {}, clocks or {}, True)


def test_a_uuid_goes_before_a_name():
    wanted = resolve({"GPU-a": 400}, {"RTX 4090": 315, "RTX 3090": 280}, {"GPU-b": [210, 1700]})
    assert wanted == {
        "schema": 1,
        "cards": [
            {"id": "GPU-a", "power_limit_watts": 400, "locked_clocks_mhz": None, "persistence_mode": True},
            {"id": "GPU-b", "power_limit_watts": 280, "locked_clocks_mhz": [210, 1700], "persistence_mode": True},
        ],
    }
    assert apply_power_limits.problems(wanted, BOX) == [], "the program takes settings of this form"


def test_names_are_whole_endings():
    cards = [card("GPU-a", "RTX 3090 Ti"), card("GPU-b", "RTX 3090"), card("GPU-c", "RTX 3090 Laptop GPU")]
    assert [entry["id"] for entry in resolve(by_name={"rtx 3090": 280}, cards=cards)["cards"]] == ["GPU-b"]


def test_nothing_asked_for_is_nothing_to_do():
    assert resolve(by_name={"RTX 5090": 400})["cards"] == []


def test_the_settings_that_were_found_bring_them_back():
    found = power_limits.found_settings(BOX)
    assert found["schema"] == apply_power_limits.SCHEMA
    assert apply_power_limits.deviations(found, BOX, None) == []
    changed = [BOX[0] | {"power_limit_watts": 300.0}, BOX[1]]
    assert len(apply_power_limits.deviations(found, changed, None)) == 1
