# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""When a server is watched, and for how long nothing may move."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watch import watchdog_plan

SERVING = {"batch_size": 2048, "micro_batch_size": 512}


def entry(split_mode="layer", rpc_endpoints=(), **serving):
    return {
        "split_mode": split_mode, "rpc_endpoints": list(rpc_endpoints), "serving": {**SERVING, **serving},
        "placement": [{"id": one, "layers": 1} for one in rpc_endpoints],
    }  # fmt: skip


def load(*rows, status="ok"):
    results = [{"kind": kind, "n_prompt": n, "n_gen": 0, "samples_ms": samples} for kind, n, samples in rows]
    return {"status": status, "results": results}


def plan(state="auto", found=None, loads=(), least=60):
    return watchdog_plan.plan(state, found, loads, least)


@pytest.mark.parametrize(
    ("state", "found", "wanted"),
    [
        ("auto", entry("tensor"), True),
        ("auto", entry("layer", ["10.0.0.2:50052"]), True),
        ("auto", entry("layer"), False),
        ("present", entry("layer"), True),
        ("absent", entry("tensor"), False),
        ("auto", None, False),
        ("present", None, False),
    ],
)
def test_tensor_mode_and_rpc_are_watched_without_being_asked(state, found, wanted):
    made = plan(state, found)
    assert made.wanted is wanted
    assert made.why


def test_three_batches_at_the_slowest_prefill_are_waited_for():
    loads = [load(("prefill", 512, [5120.0, 25600.0]), ("decode", 0, [9e9])), load(("prefill", 1024, [1024.0]))]
    assert plan(found=entry(), loads=loads).stall_seconds == 308  # 3 x 2048 tokens of 50 ms, rounded up


def test_a_fast_prefill_leaves_the_least_time():
    assert plan(found=entry(), loads=[load(("prefill", 512, [512.0]))]).stall_seconds == 60
    assert plan(found=entry(), loads=[]).stall_seconds == 60


def test_short_prompts_and_failed_loads_do_not_count():
    loads = [
        load(("prefill", 16, [1600.0]), ("prefill", 512, [512.0])),
        load(("prefill", 512, [512_000.0]), status="crashed"),
    ]
    assert plan(found=entry(), loads=loads).stall_seconds == 60
    assert plan(found=entry(), loads=[load(("prefill", 16, [1600.0]))]).stall_seconds == 615


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("http://127.0.0.1:8080", ["localhost"]),
        ("http://localhost:8080", ["localhost"]),
        ("http://[::1]:8080", ["localhost"]),
        ("http://192.168.1.5:8080", ["localhost", "192.168.1.5"]),
        ("http://[fd00::5]:8080", ["localhost", "fd00::5"]),
        ("http://box.lan:8080", ["any"]),
    ],
)
def test_only_the_server_can_be_reached(url, addresses):
    assert watchdog_plan.reachable(url) == addresses


def test_the_watchdog_reaches_the_lenders_that_the_server_may_be_without():
    found = entry("layer", ["127.0.0.1:50052", "192.168.1.7:50052", "192.168.1.7:50053"])
    (lent,) = watchdog_plan.lender_placements({**found, "fallbacks": [{"placement": None}]})
    assert lent == ["192.168.1.7:50052", "192.168.1.7:50053"]
    assert watchdog_plan.lender_placements(found) == [] and watchdog_plan.lender_placements(None) == []
    assert watchdog_plan.reachable("http://127.0.0.1:8080", lent) == ["localhost", "192.168.1.7"]
    assert watchdog_plan.reachable("http://127.0.0.1:8080", ["other.lan:50052"]) == ["any"]
