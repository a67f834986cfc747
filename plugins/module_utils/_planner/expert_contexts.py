# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What other contexts and types of KV cache cost where experts have to be in RAM. Private. Pure functions only.

A larger cache takes room from experts, so more of them go into RAM.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._split import expert_placement, memory_plan, split_problem
from .._split.split_problem import Problem
from .._split.types import Serving
from . import expert_plane, expert_prediction


class Contexts:
    """Rows of a table of contexts (docs/data_formats.md) for one model on devices of known_devices."""

    def __init__(self, problem: Problem, devices: t.Sequence[Mapping]) -> None:
        self.problem, self.devices = problem, devices

    def row(self, serving: Serving) -> Json | None:
        """Return what a row tells of a serving profile; None where no experts go into RAM with it."""
        problem = split_problem.read_problem({**self.problem.raw, **_within(self.problem.raw, serving)})
        found = expert_prediction.expect(problem, self.devices)
        if found is None:
            return None
        best = found["best"]
        if best is None:
            return {"layers": None, "left_mib": None, "missing_mib": self._missing(problem)}
        placed = expert_placement.from_json(best["layers"], best["experts_in_ram"])
        if placed is None:
            return None
        speeds = expert_prediction.Speeds(problem, self.devices)
        ends, ttft = best["ttft_interval"], best["ttft_ms"]
        full = memory_plan.context_cells(serving)[0] - 1
        return {
            "layers": best["layers"],
            "left_mib": memory_plan.headroom_mib(best["mib"], memory_plan.budgets_mib(self.devices, 0)),
            "missing_mib": None,
            "blocks_in_ram": best["blocks_in_ram"],
            "ram_mib": best["ram_mib"],
            "decode_empty": _per_second(speeds.decode_ms(placed, 0)),
            "decode_full": _per_second(speeds.decode_ms(placed, full)),
            "ttft_ms": None if ttft is None else _told(ends[0], ttft, ends[1]),
        }

    def _missing(self, problem: Problem) -> dict[str, int]:
        """Return the MiB that are missing of RAM, or of devices that cannot even hold the rest of the model."""
        given = problem.raw["experts_in_ram"].get("ram_mib")
        plane = expert_plane.Plane(problem, problem.budgets)
        placements = plane.candidates(problem.micro_batch)
        if given is not None and placements:
            return {"RAM": min(expert_plane.ram_mib(plane.model, placement) for placement in placements) - given}
        whole = expert_placement.all_in_ram(plane.model)
        needed = memory_plan.MemoryPlan(plane.model, problem.memory.serving, experts=whole).mib(problem.default)
        left = memory_plan.headroom_mib(needed, problem.budgets)
        return {name: -mib for name, mib in zip(problem.names, left, strict=True) if mib < 0}


def _within(raw: Mapping, serving: Serving) -> Json:
    """Return a serving profile with objective and tests that its context has room for."""
    cells = memory_plan.context_cells(serving)[0]
    asked = raw["objective"]
    objective = {
        **asked, "prompt_tokens": min(asked["prompt_tokens"], cells // 2),
        "generated_tokens": min(asked["generated_tokens"], cells // 4),
        "depth_tokens": min(asked["depth_tokens"], cells // 4),
    }  # fmt: skip
    tests = [
        {
            **test, "n_prompt": min(test["n_prompt"], cells // 2), "n_gen": min(test["n_gen"], cells // 4),
            "n_depth": min(test["n_depth"], cells // 4),
        }
        for test in raw["tests"]
    ]  # fmt: skip
    return {"serving": serving, "objective": objective, "tests": tests}


def _told(low: float, value: float, high: float) -> Json:
    return {"value": round(value, 1), "low": round(low, 1), "high": round(high, 1)}


def _per_second(times: tuple[float, float, float] | None) -> Json | None:
    """Return least, expected and most time of a token as tokens per second."""
    return None if times is None else _told(1000 / times[2], 1000 / times[1], 1000 / times[0])
