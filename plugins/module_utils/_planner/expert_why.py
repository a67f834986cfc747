# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The sentences of the planner about experts, or FFN weights, in RAM. Private. Pure functions only."""

from __future__ import annotations

import dataclasses
import typing as t

from .._base.text import less_time
from .._split import expert_placement, memory_plan
from .._split.expert_placement import ExpertPlacement
from .._split.layer_split import split_name
from .._split.split_problem import Problem
from .._split.types import Serving
from . import expert_plane, expert_rival
from .expert_evidence import Evidence
from .expert_loads import Arm, Run
from .why import WHAT_COUNTS, duration, failed, not_understood


def blocks(placement: ExpertPlacement) -> str:
    """Return how many blocks have their experts in RAM, as expert_placement.blocks_in_words."""
    parts = placement.partial.parts if placement.partial else ()
    return expert_placement.blocks_in_words(len(placement.blocks), parts)


def name(evidence: Evidence, placement: ExpertPlacement) -> str:
    """Return a placement as people read it: C(26/11, experts of 12 blocks in RAM)."""
    split = split_name(placement.layers)
    if placement.override:
        return f"{split}, llama.cpp's own placement of experts"
    host = ", unpinned" if placement.no_host else ""
    weights = expert_placement.NAMES[placement.kind]
    return f"{split}, {weights} of {blocks(placement)} in RAM{host}" if placement.any else split


def instead(problem: Problem) -> list[str]:
    """Return the sentence on what would make a dense model fit the devices alone; none of experts, or if nothing does.

    The devices read what they hold at many times the speed of RAM.
    """
    model, serving = problem.memory.model, problem.memory.serving
    if expert_placement.kind_of(model) == expert_placement.EXPERTS:
        return []
    found = memory_plan.cures(model, serving, problem.splits, problem.budgets)
    return [f"the devices alone would hold it with {', or with '.join(found)}"] if found else []


def nothing_succeeded(count: int, last: Run) -> str:
    """Return that no load succeeded."""
    return f"none of {count} loads succeeded: {failed(last)}; free the devices or raise the reserve, and run again"


def none(evidence: Evidence) -> str:
    """Return why no placement can be measured, and what would help."""
    model = evidence.problem.memory.model
    if any(evidence.is_out(run.placement) for run in evidence.runs):
        return (
            f"every placement of {model['name'] or model['path']} that memory should allow failed; the last: "
            f"{failed(evidence.runs[-1])}; free the devices or raise the reserve, and run again"
        )
    return nothing_fits(evidence.problem, evidence.plane)


def nothing_fits(problem: Problem, plane: expert_plane.Plane) -> str:
    """Return why no placement fits, and what would help."""
    model = problem.memory.model
    title, weights = model["name"] or model["path"], expert_placement.name_of(model)
    if isinstance(plane.mode, int):
        return (
            f"{title} does not fit with the {weights} of exactly {plane.mode} blocks in RAM: set "
            "split_tuning_experts_in_ram to auto, which finds the smallest number that fits"
        )
    if plane.ram_mib is not None:
        found = expert_plane.Plane(problem, problem.budgets).candidates(problem.micro_batch)
        if found:
            least = min(expert_plane.ram_mib(model, placement) for placement in found)
            why = (
                f"{title} does not fit: beside what the devices hold, {least} MiB of weights have to be in RAM, and "
                f"{plane.ram_mib} MiB of it may be used; free RAM, add some, or take a smaller quantisation"
            )
            return "; ".join([why, *instead(problem)])
    why = (
        f"{title} does not fit the devices even with all {weights} in RAM; "
        f"{_of_the_rest(problem, plane)}take a smaller context, a q8_0 KV cache, or more devices"
    )
    return "; ".join([why, *instead(problem)])


def _of_the_rest(problem: Problem, plane: expert_plane.Plane) -> str:
    whole = expert_placement.all_in_ram(problem.memory.model)
    serving = expert_plane.serving_at(problem, problem.micro_batch)
    plan = memory_plan.MemoryPlan(problem.memory.model, serving, experts=whole, copied=plane.copied)
    layers, budgets = problem.default, problem.budgets
    short = [
        f"{name} needs {mib} MiB of its {budget} MiB"
        for name, mib, budget in zip(problem.names, plan.mib(layers), budgets, strict=True)
        if mib > budget
    ]
    return f"in the split {split_name(layers)} {', '.join(short)}; " if short else ""


def anchor(evidence: Evidence, arm: Arm) -> str:
    """Return what the first load measures."""
    model = evidence.problem.memory.model
    threads = ", ".join(map(str, evidence.thread_choices))
    scan = f", with {threads} threads in one load" if len(evidence.thread_choices) > 1 else ""
    return (
        f"{model['name'] or model['path']} does not fit the devices: measure {name(evidence, arm.placement)}, the "
        f"fewest that fit{scan}"
    )


def line(evidence: Evidence, arm: Arm) -> str:
    """Return what the second load measures."""
    if len(evidence.sizes) > 1:
        sizes = ", ".join(str(size) for size in evidence.sizes if size <= arm.micro_batch)
        return (
            f"measure {name(evidence, arm.placement)}, the fewest that fit with a micro-batch of {arm.micro_batch}, to "
            f"learn what a block in RAM and a micro-batch cost ({sizes} tokens in one load)"
        )
    return f"measure {name(evidence, arm.placement)}, to learn what a block in RAM costs"


def best(evidence: Evidence, arm: Arm, fresh: t.Sequence[int]) -> str:
    """Return what should be the best, and which threads are looked at again."""
    more = f", with {', '.join(map(str, fresh))} threads beside {evidence.threads}" if fresh else ""
    size = f" at a micro-batch of {arm.micro_batch}" if len(evidence.sizes) > 1 else ""
    value = duration(evidence.problem, evidence.objective(arm))
    return f"{name(evidence, arm.placement)}{size} should be the best, {value}: measure it{more}"


def no_host() -> str:
    """Return what the load outside of pinned memory is for."""
    return (
        "measure the best with its weights in RAM outside of pinned memory (--no-host), where the CPU may store them "
        "in an order of its own: faster to compute with, slower to copy"
    )


def confirm(evidence: Evidence, winner: Arm, rival: Arm | None) -> str:
    """Return which placement should be the best, and what it is compared with."""
    value = duration(evidence.problem, evidence.objective(winner))
    text = f"{name(evidence, winner.placement)} should be the best, {value}"
    if rival is None:
        return f"{text}: measure it to confirm"
    return f"{text}: confirm it against {_called(evidence, rival)}, in loads that take turns"


def doubt(evidence: Evidence, winner: Arm, other: Arm) -> str:
    """Return why a placement that seems to be no better is measured once more."""
    return (
        f"{name(evidence, other.placement)} at a micro-batch of {other.micro_batch} is too near to "
        f"{name(evidence, winner.placement)} to be told apart by one load: measure it again"
    )


def better(evidence: Evidence, best: Arm, other: Arm) -> str:
    """Return why a placement is measured that is not the best by the fit."""
    return (
        f"{name(evidence, best.placement)} at a micro-batch of {best.micro_batch} is the best by the loads so far, and "
        f"{name(evidence, other.placement)} at {other.micro_batch} may be better: measure it as well"
    )


def more(evidence: Evidence, other: Arm) -> str:
    """Return why a placement is measured for which memory may run out."""
    return (
        f"{name(evidence, other.placement)} at a micro-batch of {other.micro_batch} needs more than the devices have "
        "held and less than was too much: see whether it loads"
    )


def _called(evidence: Evidence, arm: Arm) -> str:
    named = name(evidence, arm.placement)
    own = expert_rival.own_arm(evidence)
    if own is None or own != arm:
        return named
    return named if arm.placement.override else f"llama.cpp's own placement {named}"


def decided(evidence: Evidence, chosen: Arm, other: Arm | None, verdict: str, ram_mib: int) -> str:
    """Return the one sentence that a person can check: what is where, why there, and how sure that is."""
    placement, problem = chosen.placement, evidence.problem
    where = ", ".join(
        f"{count} of {problem.slots} layers on {device}"
        for count, device in zip(placement.layers, problem.names, strict=True) if count
    )  # fmt: skip
    text = f"{name(evidence, placement)} ({ram_mib} MiB): {where}; {_why_so_many(evidence, chosen)}"
    text += f"; {placement.threads} thread{'' if placement.threads == 1 else 's'}"
    text += f", micro-batch {chosen.micro_batch}{_of_a_token(evidence, chosen)}"
    if other is None:
        return f"{text}; nothing else was measured to compare it with"
    result = evidence.compare(chosen, other)
    counts = f"{len(evidence.objectives(chosen))} and {len(evidence.objectives(other))} loads"
    what = WHAT_COUNTS[problem.objective]
    size, word, interval = less_time(*result[:3])
    less = f"{size} % {word} {what}"
    against = _called(evidence, other)
    if not interval:
        return f"{text}; {less} than {against}, from too few loads to be sure ({counts})"
    span = f"95 % interval {interval} %, {counts}"
    if verdict == "faster":
        return f"{text}; {less} than {against} ({span})"
    if verdict == "no_difference":
        return f"{text}; practically as fast as {against} ({less}, {span})"
    return f"{text}; its {what} could not be told from that of {against} (measured {less}, {span})"


def _of_a_token(evidence: Evidence, chosen: Arm) -> str:
    """Return what the FFN weights in RAM take of a token, by the fit; nothing of experts, or where it is not known."""
    token = evidence.time("decode", chosen)
    if chosen.placement.kind == expert_placement.EXPERTS or evidence.decode_fit is None or not token:
        return ""
    each = evidence.decode_fit.coefficients[chosen.placement.no_host]
    share = min(1.0, each * evidence.weigher.amounts(chosen.placement).cpu / token)
    return f"; every token reads what is in RAM there, which takes about {100 * share:.0f} % of its time"


def _why_so_many(evidence: Evidence, chosen: Arm) -> str:
    """Return why so many experts are in RAM: asked for, the fewest that fit, or the price of the micro-batch."""
    if isinstance(evidence.plane.mode, int):
        return f"{evidence.plane.mode} blocks were asked for"
    here = evidence.weigher.amounts(chosen.placement).cpu

    def least(size: int) -> float:
        found = evidence.plane.candidates(size)
        return min((evidence.weigher.amounts(placement).cpu for placement in found), default=here)

    if here > least(chosen.micro_batch) + 0.01:
        more = here - least(chosen.micro_batch)
        return f"{more:.1f} blocks more than have to be, so that faster devices hold more layers"
    smaller = evidence.sizes[0]
    if chosen.micro_batch > smaller and here > least(smaller) + 0.01:
        return (
            f"the fewest that fit with this micro-batch; {smaller} would put {here - least(smaller):.1f} blocks fewer "
            "into RAM, and take longer over prompts"
        )
    return "the fewest that fit"


def advice(evidence: Evidence, chosen: Arm) -> list[str]:
    """Return what a smaller cache or context would give: a dense model fits; by the fit, fewer blocks in RAM."""
    problem = evidence.problem
    serving = problem.memory.serving
    notes = not_understood(problem)
    notes += instead(problem) if evidence.plane.mode == "auto" else []
    if evidence.decode_fit is None or isinstance(evidence.plane.mode, int):
        return notes
    changes: list[tuple[str, Serving]] = []
    if memory_plan.flash_attention(serving) and serving["cache_type_k"] == serving["cache_type_v"] == "f16":
        changes.append(("a q8_0 KV cache", {**serving, "cache_type_k": "q8_0", "cache_type_v": "q8_0"}))
    half = serving["context_size"] // 2
    if half >= 2 * memory_plan.CONTEXT_STEP:
        changes.append((f"a context of {half} tokens", {**serving, "context_size": half}))
    now = evidence.weigher.amounts(chosen.placement).cpu
    each = evidence.decode_fit.coefficients[chosen.placement.no_host]
    token = evidence.time("decode", chosen)
    for what, changed in changes:
        least = _least(evidence, changed, chosen.micro_batch)
        if least is not None and token and now - least > 0.2:
            share = 100 * each * (now - least) / token
            notes.append(
                f"{what} would need {now - least:.1f} blocks fewer in RAM: about {share:.0f} % less time per token, by "
                "the fit"
            )
    return notes


def _least(evidence: Evidence, serving: Serving, micro_batch: int) -> float | None:
    """Return the fewest blocks' worth of experts in RAM with another serving profile."""
    memory = memory_plan.MemoryPlan(evidence.problem.memory.model, serving)
    problem = dataclasses.replace(evidence.problem, memory=memory)
    found = expert_plane.Plane(problem, evidence.plane.budgets, evidence.plane.ram_mib).candidates(micro_batch)
    return min((evidence.weigher.amounts(placement).cpu for placement in found), default=None)
