# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The sentences of the split planner. Private to this collection. Pure functions only."""

from __future__ import annotations

import statistics
import typing as t

from .._base.text import less_time
from .._split import allreduce, cost_model, memory_plan
from .._split.layer_split import Layers, split_name
from .._split.measured_loads import Load
from .._split.split_problem import Candidate, Problem
from . import equality
from .evidence import Evidence, is_single, room_of
from .expert_loads import Run
from .loads_so_far import LoadsSoFar
from .tensor_loads import TensorLoads

#: What an objective counts, in words.
WHAT_COUNTS = {
    "decode": "time per generated token",
    "prefill": "time per prompt",
    "ttft": "time to the first token",
    "request": "time per request",
    "agent": "time per generated token",
}


def only(evidence: Evidence) -> str:
    """Return why there is nothing to choose."""
    problem = evidence.problem
    only = evidence.candidates[0]
    used = [name for name, count in zip(problem.names, only.layers, strict=True) if count]
    if len(problem.names) == 1:
        return f"{used[0]} is the only device, so there is nothing to split"
    if len(used) == 1:
        return f"only {used[0]} alone has room for the model, so there is nothing to split"
    return f"{split_name(only.layers)} is the only split that memory allows"


def failed(load: Load | Run) -> str:
    """Return how a load ended that failed."""
    reason = f" ({load.reason.rstrip('.')})" if load.reason else ""
    return f"{load.label} ended as {load.status}{reason}"


def lost(load: Load | Run) -> str:
    """Return which load lost a device, and the cure."""
    return (
        f"a device was lost: {failed(load)}; bring the device back (restart its ggml-rpc-server, or look for its "
        "driver's errors in the kernel log) and run again: what was measured before is kept"
    )


def alike(load: Load | Run) -> str:
    """Return that loads fail whatever the placement, and the cure."""
    return (
        f"loads fail in the same way whatever the placement: {failed(load)}; this is no matter of it: look at the "
        "message and at the kernel log, repair what it names (llama.cpp built for these cards, driver, model file) and "
        "run again"
    )


def no_split(evidence: LoadsSoFar) -> str:
    """Return that no split has loaded, or none that did not fail as well."""
    loads = evidence.loads
    ok = "each split that has loaded has failed as well" if any(load.ok for load in loads) else "none succeeded"
    return f"of {len(loads)} loads {ok}: {failed(evidence.last_failure)}"


def witness(load: Load, layers: Layers) -> str:
    """Return that loads fail in the same way, and which split that has loaded before is measured again."""
    return f"loads fail in the same way: {failed(load)}; measure {split_name(layers)} again, which has loaded before"


def none(evidence: Evidence) -> str:
    """Return why no split can be measured."""
    problem = evidence.problem
    if problem.fitting:
        return (
            f"every split that memory should allow failed; the last: {failed(evidence.loads[-1])}; free the devices "
            "or raise the reserve, and run again"
        )
    return memory_plan.why_nothing_fits(
        problem.raw["devices"], problem.memory.model, problem.memory.serving, problem.splits, problem.budgets,
        problem.raw["reserve_mib"],
    )  # fmt: skip


def anchors(evidence: Evidence, missing: t.Sequence[Candidate]) -> str:
    """Return which splits are measured for the fit."""
    names = " and ".join(split_name(candidate.layers) for candidate in missing)
    if evidence.carried:
        known = evidence.problem.raw["known_costs"]["deployment"]
        far = ", and what is farthest from it" if len(missing) > 1 else ""
        return f"measure {names}, the best by what layers cost in the tuning of {known}{far}"
    bad = next((load for load in reversed(evidence.loads) if not load.ok), None)
    before = f"{failed(bad)}; " if bad is not None else ""
    return (
        f"{before}measure {names}, as far apart as memory allows, to learn what one layer costs on each of "
        f"{', '.join(evidence.problem.names)}"
    )


def confirm(problem: Problem, evidence: Evidence, winner: Candidate, rival: Candidate | None) -> str:
    """Return which split should be the best, and what it is compared with."""
    value = evidence.value("objective", winner.layers)
    about = "" if value is None else f", {duration(problem, value)},"
    count = len(evidence.candidates) if len(problem.names) <= 2 else problem.search.count()
    text = f"{split_name(winner.layers)} should be the best{about} of {count} splits that fit"
    if rival is None:
        return f"{text}: measure it to confirm"
    other = evidence.value("objective", rival.layers)
    # such as one device alone: it makes no hop, which a fit of several devices cannot tell
    if value is not None and other is not None and value > other:
        text = (
            f"{split_name(winner.layers)} may be faster than the {duration(problem, value)} that the fit says, and"
            f" the best of {count} splits that fit"
        )
    return (
        f"{text}: confirm it against {_called(problem, rival)}"
        + ("" if other is None else f" ({duration(problem, other)})")
        + ", in loads that take turns"
    )


def duration(problem: Problem, ms: float) -> str:
    """Return the time of the objective in words: C(25.31 ms per token), C(1.20 s per request)."""
    prompt, generated = problem.counted(problem.objective)
    if not prompt:
        return f"{ms / generated:.2f} ms per token"
    what = {"prefill": "prompt", "ttft": "first token"}.get(problem.objective, "request")
    return f"{ms / 1000:.2f} s per {what}" if ms >= 1000 else f"{ms:.1f} ms per {what}"


def _called(problem: Problem, candidate: Candidate) -> str:
    name = split_name(candidate.layers)
    return f"{problem.engine}'s default {name}" if candidate.layers == problem.default else name


def decided(evidence: Evidence, chosen: Candidate, other: Candidate | None, verdict: str) -> str:
    """Return the one sentence that a person can check: where the layers are, why there, and how sure that is.

    Where all splits that fit are about as fast, it says so.
    """
    text = _why_chosen(evidence, chosen, other, verdict)
    percent, count = equality.range_percent(evidence)
    limit = 100 * equality.EQUIVALENCE_FACTOR * evidence.problem.indifference
    if verdict == "only_choice" or percent is None or percent > limit:
        return text
    which = "that fit" if count == len(evidence.candidates) else "over all devices that fit"
    which = which if len(evidence.problem.names) <= 2 else "looked at"
    return f"{text}; the choice barely matters: all {count} splits {which} are within {percent:.1f} % of each other"


def _why_chosen(evidence: Evidence, chosen: Candidate, other: Candidate | None, verdict: str) -> str:
    problem = evidence.problem
    name = split_name(chosen.layers)
    if verdict == "only_choice":
        return f"{name}: {only(evidence)}"
    if chosen.layers == problem.default:
        name += f", {problem.engine}'s own default"
    text = f"{name}: {_why_there(evidence, chosen)}"
    if other is None and verdict == "no_difference":
        best = min(evidence.objective(candidate.layers) for candidate in evidence.candidates)
        gain = max(0.0, 100 * (1 - best / evidence.objective(chosen.layers)))
        return (
            f"{text}; by the fit, which {len(evidence.ok_loads)} loads bear out, nothing that fits takes more than "
            f"{gain:.1f} % less {WHAT_COUNTS[problem.objective]}"
        )
    if other is None:
        return f"{text}; nothing else was measured to compare it with"
    result = evidence.compare(chosen.layers, other.layers)
    loads = f"{evidence.count(chosen.layers)} and {evidence.count(other.layers)} loads"
    against = _called(problem, other)
    size, word, interval = less_time(*result[:3])
    less = f"{size} % {word}"
    what = WHAT_COUNTS[problem.objective]
    within = equality.equal_within(evidence)
    if verdict == "no_difference" and within is not None and (result.low is None or result.high is None):
        count = sum(len(arm) for arm in evidence.ok.values())
        return f"{text}; in {count} loads any two splits took the same {what} within {within:.1f} % (95 %)"
    if result.low is None or result.high is None:
        return f"{text}; {less} {what} than {against}, from too few loads to be sure ({loads})"
    span = f"95 % interval {interval} %, {loads}"
    if verdict == "faster":
        return f"{text}; {less} {what} than {against} ({span})"
    if verdict == "inconclusive" and (result.low > 0 or result.high < 0):
        return f"{text}; {less} {what} than {against}, though two loads of each are needed to be sure ({span})"
    roomier = "it leaves more memory free" if room_of(chosen) > room_of(other) else "it leaves no less memory free"
    if room_of(chosen) < room_of(other):
        roomier = "the fit favours it"
    if verdict == "no_difference":
        return f"{text}; practically as fast as {against} ({less} {what}, {span}), and {roomier}"
    return (
        f"{text}; its {what} could not be told from that of {against} (measured {less}, {span}; the smallest "
        f"effect visible was {result.smallest_visible:.1f} %), and {roomier}"
    )


def _why_there(evidence: Evidence, chosen: Candidate) -> str:
    """Return what holds the chosen split where it is: memory, the balance of the stages, or room."""
    problem = evidence.problem
    used = [device for device, count in enumerate(chosen.layers) if count]
    where = ", ".join(f"{chosen.layers[d]} of {problem.slots} layers on {problem.names[d]}" for d in used[:-1] or used)
    if len(used) == 1:
        return f"all {problem.slots} layers on {problem.names[used[0]]}, which has room for the whole model"
    here = evidence.predicted("objective", chosen.layers)
    for device in used:
        for giver in used:
            moved = list(chosen.layers)
            moved[device] += 1
            moved[giver] -= 1
            layers = tuple(moved)
            value = evidence.predicted("objective", layers)
            if giver == device or layers in evidence.by_layers or here is None or value is None or value >= here:
                continue
            failure = evidence.failed.get(layers)
            if failure is not None:
                return f"{where}: the most that works, since {failed(failure)}"
            over = problem.memory.mib(layers)[device] - problem.budgets[device]
            if over > 0:
                return (
                    f"{where}: the most that fits on {problem.names[device]}, one layer more would exceed its "
                    f"{problem.budgets[device]} MiB by {over} MiB"
                )
    fastest = min((c for c in evidence.candidates), key=lambda c: (evidence.objective(c.layers), c.layers))
    best = evidence.objective(fastest.layers)
    roomier = room_of(chosen) > room_of(fastest)
    if fastest != chosen and roomier and evidence.objective(chosen.layers) <= best * (1 + problem.room_price):
        return (
            f"{where}: within {100 * problem.room_price:g} % of {split_name(fastest.layers)}, the fastest by the "
            f"fit, and {room_of(chosen) - room_of(fastest)} MiB roomier where it is tightest"
        )
    if "prefill" in problem.kinds and evidence.prefill_fit is not None and evidence.prefill_overlap > 0:
        stages = cost_model.stages_ms(
            evidence.prefill_fit, problem.weights.amounts("prefill", chosen.layers)
        )
        if max(stages) - min(stages) <= max(evidence.prefill_fit) * 1.5:
            return f"{where}: the point where the devices take equally long over a micro-batch"
    if fastest == chosen:
        return f"{where}: the best by the fit"
    return f"{where}: {'roomy, and near the best by the fit' if roomier else 'the best that was measured'}"


def advice(evidence: Evidence, chosen: Candidate) -> list[str]:
    """Return what a person may want to know beside the decision: what was not understood, that one device would do."""
    notes = not_understood(evidence.problem)
    return notes + _advice_of_the_fit(evidence, chosen) + _advice_of_one_device(evidence, chosen)


def not_understood(problem: Problem) -> list[str]:
    """Return a sentence for each part of the model that was not understood."""
    return [
        f"the model was not understood in every part, so its memory may be counted wrongly: {str(note).rstrip('.')}"
        for note in problem.memory.model.get("notes") or []
    ]


def _advice_of_the_fit(evidence: Evidence, chosen: Candidate) -> list[str]:
    """Return what the fit would prefer to the chosen split by more than is nothing, and why that was not taken."""
    fastest = min(evidence.candidates, key=lambda c: (evidence.objective(c.layers), c.layers))
    here, there = evidence.objective(chosen.layers), evidence.objective(fastest.layers)
    if fastest == chosen or not 0 < there < here < float("inf") or here / there - 1 <= evidence.problem.indifference:
        return []
    what = f"{100 * (1 - there / here):.1f} % less {WHAT_COUNTS[evidence.problem.objective]} by the fit"
    if not evidence.count(fastest.layers):
        return [f"{split_name(fastest.layers)} would take {what}; no load was left to measure it"]
    own, other = (evidence.measured("objective", c.layers) for c in (chosen, fastest))
    seen = "less" if other < own else "more"
    return [
        f"{split_name(fastest.layers)} would take {what}, but took {abs(100 * (1 - other / own)):.1f} % {seen} when "
        f"measured ({evidence.count(fastest.layers)} and {evidence.count(chosen.layers)} loads): the loads decide"
    ]


def _advice_of_one_device(evidence: Evidence, chosen: Candidate) -> list[str]:
    """Return whether one device alone would do, and what that costs or gains."""
    problem = evidence.problem
    singles = [c for c in evidence.candidates if is_single(c)]
    if len(problem.names) == 1 or not singles:
        return []
    best = min(singles, key=lambda c: (evidence.objective(c.layers), c.layers))
    name = problem.names[best.layers.index(problem.slots)]
    if is_single(chosen):
        return [f"the whole model fits {name} alone and is best there: what else the host has is free for other work"]
    measured = bool(evidence.count(chosen.layers) and evidence.count(best.layers))
    here, there = (
        evidence.measured("objective", c.layers) if measured else evidence.objective(c.layers) for c in (chosen, best)
    )
    if float("inf") in (here, there):
        return [f"the whole model also fits {name} alone, which was not measured"]
    percent = 100 * (there / here - 1)
    how = "measured" if measured else "by the fit, which counts a hop that one device does not make"
    what = f"{abs(percent):.1f} % {'more' if percent >= 0 else 'less'} {WHAT_COUNTS[problem.objective]} ({how})"
    return [
        f"the whole model also fits {name} alone: {what}, and what else the host has would be free for other work"
    ]


# --- later stages ----------------------------------------------------------------------------------------------------


def micro_batch(objective: str, measured: bool, base: int, best: int | None, gains: t.Sequence[float]) -> str:
    """Return which micro-batch is taken: C(best) instead of the configured C(base), by its gains in percent."""
    what = WHAT_COUNTS[objective]
    if best is not None:
        return f"a micro-batch of {best} instead of {base} takes {statistics.fmean(gains):.1f} % less {what}"
    if not measured:
        return f"the micro-batch stays {base}: no other was measured"
    return f"the micro-batch stays {base}: no other takes clearly less {what}"


def tensor_mode(state: TensorLoads, verdict: str) -> str:
    """Return how tensor mode compares with the layer split, and whether it passed its trial."""
    what = WHAT_COUNTS[state.problem.objective]
    best, result = state.best, state.compare()
    if best is None or result is None:
        reason = next((load.get("reason") or load["status"] for load in state.failed), "nothing was measured")
        return f"tensor mode is not usable here: {reason.rstrip('.')}"
    name = f"tensor mode {split_name(best[0])}{f' with {allreduce.name(best[1])}' if best[1] else ''}"
    size, word, interval = less_time(*result[:3])
    difference = f"{size} % {word} {what}"
    span = f" (95 % interval {interval} %)" if interval else ""
    if verdict == "slower":
        return f"{name} takes {difference} than layer mode{span}"
    if verdict == "inconclusive":
        return f"{name} could not be told from layer mode: {difference}{span}; layer mode is kept"
    if verdict == "rejected":
        return f"{name} takes {difference}{span}, but is not trusted: {state.distrust.rstrip('.')}"
    return f"{name} takes {difference} than layer mode{span}, and passed its trial"


def tensor_advice(state: TensorLoads) -> list[str]:
    """Return what to look at: a reference that failed, an all-reduce that fell back, one that goes through sockets."""
    found = []
    if state.trial is not None and state.trial["status"] == "reference_failed":
        found.append(f"look at this before you rely on it: {state.trial['reason']}")
    for fallback in dict.fromkeys(said["fallback"] for said in state.seen if said["fallback"]):
        ran = next(said["ran"] for said in state.seen if said["fallback"] == fallback)
        found.append(f"{fallback}, so tensor mode ran with {allreduce.name(ran or 'another all-reduce')}")
    if any(said["transport"] == "NET" for said in state.seen):
        found.append(
            "NCCL adds up through network sockets, which is slow: it wants shared memory, so look at the size of "
            "/dev/shm and at NCCL_SHM_DISABLE"
        )
    return found
