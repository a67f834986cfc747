"""planes.py --machines N PAGE: our planner on simulated machines with experts in RAM; writes its section of the page.

Regret is how much longer the objective truly takes than with the best of all splits, blocks in RAM, micro-batches,
threads and kinds of host memory, in percent.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import time
import typing as t

import page
import simulated_pair
import simulated_planes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import expert_placement

#: Bar of the 95th percentile of regret, percent, and of the loads that succeed before the confirmation.
MOST_REGRET: t.Final = 2.0
MOST_BEFORE: t.Final = 5


class Outcome(t.NamedTuple):
    """What became of one machine; regret is None where nothing was decided or it does not load."""

    regret: float | None
    before: int
    loads: int


def outcome(family: str, seed: int) -> Outcome:
    """Plan and measure one machine."""
    machine = simulated_planes.machine(family, seed)
    plan, loads = simulated_pair.drive(machine, random.Random(seed))
    decision = plan["decision"]
    before = sum(1 for load in loads if load["purpose"] != "confirm" and load["status"] == "ok")
    if decision is None or machine.best_ms is None:
        return Outcome(None, before, len(loads))
    layers = tuple(decision["layers"])
    placed = expert_placement.from_json(layers, decision["experts_in_ram"])
    placed = placed or expert_placement.ExpertPlacement(layers, (), threads=1)
    size = decision["micro_batch_size"]
    if not machine.loads(placed, size):
        return Outcome(None, before, len(loads))
    true = machine.true_ms(placed, size)
    return Outcome(max(0.0, 100 * (true / machine.best_ms - 1)), before, len(loads))


def row(family: str, outcomes: t.Sequence[Outcome]) -> str:
    """Return the line of one family."""
    regrets = [found.regret for found in outcomes if found.regret is not None]
    median, high = (page.percentile(regrets, percent) for percent in (50, 95))
    before = max(found.before for found in outcomes)
    met = high <= MOST_REGRET and before <= MOST_BEFORE
    cells = [
        family, str(len(outcomes)), f"{median:.1f}", f"{high:.1f}",
        str(sum(found.regret is None for found in outcomes)), str(before),
        f"{sum(found.loads for found in outcomes) / len(outcomes):.1f}, {max(found.loads for found in outcomes)}",
        "met" if met else "**missed**",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run all families and write the section."""
    parser = argparse.ArgumentParser(description="Our planner on simulated machines with experts in RAM.")
    parser.add_argument("page", type=pathlib.Path, help="the page whose section is replaced")
    parser.add_argument("--machines", type=int, required=True, help="machines of each family")
    arguments = parser.parse_args()
    lines = [
        "## Planner, experts in RAM",
        "",
        f"`make bench-planners`, {arguments.machines} simulated machines of each family with a model of experts,",
        "or a dense one, that does not fit; a third each with noise between loads of 0.5 to 1, 1 to 2 and 2 to 5 %.",
        "Regret in percent, against the best of all that can be chosen. The bar: 95th percentile at most",
        f"{MOST_REGRET:g} %, and at most {MOST_BEFORE} loads that succeed before the confirmation.",
        "",
        "| family | machines | regret, median | 95th percentile | nothing found | most loads before the confirmation "
        "| loads, mean and most | bar |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family in simulated_planes.FAMILIES:
        began = time.monotonic()
        lines.append(row(family, [outcome(family, seed) for seed in range(arguments.machines)]))
        print(f"planes | {lines[-1]} {time.monotonic() - began:.0f} s", flush=True)
    page.write_section(arguments.page, "planes", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
