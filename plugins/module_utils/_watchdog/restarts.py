# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a hung server is restarted, later, or no more. Pure functions only."""

from __future__ import annotations

import typing as t

HOUR_SECONDS: t.Final = 3600.0
#: The wait before the second restart within an hour; each further one waits twice as long.
FIRST_WAIT_SECONDS: t.Final = 60.0


class Decision(t.NamedTuple):
    """What to do with a server that hangs."""

    action: t.Literal["restart", "wait", "give_up"]
    wait_seconds: float = 0.0


def recent(earlier: t.Iterable[float], now: float) -> list[float]:
    """Return the times of restarts within the last hour, in order."""
    return sorted(at for at in earlier if 0 <= now - at < HOUR_SECONDS)


def decide(earlier: t.Sequence[float], now: float, most_per_hour: int) -> Decision:
    """Return what to do, from the times of earlier restarts (seconds of the monotonic clock, any order)."""
    times = recent(earlier, now)
    if len(times) >= most_per_hour:
        return Decision("give_up")
    if not times:
        return Decision("restart")
    wait = FIRST_WAIT_SECONDS * 2 ** (len(times) - 1) - (now - times[-1])
    return Decision("wait", wait) if wait > 0 else Decision("restart")
