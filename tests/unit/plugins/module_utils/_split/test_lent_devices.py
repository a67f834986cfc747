# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import lent_devices

BUILD = {"build": 11312, "commit": "0c1e57098", "version": "b11312", "path": "/opt"}
SERVERS = [
    {"endpoint": "10.0.0.2:50052", "device": "CUDA0", "environment": {"CUDA_VISIBLE_DEVICES": "GPU-a"}},
    {"endpoint": "10.0.0.2:50053", "device": "", "environment": {}},
]
NO_GPUS = {"available": False, "gpus": []}
GPUS = {"available": True, "driver_version": "580", "gpus": [{"id": "GPU-a", "name": "RTX 3090", "uuid": 1}]}


def test_a_lender_is_recorded_with_its_cards():
    found = lent_devices.lent("10.0.0.2", SERVERS, GPUS, BUILD)
    assert [row["endpoint"] for row in found["servers"]] == ["10.0.0.2:50052", "10.0.0.2:50053"]
    assert found["servers"][0]["card"]["name"] == "RTX 3090" and found["servers"][1]["card"] is None
    record = lent_devices.merged(None, {"pc2": found}, [])
    assert lent_devices.FORM.parse(json_file.to_text(record), "x") == record
    assert lent_devices.endpoints(record) == ["10.0.0.2:50052", "10.0.0.2:50053"]


def test_a_lender_that_is_away_stays_and_one_that_left_the_group_goes():
    one, two, three = (lent_devices.lent(f"10.0.0.{n}", SERVERS, NO_GPUS, BUILD) for n in (2, 3, 4))
    before = {"schema": 1, "lenders": {"a": three, "b": two, "c": three}}
    after = lent_devices.merged(before, {"a": one}, ["b", "new"])
    assert after["lenders"] == {"a": one, "b": two}
    assert lent_devices.endpoints(None) == []


def test_who_takes_part_in_a_run_changes_no_order():
    """The endpoints are part of what makes a tuning run again, in their order."""
    whole = {
        name: lent_devices.lent("", [{**SERVERS[1], "endpoint": f"{name}:1"}], NO_GPUS, BUILD)
        for name in ("b", "a", "c")
    }
    record = lent_devices.merged(None, whole, [])
    for away in whole:
        there = {name: lent for name, lent in whole.items() if name != away}
        again = lent_devices.merged(record, there, [away])
        assert again == record and lent_devices.endpoints(again) == ["a:1", "b:1", "c:1"]


@pytest.mark.parametrize(
    "other", [{**BUILD, "commit": "abc", "version": "b11000"}, {**BUILD, "commit": "", "build": 11000}]
)
def test_another_build_is_named(other):
    lent = {"pc2": lent_devices.lent("10.0.0.2", SERVERS, NO_GPUS, other)}
    with pytest.raises(ValueError, match=r"pc2 has llama.cpp b11.* and box has b11312 \(0c1e57098\), and both sides"):
        lent_devices.check_builds("box", BUILD, lent)


@pytest.mark.parametrize("other", [BUILD, {**BUILD, "commit": ""}, {**BUILD, "build": 0, "commit": ""}])
def test_the_same_build_or_an_unknown_one_is_not(other):
    lent_devices.check_builds("box", BUILD, {"pc2": lent_devices.lent("10.0.0.2", SERVERS, NO_GPUS, other)})


def test_the_lenders_of_a_deployment_are_those_whose_endpoints_it_has():
    record = lent_devices.merged(None, {"pc2": lent_devices.lent("10.0.0.2", SERVERS, GPUS, BUILD)}, [])
    assert set(lent_devices.used(record, ["10.0.0.2:50053"])) == {"pc2"}
    assert lent_devices.used(record, ["127.0.0.1:50052"]) == {} == lent_devices.used(None, ["10.0.0.2:50053"])


def test_what_a_lender_is_now_counts_where_it_was_looked_at():
    lenders = {name: lent_devices.lent("10.0.0.2", SERVERS, GPUS, BUILD) for name in ("pc2", "pc3", "pc4")}
    limited = {**GPUS, "driver_version": "590", "gpus": [{"id": "GPU-a", "power_limit_watts": 200.0}, {"id": "GPU-b"}]}
    seen = lent_devices.looks([
        {"item": {"item": "pc2"}, "ansible_facts": {"mixed_gpu_gpus": limited}},
        {"item": "pc3", "unreachable": True, "msg": "no route to host.\n"},
        {"item": "pc4", "ansible_facts": {"mixed_gpu_gpus": NO_GPUS}}, {"item": "pc5", "skipped": True},
        {"item": "pc6", "failed": True, "msg": "Task failed: Missing sudo password"},
    ])  # fmt: skip
    assert {name: one.why for name, one in seen.unseen.items()} == {
        "pc3": "no route to host", "pc6": "Missing sudo password"
    }  # fmt: skip
    assert seen.unseen["pc3"].cure.startswith("wake it") and "wake" not in seen.unseen["pc6"].cure
    assert set(seen.gpus) == {"pc2", "pc4"}
    found = lent_devices.configuration(lenders, seen.gpus)
    assert found["pc2"]["driver_version"] == "590" and found["pc3"] == found["pc4"]
    assert [card["power_limit_watts"] for card in found["pc2"]["cards"]] == [200.0]
    assert found["pc3"]["driver_version"] == "580" and found["pc3"]["cards"][0]["name"] == "RTX 3090"
