# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A server whose lenders come and go: what its unit's status says, and when it may have all of them again. Pure.

The unit starts choose_placement.py, which says in the status which lenders are left out, or that it waits for them.
"""

from __future__ import annotations

import typing as t

#: As choose_placement.py writes them.
WITHOUT: t.Final = "without "
WAITS: t.Final = "waits for "
HOUR_SECONDS: t.Final = 3600.0


class Chosen(t.NamedTuple):
    """What a start of the unit does without."""

    absent: tuple[str, ...] = ()  # endpoints
    waits: bool = False  # nothing is served

    @property
    def hosts(self) -> str:
        """The absent hosts, in words."""
        return " and ".join(dict.fromkeys(endpoint.rpartition(":")[0] for endpoint in self.absent))


def of_status(text: str, lenders: t.Collection[str]) -> Chosen:
    """Return what the status of the unit says; of endpoints, only those that the settings know."""
    for words in (WITHOUT, WAITS):
        if text.startswith(words):
            named = text.removeprefix(words).split(",")
            return Chosen(tuple(endpoint for endpoint in named if endpoint in lenders), words == WAITS)
    return Chosen()


def may_return(events: t.Sequence[float], now: float, most_per_hour: int) -> bool:
    """Return whether the server may be restarted with all lenders, from the times of earlier restarts of any reason.

    A lender that comes and goes would else use up the restarts of a server that hangs, which then stays failed.
    """
    return sum(1 for at in events if 0 <= now - at < HOUR_SECONDS) < most_per_hour


def ended_connections(table: str, endpoints: t.Collection[str]) -> list[str]:
    """Return the endpoints that have ended their connection, from /proc/PID/net/tcp (proc(5)); IPv4 alone.

    The server has not noticed: it aborts at the next request.
    """
    found = set()
    for line in table.splitlines()[1:]:
        _number, _local, remote, state = line.split()[:4]
        address, _colon, port = remote.partition(":")
        if state == "08":  # CLOSE_WAIT
            parts = bytes.fromhex(address)[::-1]
            found.add(f"{'.'.join(map(str, parts))}:{int(port, 16)}")
    return sorted(found & set(endpoints))
