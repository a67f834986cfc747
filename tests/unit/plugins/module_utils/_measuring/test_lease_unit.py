# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import systemd
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import lease_unit

NOW = "2026-11-24T04:40:00Z"
LATER = "2026-11-24T04:40:44Z"
MUCH_LATER = "2026-11-24T04:40:45Z"
STATE = lease_unit.new_state("A", NOW, ["x.service"])


@pytest.mark.parametrize(
    ("active", "state", "owner", "measuring", "now", "answer"),
    [
        pytest.param(False, None, "A", False, NOW, "free", id="nobody has it"),
        pytest.param(False, STATE, "B", True, NOW, "free", id="a state file without a unit is a leftover"),
        pytest.param(True, STATE, "A", True, MUCH_LATER, "ours", id="it is ours"),
        pytest.param(True, STATE, "B", False, LATER, "wait", id="touched a moment ago"),
        pytest.param(True, STATE, "B", True, MUCH_LATER, "wait", id="somebody measures"),
        pytest.param(True, STATE, "B", False, MUCH_LATER, "take_over", id="abandoned"),
        pytest.param(True, None, "B", True, NOW, "wait", id="unknown owner who measures"),
        pytest.param(True, None, "B", False, NOW, "take_over", id="unknown owner"),
    ],
)
def test_who_may_have_it(active, state, owner, measuring, now, answer):
    assert lease_unit.decide(active, state, owner, measuring, 45, now) == answer


def test_a_clock_that_was_set_back_does_not_keep_it_for_ever():
    assert lease_unit.idle_seconds(STATE, "2026-11-24T03:40:00Z") == 3600
    assert lease_unit.idle_seconds(lease_unit.touched(STATE, LATER), LATER) == 0


def test_the_state_is_read_as_it_was_written():
    assert lease_unit.parse_state(json.dumps(STATE)) == STATE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[]", "does not name owner"),
        (json.dumps({**STATE, "owner": None}), "does not name owner"),
        (json.dumps({**STATE, "restart": "x"}), "no list of units"),
        (json.dumps({**STATE, "restart": [1]}), "no list of units"),
        (json.dumps({**STATE, "touched_at": "yesterday"}), "'yesterday' is no UTC time"),
    ],
)
def test_a_damaged_state_is_named(text, words):
    with pytest.raises(UserError, match=words):
        lease_unit.parse_state(text)


def test_only_what_ran_is_started_again():
    command = lease_unit.start_command("/sr", "/sc", "/sleep", "c 50%", ["a.service", "b.service"], ["b.service"], 600)
    assert command[:4] == ["/sr", "--quiet", "--collect", "--unit=mixed-gpu-lease.service"]
    assert command[-2:] == ["/sleep", "infinity"]
    properties = [command[index + 1] for index, part in enumerate(command) if part == "-p"]
    assert properties == [
        "Description=Measurement lease of c 50%%",
        "Conflicts=a.service", "After=a.service", "Conflicts=b.service", "After=b.service",
        "RuntimeMaxSec=600",
        "ExecStopPost=-/sc reset-failed b.service",
        "ExecStopPost=/sc --no-block start b.service",
    ]


def test_the_unit_itself_tells_what_it_will_start():
    # Recorded from systemd 257: one line for each ExecStopPost=.
    text = (
        "ExecStopPost={ path=/usr/bin/systemctl ; argv[]=/usr/bin/systemctl --no-block start b.service ;"
        " ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }\n"
        "ExecStopPost={ path=/usr/bin/systemctl ; argv[]=/usr/bin/systemctl --no-block start a.service ;"
        " ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }\n"
        "LoadState=loaded\nActiveState=active\n"
    )
    properties = systemd.properties(text)
    assert properties["ActiveState"] == "active"
    assert lease_unit.restart_of_unit(properties["ExecStopPost"]) == ["a.service", "b.service"]
    assert lease_unit.restart_of_unit("") == []


def test_only_queued_starts_are_start_jobs():
    listed = "71 llama-server.service start running\n72 other.service stop waiting\nNo jobs running.\n"
    assert lease_unit.start_jobs(listed) == {"llama-server.service": "71"}
