# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Experts in RAM: what to measure next, or the decision. Private to this collection. Pure functions only.

It takes the place of the stages of layer splits and micro-batches where a model does not fit the devices, or where it
is asked for (expert_plane.wanted). Where experts are spoken of, a dense model has its FFN weights. The way to a
decision, each step a load:

1. anchor: the fewest experts in RAM that the configured micro-batch allows, with several numbers of threads;
2. line: the fewest that the largest micro-batch allows, with all micro-batches; without a prompt in the objective some
   more blocks in RAM. Decoding is linear in the blocks, and a prompt in blocks and micro-batches (expert_costs.py);
   Where cards may be unlike, it is instead a placement that may be better than that (expert_better.py);
3. best: the best by the fit, with the numbers of threads next to the best; again where the fit has changed its mind,
   where a device that was full may hold more, and for what may be better by costs that the loads allow as well;
4. no_host: the same outside of pinned host memory, where the CPU may compute with weights in another order;
5. confirm: the winner and llama.cpp's own placement (expert_rival.py) get two loads each, in turns; two more each while
   the two cannot be told apart and loads are left. What may be better is measured here as well.

At most MOST_BEFORE loads that succeed come before the confirmation. Out of memory lowers what a device may hold,
and the step is taken again; other failures are measured once more before a placement is out.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._base.types import Json
from .._split import expert_placement
from .._split.expert_placement import ExpertPlacement
from .._split.split_problem import Problem
from . import (
    expert_better,
    expert_decision,
    expert_loads,
    expert_plane,
    expert_rival,
    expert_threads,
    expert_why,
    failed_loads,
    why,
)
from .expert_evidence import Evidence
from .expert_loads import Arm, Run

#: Loads before the confirmation, at most.
MOST_BEFORE: t.Final = 5
#: Loads beyond the limit for layer splits: threads, micro-batches and host memory are settled by the same loads.
MORE_LOADS: t.Final = 3
#: Loads that failed and do not count among these, at most.
MOST_FAILED: t.Final = 6
#: Where only decoding counts, the share of blocks more in RAM that gives the line a second point.
SECOND_POINT: t.Final = 0.25


class Wanted(t.NamedTuple):
    """One load to be measured: a placement, micro-batches of its prompts, and threads of its tests."""

    arm: Arm
    purpose: str
    sizes: tuple[int, ...] = ()
    threads: tuple[int, ...] = ()
    prompts: bool = True


class Step(t.NamedTuple):
    """What comes next: a load, a decision, or the reason why there is none."""

    stage: str
    why: str
    wanted: Wanted | None = None
    decision: Json | None = None


def plan(problem: Problem, loads: t.Sequence[Json]) -> Json:
    """Return the plan for all loads so far (docs/data_formats.md)."""
    runs = expert_loads.read(problem, loads)
    evidence = Evidence(problem, runs)
    step = _next_step(evidence, most_loads(problem, runs) - len(runs))
    chosen = evidence.sizes[0] if step.decision is None else step.decision["micro_batch_size"]
    return {
        "done": step.wanted is None,
        "stage": step.stage,
        "why": step.why,
        "loads": [] if step.wanted is None else [_load_out(evidence, step.wanted)],
        "feasible": expert_decision.feasible(evidence, chosen),
        "default_layers": list(problem.default),
        "fit": expert_decision.fit_of(evidence),
        "decision": step.decision,
        "trials": [],
        # of a dense model llama.cpp leaves whole layers in RAM
        "experts": expert_placement.kind_of(problem.memory.model) == expert_placement.EXPERTS,
    }


def most_loads(problem: Problem, runs: t.Sequence[Run]) -> int:
    """Return how many loads a campaign has at most."""
    return problem.max_loads + MORE_LOADS + min(MOST_FAILED, sum(1 for run in runs if not run.ok))


def _next_step(evidence: Evidence, left: int) -> Step:
    """Return the load to measure, the decision, or why there can be none."""
    runs = evidence.runs
    lost = next((run for run in runs if run.status == "device_lost"), None)
    if lost is not None:
        return Step("impossible", why.lost(lost))
    alike = failed_loads.alike_in_a_row(runs)
    if alike is not None:
        return Step("impossible", why.alike(alike))
    if runs and left > 0 and _once_more(runs):
        return Step("retry", f"{why.failed(runs[-1])}; measure this placement once more", _repeated(evidence, runs[-1]))
    if not evidence.candidates():
        return Step("impossible", expert_why.none(evidence))
    if left > 0:
        step = _before(evidence)
        if step is not None:
            return step
    return _confirm(evidence, left)


def _once_more(runs: t.Sequence[Run]) -> bool:
    """Return whether the last load failed, not for want of memory, and its placement was not tried twice."""
    last = runs[-1]
    same = [run for run in runs if run.placement == last.placement and run.wanted == last.wanted]
    return not last.ok and last.status != "out_of_memory" and len(same) < 2


def _repeated(evidence: Evidence, run: Run) -> Wanted:
    sizes = tuple(sorted({size for kind, size, _threads in run.wanted if kind == "prefill"}))
    threads = tuple(sorted({own for _kind, _size, own in run.wanted}))
    largest = max((size for _kind, size, _threads in run.wanted), default=evidence.sizes[0])
    return Wanted(Arm(run.placement, largest), run.purpose, sizes, threads, bool(sizes))


def _before(evidence: Evidence) -> Step | None:
    """Return the step before the confirmation, or None when it may begin."""
    done = [run for run in evidence.runs if run.purpose != "confirm"]
    good = {run.purpose for run in done if run.ok}
    if "anchor" not in good:
        return _anchor(evidence)
    failed = min(MOST_FAILED, sum(1 for run in done if not run.ok))
    if len(done) < len(evidence.runs) or len(done) >= MOST_BEFORE + failed:
        return None
    if "line" not in good and sum(1 for run in done if run.purpose == "line") <= MOST_FAILED:
        step = _line(evidence)
        if step is not None:
            return step
    best = evidence.best(_arms(evidence))
    return None if best is None else _of_the_fit(evidence, best, first="best" not in good)


def _of_the_fit(evidence: Evidence, best: Arm, first: bool) -> Step | None:
    """Return the step that follows from the fit, whose best placement is C(best); None when there is none."""
    fresh = evidence.curve.between(evidence.thread_choices) if first else []
    if fresh or not evidence.objectives(best):
        # within one load numbers of threads are told apart that are too near for two
        threads = tuple(sorted({evidence.threads, *(fresh or evidence.curve.around())}))
        return Step("best", expert_why.best(evidence, best, fresh), Wanted(best, "best", (best.micro_batch,), threads))
    more = expert_better.may_hold_more(evidence, best)
    if more is not None:
        return Step("best", expert_why.more(evidence, more), Wanted(more, "best", (more.micro_batch,)))
    other = expert_better.may_be_better(evidence, best, _arms(evidence))
    if other is not None:
        return Step("best", expert_why.better(evidence, best, other), Wanted(other, "best", (other.micro_batch,)))
    if _may_leave_host(evidence):
        other = Arm(dataclasses.replace(best.placement, no_host=True), best.micro_batch)
        return Step("no_host", expert_why.no_host(), Wanted(other, "no_host", (best.micro_batch,)))
    return None


def _arms(evidence: Evidence) -> list[Arm]:
    """Return what there is to choose from; outside of pinned memory only where that was measured."""
    arms = evidence.candidates()
    if any(run.placement.no_host and run.ok for run in evidence.runs):
        arms += evidence.candidates(no_host=True)
    return arms


def _may_leave_host(evidence: Evidence) -> bool:
    """Return whether another kind of host memory exists and was not tried."""
    given = evidence.problem.raw.get("experts_in_ram") or {}
    return bool(given.get("no_host")) and not any(run.placement.no_host for run in evidence.runs)


def _anchor(evidence: Evidence) -> Step:
    """Return the load with the fewest experts in RAM, and several numbers of threads."""
    base = evidence.sizes[0]
    arms = evidence.candidates()
    arm = min([own for own in arms if own.micro_batch == base] or arms, key=evidence.rank)
    prompts = "prefill" in evidence.problem.kinds and not expert_threads.prompts_on_cards(evidence.problem)
    prompts = prompts or evidence.problem.decode_test is None
    wanted = Wanted(arm, "anchor", (arm.micro_batch,), tuple(evidence.thread_choices), prompts)
    return Step("anchor", expert_why.anchor(evidence, arm), wanted)


def _line(evidence: Evidence) -> Step | None:
    """Return the load of more blocks in RAM, with all micro-batches, or None where nothing more is to be learnt."""
    if isinstance(evidence.plane.mode, int) and len(evidence.sizes) < 2:
        return None
    arms = evidence.candidates()
    for largest in reversed(evidence.sizes):
        least = evidence.best(arm for arm in arms if arm.micro_batch == largest)
        if least is None:
            continue
        other = expert_better.may_be_better(evidence, least, [arm for arm in arms if arm.micro_batch == largest])
        arm = other or Arm(_with_more(evidence, least), largest)
        sizes = tuple(size for size in evidence.sizes if size <= largest)
        # one micro-batch leaves time for the nearest numbers of threads
        threads = evidence.curve.around() if len(sizes) == 1 else ()
        return Step("line", expert_why.line(evidence, arm), Wanted(arm, "line", sizes, tuple(threads)))
    return None


def _with_more(evidence: Evidence, arm: Arm) -> ExpertPlacement:
    """Return a placement with more blocks in RAM than the anchor, for a line that is well determined."""
    anchor = next(run for run in evidence.ok if run.purpose == "anchor")
    counts = len(anchor.placement.blocks)
    wanted = counts + max(2, round(SECOND_POINT * counts), expert_plane.movable_count(evidence.problem) // 6)
    if len(arm.placement.blocks) >= wanted or isinstance(evidence.plane.mode, int):
        return arm.placement
    for more in range(wanted, len(arm.placement.blocks), -1):
        found = evidence.plane.exact(arm.placement.layers, arm.micro_batch, more)
        if found is not None and not evidence.is_out(found):
            return dataclasses.replace(found, threads=evidence.threads)
    return arm.placement


def _confirm(evidence: Evidence, left: int) -> Step:
    """Return the load that confirms the winner, or the decision."""
    begun = any(run.purpose == "confirm" for run in evidence.runs)
    arms = _arms(evidence)
    known = [arm for arm in arms if evidence.objectives(arm)]
    winner = evidence.best(known if known and (begun or left <= 0) else arms)
    if winner is None or not (known or left > 0):
        last = evidence.runs[-1]
        return Step("impossible", expert_why.nothing_succeeded(len(evidence.runs), last))
    rival = expert_rival.rival(evidence, winner)
    wanted = _to_confirm(evidence, winner, rival) if left > 0 else None
    if wanted is not None:
        return Step("confirm", expert_why.confirm(evidence, winner, rival), wanted)
    # a better placement is worth more than a surer verdict
    doubted = _doubted(evidence, winner, known) if left > 0 else None
    if doubted is not None:
        return Step("confirm", expert_why.doubt(evidence, winner, doubted), _of(doubted))
    other = expert_better.may_be_better(evidence, winner, arms) if left > 0 else None
    if other is not None:
        return Step("confirm", expert_why.better(evidence, winner, other), _of(other))
    wanted = _surer(evidence, winner, rival, left)
    if wanted is not None:
        return Step("confirm", expert_why.confirm(evidence, winner, rival), wanted)
    decision = expert_decision.decide(evidence, winner, rival)
    return Step("decided", decision["why"], decision=decision)


def _to_confirm(evidence: Evidence, winner: Arm, rival: Arm | None) -> Wanted | None:
    """Return the next load of the winner or its rival, in turns; None when they have two each."""
    own = len(evidence.objectives(winner))
    if rival is None:
        return _of(winner) if own < 1 else None
    other = len(evidence.objectives(rival))
    if expert_rival.out(evidence, rival):
        return _of(winner) if own < 2 else None
    if not own:
        return _of(winner)
    if not other:
        return _of(rival)
    turns = sum(1 for run in evidence.ok if run.purpose == "confirm" and run.placement == winner.placement)
    if own < 2 or not turns:
        return _of(winner)
    return _of(rival) if other < 2 else None


def _surer(evidence: Evidence, winner: Arm, rival: Arm | None, left: int) -> Wanted | None:
    """Return the next load of the two while they cannot be told apart; None when they can, or too few are left."""
    if rival is None or left <= 0 or expert_rival.out(evidence, rival):
        return None
    own, other = (len(evidence.objectives(arm)) for arm in (winner, rival))
    if expert_decision.verdict_of(evidence, winner, rival) == "inconclusive" and (left >= 2 or own > other):
        return _of(winner) if own <= other else _of(rival)
    return None


def _doubted(evidence: Evidence, winner: Arm, known: t.Sequence[Arm]) -> Arm | None:
    """Return an arm with a single load that may be the better one: noise may have put it behind, or a fit ahead."""
    near = evidence.objective(winner) * (1 + evidence.spread()[0])
    arms = [arm for arm in known if arm != winner and len(evidence.objectives(arm)) < 2]
    return evidence.best(arm for arm in arms if evidence.objective(arm) <= near)


def _of(arm: Arm) -> Wanted:
    return Wanted(arm, "confirm", (arm.micro_batch,))


def _load_out(evidence: Evidence, wanted: Wanted) -> Json:
    """Return a load as split_benchmark takes it."""
    problem, placement = evidence.problem, wanted.arm.placement
    number = 1 + max((run.number for run in evidence.runs), default=0)
    threads = wanted.threads or (placement.threads,)
    placement = dataclasses.replace(placement, threads=placement.threads if len(threads) > 1 else threads[0])
    return {
        "label": f"{expert_why.name(evidence, placement)} load {number}",
        "split_mode": "layer",
        "layers": list(placement.layers),
        "experts_in_ram": expert_placement.as_json(placement),
        "load": number,
        "purpose": wanted.purpose,
        "tests": expert_decision.tests(problem, wanted.sizes or (wanted.arm.micro_batch,), threads, wanted.prompts),
    }
