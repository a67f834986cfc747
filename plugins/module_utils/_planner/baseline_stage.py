# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Repeats the chosen split until a later revalidation could see a slowdown. Private to this collection. Pure."""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._measuring import contention
from .._split.load_tests import LEAST_BASELINE_LOADS, test_key, visible_percent

PURPOSE: t.Final = "baseline"


def wanted_tests(tests: t.Sequence[Mapping], tuned_micro_batch: int, served_micro_batch: int) -> list[Json]:
    """Return the tests of a tuning as the chosen split is served: with its micro-batch where that is another."""
    if tuned_micro_batch == served_micro_batch:
        return [dict(test) for test in tests]
    return [
        {**test, "micro_batch_size": served_micro_batch} if test["kind"] == "prefill" else dict(test) for test in tests
    ]


def _tests(problem: Mapping, decision: Mapping) -> list[Json]:
    """Return the tests of a baseline; a decision with experts in RAM names its own."""
    own = problem["serving"]["micro_batch_size"], decision["micro_batch_size"]
    return list(decision.get("tests") or wanted_tests(problem["tests"], *own))


def _as_served(load: Mapping, tests: t.Sequence[Mapping]) -> Json | None:
    """Return the load with the results of these tests alone, or None when one is missing."""
    kept = []
    for test in tests:
        size = test.get("micro_batch_size")
        own = [r for r in load["results"] if test_key(r) == test_key(test) and r.get("micro_batch_size") == size]
        if not own:
            return None
        kept.append({name: value for name, value in own[0].items() if name != "micro_batch_size"})
    return {**load, "results": kept}


def _alike(load: Mapping, environment: Mapping, experts: Mapping | None) -> bool:
    """Return whether a load ran as the decision is served; not with several numbers of threads, one after the other."""
    scanned = any("threads" in test for test in load.get("tests") or [])
    return not scanned and (load.get("environment") or {}) == environment and load.get("experts_in_ram") == experts


def _calm(reference: t.Sequence[Json]) -> list[Json]:
    """Return the loads beside which nothing else computed; all, where it is no use to measure again."""
    again = [load for load in reference if load.get("purpose") == PURPOSE]
    calm = contention.calm(reference)
    useless = len(calm) < LEAST_BASELINE_LOADS and len(contention.contended(again)) >= contention.MOST_CONTENDED
    return list(reference) if useless else calm


def step(
    problem: Mapping, decision: Mapping, loads: t.Sequence[Mapping], most_loads: int, tolerance_percent: float
) -> Json:
    """Return how the baseline of a decision goes on: C({done, loads, reference, smallest_visible_percent, why}).

    C(loads) are those of the campaign; of them and of what is asked for here those of the decided split, as it is
    served, are the C(reference). More are wanted until a slowdown of C(tolerance_percent) could be seen,
    LEAST_BASELINE_LOADS at least and C(most_loads) at most. A load beside which something else computed is measured
    again; after contention.MOST_CONTENDED of these all are taken, and a revalidation leaves them out.
    Raises ValueError when there can be no load.
    """
    if most_loads < 1:
        raise ValueError(f"a baseline needs at least one load, not {most_loads}")
    layers, mode = list(decision["layers"]), decision.get("split_mode", "layer")
    environment, experts = decision.get("environment") or {}, decision.get("experts_in_ram")
    tests = _tests(problem, decision)
    rows = [row for row in decision.get("table", []) if list(row["layers"]) == layers] if mode == "layer" else []
    disturbed = {number for row in rows for number in row.get("disturbed_loads", [])}
    reference: list[Json] = []
    numbers, failed = [0], None
    for load in loads:
        if list(load["layers"]) != layers or load.get("split_mode", "layer") != mode:
            continue
        numbers.append(int(load["load"]))
        if not _alike(load, environment, experts) or load.get("purpose") == "tensor_trial":
            continue
        if load["status"] == "ok":
            served = None if load["load"] in disturbed else _as_served(load, tests)
            reference += [served] if served is not None else []
        elif load.get("purpose") == "baseline":
            failed = load
    reference = _calm(reference)
    visible = visible_percent(reference, most_loads)
    name = "/".join(str(count) for count in layers)
    result: Json = {"done": True, "loads": [], "reference": reference, "smallest_visible_percent": visible}
    if failed is not None:
        return {**result, "why": f"{name} fails when it is measured once more: {failed['reason']}"}
    blind = [
        f"{test} {'unknown' if value is None else f'{value:.1f} %'}"
        for test, value in visible.items()
        if value is None or value > tolerance_percent
    ]
    if len(reference) < min(LEAST_BASELINE_LOADS, most_loads) or (blind and len(reference) < most_loads):
        number = max(numbers) + 1
        load = {
            "label": f"{name} load {number} (baseline)", "split_mode": mode, "layers": layers, "load": number,
            "purpose": "baseline", "tests": tests, "environment": environment,
            **({"experts_in_ram": experts} if experts else {}),
        }  # fmt: skip
        why = f"{len(reference)} loads of {name} so far; " + (
            f"smallest slowdown that could be seen later: {', '.join(blind)}" if blind else "a baseline needs more"
        )
        return {**result, "done": False, "loads": [load], "why": why}
    seen = ", ".join(f"{test} {value:.1f} %" for test, value in visible.items() if value is not None)
    return {
        **result,
        "why": f"baseline of {len(reference)} loads of {name}: a later revalidation can see a slowdown of "
        f"{seen or 'nothing yet'}",
    }
