# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The real script, with a systemctl that notes what it is asked."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import lease_unit

# as it is installed: inside a collection
PROGRAM = pathlib.Path(lease_unit.__file__).parents[3] / "roles/revalidation_timer/files/give_back_lease.py"
RUN = "0123456789abcdef0123456789abcdef"
NOW = "2026-11-26T03:00:00Z"


@pytest.fixture
def give_back(tmp_path):
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.parent.mkdir()
    is_active = f'[ "$1" = is-active ] && exec test -e {tmp_path}/active'
    systemctl.write_text(f'#!/bin/sh\n{is_active}\necho "$*" >> {tmp_path}/asked\n')
    systemctl.chmod(0o755)
    (tmp_path / "active").touch()

    def run(owner, invocation=RUN, text=None):
        state = json.dumps(lease_unit.new_state(owner, NOW, ["llama-server.service"])) if text is None else text
        (tmp_path / "lease.json").write_text(state, encoding="utf-8")
        env = os.environ | {
            "INVOCATION_ID": invocation, "MIXED_GPU_LEASE_FILE": str(tmp_path / "lease.json"),
            "MIXED_GPU_LOCK_FILE": str(tmp_path / "lock"), "PATH": f"{systemctl.parent}:{os.environ['PATH']}",
        }  # fmt: skip
        command = [sys.executable, str(PROGRAM)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        asked = tmp_path / "asked"
        return asked.read_text(encoding="utf-8") if asked.exists() else ""

    return run


def test_its_own_lease_is_ended(give_back):
    assert give_back(f"revalidation of sandbox {NOW} {RUN}") == f"stop {lease_unit.UNIT}\n"


@pytest.mark.parametrize(
    ("owner", "invocation", "text"),
    [
        (f"revalidation of sandbox {NOW} by hand", RUN, None),
        (f"revalidation of sandbox {NOW} {RUN[::-1]}", RUN, None),
        (f"revalidation of sandbox {NOW} {RUN}", "", None),
        ("", RUN, "{"),
        ("", RUN, ""),
    ],
)
def test_anything_else_is_left_alone(give_back, owner, invocation, text):
    assert give_back(owner, invocation, text) == ""


def test_a_state_file_without_its_lease_is_a_leftover(give_back, tmp_path):
    (tmp_path / "active").unlink()
    assert give_back(f"revalidation of sandbox {NOW} {RUN}") == ""


def test_what_still_measures_is_waited_for(give_back, tmp_path):
    holder = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
    holder += "print('up', flush=True); time.sleep(2)"
    command = [sys.executable, "-c", holder, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as measuring:
        measuring.stdout.readline()
        began = time.monotonic()
        assert give_back(f"revalidation of sandbox {NOW} {RUN}") == f"stop {lease_unit.UNIT}\n"
        assert measuring.poll() is not None and time.monotonic() - began > 1
    assert json_file.take_lock(str(tmp_path / "lock"), 0) is not None
