"""How sure the verdicts of a revalidation are: simulated series with known slowdowns.

Writes its section of docs/benchmarks.md.

A series is a baseline of some loads and a revalidation that adds loads until its verdict is clear or its limit is
reached, as the role does. Noise is twofold: between loads, and between the repetitions within a load.
"""

from __future__ import annotations

import collections
import pathlib
import random
import sys
import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import speed as statistics

REPETITIONS = 3
TOLERANCE_PERCENT = 3.0
BASELINE_LOADS = (3, 6)
MOST_LOADS = 6
BETWEEN_PERCENT = (0.25, 0.5, 1.0, 2.0, 4.0)
WITHIN_PERCENT = 0.5
SLOWDOWNS_PERCENT = (0, 1, 2, 5, 10)


class Series:
    """Loads of one machine."""

    def __init__(self, between_percent: float, within_percent: float, seed: int) -> None:
        self.random = random.Random(seed)
        self.between, self.within = between_percent / 100, within_percent / 100

    def load(self, slowdown_percent: float = 0.0) -> list[float]:
        """Return the samples of one load, ms."""
        level = 50.0 * (1 + slowdown_percent / 100) * (1 + self.random.gauss(0, self.between))
        return [level * (1 + self.random.gauss(0, self.within)) for _repetition in range(REPETITIONS)]

    def baseline(self, tolerance_percent: float) -> list[list[float]]:
        """Return a baseline as the tuning makes it: loads until the smallest visible slowdown is within the"
        " tolerance."""
        loads = [self.load() for _load in range(BASELINE_LOADS[0])]
        while len(loads) < BASELINE_LOADS[1]:
            visible = statistics.smallest_visible_percent(statistics.noise(loads), len(loads), MOST_LOADS)
            if visible is not None and visible <= tolerance_percent:
                break
            loads.append(self.load())
        return loads


def revalidate(
    series: Series, slowdown_percent: float, tolerance_percent: float = TOLERANCE_PERCENT
) -> tuple[str, int]:
    """Return the verdict of one simulated revalidation, and its loads."""
    before = series.baseline(tolerance_percent)
    now: list[list[float]] = []
    while True:
        now.append(series.load(slowdown_percent))
        if len(now) < statistics.LEAST_LOADS:
            continue
        aside = statistics.set_aside(before, now)
        calm = [samples for place, samples in enumerate(now) if place not in aside]
        verdict = statistics.compare(before, calm, tolerance_percent).verdict
        if verdict != "inconclusive" or len(now) == MOST_LOADS:
            return verdict, len(now)


def shares(
    between: float, slowdown: float, runs: int, within: float = WITHIN_PERCENT
) -> tuple[dict[str, float], float]:
    """Return the share of each verdict over many simulated revalidations, and the mean number of loads."""
    counted: collections.Counter[str] = collections.Counter()
    loads = 0
    for run in range(runs):
        verdict, used = revalidate(Series(between, within, run * 7919 + round(1000 * between + slowdown)), slowdown)
        counted[verdict] += 1
        loads += used
    return {verdict: count / runs for verdict, count in counted.items()}, loads / runs


def table(runs: int) -> t.Iterator[str]:
    """Yield the rows of the table."""
    yield "| noise between loads | slower by | ok | improved | inconclusive | **regressed** | loads |"
    yield "|---|---|---|---|---|---|---|"
    for between in BETWEEN_PERCENT:
        for slowdown in SLOWDOWNS_PERCENT:
            found, loads = shares(between, slowdown, runs)
            cells = [f"{100 * found.get(name, 0.0):.1f} %" for name in ("ok", "improved", "inconclusive", "regressed")]
            yield f"| {between:g} % | {slowdown} % | {' | '.join(cells[:3])} | **{cells[3]}** | {loads:.1f} |"


def main(page: str, runs: int = 2000) -> None:
    """Simulate and write the section."""
    import page as pages

    lines = [
        "## Revalidation",
        "",
        "Written by `make bench-revalidation`, without any device. How often which verdict is given for a split"
        " that is slower by so"
        f" much, {runs} simulated revalidations per row: a baseline of {BASELINE_LOADS[0]} to {BASELINE_LOADS[1]}"
        " loads (more until"
        f" a slowdown within the tolerance could be seen), then up to {MOST_LOADS} loads of {REPETITIONS}"
        " repetitions, looked at one"
        f" by one; tolerance {TOLERANCE_PERCENT:g} %, noise within a load {WITHIN_PERCENT:g} %.",
        "",
        f"Simulated {pages.today()} on {pages.machine()}.",
        "",
        *table(runs),
    ]
    pages.write_section(pathlib.Path(page), "revalidation", "\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[-1])
