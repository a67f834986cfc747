# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A tuning over a card here and a device of another host; a simulated host answers."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import steps
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._planner import test_tuning

Json = dict[str, t.Any]

ENDPOINT = "10.0.0.2:50052"
LINK = {"protocol": "7.0.0", "round_trip_ms": 0.4, "stalls_ms": 0.0, "to_mb_per_s": 117.0, "from_mb_per_s": 117.0}


class Box(test_tuning.Host):
    """A host with one card of its own, and one on another host."""

    def __init__(self) -> None:
        super().__init__(test_tuning.GPUS[:1])

    def rpc_link_info(self, step: steps.Step) -> Json:
        return {"links": {endpoint: LINK for endpoint in step.args["endpoints"]}}

    def llama_devices_info(self, step: steps.Step) -> Json:
        found = super().llama_devices_info(step)
        lent = {**found["devices"][0], "device": "RPC0", "id": ENDPOINT, "backend": "RPC", "description": ENDPOINT}
        return {**found, "devices": [*found["devices"], lent]}


@pytest.fixture
def box() -> Box:
    return Box()


def tune(box: Box, **changes: t.Any) -> Json:
    """Return what was recorded."""
    return test_tuning.recorded(box.tune(**{"modes": ["layer"], "rpc_endpoints": [ENDPOINT], **changes}))


def test_the_network_is_measured_under_the_lease_and_before_the_devices_are_listed(box):
    tune(box)
    names = [item.step.name for item in box.done]
    assert names.index("links") == names.index("devices") - 1
    planner = test_tuning.tuning.planner(test_tuning.variables(modes=["layer"], rpc_endpoints=[ENDPOINT]))
    assert planner.plan(box.done[: names.index("links")]).lease is not None


def test_the_decision_says_what_the_network_costs_and_buys(box):
    plan = box.tune(modes=["layer"], rpc_endpoints=[ENDPOINT])
    network = test_tuning.recorded(plan)["decision"]["network"]
    assert network["links"] == {ENDPOINT: LINK} and network["mib"] > 0
    assert f"Network: {network['why']}." in plan.result["lines"]


def test_devices_of_this_host_are_no_network(box):
    entry = test_tuning.recorded(test_tuning.Host().tune(modes=["layer"]))
    assert "network" not in entry["decision"]


@pytest.mark.parametrize("objective", ["decode", "prefill"])
def test_where_logits_are_less_than_activations_the_lent_device_is_last(box, objective):
    entry = tune(box, objective=objective)
    assert [device["id"] for device in entry["devices"]] == ["GPU-1", ENDPOINT]


def test_a_large_vocabulary_puts_the_lent_device_first(box, monkeypatch):
    monkeypatch.setitem(test_tuning.MODEL, "vocabulary_size", 32000)
    entry = tune(box)
    assert [device["id"] for device in entry["devices"]] == [ENDPOINT, "GPU-1"]
    assert [place["id"] for place in entry["placement"]] == [ENDPOINT, "GPU-1"]


def test_the_probe_knows_how_much_of_its_time_is_the_network(box):
    entry = tune(box)
    rows = {row["id"]: row for row in entry["device_probe"]["devices"]}
    assert "network_ms" not in rows["GPU-1"]
    crossing = rows[ENDPOINT]["network_ms"]
    probe = test_tuning.PROBE_MODEL
    sent = 4 * (probe["embedding_length"] + probe["vocabulary_size"]) / 117e3
    assert crossing["decode"] == pytest.approx(0.4 + sent)
    assert 0 < crossing["prefill"] < crossing["decode"]


def test_a_prediction_for_a_host_knows_its_lenders_before_a_first_tuning() -> None:
    host = test_tuning.Host(test_tuning.GPUS[:1])
    plan = host.tune(predict=True, predict_only=True, lent=["rtx3090@1gbe"])
    assert plan.result is not None
    prediction = plan.result["prediction"]
    assert sorted(device["backend"] for device in prediction["devices"]) == ["CUDA", "RPC"]
    assert "the 1 GbE link (0.4 ms, assumed)" in prediction["network"]["why"]
    alone = test_tuning.Host(test_tuning.GPUS[:1]).tune(predict=True, predict_only=True)
    assert alone.result is not None and alone.result["prediction"]["network"] is None


def test_a_host_that_was_tuned_with_its_lenders_has_them_in_its_record(box: Box) -> None:
    box.keep(box.tune(modes=["layer"], rpc_endpoints=[ENDPOINT]))
    plan = box.tune(predict=True, predict_only=True, lent=["rtx3090@1gbe"], rpc_endpoints=[ENDPOINT])
    assert plan.result is not None
    assert [device["id"] for device in plan.result["prediction"]["devices"]] == ["GPU-1", ENDPOINT]


def test_the_budget_of_a_lender_that_was_not_asked_yet_is_no_slip() -> None:
    host = test_tuning.Host(test_tuning.GPUS[:1])
    asked = {"predict": True, "predict_only": True, "lent": ["rtx3090@1gbe"]}
    plan = host.tune(**asked, device_budget_mib={"GPU-1": 900, "192.168.1.9:50052": 900})
    assert plan.result is not None
    assert [one["budget_mib"] for one in plan.result["prediction"]["devices"] if one["id"] == "GPU-1"] == [900]
    with pytest.raises(UserError, match="names Vulkan0, which is none of the devices here: CUDA0"):
        host.tune(**asked, device_budget_mib={"Vulkan0": 900})


@pytest.mark.parametrize(("lender", "words"), [("rtx3090", "no link ''"), ("thing@1gbe", "a lender has 'thing'")])
def test_what_a_lender_cannot_be(lender: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        test_tuning.tuning.planner(test_tuning.variables(lent=[lender]))


def test_a_plan_on_a_box_with_lenders_says_that_lenders_by_name_do_not_count(box):
    box.keep(box.tune(modes=["layer"], rpc_endpoints=[ENDPOINT]))
    asked = {"predict": True, "predict_only": True, "modes": ["layer"], "model_sha256": ""}
    lines = box.tune(lent=["rtx3060@1gbe"], **asked).result["lines"]
    assert lines[0].startswith("Lenders are those that this host was tuned with; rtx3060@1gbe by name would count")
    assert box.tune(**asked).result["lines"] == lines[1:]
