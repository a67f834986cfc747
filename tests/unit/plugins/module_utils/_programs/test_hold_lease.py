# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program as a process, as systemd runs it."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._programs import hold_lease


@pytest.fixture
def lease(tmp_path):
    """Start the program; lease(idle) returns the process. C(lease.state) is its state file, C(lease.lock) its lock."""
    started = []

    def start(idle_seconds):
        start.state.write_text("{}")
        command = [sys.executable, "-I", hold_lease.__file__, start.state, start.lock, str(idle_seconds), "0.1"]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    start.state, start.lock = tmp_path / "lease.json", tmp_path / "measurements" / ".lock"
    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_it_ends_when_nobody_touches_the_lease(lease):
    process = lease(0.5)
    assert process.wait(timeout=120) == 0
    assert "nobody used the lease for 0.5 seconds" in process.stdout.read()


def test_it_stays_while_the_lease_is_touched(lease):
    process = lease(4)
    for _touch in range(10):
        time.sleep(0.5)
        os.utime(lease.state)
        assert process.poll() is None
    assert process.wait(timeout=120) == 0


def test_a_clock_that_was_set_does_not_end_it(lease):
    process = lease(5)
    time.sleep(3)
    os.utime(lease.state, (0, 0))  # as if the clock had been set forward by half a century
    time.sleep(3)
    assert process.poll() is None
    assert process.wait(timeout=120) == 0


def test_it_stays_while_something_measures(lease):
    lease.lock.parent.mkdir()
    held = json_file.take_lock(str(lease.lock), 0)
    process = lease(0.2)
    time.sleep(1.5)
    assert process.poll() is None
    json_file.release_lock(held)
    assert process.wait(timeout=120) == 0


def test_a_lost_state_file_counts_as_untouched(lease):
    process = lease(1)
    pathlib.Path(lease.state).unlink()
    assert process.wait(timeout=120) == 0
