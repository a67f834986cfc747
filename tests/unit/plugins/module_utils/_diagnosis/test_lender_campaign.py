# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A box with a lender: what is measured of it, and whether host or link is named."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.steps import Done
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._diagnosis import diagnosis, lender_campaign
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._diagnosis.test_diagnosis import (
    FAST,
    PAIR,
    READY,
    SLOW,
    watch,
)

ENDPOINT = "192.168.1.20:50052"
LINK = {"protocol": "7.0.0", "round_trip_ms": 0.4, "stalls_ms": 0.0, "to_mb_per_s": 117.0, "from_mb_per_s": 116.0}
CARD = {"id": "GPU-lent", "name": "NVIDIA GeForce RTX 3090", "power_limit_watts": 350.0, "pcie_width": 16}
LENDERS = {"pc2": {"driver_version": "580", "servers": [{"endpoint": ENDPOINT, "device": "CUDA0", "card": CARD}]}}
BEFORE = {"pc2": {"driver_version": "580", "cards": [CARD]}}
LENT = {**CARD, "memory_free_mib": 4000, "processes": [{"pid": 1, "name": "ggml-rpc-server", "memory_mib": 20000}]}

QUANTITIES = ("pcie_generation", "pcie_width", "power_draw_watts", "clock_sm_mhz", "temperature_celsius")
SAMPLED = {
    **{name: {"min": 4, "mean": 4, "max": 4} for name in (*QUANTITIES, "utilization_gpu_percent")}, "count": 9,
    "throttle_reasons": [],
}  # fmt: skip


def _renamed(rows):
    return [{**row, "id": ENDPOINT, "backend": "RPC"} if row["id"] == SLOW else row for row in rows]


NETWORK = {
    "links": {ENDPOINT: LINK}, "model": {"embedding_length": 8192, "vocabulary_size": 128256},
    "work": {"tokens": 512, "prompt_mask": 0.0, "token_mask": 0.0},
}  # fmt: skip
ENTRY = {
    **PAIR, "devices": _renamed(PAIR["devices"]), "rpc_endpoints": [ENDPOINT],
    "placement": [{"id": ENDPOINT if place["id"] == SLOW else place["id"], "layers": place["layers"]}
                  for place in PAIR["placement"]],
    "decision": {**PAIR["decision"], "network": NETWORK},
}  # fmt: skip


def diagnosed(before=BEFORE, **physics):
    """Return the diagnosis of a box whose second device is lent, and so not seen."""
    watched = watch(ENTRY, seen=[FAST], **physics)
    watched["devices"][1] |= {"seen": None, "reason": "it is on another host"}
    judged = diagnosis.diagnose(ENTRY, watched, READY, "", 10.0, (), "")
    return {**judged, "lenders_before": before}


def look(*gpus, **fact):
    return {"available": True, "reason": None, "driver_version": "580", "gpus": list(gpus), **fact}


def planner(judged, looked=(), links="auto", server=READY, **recorded):
    entry = deployment.expand(ENTRY)
    entry["decision"] = {**entry["decision"], **recorded}
    return lender_campaign.planner({
        "diagnose_recorded": {"entry": entry, "lenders": LENDERS}, "diagnose_server": server,
        "diagnose_diagnosed": {"diagnosis": judged}, "diagnose_links": links, "diagnose_tolerance_percent": 10.0,
        "diagnose_watches": [{"item": "pc2", "ansible_job_id": "1.2"}],
        "diagnose_looks": [
            {"item": {"item": "pc2"}, "ansible_facts": {"mixed_gpu_gpus": fact}} for fact in looked or [look(LENT)]
        ],
        "diagnose_server_url": "http://127.0.0.1:8080", "diagnose_state_dir": "/var/lib/mixed_gpu",
        "diagnose_load_timeout_seconds": 1200, "diagnose_lease_wait_seconds": 300,
    })  # fmt: skip


def play(campaign, links=LINK, server=READY, unmeasured=None):
    """Return what is told, and the steps with what each needs of the lease."""
    answers = {
        "rpc_link_info": {"links": {ENDPOINT: links} if links else {}, "unmeasured": unmeasured or {}},
        "llama_server_info": server,
    }
    done, asked = [], []
    while (plan := campaign.plan(done)).result is None:
        (step,) = plan.steps
        asked.append((step.module, plan.lease is not None, plan.release))
        done.append(Done(step, answers[step.module], "2026-11-29T17:00:00Z"))
    return plan.result["told"], asked


def problems(told):
    return [(one["subject"], one["kind"]) for one in told["diagnosis"]["findings"] if one["severity"] == "problem"]


MEASURED = [("rpc_link_info", True, False), ("llama_server_info", False, True)]


def test_a_slow_link_is_named_first_and_the_server_is_back():
    told, asked = play(planner(diagnosed(stretch=(1.0, 1.6))), {**LINK, "to_mb_per_s": 11.7, "from_mb_per_s": 11.6})
    assert asked == MEASURED
    assert problems(told)[0] == ("network", "link")
    assert told["diagnosis"]["summary"].startswith("network: the link to 192.168.1.20 became slow: 11.7 MB/s there")
    assert "do: look at cable" in " ".join(told["lines"]) and "Lenders" in told["lines"]
    assert told["failure"] is None and not any(kind == "slower" and who == "pc2" for who, kind in problems(told))


def test_a_slow_link_that_costs_nothing_is_noted_and_not_blamed():
    fast = {**LINK, "to_mb_per_s": 117000.0, "from_mb_per_s": 116000.0}
    recorded = {"network": {**NETWORK, "links": {ENDPOINT: fast}}}
    now = {**fast, "to_mb_per_s": 60000.0}
    told, _asked = play(planner(diagnosed(), links="true", **recorded), now)
    (found,) = [one for one in told["diagnosis"]["findings"] if one["kind"] == "link"]
    assert found["severity"] == "note" and "became slow: 60000 MB/s there" in found["detail"]


def test_a_lender_that_computes_slower_is_named_with_what_holds_it_up():
    heat = {"min": 90.0, "mean": 92.0, "max": 93.0}
    hot = {**SAMPLED, "throttle_reasons": ["gpu_idle", "hw_thermal_slowdown"], "temperature_celsius": heat}
    game = {"pid": 7, "name": "game.exe", "memory_mib": 3000}
    card = {**LENT, "power_limit_watts": 200.0, "sampled": hot, "processes": [*LENT["processes"], game]}
    told, _asked = play(planner(diagnosed(stretch=(1.0, 1.6)), [look(card, driver_version="590")]))
    found = told["diagnosis"]["findings"]
    assert problems(told)[0] == ("pc2", "slower")
    detail = found[0]["detail"]
    assert "which this host's devices and the link do not explain, so it computes slower" in detail
    assert "its power limit is 200 W, at the baseline it was 350 W" in detail and "game.exe (3000 MiB)" in detail
    assert "hw_thermal_slowdown" in detail and "its driver is 590, at the baseline it was 580" in detail
    assert told["diagnosis"]["lenders"] == [
        "The link to 192.168.1.20 is as it was tuned: 117 MB/s there and 116 back, 117 and 116 when it was tuned; round"
        " trip 0.4 ms, then 0.4 ms."
    ]


def test_what_lent_cards_draw_is_in_the_table_of_cards_at_work():
    sampled = {**SAMPLED, "power_draw_watts": {"min": 90, "mean": 241.7, "max": 300}}
    told, _asked = play(planner(diagnosed(), [look({**LENT, "sampled": sampled})]))
    (row,) = [line for line in told["lines"] if "lent" in line and "x4" in line]
    assert row.split()[:3] == ["pc2", "(RTX", "3090)"] and " 242 " in row


def test_a_slow_device_of_the_box_blames_no_lender():
    told, _asked = play(planner(diagnosed(stretch=(1.6, 1.0))))
    assert not any(who == "pc2" for who, _kind in problems(told))


@pytest.mark.parametrize(("busier", "named"), [(0.95, True), (1.0, True), (1.08, False)])
def test_a_device_of_the_box_whose_time_is_not_all_seen_blames_no_lender(busier, named):
    judged = diagnosed()
    phase = judged["phases"][0]
    phase |= {"verdict": "slower", "change_percent": 13.0, "ms": 1.13 * phase["expected_ms"]}
    phase["devices"][0]["ms"] = busier * phase["devices"][0]["expected_ms"]
    told, asked = play(planner(judged))
    assert asked == MEASURED and (("pc2", "slower") in problems(told)) is named


def test_a_link_that_costs_little_does_not_hide_a_slow_lender():
    told, _asked = play(planner(diagnosed(stretch=(1.0, 1.6))), {**LINK, "round_trip_ms": 1.3})
    assert {("network", "link"), ("pc2", "slower")} <= set(problems(told))


def test_a_box_as_recorded_is_not_stopped():
    told, asked = play(planner(diagnosed()))
    assert asked == [] and problems(told) == []
    assert "since nothing is slower than recorded: -e diagnose_links=true measures" in told["diagnosis"]["lenders"][0]
    assert play(planner(diagnosed(), links="true"))[1] == MEASURED
    assert play(planner(diagnosed(stretch=(1.0, 1.6)), links="false"))[1] == []


def test_what_may_be_noise_is_reason_enough_to_measure_a_link():
    judged = diagnosed()
    judged["phases"][1] |= {"verdict": "within_noise", "change_percent": 18.0}
    assert play(planner(judged))[1] == MEASURED
    judged["phases"][1]["change_percent"] = None
    assert play(planner(judged))[1] == []


@pytest.mark.parametrize(
    ("server", "recorded", "why"),
    [
        ({**READY, "without_lenders": {"absent": [ENDPOINT]}}, {}, "does without a lender"),
        ({**READY, "state": "failed"}, {}, "does not run"),
        (READY, {"network": None}, "a retune records them"),
    ],
)
def test_what_cannot_be_compared_is_not_measured(server, recorded, why):
    told, asked = play(planner(diagnosed(), links="true", server=server, **recorded))
    assert asked == [] and why in told["diagnosis"]["lenders"][0]


def test_a_busy_server_is_not_stopped():
    told, asked = play(planner({**diagnosed(), "busy": "it is busy"}, links="true"))
    assert asked == [] and told["diagnosis"]["verdict"] == "busy"


def test_a_lender_that_is_not_reached_is_said():
    campaign = planner(diagnosed(), links="true")
    told, _asked = play(campaign, None, unmeasured={ENDPOINT: f"The RPC server {ENDPOINT} is not reached (refused)."})
    assert problems(told) == [("network", "link")]
    lost = lender_campaign.planner({
        **{f"diagnose_{name}": value for name, value in vars(campaign.settings).items()},
        "diagnose_watches": [{"item": "pc2", "unreachable": True, "msg": "no route to host"}], "diagnose_looks": [],
    })  # fmt: skip
    notes = [one["detail"] for one in play(lost)[0]["diagnosis"]["findings"] if one["subject"] == "pc2"]
    assert notes == ["its cards are not seen: no route to host"]


def test_a_lender_whose_driver_does_not_answer_is_a_problem():
    told, _asked = play(planner(diagnosed(), [look(available=False, reason="no driver is loaded")]))
    assert problems(told) == [("pc2", "driver")]


def test_a_server_that_does_not_come_back_is_the_failure():
    gone = {"state": "failed", "deviations": [], "last_lines": [], "reason": "out of memory"}
    told, _asked = play(planner(diagnosed(), links="true"), server=gone)
    assert told["failure"].startswith("llama-server is failed")


def test_in_check_mode_nothing_is_measured_and_another_word_is_refused():
    told = planner(diagnosed(stretch=(1.0, 1.6))).predict([]).result["told"]
    assert "not measured in check mode" in told["diagnosis"]["lenders"][0]
    with pytest.raises(ValueError, match="diagnose_links is 'maybe'"):
        planner(diagnosed(), links="maybe")
