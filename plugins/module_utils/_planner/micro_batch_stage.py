# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which micro-batch the chosen split is served with. Private to this collection. Pure functions only.

A prompt runs in micro-batches. Large ones keep a card busy, small ones let more of the devices work at the same time,
so the best size depends on cards, split and prompt, and is measured after the split is chosen. llama-bench runs several
sizes in one load of the model, so sizes are compared within loads, where most of what makes loads differ is the same
for all of them. Two loads run the sizes in opposite orders; a size is taken only when it gains more than the
indifference in each of them.
"""

from __future__ import annotations

import statistics
import typing as t

from .._base.fields import is_whole
from .._base.types import Json
from .._split import cost_model, memory_plan
from .._split.layer_split import Layers, split_name
from .._split.types import Serving
from . import why
from .evidence import Evidence

PURPOSE: t.Final = "micro_batch"
#: A size counts only where the prompt of the test makes this many of it: with one alone nothing overlaps.
LEAST_MICRO_BATCHES: t.Final = 2
#: One load per order of the sizes.
LOADS: t.Final = 2


class Sizes(t.NamedTuple):
    """The micro-batches to measure, the configured one among them, and why others are not: {size: reason}."""

    usable: list[int]
    refused: dict[int, str]


def sizes(evidence: Evidence, layers: Layers) -> Sizes:
    """Return which of the problem's micro-batches can serve C(layers), and why the others cannot.

    A problem whose objective has no prompt asks for none.
    """
    problem = evidence.problem
    base = problem.micro_batch
    wanted = problem.raw.get("micro_batches") or []
    tested = problem.prefill_test
    prompt, _generated = problem.counted(problem.objective)
    if not isinstance(wanted, (list, tuple)) or not all(is_whole(size, 1) for size in wanted):
        raise ValueError(f"problem.micro_batches must be a list of whole numbers of at least 1, not {wanted!r}")
    if tested is None or not prompt:
        return Sizes([base], {})
    refused: dict[int, str] = {}
    for size in sorted(set(wanted) - {base}):
        serving: Serving = {**problem.memory.serving, "micro_batch_size": size}
        left = memory_plan.headroom_mib(
            memory_plan.MemoryPlan(problem.memory.model, serving).mib(layers), problem.budgets
        )
        short = [(-mib, name) for mib, name, n in zip(left, problem.names, layers, strict=True) if n and mib < 0]
        if memory_plan.micro_batch_tokens(serving) != size:
            refused[size] = f"the batch has {serving['batch_size']} tokens and the context {serving['context_size']}"
        elif tested.n_prompt < LEAST_MICRO_BATCHES * size:
            refused[size] = f"the prompt of the test, {tested.n_prompt} tokens, makes no {LEAST_MICRO_BATCHES} of it"
        elif short:
            refused[size] = f"{max(short)[0]} MiB are missing on {max(short)[1]}"
    return Sizes(sorted({base, *wanted} - set(refused)), refused)


def plan(found: Json, evidence: Evidence, later: t.Sequence[Json]) -> Json:
    """Return the plan with the load that the micro-batch asks for, or with the micro-batch in its decision.

    C(found) is the plan of the layer split, C(later) the loads of the stages after it.
    """
    decision = found["decision"]
    layers: Layers = tuple(decision["layers"])
    own = [load for load in later if load["purpose"] == PURPOSE]
    load = next_load(evidence, layers, own, evidence.next_number(layers) + len(own))
    if load is not None:
        asked = ", ".join(str(test["micro_batch_size"]) for test in load["tests"])
        return {
            **found,
            "done": False,
            "stage": "micro_batch",
            "why": f"{split_name(layers)} is settled; now its micro-batch: {asked} tokens in one load",
            "loads": [load],
            "decision": None,
        }
    result = outcome(evidence, layers, own)
    size = result["micro_batch_size"]
    decision = {**decision, "micro_batch_size": size, "micro_batches": result}
    if size != evidence.problem.micro_batch:
        serving: Serving = {**evidence.problem.memory.serving, "micro_batch_size": size}
        mib = memory_plan.MemoryPlan(evidence.problem.memory.model, serving).mib(layers)
        row = next(row for row in result["sizes"] if row["micro_batch_size"] == size)
        tested = evidence.problem.prefill_test
        decision["mib"] = mib
        decision["headroom_mib"] = memory_plan.headroom_mib(mib, evidence.problem.budgets)
        decision["why"] = f"{decision['why']}; {result['why']}"
        if tested is not None and row["prefill_ms"]:
            decision["prefill_tokens_per_second"] = round(1000 * tested.n_prompt / row["prefill_ms"], 3)
    return {**found, "decision": decision, "why": decision["why"]}


def next_load(evidence: Evidence, layers: Layers, loads: t.Sequence[Json], number: int) -> Json | None:
    """Return the next load to measure, or None when nothing is left that is worth it.

    C(loads) are those measured so far with this purpose, C(number) the number that the next load of this split has.
    A load that failed is followed by one without its largest size.
    """
    usable, tested = sizes(evidence, layers).usable, evidence.problem.prefill_test
    good = [load for load in loads if load["status"] == "ok"]
    failed = [load for load in loads if load["status"] != "ok"]
    if failed:
        limit = min(max(_sizes_of(load)) for load in failed)
        usable = [size for size in usable if size < limit]
    if tested is None or evidence.problem.micro_batch not in usable or len(usable) < 2:
        return None
    if len(good) >= LOADS or len(failed) >= LOADS:
        return None
    if good and _best(evidence, layers, good) is None:
        return None
    order = usable if not good else list(reversed(_sizes_of(good[0])))
    test = next(
        test
        for test in evidence.problem.raw["tests"]
        if all(test[key] == getattr(tested, key) for key in ("kind", "n_prompt", "n_gen", "n_depth"))
    )
    return {
        "label": f"{split_name(layers)} micro-batches {', '.join(map(str, order))} load {number}",
        "split_mode": "layer",
        "layers": list(layers),
        "load": number,
        "purpose": PURPOSE,
        "tests": [{**test, "micro_batch_size": size} for size in order],
    }


def outcome(evidence: Evidence, layers: Layers, loads: t.Sequence[Json]) -> Json:
    """Return what became of it: {micro_batch_size, why, sizes: [{micro_batch_size, prefill_ms, ...}], loads}."""
    known = sizes(evidence, layers)
    base = evidence.problem.micro_batch
    good = [load for load in loads if load["status"] == "ok"]
    best = _best(evidence, layers, good) if len(good) >= LOADS else None
    rows: list[Json] = []
    for size in sorted({*known.usable, *known.refused}):
        times = [ms for load in good if (ms := _prefill_ms(load, size)) is not None]
        rows.append({
            "micro_batch_size": size,
            "prefill_ms": round(statistics.fmean(times), 3) if times else None,
            "less_percent": [round(value, 2) for value in _gains(evidence, layers, good, size)],
            "reason": known.refused.get(size) or _why_failed(loads, size),
        })
    return {
        "micro_batch_size": base if best is None else best,
        "why": why.micro_batch(
            evidence.problem.objective, bool(good), base, best, _gains(evidence, layers, good, best or base)
        ),
        "sizes": rows,
        "loads": len(loads),
    }


def _best(evidence: Evidence, layers: Layers, good: t.Sequence[Json]) -> int | None:
    """Return the size that gains more than the indifference in every load, the most of those; None for none."""
    limit = 100 * evidence.problem.indifference
    gains = {size: _gains(evidence, layers, good, size) for size in _sizes_of(good[0])}
    gains.pop(evidence.problem.micro_batch, None)
    clear = {size: statistics.fmean(values) for size, values in gains.items() if values and min(values) > limit}
    return max(clear, key=lambda size: clear[size], default=None)


def _gains(evidence: Evidence, layers: Layers, good: t.Sequence[Json], size: int) -> list[float]:
    """Return by how much less the objective takes with a size than with the configured one, in percent, per load."""
    base = evidence.problem.micro_batch
    result = []
    for load in good:
        here, there = _prefill_ms(load, size), _prefill_ms(load, base)
        if size != base and here is not None and there is not None:
            ratio = objective_ms(evidence, layers, here, size) / objective_ms(evidence, layers, there, base)
            result.append(100 * (1 - ratio))
    return result


def objective_ms(evidence: Evidence, layers: Layers, prefill_ms: float, size: int) -> float:
    """Return the objective with the prompt of the test in C(prefill_ms) at micro-batches of C(size), in ms.

    The step from the tested prompt to the one asked for is that of the fit, with micro-batches of this size.
    """
    problem = evidence.problem
    prompt, generated = problem.counted(problem.objective)
    tested = problem.prefill_test
    total = 0.0
    if generated and evidence.load_means("decode", layers):
        total += evidence.measured("decode", layers) * generated
    if prompt and tested is not None:
        total += prefill_ms * cost_model.prefill_scale(
            evidence.prefill_fit, problem.weights.amounts("prefill", layers), tested.n_prompt, prompt, size,
            evidence.prefill_overlap,
        )  # fmt: skip
    return total


def _sizes_of(load: t.Mapping[str, t.Any]) -> list[int]:
    return [test["micro_batch_size"] for test in load["tests"]]


def _prefill_ms(load: t.Mapping[str, t.Any], size: int) -> float | None:
    """Return the median time of the prompt at a size, in ms."""
    for result in load["results"]:
        if result.get("micro_batch_size") == size:
            return statistics.median(result["samples_ms"])
    return None


def _why_failed(loads: t.Sequence[Json], size: int) -> str | None:
    for load in loads:
        if load["status"] != "ok" and size == max(_sizes_of(load)):
            return f"the load with it ended as {load['status']} ({load.get('reason')})"
    return None
