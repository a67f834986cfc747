"""watchdog_cost.py PAGE < OUTPUT: write what watchdog_host.py printed into its section of the page of benchmarks."""

from __future__ import annotations

import json
import math
import pathlib
import statistics
import sys
import typing as t

import page
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import stats


def overhead_percent(pairs: t.Sequence[t.Sequence[float]], share: float) -> tuple[float, float, float]:
    """Return mean, half of its 95 % interval, and median of what one look in poll_seconds costs a decode, in percent.

    C(pairs) are ms per token with and without the looks, C(share) is how often the watchdog looks beside them.
    """
    logs = [math.log(with_looks / without) for with_looks, without in pairs]
    half = stats.t_quantile(len(logs) - 1, 0.05) * statistics.stdev(logs) / math.sqrt(len(logs))
    return 100 * share * statistics.mean(logs), 100 * share * half, 100 * share * statistics.median(logs)


def text(found: t.Mapping[str, t.Any]) -> str:
    """Return the section."""
    share = 1 / (found["poll_seconds"] * found["looks_per_second"])
    mean, half, median = overhead_percent(found["pairs"], share)
    count, rate, poll = len(found["pairs"]), found["looks_per_second"], found["poll_seconds"]
    return f"""## Watchdog

Written by `make bench-watchdog`. What does the watchdog cost a decode? {count} pairs of requests on a sandbox
without cards, one beside {rate} looks per second, one without, in alternating order. The result is divided by
{1 / share:g}, since the watchdog looks once in {poll:g} s.

Measured {page.today()} on {page.machine()}: **{mean:.3f} %** more time per token
(95 % interval {mean - half:.3f} to {mean + half:.3f} %, median {median:.3f} %).
"""


def main() -> None:
    """Write the section."""
    page.write_section(pathlib.Path(sys.argv[1]), "watchdog", text(json.load(sys.stdin)))


if __name__ == "__main__":
    main()
