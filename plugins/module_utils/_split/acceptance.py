# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How many drafted tokens are right, and whether two counts of it differ. Private to this collection. Pure.

The tokens of one draft stand or fall together, so drafts are counted and not tokens. The interval of a difference is
Newcombe's hybrid of two score intervals (Statistics in Medicine 17, 1998, method 10), which holds near 0 and 1 as well.
"""

from __future__ import annotations

import math
import statistics
import typing as t

from .._base.types import Mapping
from . import speculation, speed

#: Standard deviations of an interval of 98 %, as speeds have.
_Z: t.Final = statistics.NormalDist().inv_cdf(1 - speed.OUTSIDE / 2)


class Counted(t.NamedTuple):
    """Tokens that were drafted, those of them that were right, and in how many drafts."""

    drafted: int
    accepted: int
    drafts: int

    @property
    def share(self) -> float:
        """The share of drafted tokens that were right."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_draft(self) -> float:
        """Tokens that a round with a draft gives: those that were right, and one of the model's own."""
        return 1 + self.accepted / self.drafts if self.drafts else 1.0


class Difference(t.NamedTuple):
    """By how much the share of right tokens differs from an earlier one, with its interval of 98 %; from -1 to 1."""

    change: float
    low: float
    high: float


def comparable(entry: Mapping) -> bool:
    """Return whether a served entry drafts in a way whose acceptance can be compared.

    n-gram kinds draft from all text that a server has seen, so theirs depends on what was asked before.
    """
    return (entry.get("speculation") or {}).get("kind") in speculation.LINE_KINDS


def total(rows: t.Iterable[Mapping]) -> Counted:
    """Return the sums of rows of C({drafted, accepted, drafts})."""
    listed = list(rows)
    return Counted(*(sum(int(row[name]) for row in listed) for name in Counted._fields))


def difference(before: Counted, now: Counted) -> Difference:
    """Return how the share changed. Raises ValueError where one of them has no draft."""
    (was, was_low, was_high), (is_now, now_low, now_high) = _interval(before), _interval(now)
    change = is_now - was
    low = change - math.hypot(is_now - now_low, was_high - was)
    high = change + math.hypot(now_high - is_now, was - was_low)
    return Difference(change, low, high)


def _interval(counted: Counted) -> tuple[float, float, float]:
    """Return a share with its score interval (Wilson)."""
    if not counted.drafts or not counted.drafted:
        raise ValueError("nothing was drafted")
    share, number = counted.share, counted.drafts
    middle = share + _Z**2 / (2 * number)
    half = _Z * math.sqrt(share * (1 - share) / number + _Z**2 / (4 * number**2))
    whole = 1 + _Z**2 / number
    return share, (middle - half) / whole, (middle + half) / whole
