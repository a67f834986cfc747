# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs as long as the measurement lease is wanted; the module measurement_lease copies it to the host.

It is the main process of mixed-gpu-lease.service, and systemd starts the stopped servers again when it ends. It ends
when the lease's state file was not touched for some time while no measurement held the lock: then whoever took the
lease was killed, or lost the host. Standard library only.

    hold_lease.py STATE_FILE LOCK_FILE IDLE_SECONDS [CHECK_SECONDS]
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time


def touched_ns(path: str) -> int | None:
    """Return when the state file was touched last, or None without one."""
    with contextlib.suppress(OSError):
        return os.stat(path).st_mtime_ns
    return None


def take_lock(path: str) -> int | None:
    """Return a descriptor that holds the lock, or None while a measurement holds it. A missing file is made."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def hold(state_file: str, lock_file: str, idle_seconds: float, check_seconds: float) -> None:
    """Return when nobody touched the state file for C(idle_seconds) and nothing measures.

    The time is counted here, since the host's clock may be set meanwhile.
    """
    seen, since = touched_ns(state_file), time.monotonic()
    while True:
        time.sleep(check_seconds)
        now = touched_ns(state_file)
        if now != seen:
            seen, since = now, time.monotonic()
        if time.monotonic() - since < idle_seconds:
            continue
        lock = take_lock(lock_file)
        if lock is not None and touched_ns(state_file) == seen:
            sys.stdout.write(f"nobody used the lease for {idle_seconds:g} seconds: ending it\n")
            sys.stdout.flush()
            return  # with the lock: no measurement begins before this process has ended
        if lock is not None:
            os.close(lock)


def main() -> int:
    """Hold the lease; return 0 when it was given up."""
    state_file, lock_file, idle_seconds = sys.argv[1:4]
    hold(state_file, lock_file, float(idle_seconds), float(sys.argv[4]) if len(sys.argv) > 4 else 5.0)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
