# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module on a record and a baseline as the tuning writes them."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import baselines
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record
from ansible_collections.homelab.mixed_gpu.plugins.modules import watchdog_plan
from ansible_collections.homelab.mixed_gpu.tests.fixtures import least_entry

LENT = "127.0.0.1:50052"
ENTRY = least_entry.entry({LENT: 17}, rpc_endpoints=[LENT], serving={"batch_size": 2048, "micro_batch_size": 512})
RESULT = {"kind": "prefill", "n_prompt": 512, "n_gen": 0, "n_depth": 0, "samples_ms": [51200.0]}


def baseline_of(**result):
    """Return a baseline of one load, whose result has these changes."""
    return {
        "schema": baselines.SCHEMA, "deployment": "m", "recorded_at": "2026-11-24T04:35:00Z",
        "configuration": {"gpus": [], "serving": {}}, "devices": [], "smallest_visible_percent": {},
        "loads": [{"status": "ok", "layers": [1], "results": [{**RESULT, **result}]}],
        **dict.fromkeys(("device_probe", "fit", "memory", "served", "answer", "acceptance")),
    }  # fmt: skip


@pytest.fixture
def run(tmp_path, call_module):
    """Return a function that runs the module on a host with that record and baseline."""

    def call(record=None, baseline=None, **options):
        fact = tmp_path / "mixed_gpu.fact"
        if record is not None:
            fact.write_text(json.dumps({"schema": fact_record.SCHEMA, "active": "m", "models": {"m": record}}))
        if baseline is not None:
            (tmp_path / "baselines").mkdir()
            (tmp_path / "baselines" / "m.json").write_text(json.dumps(baseline))
        arguments = {"url": "http://127.0.0.1:8080", "fact_file": str(fact), "state_dir": str(tmp_path), **options}
        return call_module(watchdog_plan, arguments)

    call.state_dir = tmp_path
    return call


def test_a_host_without_a_record_is_not_watched(run):
    assert run()["wanted"] is False


def test_the_baseline_decides_how_long_is_waited(run):
    found = run(ENTRY, baseline_of())
    assert (found.get("wanted"), found.get("stall_seconds")) == (True, 615), found
    assert found["why"] == "the server uses 1 RPC device"
    assert found["addresses"] == ["localhost"]
    assert found["changed"] is False


def test_a_damaged_baseline_is_named(run):
    assert "baselines/m.json cannot be used" in run(ENTRY, {"schema": baselines.SCHEMA})["msg"]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"samples_ms": 51200.0}, "loads[0].results[0].samples_ms must be a list, not 51200.0"),
        ({"samples_ms": []}, "loads[0].results[0].samples_ms is empty"),
        ({"samples_ms": [-1]}, "loads[0].results[0].samples_ms[0] must be a number above 0, not -1"),
        ({"n_prompt": None}, "loads[0].results[0].n_prompt must be a whole number, not None"),
    ],
)
def test_a_result_that_was_edited_is_named(run, result, words):
    assert f"baselines/m.json cannot be used: {words}; move it away" in run(ENTRY, baseline_of(**result))["msg"]


def test_a_load_without_results_is_named(run):
    baseline = baseline_of()
    baseline["loads"][0]["results"] = None
    assert "loads[0].results must be a list, not None" in run(ENTRY, baseline)["msg"]


def test_an_entry_without_what_is_planned_with_is_named(run):
    message = run({**ENTRY, "serving": {"batch_size": 2048}})["msg"]
    assert "the entry of m in" in message and "lacks 'micro_batch_size': tune it again" in message
