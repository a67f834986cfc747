"""families.py --machines N PAGE: our planner on families of simulated machines; writes its section of the page.

Regret is how much longer the objective truly takes than with the best split that loads, in percent. An interval is that
of the gain over the engine's default, and holds where the true gain lies in it.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import time
import typing as t

import page
import simulated_families
import simulated_pair

#: Loads that scatter by no more than this (relative) should end with a verdict.
QUIET: t.Final = 0.02


class Outcome(t.NamedTuple):
    """What became of one machine; regret is None where no split was found or it does not load."""

    regret: float | None
    quiet: bool
    verdict: str
    loads: int
    held: bool | None
    worse_than_default: bool


def outcome(family: str, seed: int) -> Outcome:
    """Plan and measure one machine."""
    machine = simulated_families.machine(family, seed)
    best = machine.best()
    plan, loads = simulated_pair.drive(machine, random.Random(seed))
    decision = plan["decision"]
    quiet = machine.noise <= QUIET
    if decision is None or best is None or not machine.loads(tuple(decision["layers"])):
        return Outcome(None, quiet, plan["stage"], len(loads), None, False)
    layers, default = tuple(decision["layers"]), machine.checked.default
    own, other = machine.true_ms(layers), machine.true_ms(default)
    regret = 100 * (own / machine.true_ms(best) - 1)
    worse = machine.loads(default) and own > other * (1 + decision_indifference(machine))
    return Outcome(max(0.0, regret), quiet, decision["verdict"], len(loads), held(machine, decision), worse)


def held(machine: simulated_families.Machine, decision: t.Mapping[str, t.Any] | None) -> bool | None:
    """Return whether the interval of the gain over the engine's own split holds; None without one."""
    if decision is None or not decision["gain_interval_percent"]:
        return None
    layers, default = tuple(decision["layers"]), machine.checked.default
    if layers == default:
        return None
    low, high = decision["gain_interval_percent"]
    gain = 100 * (1 - machine.true_ms(layers) / machine.true_ms(default))
    # a hundredth is the rounding of the interval
    return bool(low - 0.01 <= gain <= high + 0.01)


def decision_indifference(machine: simulated_families.Machine) -> float:
    """Return what makes no difference on this machine: a split worse by more is worse."""
    return float(machine.problem["indifference"])


def row(family: str, outcomes: t.Sequence[Outcome]) -> str:
    """Return the line of one family."""
    regrets = [o.regret for o in outcomes if o.regret is not None]
    held = [o.held for o in outcomes if o.held is not None]
    quiet = [o for o in outcomes if o.quiet]

    cells = [
        family,
        str(len(outcomes)),
        *(f"{page.percentile(regrets, percent):.1f}" if regrets else "-" for percent in (50, 95)),
        f"{sum(o.verdict == 'inconclusive' for o in quiet)} of {len(quiet)}",
        f"{100 * sum(held) / len(held):.0f} %" if held else "-",
        str(sum(o.regret is None for o in outcomes)),
        str(sum(o.worse_than_default for o in outcomes)),
        f"{sum(o.loads for o in outcomes) / len(outcomes):.1f}, {max(o.loads for o in outcomes)}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run all families and write the section."""
    parser = argparse.ArgumentParser(description="Our planner on families of simulated machines.")
    parser.add_argument("page", type=pathlib.Path, help="the page whose section is replaced")
    parser.add_argument("--machines", type=int, required=True, help="machines of each family")
    arguments = parser.parse_args()
    lines = [
        "## Planner, families of machines",
        "",
        f"`make bench-planners`, {arguments.machines} machines of each family; a third each with noise between loads",
        "up to 1, 2 and 5 %. Regret in percent; quiet are those with noise up to 2 %.",
        "",
        "| family | machines | regret, median | 95th percentile | inconclusive of quiet | intervals that hold "
        "| nothing found | worse than the default | loads, mean and most |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for family in simulated_families.FAMILIES:
        began = time.monotonic()
        lines.append(row(family, [outcome(family, seed) for seed in range(arguments.machines)]))
        print(f"families | {lines[-1]} {time.monotonic() - began:.0f} s", flush=True)
    page.write_section(arguments.page, "families", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
