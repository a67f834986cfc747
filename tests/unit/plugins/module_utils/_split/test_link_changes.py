# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which link became slow, and what that costs; the test marked live measures a real RPC server over a shaped link."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import link_changes
from ansible_collections.homelab.mixed_gpu.tests.unit.lab import test_link as lab

ENDPOINT, SECOND = "192.168.1.20:50052", "192.168.1.20:50053"
LINK = {"protocol": "7.0.0", "round_trip_ms": 0.4, "stalls_ms": 0.0, "to_mb_per_s": 117.0, "from_mb_per_s": 116.0}
#: Run where the box is: what the module returns.
MEASURE = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.homelab.mixed_gpu.plugins.modules import rpc_link_info
with patch_module_args(json.loads(sys.argv[1])):
    rpc_link_info.main()
"""


def entry(*endpoints, layers=(20, 61), **network):
    """Return what counts of an entry whose first device is lent; the model is 8192 wide."""
    ids = [*endpoints, "GPU-1"]
    network = {
        "links": dict.fromkeys(endpoints, LINK), "model": {"embedding_length": 8192, "vocabulary_size": 128256},
        "work": {"tokens": 512, "prompt_mask": 0.0, "token_mask": 0.0},
        **network,
    }  # fmt: skip
    return {
        "devices": [{"device": f"RPC{number}", "id": name, "backend": "RPC"} for number, name in enumerate(ids)],
        "placement": [{"id": name, "layers": count} for name, count in zip(ids, layers, strict=True)],
        "decision": {"network": network, "decode_tokens_per_second": 20.0, "prefill_tokens_per_second": 1000.0},
    }


def of_one(now, **options):
    (found,) = link_changes.compared(entry(ENDPOINT, **options), {ENDPOINT: {**LINK, **now}})
    return found


def test_a_tenth_of_the_rate_is_named_with_both_figures_and_its_cost():
    found = of_one({"to_mb_per_s": 11.7, "from_mb_per_s": 11.6})
    # of a micro-batch of 512 ms, 16 MiB there and back, and the graph of 20 blocks
    prefill_percent = 100 * 9 * ((16.777 + 20 * 0.013) / 117 + 16.777 / 116) / 0.512
    assert found.slower and found.prefill_percent == pytest.approx(prefill_percent, 0.01)
    assert found.token_ms == pytest.approx(9 * (32.768 / 117 + 32.768 / 116), 0.01)
    assert found.sentence() == (
        "the link to 192.168.1.20 became slow: 11.7 MB/s there and 11.6 back, 117 and 116 when it was tuned; round trip"
        " 0.4 ms, then 0.4 ms; that costs 5.1 ms more per token (+10 %) and 510 % more time per prompt, by the"
        " speeds of the tuning"
    )


def test_a_long_round_trip_is_named_and_costs_tokens():
    found = of_one({"round_trip_ms": 20.4})
    assert found.to_blame and found.token_ms == pytest.approx(20) and found.decode_percent == pytest.approx(40)


def test_packets_that_are_lost_are_named_and_cost_tokens():
    found = of_one({"stalls_ms": 4.2})
    assert found.to_blame and found.token_ms == pytest.approx(4.2)
    assert found.sentence().startswith("the link to 192.168.1.20 became slow: ")
    assert "; packets that are lost add 4.2 ms to each exchange; that costs 4.2 ms more per token" in found.sentence()


@pytest.mark.parametrize(
    "now",
    [
        {}, {"stalls_ms": 0.4}, {"to_mb_per_s": 90.0}, {"round_trip_ms": 0.8},
        {"to_mb_per_s": None, "from_mb_per_s": None},
    ],
)
def test_what_two_measurements_differ_by_is_no_change(now):
    found = of_one(now)
    assert not found.slower and found.sentence().startswith("the link to 192.168.1.20 is as it was tuned: ")


def test_without_layers_there_a_slow_link_costs_nothing():
    found = of_one({"to_mb_per_s": 11.7}, layers=(0, 81))
    assert found.slower and found.sentence().endswith("round trip 0.4 ms, then 0.4 ms") and not found.to_blame


def test_two_cards_of_a_lender_are_one_link():
    slow = {**LINK, "to_mb_per_s": 11.7}
    found = link_changes.compared(entry(ENDPOINT, SECOND, layers=(10, 10, 61)), {ENDPOINT: LINK, SECOND: slow})
    assert [(one.host, one.endpoint, one.slower) for one in found] == [("192.168.1.20", SECOND, True)]


def test_nothing_is_said_of_a_box_without_lenders_or_of_a_link_that_was_not_measured():
    assert link_changes.compared({"decision": {}}, {}) == []
    assert link_changes.compared(entry(ENDPOINT), {}) == []


@pytest.mark.live
@pytest.mark.link
@lab.pytestmark
def test_a_real_server_over_a_link_of_a_tenth_of_the_rate_is_named(llama_bin, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    address = "10.77.0.2"
    endpoint = f"{address}:50052"
    with contextlib.ExitStack() as lasting:
        box, lender = lab.host(lasting), lab.host(lasting)
        lab.link(
            "start", tmp_path, "--rate-mbit", 80, f"box={box}:10.77.0.1/24", f"lender={lender}:{address}/24"
        )
        lasting.callback(lab.link, "stop", tmp_path)
        program = [str(llama_bin / "ggml-rpc-server"), "-H", address, "-p", "50052"]
        server = subprocess.Popen(
            ["nsenter", "-t", str(lender), "--net", "--", *program],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        lasting.callback(server.wait)
        lasting.callback(server.kill)

        def measured(*others):
            arguments = json.dumps({"endpoints": [endpoint, *others], "required": False, "timeout_seconds": 300})
            said, error = lab.inside(box, MEASURE, arguments).communicate()
            assert said, error
            return json.loads(said)

        while endpoint not in (before := measured())["links"]:
            assert server.poll() is None and "is not reached" in before["unmeasured"][endpoint]
        tuned = entry(endpoint, links=before["links"])
        lab.link("set", tmp_path, "--rate-mbit", 8)
        after = measured(f"{address}:9")
        lab.link("set", tmp_path, "--rate-mbit", 80, "--delay-ms", 40)
        far = measured()
    assert set(after["unmeasured"]) == {f"{address}:9"}
    (slow,), (distant,) = (link_changes.compared(tuned, one["links"]) for one in (after, far))
    assert slow.slower and slow.now["to_mb_per_s"] <= 1.1 and slow.prefill_percent > 0
    assert slow.sentence().startswith(f"the link to {address} became slow: ")
    assert distant.slower and distant.now["round_trip_ms"] >= 80
