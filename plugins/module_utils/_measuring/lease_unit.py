# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The measurement lease: who may use the devices. Private to this collection. Pure functions only.

The lease is a transient systemd unit that conflicts with the servers; a small state file beside it names its owner.
The unit is what counts: a state file without an active unit is a leftover. The owner touches the file (its
modification time) while the lease is in use; the unit's program ends the lease when nobody does.
"""

from __future__ import annotations

import re
import typing as t

from .._base import json_state, unit_sandbox
from .._base.types import Json, Mapping

UNIT: t.Final = "mixed-gpu-lease.service"

#: The lease waits, looks at two files, and asks systemd to start what it stopped.
_SANDBOX: t.Final = (
    *unit_sandbox.EVERY_UNIT,
    "CapabilityBoundingSet=",
    "SystemCallFilter=~@privileged @resources",
    "ProtectHome=read-only",  # Python may be there
    "PrivateDevices=yes",
    "PrivateNetwork=yes",
    "IPAddressDeny=any",
    "RestrictAddressFamilies=AF_UNIX",
    "MemoryDenyWriteExecute=yes",
)


def new_state(owner: str, now: str, restart: t.Sequence[str]) -> Json:
    """Return the state of a lease that begins now (UTC, C(2026-11-24T04:35:00Z))."""
    return {"owner": owner, "acquired_at": now, "restart": sorted(set(restart))}


#: The state file does not outlive a boot, so it has no schema.
FORM: t.Final = json_state.Form(
    None, "take the lease again", shape={"owner": str, "acquired_at": str, "restart": [str]}
)


def decide(active: bool, state: Mapping | None, owner: str) -> str:
    """Return what C(owner) may do: C(free), C(ours) or C(wait).

    An abandoned lease is waited for: its unit ends itself.
    """
    if not active:
        return "free"
    return "ours" if state is not None and state["owner"] == owner else "wait"


def start_command(
    systemd_run: str, systemctl: str, program: t.Sequence[str], owner: str, conflicts: t.Sequence[str],
    restart: t.Sequence[str], max_seconds: int, lock_dir: str,
) -> list[str]:
    """Return the command that starts the lease, with the command line of its program; C(lock_dir) has the lock file.

    systemd stops what conflicts before the lease starts (Conflicts= with After=), ends the lease after C(max_seconds),
    and however it ends starts again what ran before (ExecStopPost=). C(--no-block) because that start waits for the
    lease to be gone. These starts do not count against the units' StartLimitBurst=, which is for servers that crash
    (reset-failed clears the count).
    """
    properties = [f"Description=Measurement lease of {re.sub(r'[^ -~]', '?', owner).replace('%', '%%')}"]
    for name in conflicts:
        properties += [f"Conflicts={name}", f"After={name}"]
    properties += [f"RuntimeMaxSec={max_seconds}", *_SANDBOX, f"ReadWritePaths={lock_dir}"]
    if restart:
        properties.append(f"ExecStopPost=-{systemctl} reset-failed {' '.join(sorted(set(restart)))}")
    properties += [f"ExecStopPost={systemctl} --no-block start {name}" for name in sorted(set(restart))]
    return [
        systemd_run, "--quiet", "--collect", f"--unit={UNIT}",
        *(part for value in properties for part in ("-p", value)),
        *program,
    ]


def start_jobs(text: str) -> dict[str, str]:
    """Return the number of the queued start or restart job of each unit, from C(systemctl list-jobs)."""
    rows = (line.split() for line in text.splitlines())
    return {row[1]: row[0] for row in rows if len(row) == 4 and row[0].isdigit() and row[2] in ("start", "restart")}
