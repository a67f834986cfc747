# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Hangs that the watchdog ended, as its own code records them."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._diagnosis import hangs
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watchdog import state

UNIT = "llama-server.service"
NOW = 1_790_000_000.0


def found(*days_ago):
    known = state.empty()
    for days in days_ago:
        at = NOW - days * 86_400
        event = {"boot": "b", "monotonic": 1.0, "at": at, "start": "a", "reason": f"{UNIT} was silent for 65 s"}
        state.add_restart(known, UNIT, event)
    return hangs.findings(json.dumps(known), UNIT, 7, NOW)


def test_hangs_of_the_last_days_are_a_note():
    (note,) = found(30, 3, 0)
    assert (note["subject"], note["kind"], note["severity"]) == ("server", "hung", "note")
    assert note["detail"] == (
        "the watchdog restarted it 2 times within 7 days; the last time, 2026-09-21 14:13 UTC, since"
        " llama-server.service was silent for 65 s"
    )


def test_older_hangs_and_none_are_not():
    assert found(30) == found() == []


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"units": 1}', '{"units": {"llama-server.service": {"restarts": [1]}}}',
        '{"units": {"llama-server.service": {"restarts": [{"at": 1e20, "reason": "r"}]}}}',
        '{"units": {"llama-server.service": {"restarts": [{"at": 1.0}]}}}',
    ],
)  # fmt: skip
def test_a_file_that_says_nothing(text):
    assert hangs.findings(text, UNIT, 7, NOW) == []
