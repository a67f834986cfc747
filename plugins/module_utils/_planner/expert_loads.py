# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Loads of placements with experts in RAM as checked values. Private to this collection. Pure functions only."""

from __future__ import annotations

import dataclasses
import statistics
import typing as t

from .._base.errors import UserError
from .._base.fields import choice, field
from .._base.types import Mapping
from .._measuring import outcome
from .._split import expert_placement, layer_split
from .._split.expert_placement import ExpertPlacement
from .._split.split_problem import Problem


class Arm(t.NamedTuple):
    """What may be chosen: a placement, with threads and kind of host memory, and a micro-batch."""

    placement: ExpertPlacement
    micro_batch: int


class Row(t.NamedTuple):
    """One test of a load: C(ms) per generated token or per prompt of C(n_prompt), median of the repetitions."""

    kind: str
    n_prompt: int
    micro_batch: int
    threads: int
    ms: float
    samples: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """One load."""

    placement: ExpertPlacement
    number: int
    purpose: str
    label: str
    status: str
    reason: str
    wanted: frozenset[tuple[str, int, int]]  # kind, micro-batch, threads of its tests
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether it was measured."""
        return self.status == "ok"

    @property
    def memory_wanted(self) -> tuple[str, float]:
        """The device that was full, as llama.cpp names it, and the MiB that were wanted; empty and 0 if unknown."""
        return outcome.memory_wanted(self.reason)

    def of(self, kind: str, micro_batch: int | None, threads: int) -> list[Row]:
        """Return its rows of C(kind) with these threads; of prompts those at a micro-batch, of tokens any."""
        return [
            row for row in self.rows
            if row.kind == kind and row.threads == threads and (kind == "decode" or row.micro_batch == micro_batch)
        ]  # fmt: skip


def read(problem: Problem, loads: t.Sequence[Mapping]) -> list[Run]:
    """Check the measured loads; raises UserError naming the field that is wrong. A load given twice counts once."""
    found: dict[int, Run] = {}
    for index, load in enumerate(loads):
        run = _read(problem, f"loads[{index}]", load)
        found.setdefault(run.number, run)
    return list(found.values())


def _read(problem: Problem, where: str, load: Mapping) -> Run:
    layers = tuple(field(where, load, "layers", list))
    if len(layers) != len(problem.names) or sum(layers) != problem.slots:
        raise UserError(f"{where}.layers must be {len(problem.names)} numbers with sum {problem.slots}, not {layers}")
    try:
        placement = expert_placement.from_json(layers, load.get("experts_in_ram"))
    except ValueError as exc:
        raise UserError(f"{where}.{exc}") from exc
    placement = placement or ExpertPlacement(layers, ())
    number = field(where, load, "load", int, 1)
    tests = field(where, load, "tests", list)
    status = choice(f"{where}.status", field(where, load, "status", str), outcome.STATUSES)
    reason = str(load.get("reason") or "")
    rows = tuple(_rows(problem, placement, load.get("results") or [])) if status == "ok" else ()
    wanted = frozenset(_test_key(problem, placement, test) for test in tests)
    missing = wanted - {(row.kind, row.micro_batch, row.threads) for row in rows}
    if status == "ok" and missing:
        status, reason = "unreadable", f"it reports ok, but lacks {len(missing)} of {len(wanted)} results"
    label = str(load.get("label") or layer_split.load_label(layers, number))
    purpose = str(load.get("purpose", ""))
    return Run(placement, number, purpose, label, status, reason, wanted, rows)


def _test_key(problem: Problem, placement: ExpertPlacement, test: Mapping) -> tuple[str, int, int]:
    return (
        str(test["kind"]),
        int(test.get("micro_batch_size", problem.micro_batch)),
        int(test.get("threads", placement.threads)),
    )


def _rows(problem: Problem, placement: ExpertPlacement, results: t.Sequence[Mapping]) -> t.Iterator[Row]:
    """Yield the results at the depths of the problem's tests, in ms per token or per prompt."""
    tests = {"decode": problem.decode_test, "prefill": problem.prefill_test}
    for result in results:
        kind, micro_batch, threads = _test_key(problem, placement, result)
        test = tests.get(kind)
        if test is None or result["n_depth"] != test.n_depth:
            continue
        if kind == "decode" and result["n_gen"] != test.n_gen:
            continue
        per = test.n_gen if kind == "decode" else 1
        samples = tuple(float(value) / per for value in result["samples_ms"])
        if samples and min(samples) > 0:
            yield Row(kind, int(result["n_prompt"]), micro_batch, threads, statistics.median(samples), samples)
