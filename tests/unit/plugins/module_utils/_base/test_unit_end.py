# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import unit_end

UNIT = "llama-server.service"
# as systemd 257 prints it after ten loads that each ended with status 1
FAILED = {
    "ActiveState": "failed", "SubState": "failed", "Result": "exit-code", "NRestarts": "10",
    "StartLimitBurst": "10", "ExecMainCode": "1", "ExecMainStatus": "1",
    "ExecMainStartTimestampMonotonic": "1000000000", "ExecMainExitTimestampMonotonic": "1061000000",
    "AssertResult": "yes", "AssertTimestampMonotonic": "999000000",
    "ConditionResult": "yes", "ConditionTimestampMonotonic": "999000000",
}  # fmt: skip


@pytest.mark.parametrize("load_seconds", [1, 60, 900, 7200])
def test_a_server_that_dies_at_any_moment_of_each_load_meets_the_limit(load_seconds):
    limits = unit_end.limits(load_seconds)
    for dies_after in (0, load_seconds / 2, load_seconds):
        # from the first start to the last one that is tried
        tries = (limits["start_burst"] - 1) * (dies_after + unit_end.RESTART_SECONDS)
        assert tries < limits["start_interval_seconds"]


def test_a_server_that_loads_longer_may_take_longer_to_stop():
    assert unit_end.limits(900)["stop_seconds"] == 120
    assert unit_end.limits(3600)["stop_seconds"] == 390


@pytest.mark.parametrize(("load_seconds", "looks"), [(0, 1), (1, 1), (10, 1), (11, 2), (900, 90)])
def test_the_looks_of_a_play_last_as_long_as_a_load_may_take(load_seconds, looks):
    assert unit_end.limits(load_seconds)["looks"] == looks


@pytest.mark.parametrize("state", ["active", "reloading", "deactivating"])
def test_what_runs_needs_no_reason(state):
    assert unit_end.why(UNIT, {**FAILED, "ActiveState": state}) == ""


def test_what_was_stopped_on_purpose_or_never_started_needs_no_reason():
    stopped = {**FAILED, "ActiveState": "inactive", "SubState": "dead", "Result": "success"}
    assert unit_end.why(UNIT, stopped) == ""
    for what in ("Assert", "Condition"):
        assert unit_end.why(UNIT, {**stopped, f"{what}Result": "no", f"{what}TimestampMonotonic": "0"}) == ""
    assert unit_end.why(UNIT, {}) == ""


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, ("each of 10 starts", "exit status 1, 61 s after its start", "run site")),
        ({"ExecMainCode": "2", "ExecMainStatus": "9"}, ("killed by signal 9, 61 s",)),
        ({"Result": "start-limit-hit", "NRestarts": "0"}, ("each of 10 starts", "exit status 1")),
        ({"NRestarts": "0"}, ("failed: it ended with exit status 1",)),
        ({"Result": "oom-kill"}, ("memory of the host",)),
        ({"Result": "timeout"}, ("in time",)),
        ({"Result": "exit-code", "ActiveState": "activating", "SubState": "auto-restart", "NRestarts": "3"},
         ("started again (end 4 in a row)", "exit status 1, 61 s")),
        ({"ActiveState": "inactive", "SubState": "dead", "Result": "success", "AssertResult": "no"},
         ("/dev/nvidia-uvm is missing", "mixed-gpu-nodes.service")),
        ({"ActiveState": "inactive", "SubState": "dead", "Result": "success", "ConditionResult": "no"},
         ("wrong answers", "/var/lib/mixed_gpu/wrong_answers", "run site (with llama_server_answers: true)")),
        ({"ExecMainCode": "0"}, ("no process of it ran",)),
    ],
)  # fmt: skip
def test_a_server_that_does_not_run_has_one_sentence_with_its_reason(said, words):
    sentence = unit_end.why(UNIT, {**FAILED, **said})
    assert sentence.startswith(UNIT) and sentence.endswith(".")
    for word in words:
        assert word in sentence
