# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""End the lease that this run of mixed-gpu-revalidate.service left behind, so that the server comes back at once.

systemd calls it after every run (ExecStopPost). A run that came to its end has given its lease back; one that was
stopped, or took longer than its limit, has not. Another owner's lease is left alone: the owner's name holds the
invocation of the run (systemd.exec(5), $INVOCATION_ID).
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

for directory in pathlib.Path(__file__).parents:
    if directory.name == "ansible_collections":
        sys.path.insert(0, str(directory.parent))

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import lease_unit

STATE = os.environ.get("MIXED_GPU_LEASE_FILE", "/run/mixed_gpu/lease.json")
LOCK = os.environ.get("MIXED_GPU_LOCK_FILE", "/var/lib/mixed_gpu/measurements/.lock")
#: Less than the 90 seconds after which systemd kills this program.
WAIT_SECONDS = 60


def ours(run: str) -> bool:
    """Whether this run owns the lease, and it still is one."""
    try:
        owner = lease_unit.parse_state(json_file.read_text(STATE) or "")["owner"]
    except (OSError, ValueError):
        return False
    active = subprocess.run(["systemctl", "is-active", "--quiet", lease_unit.UNIT], check=False).returncode == 0
    return active and run in owner.split()


def main() -> int:
    """Return what systemctl returned, or 0 where there is nothing to end."""
    run = os.environ.get("INVOCATION_ID", "")
    if not run or not ours(run):
        return 0
    print(f"<5>stopped before it was done: ending {lease_unit.UNIT}, so that the server starts again", flush=True)
    # what measured may still hold the devices' memory; systemd is ending it
    if os.path.exists(LOCK):
        lock = json_file.take_lock(LOCK, WAIT_SECONDS)
        if lock is not None:
            json_file.release_lock(lock)
    return subprocess.run(["systemctl", "stop", lease_unit.UNIT], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
