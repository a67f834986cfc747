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


def test_a_lender_is_recorded_with_its_cards():
    found = lent_devices.lent("10.0.0.2", SERVERS, [{"id": "GPU-a", "name": "RTX 3090", "uuid": 1}], BUILD)
    assert [row["endpoint"] for row in found["servers"]] == ["10.0.0.2:50052", "10.0.0.2:50053"]
    assert found["servers"][0]["card"]["name"] == "RTX 3090" and found["servers"][1]["card"] is None
    record = lent_devices.merged(None, {"pc2": found}, [])
    assert lent_devices.FORM.parse(json_file.to_text(record), "x") == record
    assert lent_devices.endpoints(record) == ["10.0.0.2:50052", "10.0.0.2:50053"]


def test_a_lender_that_is_away_stays_and_one_that_left_the_group_goes():
    one, two, three = (lent_devices.lent(f"10.0.0.{n}", SERVERS, [], BUILD) for n in (2, 3, 4))
    before = {"schema": 1, "lenders": {"a": three, "b": two, "c": three}}
    after = lent_devices.merged(before, {"a": one}, ["b", "new"])
    assert after["lenders"] == {"a": one, "b": two}
    assert lent_devices.endpoints(None) == []


def test_who_takes_part_in_a_run_changes_no_order():
    """The endpoints are part of what makes a tuning run again, in their order."""
    whole = {
        name: lent_devices.lent("", [{**SERVERS[1], "endpoint": f"{name}:1"}], [], BUILD) for name in ("b", "a", "c")
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
    lent = {"pc2": lent_devices.lent("10.0.0.2", SERVERS, [], other)}
    with pytest.raises(ValueError, match=r"pc2 has llama.cpp b11.* and box has b11312 \(0c1e57098\), and both sides"):
        lent_devices.check_builds("box", BUILD, lent)


@pytest.mark.parametrize("other", [BUILD, {**BUILD, "commit": ""}, {**BUILD, "build": 0, "commit": ""}])
def test_the_same_build_or_an_unknown_one_is_not(other):
    lent_devices.check_builds("box", BUILD, {"pc2": lent_devices.lent("10.0.0.2", SERVERS, [], other)})
