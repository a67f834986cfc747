# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import power_budget
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware.power_budget import budget, severity, words

FAST = {"name": "NVIDIA GeForce RTX 4090", "power_limit_watts": 450.0, "power_limit_default_watts": 450.0}
SLOW = {"name": "NVIDIA GeForce RTX 3090", "power_limit_watts": 350.0, "power_limit_default_watts": 350.0}


def test_the_sums():
    found = budget([FAST, SLOW], 1300, 200)
    assert (found["steady_watts"], found["peak_low_watts"], found["peak_high_watts"]) == (1000, 1150, 1370)
    assert "steady 1000 W of 1300 W (power limits 450 + 350, rest of the machine 200)" in words(found)
    assert all("unverified" in card["source"] for card in found["cards"])


@pytest.mark.parametrize(
    ("psu", "verdict"),
    [
        (0, "unknown"), (850, "exceeded"), (999, "exceeded"), (1000, "peaks"), (1149, "peaks"),
        (1150, "peaks_possible"), (1369, "peaks_possible"), (1370, "ok"),
    ],
)
def test_every_verdict_at_its_edge(psu, verdict):
    found = budget([FAST, SLOW], psu, 200)
    assert found["verdict"] == verdict
    assert bool(found["advice"]) == (verdict != "ok")


def test_a_power_limit_lowers_the_average_and_not_the_peaks():
    before = budget([FAST, SLOW], 1300, 200)
    after = budget([{**FAST, "power_limit_watts": 300.0}, {**SLOW, "power_limit_enforced_watts": 250.0}], 1300, 200)
    assert after["steady_watts"] == 750
    assert after["peak_high_watts"] == before["peak_high_watts"]
    assert "a lower power limit does not stop peaks" in " ".join(after["advice"])


def test_limits_and_clocks_that_are_to_be_set_count():
    plan = {"RTX 4090": 315, "GPU-2": "280"}
    slow = {**SLOW, "id": "GPU-2"}
    assert budget([FAST, slow], 850, 200)["verdict"] == "exceeded"
    found = budget([FAST, slow], 850, 200, plan)
    assert (found["verdict"], found["steady_watts"]) == ("peaks", 795)
    assert "315 to be set + 280 to be set" in words(found)
    one = budget([FAST, slow], 850, 200, plan, {"RTX 4090": [210, 1550]})
    assert (one["verdict"], one["locked"]) == ("peaks", False)
    both = budget([FAST, slow], 850, 200, plan, {"RTX 4090": [210, 1550], "GPU-2": [210, 1550]})
    assert (both["verdict"], both["locked"]) == ("peaks_possible", True)
    assert "lock the clocks" not in " ".join(both["advice"]) and "locked clocks take off" in words(both)
    # a limit that is to be set does not help what it does not reach
    assert budget([FAST, slow], 700, 200, plan, plan)["verdict"] == "exceeded"
    with pytest.raises(UserError, match="is 'low': it must be a number of watts"):
        budget([FAST], 850, 200, {"RTX 4090": "low"})


def test_a_raised_limit_raises_the_peaks_to_itself():
    card = power_budget.card({**FAST, "power_limit_watts": 600.0}, None)
    assert (card["limit_watts"], card["peak_low_watts"], card["peak_high_watts"]) == (600, 600, 600)


def test_other_cards_get_the_ratios_of_the_known_ones():
    card = power_budget.card({"name": "NVIDIA GeForce RTX 5090", "power_limit_default_watts": 575.0}, None)
    assert (card["limit_watts"], card["peak_low_watts"], card["peak_high_watts"]) == (575, 639, 936)
    assert "assumed" in card["source"]
    # the 3090 Ti is no 3090
    card = power_budget.card({"name": "NVIDIA GeForce RTX 3090 Ti", "power_limit_watts": 450.0}, None)
    assert "assumed" in card["source"]


def test_a_card_without_a_limit_is_not_guessed():
    found = budget([FAST, {"name": "NVIDIA GeForce GT 1030", "power_limit_watts": None}], 500, 100)
    assert (found["verdict"], found["advice"]) == ("unknown", [])
    assert words(found) == "the draw of NVIDIA GeForce GT 1030 is not known"


def test_known_cards_need_no_driver():
    assert budget([{"name": "NVIDIA GeForce RTX 4090"}], 1000, 200)["steady_watts"] == 650


def test_advice_when_exceeded_names_what_the_cards_may_draw():
    assert budget([FAST, SLOW], 850, 200)["advice"][0] == "lower the cards' power limits to 650 W together"
    assert "gpu_power_rest_of_machine_watts" in budget([FAST], 150, 200)["advice"][0]
    assert "1400 W" in budget([FAST, SLOW], 0, 200)["advice"][0]


@pytest.mark.parametrize(
    ("verdict", "policy", "expected"),
    [
        ("exceeded", "warn", "warning"), ("exceeded", "fail", "error"), ("exceeded", "ignore", "note"),
        ("peaks", "fail", "error"), ("peaks_possible", "fail", "note"), ("unknown", "fail", "note"),
    ],
)
def test_severity(verdict, policy, expected):
    assert severity(verdict, policy) == expected


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="one of warn, fail, ignore, not 'maybe'"):
        severity("ok", "maybe")
    with pytest.raises(UserError, match="zero or more"):
        budget([FAST], -1, 200)
