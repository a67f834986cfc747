# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What of a model lies on which card, for pictures. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from . import expert_placement, memory_plan
from .types import Model, Serving


def rows(
    model: Model,
    serving: Serving,
    layers: t.Sequence[int],
    devices: t.Sequence[Mapping],
    experts: expert_placement.ExpertPlacement | None,
) -> list[Json]:
    """Return what lies where, in MiB, of each device; C(experts) are in RAM."""
    held = memory_plan.MemoryPlan(model, serving, experts=experts).devices(layers)
    return [
        {
            "device": device["device"], "card": device["description"], "total_mib": device["total_mib"],
            "layers": count, "weights_mib": part.weights // memory_plan.MIB, "kv_mib": part.kv // memory_plan.MIB,
            "compute_mib": part.compute // memory_plan.MIB, "free_mib": device["free_mib"] - part.mib,
        }
        for device, count, part in zip(devices, layers, held, strict=True)
    ]  # fmt: skip
