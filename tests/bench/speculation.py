"""speculation.py --machines N PAGE: the search over ways to speculate on simulated machines; writes its section.

Regret is by how much longer a token truly takes with what would be served than with the best of all arms, in percent.
An interval is that of the gain over serving without a draft, and holds where the true gain lies in it.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import random
import statistics
import typing as t

import page
import simulated_speculation


class Outcome(t.NamedTuple):
    """What became of one machine."""

    noise: float
    regret: float
    verdict: str
    kept_though_slower: bool
    held: bool | None
    loads: int


def outcome(seed: int, modes: bool = False) -> Outcome:
    """Measure one machine until the search has enough; C(modes) offers drafts in the other split mode as well."""
    machine = simulated_speculation.machine(seed)
    if modes:
        machine = simulated_speculation.with_other_mode(machine, seed)
    search, loads = simulated_speculation.drive(machine, random.Random(seed))
    verdict = search.verdict()
    gain = 100 * (1 - machine.true_ms(verdict.arm) / machine.target_ms)
    found, held = verdict.comparison, None
    if found is not None and found.low is not None and found.high is not None:
        # a hundredth is the rounding of the interval
        held = found.low - 0.01 <= gain <= found.high + 0.01
    regret = simulated_speculation.regret_percent(machine, search)
    slower = verdict.verdict == "faster" and gain < 0
    return Outcome(machine.noise, regret, verdict.verdict, slower, held, len(loads))


def row(name: str, outcomes: t.Sequence[Outcome]) -> str:
    """Return the line of the machines of one noise."""
    regrets, loads = [o.regret for o in outcomes], [o.loads for o in outcomes]
    held = [o.held for o in outcomes if o.held is not None]
    cells = [
        name,
        str(len(outcomes)),
        *(f"{page.percentile(regrets, percent):.2f}" for percent in (50, 95, 100)),
        str(sum(o.kept_though_slower for o in outcomes)),
        f"{sum(held)} of {len(held)}",
        f"{statistics.fmean(loads):.1f}, {max(loads)}",
    ]
    return f"| {' | '.join(cells)} |"


def busy_row(name: str, machines: int) -> str:
    """Return the line of machines that compute something else."""
    kept = slower = told = held = 0
    for seed in range(machines):
        machine = simulated_speculation.busy_machine(seed)
        rng = random.Random(seed)
        verdict = simulated_speculation.drive(machine, rng, simulated_speculation.BUSY[name])[0].verdict()
        gain = 100 * (1 - machine.true_ms(verdict.arm) / machine.target_ms)
        found = verdict.comparison
        kept += verdict.verdict == "faster"
        slower += verdict.verdict == "faster" and gain < -100 * simulated_speculation.INDIFFERENCE
        if found is not None and found.low is not None and found.high is not None:
            told += 1
            held += found.low - 0.01 <= gain <= found.high + 0.01
    return f"| {name} | {machines} | {kept} | {slower} | {held} of {told} |"


def text_of(outcomes: t.Sequence[Outcome], modes: t.Sequence[Outcome]) -> str:
    """Return the section; C(modes) are the outcomes of the same machines with drafts in both split modes."""
    by_noise = collections.defaultdict(list)
    for found in outcomes:
        by_noise[found.noise].append(found)
    verdicts = sorted(collections.Counter(found.verdict for found in outcomes).items())
    lines = [
        "## Planner, speculation",
        "",
        f"`make bench-planners`, {len(outcomes)} simulated machines that offer drafts or MTP blocks: which kind,",
        "device and length is served, if any. Regret in percent of the true time per token, against the best of all",
        "arms; the intervals are those of the gain over serving without a draft.",
        "",
        "| noise between loads | machines | regret, median | 95th percentile | most | kept though slower "
        "| intervals that hold | loads, mean and most |",
        "|---|---|---|---|---|---|---|---|",
        *(row(f"{100 * noise:g} %", by_noise[noise]) for noise in sorted(by_noise)),
        row("all", outcomes),
        row("all, both split modes", modes),
        "",
        f"Verdicts: {', '.join(f'{verdict} {count}' for verdict, count in verdicts)}.",
        "",
        "Machines that compute something else meanwhile, so that loads disagree. Rounds of every other one cost what",
        "no card was seen to: verifying a token up to 1.3 tokens of the target, and no line.",
        "",
        "| what differs | machines | kept | kept though slower by more than 1 % | intervals that hold |",
        "|---|---|---|---|---|",
        *(busy_row(name, len(outcomes)) for name in simulated_speculation.BUSY),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all machines and write the section."""
    parser = argparse.ArgumentParser(description="The search over ways to speculate on simulated machines.")
    parser.add_argument("page", type=pathlib.Path, help="the page whose section is replaced")
    parser.add_argument("--machines", type=int, required=True, help="how many machines")
    arguments = parser.parse_args()
    seeds = range(arguments.machines)
    text = text_of([outcome(seed) for seed in seeds], [outcome(seed, True) for seed in seeds])
    print("\n".join(f"speculation | {line}" for line in text.splitlines() if line.startswith("| ")), flush=True)
    page.write_section(arguments.page, "speculation", text)


if __name__ == "__main__":
    main()
