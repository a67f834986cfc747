# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether something else computed while a host was measured: no cause follows. Private to this collection. Pure.

C(observed) is described in verdict.py, the C(contention) of a load in _measuring/contention.py.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._measuring import contention
from .._split import speed
from .checks import check


def enough(loads: t.Sequence[Mapping]) -> bool:
    """Return whether so many loads were calm that a verdict can rest on them alone."""
    return len(contention.calm(loads)) >= speed.LEAST_LOADS


def judged_loads(loads: t.Sequence[Mapping]) -> list[Json]:
    """Return the loads that are compared: the calm ones, or all where these are too few (see checked)."""
    return contention.calm(loads) if enough(loads) else [dict(load) for load in loads]


def given_up(loads: t.Sequence[Mapping]) -> bool:
    """Return whether so many loads were contended that it is better to wait than to measure on."""
    return len(contention.contended(loads)) >= contention.MOST_CONTENDED


def whose(observed: Mapping) -> str | None:
    """Return who computed so much that today's times say nothing of the host, or None."""
    if not observed["loads"]:
        return of_serving(observed)
    found = contention.contended(observed["loads"])
    return found[-1] if found and not enough(observed["loads"]) else None


def of_serving(observed: Mapping) -> str | None:
    """Return who computed while the serving instance was asked, its own other requests included, or None."""
    if observed["busy"]["busy"]:
        return str(observed["busy"]["why"])
    return contention.who(observed["contention"]["served"])


def of_probe(observed: Mapping) -> str | None:
    """Return who computed while the devices were measured alone, or None."""
    found = [said for seen in observed["contention"]["probe"] if (said := contention.who(seen)) is not None]
    return found[-1] if found else None


def checked(found: t.Sequence[Json], observed: Mapping) -> list[Json]:
    """Return the checks of speeds with what contention makes of them: not known, never worse.

    A speed that holds in spite of it holds.
    """
    said = whose(observed)
    if said is None:
        return list(found)
    open_now = [dict(one) if one["verdict"] in ("ok", "improved", "broken") else _unknown(one) for one in found]
    if not any(one["verdict"] == "inconclusive" for one in open_now):
        return open_now
    return [*open_now, check("contention", "inconclusive", contention.sentence(said))]


def _unknown(one: Json) -> Json:
    """Return a check without what it said of a change, which is somebody else's doing."""
    left = {name: value for name, value in one.items() if name not in ("change_percent", "interval_percent")}
    return {**left, "verdict": "inconclusive", "detail": "not compared, since something else computed meanwhile"}


def obstacle(loads: t.Sequence[Mapping]) -> str | None:
    """Return why these loads are no baseline, or None."""
    found = contention.contended(loads)
    return contention.sentence(found[-1]) if found and not enough(loads) else None
