# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""When an unattended revalidation is due, and what it says. The metric is read back with prometheus-client's parser."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import due, unattended
from prometheus_client.parser import text_string_to_metric_families

OLD, NEW = "580.95.05", "580.105.08"
SAME, BOOTED, UPGRADED = due.compare(OLD, OLD, OLD), due.compare(OLD, NEW, NEW), due.compare(OLD, OLD, NEW)
NOW = "2026-11-25T04:00:00Z"
WEEK = 156


def result(verdict="ok", **more):
    checks = [
        {"name": "decode", "verdict": verdict, "detail": "", "change_percent": 8.3, "interval_percent": [7, 9]},
        {"name": "prefill", "verdict": verdict, "detail": "", "change_percent": None, "interval_percent": None},
        {"name": "cards", "verdict": "ok", "detail": ""},
        {"name": "acceptance", "verdict": "ok", "detail": "", "share": 0.71, "share_before": 0.74},
    ]
    return {
        "verdict": verdict, "accepted": verdict == "ok", "measured": True, "deployment": "m-c512", "checks": checks,
        "driver_version": OLD,
        "summary": "decode takes 8.3 % more\ntime", "advice": ["Look at CUDA1.", "Else go back."], **more,
    }  # fmt: skip


def state(finished_at="2026-11-24T04:00:00Z", verdict="ok", **more):
    return unattended.new_state(unattended.outcome(result(verdict, **more)), finished_at)


@pytest.mark.parametrize(
    ("last", "driver", "is_due"),
    [
        (None, SAME, True),
        (state(), SAME, False),
        (state("2026-11-18T04:05:00Z"), SAME, True),
        (state("2026-11-18T20:00:00Z"), SAME, False),
        # booted with another driver since, and one that was tried before and not accepted: not twice in one night
        (state("2026-11-25T03:20:00Z"), BOOTED, True),
        (state("2026-11-25T03:20:00Z", "regressed", driver_version=NEW), BOOTED, False),
        (state("2026-11-24T04:00:00Z", "regressed", driver_version=NEW), BOOTED, True),
        (state("2026-11-25T03:20:00Z", "broken", driver_version=None), BOOTED, True),
        # installed alone: a revalidation before the reboot would tell nothing
        (state(), UPGRADED, False),
        # a clock that was set back
        (state("2027-11-25T03:20:00Z"), SAME, True),
    ],
)
def test_due(last, driver, is_due):
    assert unattended.is_due(last, driver, WEEK, NOW)[0] is is_due


def test_why_it_is_due_or_not():
    assert "24 hours ago" in unattended.is_due(state(), SAME, WEEK, NOW)[1]
    assert unattended.is_due(state(), BOOTED, WEEK, NOW)[1] == BOOTED["why"]


@pytest.mark.parametrize(
    "text",
    [
        None, "", "{", "[]", "{}", '{"schema": 2, "finished_at": "x", "outcome": {}}',
        json.dumps(state()).replace('"ok"', '"splendid"'),
    ],
)  # fmt: skip
def test_a_damaged_state_makes_it_due(text):
    assert unattended.parse_state(text) is None


def test_a_state_comes_back():
    assert unattended.parse_state(json.dumps(state())) == state()


def test_the_line_of_a_verdict():
    found = unattended.outcome(result("regressed"))
    assert found["change_percent"] == {"decode": 8.3}
    assert unattended.line("box", found) == (3, "box (m-c512): regressed: decode takes 8.3 % more time; Look at CUDA1.")
    twice = {**found, "summary": "regressed since 2026-11-25: ..."}
    assert unattended.line("box", twice)[1] == "box (m-c512): regressed since 2026-11-25: ..."
    verdicts = ("ok", "improved", "inconclusive", "regressed", "broken")
    assert [unattended.line("b", {**found, "verdict": name})[0] for name in verdicts] == [6, 6, 4, 3, 3]
    assert unattended.line("b", unattended.outcome(result("broken", deployment=None)))[1].startswith("b: broken: ")


def metrics(*arguments):
    """The metric, as {name: {labels: value}}."""
    found = {}
    for family in text_string_to_metric_families(unattended.metrics(*arguments)):
        assert family.documentation and family.type == "gauge"
        for sample in family.samples:
            labels = tuple(value for _key, value in sorted(sample.labels.items()))
            found.setdefault(sample.name.removeprefix("mixed_gpu_"), {})[labels] = sample.value
    return found


def test_the_metric_of_a_regression():
    found = metrics("box", state(verdict="regressed"), True, NOW)
    states = {labels[2]: value for labels, value in found["revalidation_verdict"].items()}
    assert states == {name: float(name == "regressed") for name in states} and len(states) == 5
    assert found["revalidation_change_percent"] == {("m-c512", "box", "decode"): 8.3}
    assert found["draft_acceptance_ratio"] == {("m-c512", "box", "now"): 0.71, ("m-c512", "box", "baseline"): 0.74}
    assert found["revalidation_measured"] == {("m-c512", "box"): 1}
    assert found["revalidation_accepted"] == {("m-c512", "box"): 0}
    assert found["needs_revalidation"] == {(): 1}
    assert found["revalidation_last_try_timestamp_seconds"][()] - found["revalidation_timestamp_seconds"][()] == 86400


def test_the_metric_of_a_host_that_was_never_revalidated_and_of_an_odd_name():
    assert set(metrics("box", None, False, NOW)) == {"needs_revalidation", "revalidation_last_try_timestamp_seconds"}
    odd = 'a "b" \\ c'
    assert (("m-c512", odd)) in metrics(odd, state(), False, NOW)["revalidation_accepted"]
