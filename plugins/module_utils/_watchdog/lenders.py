# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A server whose lenders come and go: what its unit's status says, and which may be had again. Pure.

The unit starts choose_placement.py, which says in the status which lenders are left out, or that it waits for them.
"""

from __future__ import annotations

import typing as t

#: As choose_placement.py writes them.
WITHOUT: t.Final = "without "
WAITS: t.Final = "waits for "


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
            named = text.removeprefix(words).partition(";")[0].split(",")
            return Chosen(tuple(endpoint for endpoint in named if endpoint in lenders), words == WAITS)
    return Chosen()


def back(
    placements: t.Sequence[t.Sequence[str]], absent: t.Collection[str], answering: t.Collection[str]
) -> tuple[str, ...]:
    """Return the absent lenders with which a better placement can be served; none where none is better.

    C(placements) are the lenders that each recorded placement uses, the preferred one first, which uses all of them; it
    is chosen as choose_placement.py chooses at a start. C(answering) are those of the absent ones that answer.
    """
    served = set(placements[0]) - set(absent) if placements else set()
    for uses in placements:
        if set(uses) == served:
            break
        if set(uses) <= served | set(answering):
            return tuple(endpoint for endpoint in uses if endpoint in absent)
    return ()


class Connection(t.NamedTuple):
    """A connection of the server to a lender."""

    endpoint: str
    port: int  # of the server's own side
    ended: bool  # by the lender: the server has not noticed, and aborts at the next request


def connections(table: str, endpoints: t.Collection[str]) -> list[Connection]:
    """Return the connections to lenders, from /proc/PID/net/tcp (proc(5)); IPv4 alone."""
    found = []
    for line in table.splitlines()[1:]:
        _number, local, remote, state = line.split()[:4]
        address, _colon, port = remote.partition(":")
        endpoint = f"{'.'.join(map(str, bytes.fromhex(address)[::-1]))}:{int(port, 16)}"
        if endpoint in endpoints and state in ("01", "08"):  # ESTABLISHED, CLOSE_WAIT
            found.append(Connection(endpoint, int(local.rpartition(":")[2], 16), state == "08"))
    return found
