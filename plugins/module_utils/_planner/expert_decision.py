# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The decision between placements with experts in RAM, with everything that is shown of it. Private. Pure."""

from __future__ import annotations

import dataclasses
import statistics
import typing as t

from .._base import stats
from .._base.types import Json
from .._split import cost_model, expert_placement, workload
from .._split.split_problem import Problem
from . import equality, expert_plane, expert_rival, expert_why
from .expert_evidence import Evidence
from .expert_loads import Arm


def verdict_of(evidence: Evidence, chosen: Arm, rival: Arm | None) -> str:
    """Return faster, no_difference or inconclusive for two measured arms (equality.verdict)."""
    if rival is None or not evidence.objectives(chosen) or not evidence.objectives(rival):
        return "inconclusive"
    single = min(len(evidence.objectives(chosen)), len(evidence.objectives(rival))) < 2
    return equality.verdict(evidence.compare(chosen, rival), evidence.problem.indifference, single)


def decide(evidence: Evidence, winner: Arm, rival: Arm | None) -> Json:
    """Return the decision: the winner, unless the loads say that its rival is faster."""
    rival = rival if rival is not None and evidence.objectives(rival) else None
    verdict = "only_choice" if rival is None else verdict_of(evidence, winner, rival)
    chosen, other = winner, rival
    if rival is not None and verdict == "faster" and evidence.compare(winner, rival).percent < 0:
        chosen, other = rival, winner
    problem = evidence.problem
    own = expert_rival.own_arm(evidence)
    mib = evidence.plane.mib(chosen.placement, chosen.micro_batch)
    ram_mib = expert_plane.ram_mib(problem.memory.model, chosen.placement)
    gain, interval = equality.gain(_against(evidence, chosen, own))
    decode, prefill = (_mean(evidence.measured(kind, chosen)) for kind in ("decode", "prefill"))
    prompt, _generated = problem.counted(problem.objective)
    return {
        "layers": list(chosen.placement.layers),
        "experts_in_ram": expert_placement.as_json(chosen.placement),
        "split_mode": "layer",
        "environment": {},
        "single_device": sum(1 for count in chosen.placement.layers if count) == 1,
        "verdict": verdict,
        "why": expert_why.decided(evidence, chosen, other, verdict, ram_mib),
        "objective": problem.asked,
        "default_layers": None if own is None else list(own.placement.layers),
        "default_experts_in_ram": None if own is None else expert_placement.as_json(own.placement),
        "gain_over_default_percent": gain,
        "gain_interval_percent": interval,
        "decode_tokens_per_second": None if not decode else round(1000 / decode, 3),
        "prefill_tokens_per_second": None if not prefill or not prompt else round(1000 * prompt / prefill, 3),
        "best_by_objective": {},
        "range_percent": None,
        "advice": expert_why.advice(evidence, chosen),
        "mib": mib,
        "headroom_mib": evidence.plane.headroom(chosen.placement, chosen.micro_batch),
        "ram_mib": ram_mib,
        "threads_tried": _thread_rows(evidence),
        "loads_used": len(evidence.runs),
        "fit": fit_of(evidence),
        "table": _table(evidence),
        "micro_batch_size": chosen.micro_batch,
        "micro_batches": _micro_batches(evidence, chosen),
        "tensor": None,
        "tests": tests(problem, (chosen.micro_batch,), (chosen.placement.threads,)),
    }


def tests(problem: Problem, sizes: t.Sequence[int], threads: t.Sequence[int], prompts: bool = True) -> list[Json]:
    """Return the tests of a load: prompts at each micro-batch, tokens at the largest, both with each number of threads.

    A micro-batch larger than the prompt of the test gets a prompt that fills it. C(prompts): whether there are any.
    """
    found: list[Json] = []
    if problem.prefill_test is not None and prompts:
        found += [_test(problem, problem.prefill_test, size, own, threads) for size in sizes for own in threads]
    if problem.decode_test is not None:
        found += [_test(problem, problem.decode_test, max(sizes), own, threads) for own in threads]
    return found


def _test(problem: Problem, test: workload.Test, size: int, own: int, threads: t.Sequence[int]) -> Json:
    """Return a test of the problem at a micro-batch; with C(own) threads, which it names where others are beside it."""
    keys = ("kind", "n_prompt", "n_gen", "n_depth")
    raw = next(told for told in problem.raw["tests"] if all(told[key] == getattr(test, key) for key in keys))
    more: Json = {} if size == problem.micro_batch else {"micro_batch_size": size}
    if len(threads) > 1:
        more["threads"] = own
    return {**raw, **more, "n_prompt": max(test.n_prompt, size) if test.kind == "prefill" else test.n_prompt}


def _mean(values: t.Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _against(evidence: Evidence, chosen: Arm, own: Arm | None) -> cost_model.Comparison | None:
    """Return the chosen arm compared with llama.cpp's own; None where one of them was not measured."""
    if own is None or not evidence.objectives(own) or not evidence.objectives(chosen):
        return None
    return equality.SAME if own == chosen else evidence.compare(chosen, own)


def feasible(evidence: Evidence, micro_batch: int) -> list[Json]:
    """Return the placements to choose from at a micro-batch, with their memory."""
    return [
        {
            "layers": list(placement.layers),
            "experts_in_ram": expert_placement.as_json(placement),
            "mib": evidence.plane.mib(placement, micro_batch),
            "headroom_mib": evidence.plane.headroom(placement, micro_batch),
        }
        for placement in evidence.plane.candidates(micro_batch)
    ]


def fit_of(evidence: Evidence) -> Json | None:
    """Return the fitted costs, or None before anything was measured."""
    decode, prefill = evidence.decode_fit, evidence.prefill_fit
    if decode is None and prefill is None:
        return None
    slow = evidence.weigher.rates

    def of_cards(kind: str, costs: t.Sequence[float]) -> list[float | None]:
        """Return what the whole model takes on each device."""
        return [stats.rounded(cost * rate) for cost, rate in zip(costs, slow[kind], strict=True)]

    weigher = evidence.weigher
    of_decode: Json = {"decode_ms_per_device": None, "decode_ms_per_block_in_ram": None}
    if decode is not None:
        pinned, _unpinned, *cards = decode.coefficients
        of_decode = {
            "decode_ms_per_device": of_cards("decode", cards), "decode_ms_per_block_in_ram": stats.rounded(pinned),
        }  # fmt: skip
    prompts: Json | None = None
    if prefill is not None:
        start, copy, handle, _unpinned, *cards = prefill.coefficients
        prompts = {
            "start": stats.rounded(start), "copy": stats.rounded(copy), "handle": stats.rounded(handle),
            "compute": of_cards("prefill", cards),
        }  # fmt: skip
    return {
        **of_decode,
        "bytes_per_block_in_ram": round(weigher.used * weigher.block_bytes),
        "read_bytes": round(sum(weigher.read)),
        "prefill_ms": prompts,
        "decode_residual_percent": _residual(evidence, "decode"),
        "prefill_residual_percent": _residual(evidence, "prefill"),
    }


def _residual(evidence: Evidence, kind: str) -> float | None:
    """Return the largest miss of the fit, in percent; None with no more points than coefficients."""
    fit = evidence.decode_fit if kind == "decode" else evidence.prefill_fit
    points = evidence.points(kind)
    if fit is None or len(points) <= len(fit.coefficients):
        return None
    predicted = [fit.ms(point.features) for point in points]
    return round(cost_model.residual_percent(predicted, [point.ms for point in points]), 2)


def _thread_rows(evidence: Evidence) -> list[Json]:
    """Return how the time of a token goes with threads, against the best number."""
    return [
        {"threads": count, "decode_more_percent": round(100 * (1 / evidence.curve.factor("decode", count) - 1), 2)}
        for count in evidence.curve.measured
    ]


def _table(evidence: Evidence) -> list[Json]:
    """Return one row per placement and micro-batch that was tried, in the order of their first loads."""
    rows: dict[t.Any, Json] = {}
    for run in evidence.runs:
        sizes = {size for kind, size, _threads in run.wanted if kind == "prefill"}
        sizes = sizes or {size for _kind, size, _threads in run.wanted}
        for size in sorted(sizes):
            threads = {own for _kind, _size, own in run.wanted}
            best = evidence.curve.nearest("decode", threads)
            arm = Arm(dataclasses.replace(run.placement, threads=best or run.placement.threads), size)
            key = (expert_plane.key_of(arm.placement), arm.placement.no_host, size)
            row = rows.setdefault(key, _row(evidence, arm))
            row["loads"] += 1
            if not run.ok and not evidence.objectives(arm):
                row["status"], row["reason"] = run.status, run.reason or None
    return list(rows.values())


def _row(evidence: Evidence, arm: Arm) -> Json:
    test = evidence.problem.prefill_test
    tested = 0 if test is None else test.n_prompt
    return {
        "layers": list(arm.placement.layers),
        "experts_in_ram": expert_placement.as_json(arm.placement),
        "blocks_in_ram": round(evidence.weigher.amounts(arm.placement).cpu, 2),
        "micro_batch_size": arm.micro_batch,
        "status": "ok",
        "reason": None,
        "loads": 0,
        "disturbed": False,
        "disturbed_loads": [],
        "decode_ms_per_token": _cell(evidence, evidence.measured("decode", arm), evidence.predicted("decode", arm)),
        # of a prompt as long as the test's, as in the table of layer splits
        "prefill_ms": _cell(
            evidence, evidence.measured("prefill", arm, tested), evidence.predicted("prefill", arm, tested)
        ),
        "objective_ms": _cell(evidence, evidence.objectives(arm), None),
    }


def _cell(evidence: Evidence, values: t.Sequence[float], predicted: float | None) -> Json | None:
    """Return mean, 95 % interval by the scatter between loads, and prediction; None where nothing was measured."""
    if not values:
        return None
    mean = statistics.fmean(values)
    spread, degrees = evidence.spread()
    half = mean * spread * stats.t_quantile(degrees, 0.05) / len(values) ** 0.5 if degrees else 0.0
    return {
        "mean": round(mean, 4), "low": round(max(0.0, mean - half), 4), "high": round(mean + half, 4),
        "predicted": stats.rounded(predicted, 4),
    }  # fmt: skip


def _micro_batches(evidence: Evidence, chosen: Arm) -> Json:
    """Return what became of the micro-batches: the chosen one, and what the best placement of each would take."""
    problem, rows = evidence.problem, []
    arms = evidence.candidates(chosen.placement.no_host)
    for size in evidence.sizes:
        best = evidence.best(arm for arm in arms if arm.micro_batch == size)
        value = None if best is None else evidence.time("prefill", best)
        less = None if best is None else 100 * (1 - evidence.objective(best) / evidence.objective(chosen))
        rows.append(
            {
                "micro_batch_size": size,
                "prefill_ms": stats.rounded(value, 3),
                "less_percent": [] if less is None or size == chosen.micro_batch else [round(less, 2)],
                "reason": "no placement fits with it" if best is None else None,
            }
        )
    what = expert_why.WHAT_COUNTS[problem.objective]
    why = f"a micro-batch of {chosen.micro_batch} gives the least {what}, with what it takes from the experts' room"
    return {"micro_batch_size": chosen.micro_batch, "why": why, "sizes": rows, "loads": 0}
