# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How the time of a test goes with the threads of the CPU. Private to this collection. Pure functions only.

Several numbers of threads are measured within one load, where most of what makes loads differ is the same for all.
"""

from __future__ import annotations

import math
import statistics
import typing as t

from .._split.split_problem import Problem
from .expert_loads import Run


class Curve:
    """Times by number of threads, relative to each other, and the best number."""

    def __init__(self, problem: Problem, runs: t.Sequence[Run], choices: t.Sequence[int]) -> None:
        self._logs = {kind: _relative(runs, kind) for kind in ("decode", "prefill")}
        self._smooth = {kind: _smoothed(logs) for kind, logs in self._logs.items()}
        share = 0.0 if prompts_on_cards(problem) else _share_of_prompt(problem, runs)
        known = self._smooth["decode"] or self._smooth["prefill"]
        self.measured = sorted(known)
        # once the neighbours of the best were measured, in one load with it, the best is among these
        scans = [{row.threads for row in run.rows} for run in runs if run.purpose == "best"]
        last = [n for n in next((own for own in reversed(scans) if len(own) > 1), known) if n in known]
        scores = {n: round(self._score(n, share), 6) for n in sorted(last)}
        # where neighbours are told to be equal, the middle one
        self.best = _middle([n for n in scores if scores[n] == min(scores.values())], 2) if last else _middle(choices)

    def _score(self, threads: int, share: float) -> float:
        decode, prefill = (self._smooth[kind].get(threads, 0.0) for kind in ("decode", "prefill"))
        return (1 - share) * math.exp(decode) + share * math.exp(prefill)

    def factor(self, kind: str, threads: int) -> float:
        """Return the time with the best number of threads in that with C(threads); 1 where that was not measured."""
        logs = self._smooth[kind]
        return math.exp(logs[self.best] - logs[threads]) if self.best in logs and threads in logs else 1.0

    def nearest(self, kind: str, threads: t.Iterable[int]) -> int | None:
        """Return which of these numbers of threads is as fast as the best one, or nearly so."""
        return min(threads, key=lambda n: (abs(math.log(self.factor(kind, n))), abs(n - self.best)), default=None)

    def between(self, choices: t.Sequence[int]) -> list[int]:
        """Return numbers of threads next to the best one that were not measured."""
        near: set[int] = set()
        for one, other in zip(self.measured, self.measured[1:], strict=False):
            if self.best in (one, other):
                near.update(round(one + share * (other - one)) for share in (1 / 3, 2 / 3))
        fresh = near - set(choices) - set(self.measured)
        # beside the second best, which noise may have put there
        second = min((n for n in self.measured if n != self.best), key=self._decode, default=self.best)
        return sorted(fresh | {second}) if fresh else []

    def around(self) -> list[int]:
        """Return the best number of threads with its measured neighbours."""
        place = self.measured.index(self.best) if self.best in self.measured else 0
        return self.measured[max(0, place - 1) : place + 2] or [self.best]

    def _decode(self, threads: int) -> float:
        return (self._smooth["decode"] or self._smooth["prefill"])[threads]


def choices(cores: int, threads: int) -> list[int]:
    """Return the numbers of threads to measure on a CPU with so many cores, which run so many threads."""
    shares = (cores / 4, cores / 2, 3 * cores / 4, cores, (cores + threads) / 2, threads)
    return sorted({max(1, round(share)) for share in shares})


def prompts_on_cards(problem: Problem) -> bool:
    """Return whether cards compute prompts, whatever is in RAM; RPC devices leave the experts there to the CPU."""
    return all(device.get("backend") == "CUDA" for device in problem.raw["devices"])


def _middle(choices: t.Sequence[int], share: float = 4 / 3) -> int:
    return choices[min(len(choices) - 1, int(len(choices) / share))] if choices else 1


def _relative(runs: t.Sequence[Run], kind: str) -> dict[int, float]:
    """Return the logarithm of the time by number of threads, against those that loads have in common."""
    times = [{n: _typical(run, kind, n) for n in {row.threads for row in run.rows if row.kind == kind}} for run in runs]
    scans = sorted((own for own in times if len(own) > 1), key=len, reverse=True)
    found: dict[int, list[float]] = {n: [ms] for n, ms in scans[0].items()} if scans else {}
    for scan in scans[1:]:
        common = [n for n in scan if n in found]
        shift = statistics.fmean(statistics.fmean(found[n]) - scan[n] for n in common) if common else None
        if shift is not None:
            for n, value in scan.items():
                found.setdefault(n, []).append(value + shift)
    if not found:
        single = next((own for own in times if own), {})
        return dict.fromkeys(single, 0.0)
    return {n: statistics.fmean(values) for n, values in found.items()}


def _typical(run: Run, kind: str, threads: int) -> float:
    """Return the mean logarithm of a load's times with some threads; prompts of different micro-batches alike."""
    return statistics.fmean(math.log(row.ms) for row in run.rows if row.kind == kind and row.threads == threads)


def _smoothed(logs: t.Mapping[int, float]) -> dict[int, float]:
    """Return the nearest values, in the least squares, that fall up to some number of threads and then rise."""
    threads = sorted(logs)
    values = [logs[n] for n in threads]
    best: tuple[float, list[float]] | None = None
    for turn in range(len(values)):
        fitted = [*(-value for value in _rising([-value for value in values[: turn + 1]]))]
        fitted += _rising(values[turn + 1 :])
        error = sum((one - other) ** 2 for one, other in zip(fitted, values, strict=True))
        whole = turn + 1 >= len(values) or fitted[turn + 1] >= fitted[turn]
        if whole and (best is None or error < best[0]):
            best = error, fitted
    return dict(zip(threads, best[1] if best else values, strict=True))


def _rising(values: t.Sequence[float]) -> list[float]:
    """Return the nearest values that never fall: neighbours out of order become their mean."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and statistics.fmean(pools[-2]) > statistics.fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return [statistics.fmean(pool) for pool in pools for _value in pool]


def _share_of_prompt(problem: Problem, runs: t.Sequence[Run]) -> float:
    """Return which share of the objective the prompt takes, by the first load that tells; 0 without a prompt."""
    prompt, generated = problem.counted(problem.objective)
    if "prefill" not in problem.kinds or not prompt:
        return 0.0
    if "decode" not in problem.kinds:
        return 1.0
    for run in runs:
        decode = [row.ms for row in run.rows if row.kind == "decode"]
        prefill = [row.ms * prompt / row.n_prompt for row in run.rows if row.kind == "prefill"]
        if decode and prefill:
            whole = min(prefill) + generated * min(decode)
            return min(prefill) / whole
    return 0.0
