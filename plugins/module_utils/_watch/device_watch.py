# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How long the devices of a server work: processes by the kernel's accounts. Private to this collection.

Reads /proc and the machine's addresses; changes nothing.

A device that is a process (an RPC server that computes on a CPU) is busy while its busiest thread runs or waits for a
CPU: /proc/PID/task/TID/schedstat has both in ns (Documentation/scheduler/sched-stats.rst of Linux). Waiting counts as
busy, because the token waits too; that it waited, and not worked, is told apart. A thread that is held by a CPU quota
counts as waiting.
"""

from __future__ import annotations

import os
import socket
import typing as t

from .._hardware import host_hardware


class Spent(t.NamedTuple):
    """What a thread has had so far: ns on a CPU, and ns of waiting for one."""

    running_ns: int
    waiting_ns: int


def endpoint(text: str) -> tuple[str, int]:
    """Return host and port of C(host:port) or C([address]:port). Raises ValueError."""
    host, _colon, port = text.rpartition(":")
    if not host:
        raise ValueError(f"{text!r} is no endpoint host:port")
    return host.strip("[]"), int(port)


def is_local(host: str) -> bool:
    """Return whether a name or address is this machine's: only its own addresses can be bound to."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, _protocol, _name, address in found:
        try:
            with socket.socket(family, kind) as own:
                own.bind(address)
            return True
        except OSError:
            continue
    return False


def threads(pid: int, root: str = "/proc") -> dict[int, Spent]:
    """Return what each thread of a process has had so far; empty when it has ended.

    Without schedstat in the kernel it comes from stat, in hundredths of a second, and nothing is known of waiting.
    """
    directory = os.path.join(root, str(pid), "task")
    try:
        names = os.listdir(directory)
    except OSError:
        return {}
    found = {}
    for name in names:
        words = (host_hardware.read(os.path.join(directory, name, "schedstat")) or "").split()
        if len(words) >= 2:
            found[int(name)] = Spent(int(words[0]), int(words[1]))
            continue
        after_name = (host_hardware.read(os.path.join(directory, name, "stat")) or "").rpartition(")")[2].split()
        if len(after_name) > 12:  # utime and stime, fields 14 and 15 of proc(5)
            ticks = int(after_name[11]) + int(after_name[12])
            found[int(name)] = Spent(ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK"), 0)
    return found


def between(before: t.Mapping[int, Spent], after: t.Mapping[int, Spent]) -> Spent:
    """Return what the busiest thread had in the meantime: threads of one device work at the same time."""
    nothing = Spent(0, 0)
    gained = [
        Spent(spent.running_ns - had.running_ns, spent.waiting_ns - had.waiting_ns)
        for thread, spent in after.items()
        for had in [before.get(thread, nothing)]
    ]
    return max(gained, key=sum, default=nothing)


def cards_between(
    readings: t.Mapping[str, t.Sequence[t.Mapping[str, t.Any]]], start: float, end: float
) -> dict[str, float | None]:
    """Return each card's mean utilisation in percent over the readings from start to end; None without one."""
    found: dict[str, float | None] = {}
    for card_id, rows in readings.items():
        values = [
            row["utilization_gpu_percent"]
            for row in rows
            if start <= row["at"] <= end and row["utilization_gpu_percent"] is not None
        ]
        found[card_id] = sum(values) / len(values) if values else None
    return found


def throttled_percent(
    rows: t.Sequence[t.Mapping[str, t.Any]], names: t.Callable[[int | None], list[str] | None]
) -> dict[str, float] | None:
    """Return in how many percent of the readings each reason held the clocks down; None where the card does not say."""
    looks = [names(row["throttle_mask"]) or [] for row in rows if row["throttle_mask"] is not None]
    if not looks:
        return None
    return {
        reason: round(100 * sum(1 for seen in looks if reason in seen) / len(looks), 1)
        for reason in sorted({reason for seen in looks for reason in seen})
    }
