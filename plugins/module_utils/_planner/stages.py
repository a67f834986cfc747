# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The stages of a tuning behind one function: layer split, micro-batch, tensor mode. Private to this collection. Pure.

The stage of layer splits never sees the loads of the later stages: they neither count against its limit nor enter its
fit. Each later stage completes the plan of those before it. Where experts have to be in RAM, one stage settles it all.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json
from .._split.measured_loads import read_loads
from .._split.split_problem import read_problem
from . import expert_plane, expert_stage, layer_stage, micro_batch_stage, tensor_loads, tensor_stage

LATER_PURPOSES: t.Final = (
    micro_batch_stage.PURPOSE, tensor_loads.PURPOSE, tensor_loads.RIVAL_PURPOSE, tensor_loads.TRIAL_PURPOSE
)  # fmt: skip


def plan(problem: t.Any, loads: t.Any) -> Json:
    """Return the plan for a problem and everything measured so far, all as in docs/data_formats.md.

    Pure and deterministic. Raises ValueError, naming the field, for a problem or loads that are not as described there.
    """
    if not isinstance(loads, (list, tuple)) or not all(isinstance(load, t.Mapping) for load in loads):
        raise ValueError(f"loads must be a list of dicts, not {loads!r}")
    later = [_checked(f"loads[{index}]", load) for index, load in enumerate(loads) if _is_later(load)]
    checked = read_problem(problem)
    if expert_plane.wanted(checked):
        return expert_stage.plan(checked, loads)
    found, evidence = layer_stage.plan(checked, read_loads(checked, [load for load in loads if not _is_later(load)]))
    tensor_stage.check(checked.raw.get("tensor"))
    found["trials"] = []
    if found["decision"] is None:
        return found
    # a device that tensor mode brought down is a reason against tensor mode
    lost = next((load for load in later if load["status"] == "device_lost" and load["split_mode"] == "layer"), None)
    if lost is not None:
        reason = lost.get("reason")
        why = f"a device was lost: {lost['label']} ended as device_lost ({reason}); bring it back and run again"
        return {**found, "done": True, "stage": "impossible", "why": why, "loads": [], "decision": None}
    longest_ms = max((load.get("wall_ms") or 0 for load in loads if load.get("split_mode") == "layer"), default=0)
    return tensor_stage.plan(micro_batch_stage.plan(found, evidence, later), evidence, later, longest_ms)


def _is_later(load: t.Mapping[str, t.Any]) -> bool:
    return load.get("purpose") in LATER_PURPOSES


def _checked(where: str, load: t.Mapping[str, t.Any]) -> Json:
    """Return a load of a later stage; ValueError names the field that is missing or wrong."""
    for key, kind in (("split_mode", str), ("layers", list), ("load", int), ("status", str), ("results", list)):
        if not isinstance(load.get(key), kind):
            raise ValueError(f"{where}.{key} is missing or no {kind.__name__}")
    if load["purpose"] != tensor_loads.TRIAL_PURPOSE and not isinstance(load.get("tests"), list):
        raise ValueError(f"{where}.tests is missing or no list")
    return dict(load)
