# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Diagnoses of made-up and recorded runs."""

from __future__ import annotations

import copy
import json
import math
import pathlib
import random

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._diagnosis import diagnosis, expected, lines
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._diagnosis.observed import observe
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment, placement

FIXTURES = pathlib.Path(__file__).resolve().parents[4] / "fixtures"
PAIR = deployment.expand(json.loads((FIXTURES / "report" / "mixed_70b.json").read_text(encoding="utf-8"))["entry"])
FAST, SLOW = (device["id"] for device in PAIR["devices"])
READY = {"state": "ready", "deviations": [], "last_lines": [], "reason": ""}
NO_CARDS = {"available": False, "reason": None, "gpus": []}


def block(entry, phase, stretch=(1.0, 1.0), waiting=(0.0, 0.0), noise=0.0, rng=None, lost=0.0, seen=None):
    """One block of a phase as the physics has it: each device's time times its stretch, and what belongs to none."""
    rng = rng or random.Random(1)
    model = expected.expected(entry, phase["kind"], phase["prompt_tokens"])
    own = [ms * s * math.exp(rng.gauss(0, noise)) for ms, s in zip(model.busy_ms, stretch, strict=True)]
    stages = [ms / model.batches for ms in own]
    unit_ms = model.of_sum * sum(stages) + model.of_max * max(stages) + lost
    units = 4 * (phase["generated_tokens"] if phase["kind"] == "decode" else 1)
    devices = {
        device["id"]: {"busy_ms": ms * units, "waiting_ms": ms * units * wait}
        for device, ms, wait in zip(entry["devices"], own, waiting, strict=True)
        if seen is None or device["id"] in seen
    }
    return {"requests": 4, "ms": unit_ms * units, "wall_ms": unit_ms * units * 1.01, "devices": devices}


def watch(entry, blocks=4, seen_as="nvml", seed=1, **physics):
    """What server_under_load.watch returns of such a server."""
    rng = random.Random(seed)
    phases = [
        {
            **phase,
            "skipped_reason": None,
            "overlapped": 0,
            "cards": {},
            "blocks": [block(entry, phase, rng=rng, **physics) for _one in range(blocks)],
        }
        for phase in expected.phases(entry, 2.0)
    ]
    devices = [
        {
            "device": device["device"],
            "id": device["id"],
            "seen": seen_as,
            "reason": None,
            "pid": 7,
            "unit": "rpc.service",
            "cpu_quota_percent": None,
        }
        for device in entry["devices"]
    ]
    return {"busy": None, "devices": devices, "phases": phases, "gpus": NO_CARDS, "xid_events": [], "kernel_lines": []}


def diagnose(entry, watched, server=None, baseline="", tolerance=10.0):
    result = diagnosis.diagnose(entry, watched, server or READY, baseline, tolerance, (), "")
    assert json.loads(json.dumps(result)) == result
    assert all(len(line) <= 100 for line in lines.table(result))
    return result


def found(result, kind):
    return [one for one in result["findings"] if one["kind"] == kind]


def row(result, kind, device):
    (phase,) = [phase for phase in result["phases"] if phase["kind"] == kind]
    return next(own for own in phase["devices"] if own["id"] == device)


# --- verdicts ---


def test_a_server_that_works_as_recorded_is_ok_and_keeps_its_layers():
    result = diagnose(PAIR, watch(PAIR, noise=0.003))
    assert result["verdict"] == "ok"
    assert [one for one in result["findings"] if one["severity"] != "ok"] == []
    assert row(result, "decode", FAST)["share_percent"] == pytest.approx(51.2, abs=1)
    assert row(result, "decode", SLOW)["ms_per_layer"] > row(result, "decode", FAST)["ms_per_layer"]
    assert result["advice"]["moves"] == []
    assert result["advice"]["why"].startswith("nothing to move: 44/37 is the best that fits")
    assert "one layer more on CUDA0 would be faster and does not fit" in result["advice"]["why"]


def test_the_slowed_device_is_named_and_the_other_is_not():
    result = diagnose(PAIR, watch(PAIR, stretch=(1.0, 1.4), noise=0.005))
    assert result["verdict"] == "problem"
    (slower,) = found(result, "slower")
    assert slower["subject"] == "CUDA1"
    assert "per token" in slower["detail"] and "per prompt" in slower["detail"]
    assert row(result, "decode", SLOW)["change_percent"] == pytest.approx(40, abs=2)
    assert row(result, "decode", FAST)["verdict"] == "as_recorded"
    assert result["advice"]["costs"] == "today"


def test_time_that_belongs_to_no_device_is_spread_as_the_fit_spreads_it():
    """The fit's cost of a layer contains hops and launches; a card whose utilisation leaves them out is not faster."""
    gaps = watch(PAIR, noise=0.003)
    for phase in gaps["phases"]:
        for one in phase["blocks"]:
            for spent in one["devices"].values():
                spent["busy_ms"] *= 0.8
    result = diagnose(PAIR, gaps)
    assert {own["verdict"] for phase in result["phases"] for own in phase["devices"]} == {"as_recorded"}
    assert (
        row(result, "decode", FAST)["utilisation_percent"] < row(result, "decode", FAST)["expected_utilisation_percent"]
    )


def test_everything_slower_blames_no_device_alone():
    result = diagnose(PAIR, watch(PAIR, stretch=(1.3, 1.3)))
    assert {one["subject"] for one in found(result, "slower")} == {"CUDA0", "CUDA1"}
    assert result["phases"][0]["verdict"] == "slower"


def test_time_that_is_lost_on_no_device_is_the_splits():
    watched = watch(PAIR, noise=0.6, seed=3)  # nobody can tell who works how long
    for one in watched["phases"][0]["blocks"]:
        one["ms"] = 1.6 * expected.expected(PAIR, "decode", 1).ms * 4 * watched["phases"][0]["generated_tokens"]
    result = diagnose(PAIR, watched)
    (slower,) = found(result, "slower")
    assert slower["subject"] == "the split"
    assert "decode takes 60 % more time than recorded" in slower["detail"]
    assert result["verdict"] == "problem"


def test_noise_is_called_noise():
    result = diagnose(PAIR, watch(PAIR, noise=0.25))
    assert result["verdict"] == "within_noise"
    assert "within noise" in result["summary"]
    assert found(result, "slower") == []
    assert result["advice"]["costs"] == "record"


def test_one_block_says_nothing():
    result = diagnose(PAIR, watch(PAIR, blocks=1, stretch=(1.0, 3.0)))
    assert result["verdict"] == "within_noise"
    assert row(result, "decode", SLOW)["interval_percent"] is None


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.1, 0.3])
def test_false_alarms_are_rare_however_noisy_it_is(noise):
    watched = (watch(PAIR, seed=seed, noise=noise) for seed in range(150))
    results = ([observe(PAIR, phase, 10.0) for phase in one["phases"]] for one in watched)
    alarms = sum(
        "slower" in {own["verdict"] for phase in phases for own in (phase, *phase["devices"])} for phases in results
    )
    assert alarms <= 6  # 4 %


def test_a_quarter_on_one_device_is_found_at_the_usual_noise():
    hits = 0
    for seed in range(100):
        phase = watch(PAIR, seed=seed, stretch=(1.0, 1.25), noise=0.03)["phases"][0]
        verdicts = {own["device"]: own["verdict"] for own in observe(PAIR, phase, 10.0)["devices"]}
        hits += verdicts["CUDA1"] == "slower" and verdicts["CUDA0"] != "slower"
    assert hits >= 95


def test_the_records_own_noise_counts():
    entry = copy.deepcopy(PAIR)
    entry["decision"]["fit"]["decode_residual_percent"] = 60.0
    result = diagnose(entry, watch(entry, stretch=(1.0, 1.4)))
    assert row(result, "decode", SLOW)["verdict"] == "within_noise"


# --- causes ---


def test_a_device_that_waits_for_a_cpu_is_named_and_not_told_to_give_layers_away():
    watched = watch(PAIR, seen_as="process", stretch=(1.0, 3.0), waiting=(0.02, 0.67))
    result = diagnose(PAIR, watched)
    (waiting,) = found(result, "waiting")
    assert (waiting["subject"], waiting["severity"]) == ("CUDA1", "problem")
    assert "67 % of its decode" in waiting["detail"] and "rpc.service" in waiting["detail"]
    assert "waiting for a CPU included" in found(result, "slower")[0]["detail"]
    assert result["summary"].startswith("CUDA1: its process")
    assert result["advice"]["costs"] == "record"


def test_a_busy_machine_is_no_fault_of_a_device():
    watched = watch(PAIR, seen_as="process", stretch=(3.0, 3.0), waiting=(0.67, 0.7))
    result = diagnose(PAIR, watched)
    (waiting,) = found(result, "waiting")
    assert waiting["subject"] == "the machine"
    assert [one for one in found(result, "slower") if one["severity"] == "problem"] == []


def test_a_cpu_quota_is_found_even_if_nothing_waits():
    watched = watch(PAIR, seen_as="process")
    watched["devices"][1]["cpu_quota_percent"] = 50.0
    (waiting,) = found(diagnose(PAIR, watched), "waiting")
    assert waiting["subject"] == "CUDA1" and "CPU quota of 50 %" in waiting["detail"]
    assert "CPUQuota" in waiting["cure"]


def test_a_remote_device_is_not_seen_and_gets_what_is_left():
    watched = watch(PAIR, seen=[FAST])
    watched["devices"][1].update(seen=None, reason="it is on another host")
    result = diagnose(PAIR, watched)
    assert found(result, "seen")[0]["detail"] == "not seen: it is on another host"
    remote = row(result, "decode", SLOW)
    assert remote["seen"] is False and remote["utilisation_percent"] is None
    assert remote["ms"] == pytest.approx(37 * 0.742, rel=0.01)
    assert row(result, "prefill", SLOW)["ms"] is None
    # busy time leaves out gaps, so without the other's share nobody is compared; the whole is
    assert {own["verdict"] for phase in result["phases"] for own in phase["devices"]} == {"not_seen"}
    assert result["phases"][0]["verdict"] == "as_recorded"


def test_in_tensor_mode_busy_times_are_told_as_they_are():
    entry = copy.deepcopy(PAIR)
    watched = watch(entry)
    entry["split_mode"] = entry["decision"]["split_mode"] = "tensor"
    decode = row(diagnose(entry, watched), "decode", FAST)
    assert decode["ms"] == pytest.approx(44 * 0.655, abs=0.01) and decode["verdict"] == "not_seen"


def test_a_lender_that_is_absent_is_named_with_a_cure():
    sentence = "It serves without lender 192.168.1.7 since 12:30."
    without = {"absent": ["192.168.1.7:50052"], "waits": False, "sentence": sentence}
    result = diagnose(PAIR, {**watch(PAIR), "phases": []}, {**READY, "without_lenders": without})
    (one,) = found(result, "absent")
    assert (one["severity"], one["detail"]) == ("problem", sentence) and "ggml-rpc-server" in one["cure"]
    assert result["verdict"] == "problem"


def test_a_server_elsewhere_than_planned_stopped_or_busy_is_said():
    placed = {**READY, "deviations": ["The server placed [40, 41] layers; the facts say [44, 37]."]}
    assert "placed" in found(diagnose(PAIR, watch(PAIR), placed), "placement")[0]["detail"]
    nothing = {**watch(PAIR), "phases": []}
    reason = "llama-server.service is not started any more, because it ended after each of 10 starts."
    stopped = diagnose(PAIR, nothing, {"state": "failed", "last_lines": ["out of memory"], "reason": reason})
    assert stopped["verdict"] == "problem" and "out of memory" in stopped["summary"]
    assert "ended after each of 10 starts" in stopped["summary"]
    busy = watch(PAIR, blocks=0)
    busy["busy"] = "the server was busy"
    for phase in busy["phases"]:
        phase["skipped_reason"] = busy["busy"]
    result = diagnose(PAIR, busy)
    assert (result["verdict"], result["summary"]) == ("busy", "the server was busy")
    assert "\n".join(lines.table(result)).count("the server was busy") == 1


def test_a_server_that_dies_meanwhile_is_a_problem():
    watched = watch(PAIR, blocks=0)
    for phase in watched["phases"]:
        phase["skipped_reason"] = "http://127.0.0.1:8080/completion: the server broke off"
    assert "broke off" in found(diagnose(PAIR, watched), "load")[0]["detail"]


def test_a_record_at_depth_0_is_compared_with_short_requests():
    result = diagnose(PAIR, watch(PAIR, noise=0.003))
    assert [phase["depth_tokens"] for phase in result["phases"]] == [0, 0]
    assert {own["verdict"] for phase in result["phases"] for own in phase["devices"]} == {"as_recorded"}
    assert "depth" not in " ".join(lines.table(result))


def test_the_test_at_the_depth_of_the_objective_counts():
    entry = copy.deepcopy(PAIR)
    known = entry["fingerprint_parts"]["tests"]
    entry["fingerprint_parts"]["tests"] = [{**test, "n_depth": 9000} for test in known] + known
    result = diagnose(entry, watch(entry, noise=0.003))
    assert [phase["depth_tokens"] for phase in result["phases"]] == [0, 0]


def test_a_record_of_depth_is_not_compared_with_short_requests():
    entry = copy.deepcopy(PAIR)
    for test in entry["fingerprint_parts"]["tests"]:
        test["n_depth"] = 4096
    result = diagnose(entry, watch(entry, stretch=(0.5, 0.5)))
    assert {own["verdict"] for phase in result["phases"] for own in phase["devices"]} == {"not_seen"}
    assert result["phases"][0]["depth_tokens"] == 4096


def test_without_a_fit_or_in_tensor_mode_there_is_an_answer():
    entry = copy.deepcopy(PAIR)
    watched = watch(entry)
    entry["decision"]["fit"] = None
    result = diagnose(entry, watched)
    assert result["verdict"] == "ok" and "no fit" in result["summary"]
    assert "the record does not tell" in result["advice"]["why"]
    entry["split_mode"] = entry["decision"]["split_mode"] = "tensor"
    assert "no layers to move" in diagnose(entry, watched)["advice"]["why"]


def test_a_damaged_baseline_is_said_and_stops_nothing():
    (said,) = found(diagnose(PAIR, watch(PAIR), baseline='{"schema": 1'), "baseline")
    assert "damaged" in said["detail"]


def test_a_real_run_on_a_busy_machine():
    recorded = json.loads((FIXTURES / "diagnosis" / "sandbox_on_a_busy_machine.json").read_text(encoding="utf-8"))
    result = diagnose(recorded["entry"], recorded["watched"])
    fast, slow = (device["id"] for device in recorded["entry"]["devices"])
    assert row(result, "prefill", slow)["ms_per_layer"] > row(result, "prefill", fast)["ms_per_layer"]
    assert found(result, "waiting")[0]["subject"] in ("the machine", "RPC0", "RPC1")
    assert [one for one in found(result, "slower") if one["severity"] == "problem"] == []


# --- rules of thumb ---


def test_where_the_rule_of_thumb_says_the_opposite_both_are_shown():
    """A 3090 that is busier has too many layers, not too few: the rule would give it more."""
    entry = copy.deepcopy(PAIR)
    entry["placement"] = placement.by_id(entry["devices"], [37, 44])
    entry = deployment.expand(entry)
    entry["decision"]["fit"]["decode_ms_per_layer"] = [0.4, 1.1]
    result = diagnose(entry, watch(entry))
    decode = next(rule for rule in result["rules"] if rule["measured"].startswith("decode"))
    assert decode["says"] == "move layers from CUDA0 to CUDA1"
    assert decode["agrees"] is False
    assert "take turns" in decode["why"]
    assert result["advice"]["moves"][0]["to"] == "CUDA0"
    text = " ".join(" ".join(lines.table(result)).split())
    assert "says otherwise" in text and "move 7 layers from CUDA1 to CUDA0" in text


def test_rules_about_ratio_and_waiting():
    by_rule = {rule["rule"][:20]: rule for rule in diagnose(PAIR, watch(PAIR))["rules"]}
    assert by_rule["the RTX 4090 gets 1."]["agrees"] is True  # 44/37 = 1.19
    waiting = by_rule["the faster card spen"]
    assert waiting["agrees"] is False and "CUDA0 waits 49 %" in waiting["measured"]
    other = copy.deepcopy(PAIR)
    other["devices"][0]["description"] = "NVIDIA GeForce RTX 3060"
    assert not [rule for rule in diagnose(other, watch(other))["rules"] if "1.15" in rule["rule"]]


def test_a_server_that_drafts_is_not_compared_with_a_record_without_drafts():
    entry = {**PAIR, "speculation": {"kind": "draft-simple", "n_max": 4}}
    result = diagnose(entry, watch(entry, stretch=(1.5, 1.5)))
    assert [phase["verdict"] for phase in result["phases"]] == ["not_seen", "not_seen"]
    assert result["verdict"] == "ok" and "without drafts, so times do not compare" in " ".join(lines.table(result))
