# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the watchdog remembers of servers that hung. Private to this collection. Pure functions only.

The watchdog (_watchdog/state.py) writes the file on the host.
"""

from __future__ import annotations

import time
import typing as t

from .._base import json_file
from .._base.text import one_line
from .._base.types import Json
from .finding import finding

_DAY_SECONDS: t.Final = 86400
_MOST_CHARACTERS: t.Final = 200


def findings(text: str, unit: str, days: int, now: float) -> list[Json]:
    """Return a note where the watchdog restarted a unit within some days; C(now) is in seconds since 1970.

    C(text) is the watchdog's state file, empty without one. A damaged one says nothing: the watchdog begins anew.
    """
    try:
        restarts = json_file.from_text(text)["units"][unit]["restarts"] if text else []
        recent = [one for one in restarts if now - one["at"] <= days * _DAY_SECONDS]
        when, reason = [
            (time.strftime("%Y-%m-%d %H:%M", time.gmtime(one["at"])), one_line(one["reason"], _MOST_CHARACTERS))
            for one in recent
        ][-1]
    except (LookupError, OSError, OverflowError, TypeError, ValueError):
        return []
    times = "once" if len(recent) == 1 else f"{len(recent)} times"
    detail = f"the watchdog restarted it {times} within {days} days; the last time, {when} UTC, since {reason}"
    return [finding("server", "hung", "note", detail, "journalctl -t mixed-gpu-watchdog has all of them")]
