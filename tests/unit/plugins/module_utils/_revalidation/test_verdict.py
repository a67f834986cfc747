# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Verdicts, on a described pair of cards: each thing that can go wrong, once."""

from __future__ import annotations

import copy
import itertools

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import baselines, next_load, verdict
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import allreduce, load_tests
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.described_pair import (
    DECODE,
    ENTRY,
    FAST,
    HOST,
    LIMITS,
    PREFILL,
    SETTINGS,
    SLOW,
    load,
    observed_host,
    probe,
    served,
    server,
)


@pytest.fixture
def observed():
    """A host on which all is as it was."""
    return observed_host()


def judged(observed, **settings):
    result = verdict.judge(observed, {**SETTINGS, **settings})
    return result, {check["name"]: check for check in result["checks"]}


def test_nothing_changed(observed):
    result, checks = judged(observed)
    assert (result["verdict"], result["accepted"], result["measured"], result["changes"]) == ("ok", True, False, [])
    assert {"cards", "server", "placement", "completion", "model", "memory", "power limits", "links"} <= set(checks)
    assert {check["verdict"] for check in checks.values()} == {"ok"}
    assert result["explanation"] is None and not result["advice"] and "holds" in result["summary"]


def test_cards_that_add_up_in_another_way_are_a_named_change(observed):
    before = {"asked": "nccl", "ran": "nccl", "transport": "SHM", "fallback": None}
    entry = {**observed["entry"], "split_mode": "tensor"}
    observed["entry"] = {**entry, "decision": {**entry["decision"], "tensor": {"allreduce": before}}}
    today = {**before, "transport": "NET"}
    observed["server"]["server"]["allreduce"] = before
    same, _said = judged(observed)
    assert "NCCL through host memory, as measured" in [check["detail"] for check in same["checks"]]
    observed["server"]["server"]["allreduce"] = today
    for place, seen in (("baseline", observed["entry"]), ("today", allreduce.with_seen(observed["entry"], today))):
        into = observed["baseline"]["configuration"] if place == "baseline" else observed["configuration"]
        into["allreduce"] = baselines.configuration(seen, "b", {}, {})["allreduce"]
    result, _said = judged(observed)
    (changed,) = [change for change in result["changes"] if change["part"] == "allreduce"]
    assert (changed["before"], changed["now"]) == ("NCCL through host memory", "NCCL through network sockets")
    (check,) = [check for check in result["checks"] if check["name"] == "all-reduce"]
    assert "and NCCL through host memory was measured" in check["detail"]


def test_the_timings_of_the_serving_instance_raise_suspicion(observed):
    assert next_load.step(observed, LIMITS)["suspicion"] is None
    observed["served"] = served(decode=1.08)
    assert "decode (generation) takes 8.0 % more time" in next_load.step(observed, LIMITS)["suspicion"]
    result, checks = judged(observed)
    assert result["verdict"] == "inconclusive" and not result["accepted"]
    assert checks["decode (generation)"]["change_percent"] == pytest.approx(8.0)
    assert any("revalidate_measure=true" in words for words in result["advice"])
    observed["served"] = None
    assert "cannot be compared" in next_load.step(observed, LIMITS)["suspicion"]


def test_a_measured_regression_of_one_card(observed):
    observed["loads"] = [load(number, decode=1.08, prefill=1.05) for number in (1, 2, 3)]
    observed["device_probe"] = probe(slow=1.15)
    result, checks = judged(observed)
    assert (checks["decode"]["verdict"], checks["prefill"]["verdict"], result["verdict"]) == ("regressed",) * 3
    assert checks["decode"]["change_percent"] == pytest.approx(8.0, abs=0.5)
    low, high = checks["decode"]["interval_percent"]
    assert low < 8 < high and low > 3
    why = result["explanation"]
    assert why["cause"] == "one_device" and "CUDA1" in why["detail"]
    assert [device["slower_in"] != [] for device in why["devices"]] == [False, True]
    assert "CUDA1 became 15.0 % slower against CUDA0 in generating" in result["retune"]


@pytest.mark.parametrize(
    ("now", "decode", "prefill", "cause"),
    [
        (probe(1.1, 1.1), 1.1, 1.1, "all_devices"),
        (probe(), 1.1, 1.0, "neither"),
        (probe(), 1.0, 1.1, "prefill_only"),
        (probe(fast=1.2), 1.1, 1.1, "one_device"),
        (None, 1.1, 1.1, "unknown"),
    ],
)
def test_what_each_device_alone_says_about_the_cause(observed, now, decode, prefill, cause):
    observed["loads"] = [load(number, decode=decode, prefill=prefill) for number in (1, 2, 3)]
    observed["device_probe"] = now
    observed["configuration"]["driver_version"] = "580.105.08"
    result, _checks = judged(observed)
    assert result["verdict"] == "regressed" and result["explanation"]["cause"] == cause
    assert "580.95.05 -> 580.105.08" in result["explanation"]["detail"]
    assert "driver_rollback" in " ".join(result["explanation"]["next"])


def test_faster_is_improved_and_noise_is_inconclusive(observed):
    observed["loads"] = [load(number, decode=0.9) for number in (1, 2, 3)]
    assert judged(observed)[0]["verdict"] == "improved"
    observed["loads"] = [load(1, decode=1.04), load(2, decode=0.99), load(3, decode=1.09)]
    result, checks = judged(observed)
    assert result["verdict"] == "inconclusive" and "smallest slowdown" in checks["decode"]["detail"]
    assert judged(observed, accept=["inconclusive"])[0]["accepted"]


def test_loads_are_asked_for_until_the_verdict_is_clear(observed):
    asked = []
    for number in itertools.count(1):
        following = next_load.step(observed, LIMITS)["load"]
        if following is None:
            break
        asked.append(following)
        observed["loads"].append(load(number, decode=1.1))
    assert [one["load"] for one in asked] == [1, 2]
    assert asked[0]["tests"] == [PREFILL, DECODE] and asked[0]["layers"] == [44, 37]
    observed["loads"] = []
    more = {**LIMITS, "baseline": True}
    for number in itertools.count(1):
        if next_load.step(observed, more)["load"] is None:
            break
        observed["loads"].append(load(number))
    assert len(observed["loads"]) == load_tests.LEAST_BASELINE_LOADS
    observed["loads"] = [load(number, decode=1 + 0.1 * (number % 2)) for number in range(1, 7)]
    assert next_load.step(observed, LIMITS)["load"] is None


def test_a_split_that_no_longer_loads_is_broken(observed):
    observed["loads"] = [load(1, status="out_of_memory", reason="CUDA1 lacks 300 MiB", results=[])]
    result, checks = judged(observed)
    assert result["verdict"] == "broken" and "CUDA1 lacks 300 MiB" in checks["speed"]["detail"]
    assert next_load.step(observed, LIMITS)["load"] is None
    observed["loads"], observed["failure"] = [], "the lease was lost"
    assert judged(observed)[1]["speed"]["verdict"] == "broken"


def test_a_lost_card_is_named_and_nothing_is_measured(observed):
    observed["gpus"]["gpus"].pop()
    observed["configuration"] = baselines.configuration(ENTRY, "b1", observed["gpus"], HOST)
    result, checks = judged(observed)
    assert (
        checks["cards"]["verdict"] == "broken"
        and SLOW in checks["cards"]["detail"]
        and "RTX 3090" in checks["cards"]["detail"]
    )
    assert {"part": f"card {SLOW}", "before": "NVIDIA GeForce RTX 3090", "now": None} in result["changes"]
    assert SLOW in next_load.step(observed, LIMITS)["blocked"]
    observed["gpus"] = {"available": False, "reason": "no driver", "gpus": []}
    assert "no driver" in judged(observed)[1]["cards"]["detail"]


def test_cards_that_swapped_their_slots_are_seen_and_are_no_fault(observed):
    observed["gpus"]["gpus"].reverse()
    for card, bus in zip(observed["gpus"]["gpus"], ("01", "02"), strict=True):
        card["pci_bus_id"] = bus
    observed["configuration"] = baselines.configuration(ENTRY, "b1", observed["gpus"], HOST)
    result, checks = judged(observed)
    assert "another order" in checks["cards"]["detail"] and result["verdict"] == "ok"
    assert {"order of the cards", f"pci_bus_id of {FAST}", f"pci_bus_id of {SLOW}"} == {
        c["part"] for c in result["changes"]
    }
    assert "accept=true" in result["advice"][0]


def test_a_server_with_layers_elsewhere_is_broken(observed):
    observed["server"]["deviations"] = ["The server placed [37, 44] layers on CUDA0, CUDA1; the facts say [44, 37]."]
    result, checks = judged(observed)
    assert result["verdict"] == "broken" and "[37, 44]" in checks["placement"]["detail"]


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"state": "failed", "last_lines": ["out of memory"]}, "server", "out of memory"),
        ({"needs_reload": True}, "server", "unit changed"),
    ],
)
def test_a_server_that_does_not_run_as_described(observed, change, name, words):
    observed["server"].update(change)
    result, checks = judged(observed)
    assert result["verdict"] == "broken" and words in checks[name]["detail"]


def test_an_answer_that_fails_and_a_replaced_model(observed):
    observed["completion"] = {"ok": False, "detail": "HTTP 500"}
    assert judged(observed)[1]["completion"]["verdict"] == "broken"
    observed["model"]["sha256"] = "b" * 64
    assert "bbbbbbbbbbbb" in judged(observed)[1]["model"]["detail"]
    assert "was replaced" in next_load.step(observed, LIMITS)["blocked"]
    observed["model"]["exists"] = False
    assert "not there" in judged(observed)[1]["model"]["detail"]


def test_a_driver_that_takes_a_gigabyte_more(observed):
    observed["server"] = server(free=(23700, 20300))
    result, checks = judged(observed)
    assert result["verdict"] == "regressed" and "less than the reserve" in checks["memory"]["detail"]
    observed["server"] = server(free=(23700, 20000))
    assert "does not fit" in judged(observed)[1]["memory"]["detail"]
    observed["server"] = server(loaded=(22880.0, 21200.0))
    assert "1120 more than before" in judged(observed)[1]["memory"]["detail"]
    # a box that had as little when it was tuned is as it was
    tight = server(loaded=(23300.0, 20080.0))
    observed["server"], observed["baseline"]["memory"] = tight, baselines.memory(ENTRY, tight["server"])
    assert judged(observed)[1]["memory"]["verdict"] == "ok"


def test_links_limits_and_heat_are_named_with_the_card(observed):
    observed["loads"] = [load(number, decode=1.1) for number in (1, 2)]
    observed["device_probe"] = probe(slow=1.25)
    for own in observed["loads"]:
        own["conditions"][SLOW]["pcie_generation"]["max"] = 1
        own["conditions"][SLOW]["throttle_reasons"] = ["sw_thermal_slowdown"]
    observed["gpus"]["gpus"][1]["power_limit_watts"] = 200.0
    observed["configuration"] = baselines.configuration(ENTRY, "b1", observed["gpus"], HOST)
    result, checks = judged(observed)
    assert "generation 1, was 4" in checks["links"]["detail"]
    assert "200 W, was 350 W" in checks["power limits"]["detail"]
    assert "sw_thermal_slowdown at up to 66 C" in checks["throttling"]["detail"]
    hints = result["explanation"]["devices"][1]["hints"]
    assert len(hints) == 3 and not result["explanation"]["devices"][0]["hints"]


def test_a_card_whose_prompts_alone_became_slower_is_named(observed):
    observed["loads"] = [load(number, prefill=1.4) for number in (1, 2)]
    now = probe()
    now["devices"][0]["prefill_tokens_per_second"] /= 1.8
    observed["device_probe"] = now
    observed["gpus"]["gpus"][0]["power_limit_watts"] = 200.0
    result, checks = judged(observed)
    assert checks["decode"]["verdict"] == "ok" and checks["prefill"]["verdict"] == "regressed"
    why = result["explanation"]
    assert why["cause"] == "one_device" and "power limits: NVIDIA GeForce RTX 4090 200 W" in why["detail"]
    assert "CUDA0 became 80.0 % slower against CUDA1 in prompts" in result["retune"]


def test_one_card_far_behind_is_the_cause_although_all_are_a_little_slower(observed):
    observed["loads"] = [load(number, decode=2.5, prefill=2.0) for number in (1, 2)]
    observed["device_probe"] = probe(fast=1.1, slow=6.0)
    why = judged(observed)[0]["explanation"]
    assert why["cause"] == "one_device" and [device["slower_in"] != [] for device in why["devices"]] == [False, True]
    observed["device_probe"] = probe(fast=1.12, slow=1.15)
    assert judged(observed)[0]["explanation"]["cause"] == "all_devices"


def test_heat_that_cost_nothing_is_no_regression(observed):
    observed["loads"] = [load(number) for number in (1, 2)]
    observed["loads"][1]["conditions"][SLOW]["throttle_reasons"] = ["sw_thermal_slowdown"]
    result, checks = judged(observed)
    assert result["verdict"] == "ok" and "no speed fell by it" in checks["throttling"]["detail"]


def test_what_ended_measuring_counts_more_than_what_was_measured(observed):
    observed["loads"], observed["failure"] = [load(1)], "the lease was replaced"
    result, checks = judged(observed)
    assert result["verdict"] == "broken" and "the lease was replaced" in checks["speed"]["detail"]
    observed["failure"] = None
    assert judged(observed)[1]["decode"]["verdict"] == "inconclusive"


def test_a_rotated_journal_is_no_fault_of_the_split(observed):
    observed["server"]["server"]["complete"] = False
    observed["server"]["deviations"] = ["The journal does not hold the lines of its start."]
    result, checks = judged(observed)
    assert (result["verdict"], checks["placement"]["verdict"]) == ("inconclusive", "inconclusive")
    assert "journal" in next_load.step(observed, LIMITS)["suspicion"]


def test_a_busy_server_that_does_not_answer_is_not_broken(observed):
    observed["completion"] = {"ok": False, "detail": "no answer within 600 s"}
    observed["busy"] = {"busy": True, "why": "4 requests"}
    assert judged(observed)[1]["completion"]["verdict"] == "inconclusive"


def test_a_device_that_fails_alone_is_broken(observed):
    observed["loads"] = [load(number) for number in (1, 2)]
    observed["device_probe"] = {**probe(), "failure": "CUDA1 failed alone: Xid 79"}
    result, checks = judged(observed)
    assert result["verdict"] == "broken" and "Xid 79" in checks["devices alone"]["detail"]


def test_limits_from_a_command_line_are_texts(observed):
    texts = {"tolerance_percent": "3", "least_loads": "2", "most_loads": "2", "baseline": False}
    assert next_load.step(observed, texts)["load"]["load"] == 1
    observed["loads"] = [load(1), load(2)]
    assert next_load.step(observed, texts)["load"] is None


def test_of_a_failed_loop_its_first_failed_item_speaks():
    looped = {"msg": "One or more items failed", "results": [{"failed": False}, {"failed": True, "msg": "no room"}]}
    assert verdict.failure_text(looped) == "no room"
    assert verdict.failure_text({"msg": ["a", "b"]}) == "a b" and verdict.failure_text("x") == "x"
    assert "without a word" in verdict.failure_text({})


def test_without_a_baseline_there_is_no_verdict_but_a_way_to_one(observed):
    observed["baseline"] = None
    result, checks = judged(observed)
    assert result["verdict"] == "inconclusive" and "accept=true" in checks["baseline"]["detail"]
    following = next_load.step(observed, {**LIMITS, "baseline": True})
    assert following["blocked"] is None and following["load"]["load"] == 1
    assert "no baseline" in next_load.step(observed, LIMITS)["blocked"]


def test_the_worst_of_ten_hosts_decides(observed):
    recorded = {}
    for number in range(10):
        result = copy.deepcopy(judged(observed)[0])
        recorded[f"box{number}"] = {**result, "host": f"box{number}"}
    together = verdict.together(recorded, [])
    assert together["accepted"] and together["verdict"] == "ok" and len(together["hosts"]) == 10
    observed["loads"] = [load(number, decode=1.1) for number in (1, 2)]
    recorded["box7"] = judged(observed)[0]
    together = verdict.together(recorded, [])
    assert not together["accepted"] and together["verdict"] == "regressed"
    assert verdict.together(recorded, ["box10"])["verdict"] == "broken"
    recorded["box8"] = verdict.broken("box8", "now", "no record", None)
    assert verdict.together(recorded, [])["verdict"] == "broken"
    assert not verdict.together({}, [])["accepted"]


def test_the_table_says_everything_in_words(observed):
    observed["loads"] = [load(number, decode=1.1) for number in (1, 2)]
    observed["device_probe"] = probe(slow=1.25)
    observed["configuration"]["kernel"] = "6.8.0-101-generic"
    lines = "\n".join(judged(observed)[0]["lines"])
    for words in (
        "box: REGRESSED (not accepted)",
        "changed: kernel: 6.8.0-90-generic -> 6.8.0-101-generic",
        "why: CUDA1",
        "next: ",
    ):
        assert words in lines


def test_every_stated_change_has_its_interval(observed):
    observed["served"] = served(decode=1.08)
    suspicion = next_load.step(observed, LIMITS)["suspicion"]
    assert "8.0 % more time (98 % interval of the repetitions 8.0 to 8.0 %)" in suspicion
    observed["loads"] = [load(number, decode=1.2, prefill=1.2) for number in (1, 2, 3)]
    observed["device_probe"] = probe(1.2, 1.5)
    result, _checks = judged(observed)
    for line in result["lines"]:
        stated = sum(line.count(words) for words in ("more time", "less time", "% slower"))
        assert stated == line.count("interval"), line


@pytest.mark.parametrize("fast", [0.9, 0.97, 1.0, 1.02])
@pytest.mark.parametrize("slow", [0.9, 1.0, 1.02, 1.1, 1.5])
def test_a_device_that_is_called_slower_is_slower(observed, fast, slow):
    observed["loads"] = [load(number, decode=1.2) for number in (1, 2, 3)]
    observed["device_probe"] = probe(fast, slow)
    why = judged(observed)[0]["explanation"]
    assert why["cause"] == ("one_device" if slow > 1.03 else "neither")
    for device in why["devices"]:
        for kind in device["slower_in"]:
            assert device[f"{kind}_interval_percent"][0] > 0


def test_a_device_slower_in_prompts_is_no_cause_of_slow_generation(observed):
    observed["loads"] = [load(number, decode=1.2) for number in (1, 2, 3)]
    observed["device_probe"] = probe(0.914, 0.914)  # 8.6 % less time per token
    for row in observed["device_probe"]["devices"]:
        row["prefill_tokens_per_second"] *= 0.7
    why = judged(observed)[0]["explanation"]
    assert why["cause"] == "neither" and "every device" not in why["detail"]


def test_a_server_that_does_not_run_has_no_memory(observed):
    observed["server"] = server(state="failed", reason="out of memory")
    assert "memory" not in judged(observed)[1]


def test_a_server_without_its_lender_is_neither_as_recorded_nor_broken(observed):
    sentence = "It serves without lender 192.168.1.7 since 12:30, 9 % slower by the fit."
    observed["server"]["without_lenders"] = {"absent": ["192.168.1.7:1"], "waits": False, "sentence": sentence}
    result, checks = judged(observed)
    assert result["verdict"] == "inconclusive" and not result["measured"]
    assert checks["lenders"]["detail"] == f"it{sentence[2:-1]}; its speed is not compared"
    assert {check["verdict"] for name, check in checks.items() if name != "lenders"} == {"ok"}
    # neither speed nor memory of another placement is compared, and where layers are is not said to be as recorded
    assert set(checks) == {"lenders", "cards", "server", "completion", "model"}
    observed["server"]["deviations"] = ["The server placed other layers."]
    assert judged(observed)[0]["verdict"] == "broken"
