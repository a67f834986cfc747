# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How long a tuning took. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base import json_file
from .._base.steps import Done
from .._base.types import Json


def of(done: t.Sequence[Done], first: str) -> Json:
    """Return C({measuring_seconds, leased_seconds, loads, kept_loads}) of the steps of a tuning that is finished.

    C(first) is the name of the first step under the lease. Measuring is the time of all loads that the decision rests
    on, C(kept_loads) of which an earlier run of the same campaign measured. The lease is that of this run alone: from
    the first step under it to the last one.
    """
    loads = [item.result["load"] for item in done if "load" in item.result]
    ended = {item.step.name: item.at for item in done}
    return {
        "measuring_seconds": round(sum(load.get("wall_ms") or 0 for load in loads) / 1000),
        "leased_seconds": round(_between(ended[first], done[-1].at)) if first in ended else 0,
        "loads": len(loads),
        "kept_loads": sum(1 for load in loads if load.get("reused")),
    }


def _between(first: str, last: str) -> float:
    return (json_file.utc_time(last) - json_file.utc_time(first)).total_seconds()
