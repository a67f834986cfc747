# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""When a revalidation is due that nobody watches, and what it says."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import unattended

CLEAN = {"needed": False, "since": None, "why": None}
NOW = "2026-11-25T04:00:00Z"
WEEK = 156


def marked(since):
    return {"needed": True, "since": since, "why": "the driver changed"}


def state(finished_at="2026-11-24T04:00:00Z", verdict="ok"):
    return unattended.new_state({"box": {**unattended.failed("why"), "verdict": verdict}}, finished_at)


def result(verdict="ok", **more):
    checks = [
        {"name": "decode", "verdict": verdict, "detail": "", "change_percent": 8.3, "interval_percent": [7, 9]},
        {"name": "prefill", "verdict": verdict, "detail": "", "change_percent": None, "interval_percent": None},
        {"name": "cards", "verdict": "ok", "detail": ""},
    ]
    return {
        "verdict": verdict, "accepted": verdict == "ok", "measured": True, "deployment": "m-c512", "checks": checks,
        "summary": "decode takes 8.3 % more\ntime", "advice": ["Look at CUDA1.", "Else go back."], **more,
    }  # fmt: skip


def report(**hosts):
    return json.dumps({"schema": 1, "verdict": "ok", "accepted": True, "hosts": hosts})


@pytest.mark.parametrize(
    ("last", "mark", "is_due"),
    [
        (None, CLEAN, True),
        (state(), CLEAN, False),
        (state("2026-11-18T04:05:00Z"), CLEAN, True),
        (state("2026-11-18T20:00:00Z"), CLEAN, False),
        # marked after the last revalidation, and before: then it was not accepted, and the next night looks again
        (state(), marked("2026-11-24T18:00:00Z"), True),
        (state("2026-11-25T03:20:00Z", "regressed"), marked("2026-11-24T18:00:00Z"), False),
        (state("2026-11-24T04:00:00Z", "regressed"), marked("2026-11-23T18:00:00Z"), True),
        (state("2026-11-25T03:20:00Z", "regressed"), marked(None), True),
        (state("2026-11-25T03:20:00Z", "failed"), CLEAN, False),
        (state("2026-11-24T04:00:00Z", "failed"), CLEAN, True),
        # a clock that was set back
        (state("2027-11-25T03:20:00Z"), CLEAN, True),
    ],
)
def test_due(last, mark, is_due):
    assert unattended.due(last, mark, WEEK, NOW)[0] is is_due


def test_why_it_is_due_or_not():
    assert "24 hours ago" in unattended.due(state(), CLEAN, WEEK, NOW)[1]
    assert unattended.due(state(), marked("2026-11-24T18:00:00Z"), WEEK, NOW)[1] == "the driver changed"
    assert "it failed" in unattended.due(state(verdict="failed"), CLEAN, WEEK, NOW)[1]


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"schema": 2, "finished_at": "x", "hosts": {}}'])
def test_a_damaged_state_makes_it_due(text):
    assert unattended.parse_state(text) is None


def test_a_state_comes_back():
    assert unattended.parse_state(json.dumps(state())) == state()


def test_outcomes_of_a_report():
    found = unattended.outcomes(report(box=result("regressed")))["box"]
    assert found["change_percent"] == {"decode": 8.3}
    assert unattended.line("box", found) == (
        3, "box (m-c512): regressed: decode takes 8.3 % more time; Look at CUDA1."
    )
    twice = {**found, "summary": "regressed since 2026-11-25: ..."}
    assert unattended.line("box", twice)[1] == "box (m-c512): regressed since 2026-11-25: ..."
    assert [unattended.line("b", {**found, "verdict": name})[0] for name in unattended.VERDICTS] == [6, 6, 4, 3, 3, 3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no report"), ("{", "no report"), ("[]", "what it should be"), ('{"schema": 9}', "schema 9"),
        ('{"schema": 1, "hosts": {"a": {}}}', "'checks'"), (report(box=result("splendid")), "splendid"),
    ],
)  # fmt: skip
def test_a_report_that_cannot_be_read_says_why(text, words):
    with pytest.raises(unattended.UnattendedError, match=words):
        unattended.outcomes(text)


def test_why_a_play_failed():
    fatal = 'fatal: [box]: FAILED! => {"changed": false, "msg": "There is no baseline: run site."}'
    assert unattended.why_failed(["TASK [x] ***", fatal, "", "PLAY RECAP ***"]) == "There is no baseline: run site."
    assert unattended.why_failed(["fatal: [box]: UNREACHABLE! => {"]).startswith("fatal")
    assert unattended.why_failed(["[ERROR]: the playbook could not be found", ""]).endswith("found")
    assert unattended.why_failed([""]) == "it printed nothing"
