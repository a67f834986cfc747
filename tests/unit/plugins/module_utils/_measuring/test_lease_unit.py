# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import lease_unit

STATE = lease_unit.new_state("A", "2026-11-24T04:40:00Z", ["x.service"])


@pytest.mark.parametrize(
    ("active", "state", "owner", "answer"),
    [
        pytest.param(False, None, "A", "free", id="nobody has it"),
        pytest.param(False, STATE, "B", "free", id="a state file without a unit is a leftover"),
        pytest.param(True, STATE, "A", "ours", id="it is ours"),
        pytest.param(True, STATE, "B", "wait", id="another owner"),
        pytest.param(True, None, "B", "wait", id="unknown owner"),
    ],
)
def test_who_may_have_it(active, state, owner, answer):
    assert lease_unit.decide(active, state, owner) == answer


def test_the_state_is_read_as_it_was_written():
    assert lease_unit.FORM.data(json.dumps(STATE)) == STATE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[]", "a list instead of a dict"),
        ("{}", "owner is missing"),
        (json.dumps({**STATE, "owner": None}), "owner must be text, not None"),
        (json.dumps({**STATE, "restart": "x"}), "restart must be a list, not 'x'"),
        (json.dumps({**STATE, "restart": [1]}), r"restart\[0\] must be text, not 1"),
    ],
)
def test_a_damaged_state_is_named(text, words):
    with pytest.raises(UserError, match=words):
        lease_unit.FORM.data(text)


def test_only_what_ran_is_started_again():
    conflicts, restart = ["a.service", "b.service"], ["b.service"]
    command = lease_unit.start_command("/sr", "/sc", ["/py", "hold"], "c 50%", conflicts, restart, 600, "/state")
    assert command[:4] == ["/sr", "--quiet", "--collect", "--unit=mixed-gpu-lease.service"]
    assert command[-2:] == ["/py", "hold"]
    properties = [command[index + 1] for index, part in enumerate(command) if part == "-p"]
    assert properties == [
        "Description=Measurement lease of c 50%%",
        "Conflicts=a.service", "After=a.service", "Conflicts=b.service", "After=b.service",
        "RuntimeMaxSec=600",
        *lease_unit._SANDBOX,
        "ReadWritePaths=/state",
        "ExecStopPost=-/sc reset-failed b.service",
        "ExecStopPost=/sc --no-block start b.service",
    ]


def test_only_queued_starts_are_start_jobs():
    listed = "71 llama-server.service start running\n72 other.service stop waiting\nNo jobs running.\n"
    assert lease_unit.start_jobs(listed) == {"llama-server.service": "71"}
