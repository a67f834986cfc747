# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The loads that a baseline is made of."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import baseline_stage
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.described_pair import (
    DECODE,
    ENTRY,
    PREFILL,
    load,
    problem,
)


def test_a_baseline_takes_the_loads_of_the_tuning_and_asks_for_more():
    loads = [load(1), load(2), load(1, layers=[40, 41]), load(3, status="crashed", results=[], reason="no")]
    step = baseline_stage.step(problem(), ENTRY["decision"], loads, 6, 3.0)
    assert not step["done"] and len(step["reference"]) == 2
    (asked,) = step["loads"]
    assert (asked["load"], asked["layers"], asked["purpose"], asked["tests"]) == (
        4,
        [44, 37],
        "baseline",
        [PREFILL, DECODE],
    )
    done = baseline_stage.step(problem(), ENTRY["decision"], [*loads, load(4, purpose="baseline")], 6, 3.0)
    assert done["done"] and not done["loads"] and len(done["reference"]) == 3
    assert set(done["smallest_visible_percent"]) == {"decode", "prefill"} and "can see a slowdown" in done["why"]


def test_a_noisy_split_is_repeated_until_the_limit():
    loads = [load(number, decode=1 + 0.05 * (number % 2)) for number in range(1, 6)]
    step = baseline_stage.step(problem(), ENTRY["decision"], loads, 6, 3.0)
    assert not step["done"] and "decode" in step["why"]
    assert baseline_stage.step(problem(), ENTRY["decision"], [*loads, load(6)], 6, 3.0)["done"]


def test_a_baseline_is_measured_as_the_split_is_served():
    decision = {**ENTRY["decision"], "micro_batch_size": 256}
    step = baseline_stage.step(problem(), decision, [load(1), load(2), load(3)], 6, 3.0)
    assert not step["reference"] and step["loads"][0]["load"] == 4
    assert [test.get("micro_batch_size") for test in step["loads"][0]["tests"]] == [256, None]
    small = load(4, purpose="micro_batch")
    small["results"][0]["micro_batch_size"] = 256
    small["results"].append({**load(1)["results"][0], "micro_batch_size": 1024})
    (reference,) = baseline_stage.step(problem(), decision, [small], 6, 3.0)["reference"]
    assert [result["kind"] for result in reference["results"]] == ["prefill", "decode"]
    assert all("micro_batch_size" not in result for result in reference["results"])


def test_disturbed_loads_other_modes_and_trials_are_left_out():
    decision = {**ENTRY["decision"], "table": [{"layers": [44, 37], "disturbed_loads": [2]}]}
    loads = [
        load(1),
        load(2),
        load(3, split_mode="tensor"),
        load(4, environment={"A": "1"}),
        load(5, purpose="tensor_trial"),
    ]
    assert [own["load"] for own in baseline_stage.step(problem(), decision, loads, 6, 3.0)["reference"]] == [1]


def test_a_split_that_fails_when_it_is_repeated_ends_the_baseline():
    failed = load(3, status="out_of_memory", reason="no room", results=[], purpose="baseline")
    step = baseline_stage.step(problem(), ENTRY["decision"], [load(1), load(2), failed], 6, 3.0)
    assert step["done"] and "no room" in step["why"] and len(step["reference"]) == 2
    with pytest.raises(ValueError, match="at least one load"):
        baseline_stage.step(problem(), ENTRY["decision"], [], 0, 3.0)


def test_a_load_beside_something_else_is_measured_again_and_twice_at_most():
    seen = {
        "seconds": 30.0, "cpus": 4, "others_percent": 50.0, "top": {"name": "stress", "cpus": 2.0}, "cards": {},
        "unseen_percent": 2.0, "steal_percent": 0.0, "cpu_waiting_percent": 60.0, "memory_stalled_percent": 0.0,
    }  # fmt: skip
    loads = [load(1), load(2, contention=seen), load(3)]
    step = baseline_stage.step(problem(), ENTRY["decision"], loads, 6, 3.0)
    assert [own["load"] for own in step["reference"]] == [1, 3] and step["loads"][0]["load"] == 4
    loads += [load(4, purpose="baseline", contention=seen)]
    assert baseline_stage.step(problem(), ENTRY["decision"], loads, 6, 3.0)["loads"][0]["load"] == 5
    calm = baseline_stage.step(problem(), ENTRY["decision"], [*loads, load(5, purpose="baseline")], 6, 3.0)
    assert calm["done"] and [own["load"] for own in calm["reference"]] == [1, 3, 5]
    loads += [load(5, purpose="baseline", contention=seen)]
    given_up = baseline_stage.step(problem(), ENTRY["decision"], loads, 5, 3.0)
    assert given_up["done"] and [own["load"] for own in given_up["reference"]] == [1, 2, 3, 4, 5]


def test_with_experts_in_ram_only_loads_of_that_placement_count():
    experts = {"kind": "experts", "blocks": [0], "partial": None, "threads": 8, "no_host": False, "override": ""}
    decision = {**ENTRY["decision"], "experts_in_ram": experts, "tests": [PREFILL, DECODE]}
    scan = [{**DECODE, "threads": 4}, {**DECODE, "threads": 8}]
    loads = [load(1, experts_in_ram=experts), load(2), load(3, experts_in_ram={**experts, "threads": 4}),
             load(4, experts_in_ram=experts, tests=scan)]  # fmt: skip
    step = baseline_stage.step(problem(), decision, loads, 6, 3.0)
    assert [own["load"] for own in step["reference"]] == [1]
    assert step["loads"][0]["experts_in_ram"] == experts and step["loads"][0]["tests"] == [PREFILL, DECODE]
    # and without experts none of those with
    dense = baseline_stage.step(problem(), ENTRY["decision"], loads, 6, 3.0)
    assert [own["load"] for own in dense["reference"]] == [2]
