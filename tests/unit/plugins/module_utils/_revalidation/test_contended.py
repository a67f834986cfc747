# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A host on which something else computes: nothing is accused, and nothing of it becomes a baseline."""

import itertools

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import (
    contended,
    next_load,
    upgrade_words,
    verdict,
)
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.described_pair import (
    LIMITS,
    SETTINGS,
    baseline,
    load,
    observed_host,
    probe,
    served,
)
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.interrupted_upgrades import at
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.test_campaign import (
    AGAIN,
    LOOK,
    Host,
    play,
)

CALM = {
    "seconds": 30.0, "cpus": 4, "others_percent": 1.0, "top": {"name": "sshd", "cpus": 0.02}, "unseen_percent": 2.0,
    "steal_percent": 0.0, "cpu_waiting_percent": 60.0, "memory_stalled_percent": 0.0, "cards": {},
}  # fmt: skip
BUSY = {**CALM, "others_percent": 50.0, "top": {"name": "stress", "cpus": 2.0}}
STOLEN = {**CALM, "steal_percent": 20.0}
CARD = {"name": "blender", "memory_mib": 900, "gpu_percent": 60.0}
SHARED = {**CALM, "cards": {"GPU-2222": {"processes": [CARD], "clocks_held_down": []}}}
SENTENCE = "something else computes (stress 2.0 of 4 CPUs): wait or stop it"


@pytest.fixture
def observed():
    return observed_host()


def slow(number, seen, decode=1.66):
    return load(number, decode=decode, prefill=decode, contention=seen)


@pytest.mark.parametrize(("seen", "name"), [(BUSY, "stress"), (STOLEN, "other machines"), (SHARED, "blender")])
@pytest.mark.parametrize("alone", [None, probe(), probe(1.2, 1.2), probe(fast=1.5), probe(fast=0.9, slow=1.1)])
@pytest.mark.parametrize("factor", [1.66, 1.04])
def test_slow_beside_something_else_is_inconclusive_and_has_no_cause(observed, seen, name, alone, factor):
    observed["loads"] = [slow(number, seen, factor) for number in (1, 2)]
    observed["device_probe"] = alone
    result = verdict.judge(observed, SETTINGS)
    assert result["verdict"] == "inconclusive" and not result["accepted"]
    assert result["explanation"] is None and result["retune"] is None
    assert result["contended"].startswith("something else computes (") and name in result["contended"]
    said = " ".join(result["lines"])
    assert result["contended"] in result["summary"]
    assert not any(words in said for words in ("link between", "every device", "is slower", "regressed"))


def test_the_same_times_without_contention_are_a_regression(observed):
    observed["loads"] = [slow(number, CALM) for number in (1, 2)]
    result = verdict.judge(observed, SETTINGS)
    assert result["verdict"] == "regressed" and result["contended"] is None


@pytest.mark.parametrize("mask", list(itertools.product([CALM, BUSY], repeat=3)))
def test_two_calm_loads_are_enough_and_contended_ones_do_not_count(observed, mask):
    observed["loads"] = [
        slow(number, seen, 1.0 if seen is CALM else 1.66) for number, seen in enumerate(mask, start=1)
    ]
    result = verdict.judge(observed, SETTINGS)
    assert result["verdict"] == ("ok" if mask.count(CALM) >= 2 else "inconclusive")


def test_a_speed_that_holds_in_spite_of_it_holds(observed):
    observed["loads"] = [slow(number, BUSY, 1.0) for number in (1, 2)]
    result = verdict.judge(observed, SETTINGS)
    assert result["verdict"] == "ok" and result["contended"] == SENTENCE


def test_what_is_broken_is_broken_in_spite_of_it(observed):
    observed["loads"] = [load(1, status="out_of_memory", reason="out of memory", results=[], contention=BUSY)]
    result = verdict.judge(observed, SETTINGS)
    assert result["verdict"] == "broken" and result["contended"] is None


def test_a_probe_in_contention_names_no_device(observed):
    observed["loads"] = [slow(number, CALM) for number in (1, 2)]
    observed["device_probe"] = probe(1.2, 1.2)
    observed["contention"]["probe"] = [CALM, BUSY]
    assert verdict.judge(observed, SETTINGS)["explanation"]["cause"] == "unknown"


def test_measuring_ends_after_two_contended_loads(observed):
    observed["loads"] = [slow(1, BUSY)]
    assert next_load.step(observed, LIMITS)["load"]["load"] == 2
    observed["loads"].append(slow(2, BUSY))
    assert next_load.step(observed, LIMITS)["load"] is None


def test_a_contended_load_is_measured_again(observed):
    observed["loads"] = [slow(1, CALM, 1.0), slow(2, BUSY)]
    assert next_load.step(observed, LIMITS)["load"]["load"] == 3
    observed["loads"].append(slow(3, CALM, 1.0))
    assert next_load.step(observed, LIMITS)["load"] is None
    assert [one["load"] for one in contended.judged_loads(observed["loads"])] == [1, 3]


def test_a_busy_host_is_not_measured_unless_asked():
    host = Host(served={"tests": served(decode=1.5), "contention": BUSY})
    result = play(host).result
    assert host.asked == LOOK and not host.leases
    assert result["lines"][0] == f"Nothing is measured now: {SENTENCE}."
    assert result["revalidation"]["verdict"] == "inconclusive" and SENTENCE in result["revalidation"]["summary"]
    assert not any("revalidate_measure=true" in words for words in result["revalidation"]["advice"])


def measured(seen):
    return lambda step: {"load": {**slow(step.args["load"]["load"], seen), **step.args["load"]}}


def test_a_contended_measurement_is_short_and_no_baseline():
    host = Host(split_benchmark=measured(BUSY))
    result = play(host, replace_baseline=True).result
    assert host.asked == [*LOOK, "devices", "load 1", "load 2", *AGAIN]
    assert SENTENCE in result["accepted"]["obstacle"] and "The baseline stays that of" in result["accepted"]["obstacle"]


def test_a_baseline_has_calm_loads_alone():
    def measure(step):
        return measured(BUSY if step.args["load"]["load"] == 2 else CALM)(step)

    result = play(Host(split_benchmark=measure), replace_baseline=True).result
    assert result["accepted"]["obstacle"] is None
    assert [one["load"] for one in result["accepted"]["loads"]] == [1, 3, 4]


def test_timings_of_a_contended_server_complete_no_baseline():
    host = Host(served={"tests": served(), "contention": BUSY})
    assert play(host, replace_baseline=True).result["accepted"]["completions"]["tests"] is None


def test_an_upgrade_says_what_to_stop(observed):
    observed["loads"] = [slow(number, BUSY) for number in (1, 2)]
    result = verdict.judge(observed, SETTINGS)
    before = upgrade_words.not_as_its_baseline("box", result)
    assert before.startswith("box cannot be compared with its baseline now") and before.endswith(f"{SENTENCE}.")
    assert "tune it again" not in before
    after = upgrade_words.not_judged(at("revalidating")["under_way"], result)
    assert SENTENCE in after and "-e upgrade_on_resume=rollback" in after


def test_a_host_that_always_computes_for_others_can_be_judged():
    host = Host(served={"tests": served(decode=1.5), "contention": BUSY}, split_benchmark=measured(BUSY))
    result = play(host, ignore_contention=True, max_loads=3).result["revalidation"]
    assert "load 1" in host.asked and result["verdict"] == "regressed" and result["contended"] is None


def test_loads_of_a_baseline_beside_something_else_do_not_count():
    def described(loads):
        host = Host()
        known = {**host._revalidation_info(None), "baseline": baseline(loads)}
        return Host(host=known)

    slow_ones = [slow(number, BUSY, 1.5) for number in (1, 2, 3)]
    mixed = play(described([*slow_ones, *(load(number) for number in (4, 5, 6))]), measure="true").result
    assert mixed["revalidation"]["verdict"] == "ok"
    all_slow = play(described(slow_ones), measure="true").result["revalidation"]
    assert all_slow["verdict"] == "inconclusive" and "no calm load" in all_slow["summary"]
    ignored = play(described(slow_ones), measure="true", ignore_contention=True).result["revalidation"]
    assert ignored["verdict"] == "improved"
