# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The planner of a sweep, played against the pair of test_power_sweep."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import steps
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import power_sweep_campaign
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._hardware.test_power_sweep import (
    FAST,
    GPUS,
    SLOW,
    WATTS,
    measured,
)

VARIABLES = {
    "fractions": [1.0],
    "limits_watts": {FAST: [450, 315, 200], SLOW: [350, 280, 200]},
    "tolerance_percent": "3.0",
    "again": False,
    "prompt_tokens": 512,
    "generated_tokens": 64,
    "repetitions": 2,
    "settle_seconds": 5,
    "load_timeout_seconds": 1200,
    "llama_bench": "/b",
    "environment": {"A": "1"},
    "energy_meter": "/meter.py",
    "host": "box",
    "path": "reports/box-power.json",
    "state_dir": "/state",
    "conflicting_units": ["llama-server.service"],
    "lease_seconds": 7200,
    "lease_wait_seconds": 300,
}
ENTRY = {
    "model": {"path": "/m.gguf", "size_bytes": 5_000_000_000},
    "serving": {"batch_size": 512},
    "environment": {"CUDA_VISIBLE_DEVICES": f"{FAST},{SLOW}"},
    "devices": [{"id": FAST, "device": "CUDA0"}, {"id": SLOW, "device": "CUDA1"}],
    "placement": [{"id": FAST, "layers": 20}, {"id": SLOW, "layers": 13}],
    "split_mode": "layer",
    "rpc_endpoints": [],
    "decision": {"objective": {"name": "decode", "prompt_tokens": 1024, "generated_tokens": 256}},
    "fingerprint": "f",
    "recorded_at": "2026-11-24T04:40:00Z",
}
AT = "2026-11-25T00:00:00Z"


class Host:
    """A host with two cards and a recorded split; what each module returns."""

    def __init__(self, entry=ENTRY, gpus=GPUS, broken=()):
        self.entry, self.broken, self.lenders = entry, broken, {}
        self.cards = [{**gpu, "power_limit_watts": gpu["power_limit_default_watts"]} for gpu in gpus]
        self.limits = {}

    def run(self, step):
        return getattr(self, step.module)(step.args)

    def split_record(self, _args):
        why = None if self.entry else "nothing is recorded"
        found = {"entry": self.entry, "deployment": "m", "lenders": self.lenders}
        return {"available": self.entry is not None, "why": why, **found}

    def gpu_facts(self, _args):
        return {"ansible_facts": {"mixed_gpu_gpus": {"gpus": self.cards, "driver_version": "580.95.05"}}}

    def gpu_power(self, args):
        found, self.limits = self.limits, args["limits_watts"]
        return {"found": {"schema": 1, "cards": found}, "deviations": []}

    def split_benchmark(self, args):
        load = {**measured(self.limits), **args["load"]}
        if self.limits in self.broken:
            load = {**load, "status": "crashed", "reason": "it fell over", "results": []}
        return {"load": load}


def planner_of(**changes):
    return power_sweep_campaign.planner({f"power_sweep_{key}": value for key, value in (VARIABLES | changes).items()})


def play(host, check=False, **changes):
    """Return (all steps that were done, the last plan) of a sweep."""
    planner = planner_of(**changes)
    done = []
    for _turn in range(40):
        plan = planner.predict(done) if check else planner.plan(done)
        if plan.result is not None:
            return done, plan
        done.append(steps.Done(plan.steps[0], host.run(plan.steps[0]), AT))
        assert isinstance(planner.line(done[-1]), str)
    raise AssertionError("the sweep does not end")


def labels(done):
    return [item.step.label for item in done if item.step.module == "split_benchmark"]


PLANNED = ["450 + 350 W", "315 + 350 W", "200 + 350 W", "450 + 280 W", "450 + 200 W"]


def test_cards_of_a_lender_keep_their_limits_which_is_said():
    host = Host()
    host.lenders = {"pc2": {"servers": []}}
    (said,) = [line for line in play(host)[1].result["lines"] if "kept their limits" in line]
    assert said.startswith("Cards of pc2 kept") and "set gpu_power_limits_watts of that host" in said


def test_each_limit_is_set_and_measured_and_the_first_once_more():
    done, plan = play(Host())
    assert [item.step.module for item in done[:4]] == ["split_record", "gpu_facts", "gpu_power", "split_benchmark"]
    assert labels(done) == [*PLANNED, PLANNED[0]]
    for item in done:
        if item.step.module == "gpu_power":
            assert item.step.args["until_unit"] == "mixed-gpu-lease.service"
    result = plan.result["document"]["result"]
    assert result["measured"] and result["limits_watts"] == {FAST: 450, SLOW: 280}
    assert plan.result["document"]["host"] == "box"
    assert [card["id"] for card in plan.result["document"]["cards"]] == [FAST, SLOW]
    assert plan.result["found"] == done[2].result["found"], "what was found before anything was set"
    assert not any("kept their limits" in line for line in plan.result["lines"])
    assert plan.result["lines"][-1].startswith('To keep these limits, set gpu_power_limits_watts to {"GPU-a": 450')


def test_a_combination_that_was_only_predicted_is_measured_before_it_is_recommended(monkeypatch):
    monkeypatch.setitem(WATTS[FAST], 315, 240)
    done, plan = play(Host())
    assert labels(done) == [*PLANNED, "315 + 280 W", PLANNED[0]]
    result = plan.result["document"]["result"]
    assert result["measured"] and result["limits_watts"] == {FAST: 315, SLOW: 280}


def test_a_load_is_that_of_the_recorded_split_in_a_campaign_of_its_own():
    done, plan = play(Host())
    args = done[3].step.args
    assert (args["load"]["layers"], args["load"]["load"], args["devices"]) == ([20, 13], 1, ["CUDA0", "CUDA1"])
    assert args["environment"] == {"CUDA_VISIBLE_DEVICES": f"{FAST},{SLOW}", "A": "1"}
    assert args["campaign"] == "power sweep 2026-11-24T04:40:00Z"
    assert done[-1].step.args["load"]["load"] == 2
    fingerprints = {item.step.args["fingerprint"] for item in done if item.step.module == "split_benchmark"}
    assert len(fingerprints) == 5, "one for each combination of limits"
    again, _plan = play(Host(), again=True)
    assert again[3].step.args["campaign"] == f"power sweep 2026-11-24T04:40:00Z again {AT}"
    json.dumps(plan.result)


def test_the_lease_begins_with_the_first_limit():
    host, planner = Host(), planner_of()
    first = planner.plan([])
    assert first.lease is None and [step.module for step in first.steps] == ["split_record", "gpu_facts"]
    done = [steps.Done(step, host.run(step), AT) for step in first.steps]
    second = planner.plan(done)
    assert second.lease is not None and second.lease.options["conflicts"] == ["llama-server.service"]
    assert second.store == steps.Store("/state/measurements", ("power sweep 2026-11-24T04:40:00Z",))
    assert second.measurements == 7 and second.steps[1].expected_seconds == 30


def test_limits_that_a_card_does_not_take_are_refused_before_the_lease():
    with pytest.raises(UserError, match="from 100 to 366 W"):
        play(Host(), limits_watts={SLOW: [400]})


def test_a_limit_that_cannot_be_measured_is_left_out():
    done, plan = play(Host(broken=[{FAST: 450, SLOW: 280}]))
    assert "crashed: it fell over" in " ".join(plan.result["lines"])
    assert plan.result["document"]["result"]["limits_watts"] == {FAST: 450, SLOW: 350}
    with pytest.raises(UserError, match="were not measured: it fell over"):
        play(Host(broken=[{FAST: 450, SLOW: 350}]))


def test_check_mode_measures_nothing():
    done, plan = play(Host(), check=True)
    assert [item.step.module for item in done] == ["split_record", "gpu_facts"]
    assert plan.result["document"] is None
    assert plan.result["lines"] == [
        "Would stop llama-server.service and measure m at 450 + 350 W, 315 + 350 W, 200 + 350 W, 450 + 280 W,"
        " 450 + 200 W."
    ]
    _done, plan = play(Host(entry=None), check=True)
    assert plan.result["lines"] == ["The power limits cannot be swept yet: nothing is recorded."]


def test_of_devices_behind_rpc_servers_all_cards_of_the_host_are_swept():
    entry = {**ENTRY, "placement": [{"id": "a:1", "layers": 20}, {"id": "b:1", "layers": 13}]}
    done, _plan = play(Host(entry=entry))
    assert labels(done)[0] == "450 + 350 W"
    one = {**ENTRY, "placement": [{"id": FAST, "layers": 0}, {"id": SLOW, "layers": 33}]}
    done, _plan = play(Host(entry=one), limits_watts={SLOW: [350, 280]})
    assert labels(done) == ["350 W", "280 W", "350 W"]


def test_a_measured_load_is_shown_with_its_energy():
    done, _plan = play(Host())
    planner = planner_of()
    assert planner.line(done[3]).startswith("prefill ") and "decode 45.5 tokens/s at " in planner.line(done[3])
    assert planner.line(done[2]) == ""


def test_a_variable_that_makes_no_sense_is_named():
    with pytest.raises(ValueError, match="power_sweep_repetitions is 'x': it must be a whole number"):
        play(Host(), repetitions="x")
