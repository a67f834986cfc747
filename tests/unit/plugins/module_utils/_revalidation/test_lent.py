# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A box with a lender: links, driver and power limits of that host are compared, and the metrics have the links."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import baselines, unattended
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import lent_devices
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.described_pair import (
    ENTRY,
    FAST,
    SLOW,
    baseline,
    load,
    measured,
)
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.test_campaign import (
    AGAIN,
    LOOK,
    Host,
    play,
)
from prometheus_client.parser import text_string_to_metric_families

LENT = "192.168.1.20:50052"
LINK = {"protocol": "7.0.0", "round_trip_ms": 0.4, "stalls_ms": 0.0, "to_mb_per_s": 117.0, "from_mb_per_s": 116.0}
SLOW_LINK = {**LINK, "to_mb_per_s": 11.7, "from_mb_per_s": 11.6}
CARD = {"id": SLOW, "name": "NVIDIA GeForce RTX 3090", "power_limit_watts": 350.0}
LENDERS = {"pc2": {"driver_version": "580", "servers": [{"endpoint": LENT, "device": "CUDA0", "card": CARD}]}}


def renamed(rows):
    return [{**row, "id": LENT} if row["id"] == SLOW else row for row in rows]


NETWORK = {
    "links": {LENT: LINK}, "model": {"embedding_length": 8192, "vocabulary_size": 128256},
    "work": {"tokens": 512, "prompt_mask": 0.0, "token_mask": 0.0},
}  # fmt: skip
LENT_ENTRY = {
    **ENTRY, "devices": renamed(ENTRY["devices"]), "placement": renamed(ENTRY["placement"]), "rpc_endpoints": [LENT],
    "decision": {**ENTRY["decision"], "network": NETWORK, "decode_tokens_per_second": 17.8,
                 "prefill_tokens_per_second": 500.0},
}  # fmt: skip


class Box(Host):
    """A box whose second card is lent."""

    def __init__(self, link=LINK, **modules):
        super().__init__(LENT_ENTRY, **modules)
        self.link = link

    def _revalidation_info(self, step):
        lent = lent_devices.configuration(LENDERS, {})
        gpus = super()._revalidation_info(step)["gpus"]
        gpus = {**gpus, "gpus": [card for card in gpus["gpus"] if card["id"] == FAST]}
        made = baselines.make("d", **{**measured(), "entry": LENT_ENTRY, "gpus": gpus}, lenders=lent)
        before = {**baseline(), "configuration": made["configuration"]}
        return {**super()._revalidation_info(step), "baseline": before, "gpus": gpus}

    def _rpc_link_info(self, step):
        assert step.args == {"endpoints": [LENT], "required": False}
        return {"links": {LENT: self.link}, "unmeasured": {}} if self.link else {"links": {}, "unmeasured": {LENT: "x"}}

    def _llama_devices_info(self, _step):
        return {"devices": [{**device, "free_mib": 20000, "budget_mib": None} for device in LENT_ENTRY["devices"]]}


def look(**changes):
    card = {**CARD, **changes.pop("card", {})}
    gpus = {"available": True, "driver_version": "580", "gpus": [card], **changes}
    return [{"item": "pc2", "ansible_facts": {"mixed_gpu_gpus": gpus}}]


def judged(host, looks=(), **variables):
    result = play(host, lenders=LENDERS, looks=list(looks or look()), **variables).result["revalidation"]
    return result, {check["name"]: check for check in result["checks"]}


def test_links_are_measured_under_the_lease_and_compared():
    box = Box()
    result, checks = judged(box, measure="true")
    assert box.asked[:6] == [*LOOK, "links", "devices"] and box.asked[-2:] == AGAIN
    assert result["verdict"] == "ok" and checks["network"]["verdict"] == "ok"
    assert result["links"] == [{"endpoint": LENT, "before": LINK, "now": LINK, "slower": False}]


def test_a_slow_link_explains_a_slow_split():
    def slow(step):
        return {"load": {**load(step.args["load"]["load"], decode=1.2), **step.args["load"]}}

    result, checks = judged(Box(SLOW_LINK, split_benchmark=slow), measure="true")
    assert result["verdict"] == "regressed" and checks["network"]["verdict"] == "regressed"
    assert "the link to 192.168.1.20 became slow: 11.7 MB/s there and 11.6 back" in checks["network"]["detail"]
    assert "network: the link to 192.168.1.20 became slow" in result["summary"]
    assert result["links"][0]["slower"]


def test_a_slow_link_that_costs_nothing_is_no_regression():
    result, checks = judged(Box(SLOW_LINK), measure="true")
    assert result["verdict"] == "ok" and checks["network"]["detail"].endswith("; no speed fell by it")


def test_whether_a_slow_link_costs_something_is_open_where_the_speed_is():
    def noisy(step):
        number = step.args["load"]["load"]
        return {"load": {**load(number, prefill=1.45 if number % 2 else 1.02), **step.args["load"]}}

    result, checks = judged(Box(SLOW_LINK, split_benchmark=noisy), measure="true")
    assert checks["prefill"]["verdict"] == "inconclusive"
    assert (checks["network"]["verdict"], result["verdict"]) == ("inconclusive", "inconclusive")
    assert "network: the link to 192.168.1.20 became slow" in result["summary"]
    assert "no speed fell" not in checks["network"]["detail"]


def test_a_link_that_is_not_measured_is_not_compared():
    for box, measure in ((Box(None), "true"), (Box(), "false")):
        result, checks = judged(box, measure=measure)
        assert "network" not in checks and result["links"][0]["now"] is None and result["verdict"] == "ok"


def test_limits_and_drivers_of_a_lender_are_compared():
    result, checks = judged(Box(), look(card={"power_limit_watts": 200.0}, driver_version="590"))
    assert checks["power limits"]["verdict"] == "regressed"
    assert checks["power limits"]["cards"] == {LENT: "pc2: NVIDIA GeForce RTX 3090 200 W, was 350 W"}
    changed = {change["part"]: (change["before"], change["now"]) for change in result["changes"]}
    assert changed["driver_version of pc2"] == ("580", "590")
    assert changed[f"power_limit_watts of {SLOW} of pc2"] == (350.0, 200.0)


@pytest.mark.parametrize(("looks", "said"), [
    ([], []),
    ([{"item": "pc2", "unreachable": True, "msg": "no route"}],
     ["those of pc2 are not seen (no route), and taken as recorded: wake it, or see that Ansible reaches it"]),
])  # fmt: skip
def test_a_lender_that_is_not_seen_is_as_it_was_recorded_and_that_is_said(looks, said):
    result = play(Box(), lenders=LENDERS, looks=looks).result["revalidation"]
    assert result["changes"] == [] and result["verdict"] == "ok"
    assert [one["detail"] for one in result["checks"] if one["name"] == "lender cards"] == said


def test_what_is_accepted_has_the_lenders_as_they_are():
    box = Box()
    result = play(box, lenders=LENDERS, looks=look(driver_version="590"), measure="true").result["accepted"]
    assert result["lenders"]["pc2"]["driver_version"] == "590"


def test_the_metrics_have_the_link_of_each_lender():
    result, _checks = judged(Box(SLOW_LINK), measure="true")
    kept = unattended.new_state(unattended.outcome(result), "2026-11-25T04:00:00Z")
    text = unattended.metrics("box", kept, False, "2026-11-25T04:00:00Z")
    samples = {
        (sample.name, *(sample.labels.get(name) for name in ("lender", "when", "direction"))): sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
    }  # fmt: skip
    assert samples["mixed_gpu_lender_round_trip_ms", LENT, "tuned", None] == 0.4
    assert samples["mixed_gpu_lender_mb_per_s", LENT, "now", "to"] == 11.7
    assert samples["mixed_gpu_lender_mb_per_s", LENT, "tuned", "from"] == 116.0
    assert samples["mixed_gpu_lender_link_slow", LENT, None, None] == 1.0
    assert "mixed_gpu_lender" not in unattended.metrics("box", None, False, "2026-11-25T04:00:00Z")
