# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the revalidations of a deployment found over time. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping


def rows(history: t.Iterable[Mapping]) -> list[Json]:
    """Return a row per revalidation, the oldest first; C(history) has the newest first, as due.history yields it.

    A row is {at, baseline_at, driver_version, verdict, accepted, decode, prefill}. decode and prefill are {percent,
    low, high}, how much more time is taken than in the baseline; null where that was not compared. A file that lacks
    what is shown is left out.
    """
    found = [row for result in history if (row := _row(result)) is not None]
    return sorted(found, key=lambda row: str(row["at"]))


def _row(result: Mapping) -> Json | None:
    checks = result.get("checks")
    if not isinstance(result.get("at"), str) or not isinstance(result.get("verdict"), str) or not checks:
        return None
    return {
        **{name: result.get(name) for name in ("at", "baseline_at", "driver_version", "verdict")},
        "accepted": bool(result.get("accepted")),
        **{kind: _change(checks, kind) for kind in ("decode", "prefill")},
    }


def _change(checks: t.Iterable[Mapping], kind: str) -> Json | None:
    """Return the change of the first test of a kind: C(decode), C(decode at 2048), or as served C(decode (start))."""
    for check in checks:
        if check["name"].split(" ")[0] == kind and check.get("change_percent") is not None:
            low, high = [*(check.get("interval_percent") or ()), None, None][:2]
            return {"percent": check["change_percent"], "low": low, "high": high}
    return None
