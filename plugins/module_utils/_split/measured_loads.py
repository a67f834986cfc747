# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Loads of docs/data_formats.md as checked values. Private to this collection. Pure functions only."""

from __future__ import annotations

import dataclasses
import statistics
import typing as t

from .._base.errors import UserError
from .._base.fields import choice, field, is_number, is_whole
from .._measuring import outcome
from . import layer_split
from .layer_split import Layers
from .split_problem import Problem
from .workload import Test


@dataclasses.dataclass(frozen=True)
class Load:
    """One load, checked: where it stands, and what it measured."""

    layers: Layers
    number: int
    purpose: str
    status: str
    reason: str
    decode_samples: tuple[float, ...]  # ms per token
    prefill_samples: tuple[float, ...]  # ms per prompt of the test

    @property
    def label(self) -> str:
        """What it is called: its split and its number."""
        return layer_split.load_label(self.layers, self.number)

    @property
    def ok(self) -> bool:
        """Whether it was measured."""
        return self.status == "ok"

    @property
    def memory_wanted(self) -> tuple[str, float]:
        """The device that was full, as llama.cpp names it, and the MiB that were wanted; empty and 0 if unknown."""
        return outcome.memory_wanted(self.reason)

    def samples(self, kind: str) -> tuple[float, ...]:
        """Return the samples of C(kind), decode or prefill."""
        return self.decode_samples if kind == "decode" else self.prefill_samples

    @property
    def decode(self) -> float | None:
        """Median ms per token: one disturbed repetition must not decide."""
        return statistics.median(self.decode_samples) if self.decode_samples else None

    @property
    def prefill(self) -> float | None:
        """Median ms per prompt of the test."""
        return statistics.median(self.prefill_samples) if self.prefill_samples else None


def read_loads(problem: Problem, loads: t.Any) -> list[Load]:
    """Check the measured loads; raises UserError naming the field that is wrong. A load given twice counts once."""
    if not isinstance(loads, (list, tuple)):
        raise UserError(f"loads must be a list, not {type(loads).__name__}")
    result: dict[tuple[Layers, int], Load] = {}
    for index, load in enumerate(loads):
        read = _read_load(problem, f"loads[{index}]", load)
        result.setdefault((read.layers, read.number), read)
    return list(result.values())


def _read_load(problem: Problem, where: str, load: t.Any) -> Load:
    choice(f"{where}.split_mode", field(where, load, "split_mode", str), ("layer",))
    layers = tuple(field(where, load, "layers", list))
    if (
        len(layers) != len(problem.names)
        or not all(is_whole(n, 0) for n in layers)
        or sum(layers) != problem.slots
    ):
        raise UserError(
            f"{where}.layers must be {len(problem.names)} whole numbers with sum {problem.slots}, not {list(layers)}"
        )
    number = field(where, load, "load", int, 1)
    status = choice(f"{where}.status", field(where, load, "status", str), outcome.STATUSES)
    reason = load.get("reason") or ""
    decode: tuple[float, ...] = ()
    prefill: tuple[float, ...] = ()
    if status == "ok":
        results = field(where, load, "results", list)
        decode = _samples(f"{where}.results", results, problem.decode_test)
        prefill = _samples(f"{where}.results", results, problem.prefill_test)
        wanted = (("decode", problem.decode_test, decode), ("prefill", problem.prefill_test, prefill))
        for kind in [kind for kind, test, samples in wanted if test is not None and not samples]:
            status, reason = "unreadable", f"it reports ok, but holds no {kind} result"
    return Load(layers, number, str(load.get("purpose", "")), status, reason, decode, prefill)


def _samples(where: str, results: t.Sequence[t.Any], test: Test | None) -> tuple[float, ...]:
    """Return the samples of one test: ms per token of a decode test, ms per prompt of a prefill test."""
    if test is None:
        return ()
    values: list[float] = []
    for index, result in enumerate(results):
        if not isinstance(result, t.Mapping):
            raise UserError(f"{where}[{index}] must be a dict")
        if any(result.get(key) != getattr(test, key) for key in ("kind", "n_prompt", "n_gen", "n_depth")):
            continue
        for value in field(f"{where}[{index}]", result, "samples_ms", list):
            if not is_number(value) or not 0 < value < float("inf"):
                raise UserError(f"{where}[{index}].samples_ms must hold positive numbers, not {value!r}")
            values.append(value / test.n_gen if test.kind == "decode" else float(value))
    return tuple(values)
