# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Layer splits: what to measure next, or the decision. Private to this collection. Pure functions only.

The loads are walked through in their order, and what was asked for after any of them follows from those before it, so a
campaign that was broken off goes on. The way to a decision, with at most C(max_loads) loads:

1. anchors: as many well separated splits as there are devices (for two, the ends of what memory allows), one load each;
2. fit of the cost model, see _split/cost_model.py;
3. confirmation: the predicted winner (A) and the engine's own split (B; the best measured other one where that does not
   fit or is the winner) get two loads each, in the order A B B A, counting what is already measured. After the first
   load of each the fit is made anew. If it is off by more than 5 %, one more anchor between the others is measured,
   and a better split may take A's place. Of two devices one load of B is enough where it is plainly slower, and A is
   what promises the most of the splits that may not load after memory ran out (choice.to_try). Where the costs of an
   earlier tuning suffice (known_costs.py), one load of A and one of B are enough where they agree with these costs and
   tell the two apart;
4. while loads are left beside those of the confirmation, before it is complete: of more than two devices the best
   split over one device less, whose hop the fit does not know, and the split that may be better by what the loads leave
   open (choice.py); at last two more loads, one of each, while the two cannot be told apart.

Where all splits are practically equal by the fit, one load of the roomiest follows the anchors. If the loads differ no
more than that either, nothing more is measured (equality.py). A split with a load that looks disturbed is measured
again first, at most C(repeat_disturbed) times (disturbed_loads.py).

A split whose load fails is out, with its reason (failed_loads.py): out of memory also rules out every split that needs
as much on the device that was full, and other failures are measured once more before. After two loads for which memory
ran out the engine's own split is next.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import typing as t

from .._base import fingerprints
from .._split import layer_split
from .._split.layer_split import Layers, split_name
from .._split.measured_loads import Load
from .._split.split_problem import Candidate, Json, Problem
from . import anchors, choice, equality, hop_savings, layer_decision, why
from .evidence import Evidence, is_single
from .loads_so_far import LoadsSoFar


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One load to be measured."""

    layers: Layers
    number: int
    purpose: str


@dataclasses.dataclass(frozen=True)
class Step:
    """What comes next: loads, a decision, or the reason why there is none."""

    stage: str
    why: str
    loads: tuple[Wanted, ...] = ()
    decision: Json | None = None


def plan(problem: Problem, loads: t.Sequence[Load]) -> tuple[Json, Evidence]:
    """Return the plan for all loads of layer splits so far, and what they say (docs/data_formats.md)."""
    evidence = Evidence(problem, loads)
    step = _step_after(evidence)
    if evidence.left < len(step.loads):
        cut = dataclasses.replace(step, loads=step.loads[: max(0, evidence.left)])
        step = cut if cut.loads else _next_step(evidence)
    found = {
        "done": not step.loads,
        "stage": step.stage,
        "why": step.why,
        "loads": [_load_out(problem, wanted) for wanted in step.loads],
        "feasible": [
            {"layers": list(c.layers), "mib": list(c.mib), "headroom_mib": list(c.headroom)}
            for c in evidence.candidates
        ],
        "default_layers": list(problem.default),
        "fit": layer_decision.fit_of(evidence),
        "decision": copy.deepcopy(step.decision),
    }
    return found, evidence


@functools.lru_cache(maxsize=4)
def known_steps(_problem: str) -> dict[tuple[Load, ...], Step]:
    """Return the steps of a campaign that are known, by the loads before each; C(_problem) is in canonical JSON.

    Each step follows from the problem and those loads alone, and to walk through all of them again is slow.
    """
    return {}


def _step_after(evidence: Evidence) -> Step:
    """Return the step after all loads of C(evidence), from the first one on."""
    problem, loads = evidence.problem, tuple(evidence.loads)
    known = known_steps(fingerprints.canonical(problem.raw))
    step = Step("", "")
    for count in range(len(loads) + 1):
        before, last = loads[:count], count == len(loads)
        if before not in known:
            still = _still_open(step, evidence if last else LoadsSoFar(problem, before)) if step.loads else ()
            following = evidence if last or still else Evidence(problem, before)
            known[before] = dataclasses.replace(step, loads=still) if still else _next_step(following)
        step = known[before]
    return step


def _still_open(step: Step, so_far: LoadsSoFar) -> tuple[Wanted, ...]:
    """Return the loads of a step that were not measured yet and still make sense."""
    done = {(load.layers, load.number) for load in so_far.loads}
    if so_far.lost is not None:
        return ()
    return tuple(
        wanted
        for wanted in step.loads
        if (wanted.layers, wanted.number) not in done and so_far.remains(wanted.layers) and so_far.alike is None
    )


def _next_step(evidence: Evidence) -> Step:
    """Return the loads to measure, the decision, or why there can be none."""
    if evidence.lost is not None:
        return Step("impossible", why.lost(evidence.lost))
    if evidence.alike is not None and not evidence.witnesses:
        return Step("impossible", why.alike(evidence.alike))
    if evidence.alike is not None and evidence.left > 0:
        told = min(evidence.witnesses, key=lambda split: (split in evidence.failed, evidence.objective(split), split))
        return Step("retry", why.witness(evidence.alike, told), (_wanted(evidence, told, "retry"),))
    if evidence.again is not None:
        wanted = _wanted(evidence, evidence.again.layers, "retry")
        return Step("retry", f"{why.failed(evidence.again)}; measure this split once more", (wanted,))
    if not evidence.candidates:
        return Step("impossible", why.none(evidence))
    if (fallback := _own_split(evidence)) is not None:
        return fallback
    if evidence.repeat is not None and evidence.remains(evidence.repeat[0]):
        layers, reason = evidence.repeat
        return Step("repeat", f"{reason}; measure this split again", (_wanted(evidence, layers, "repeat"),))
    only = evidence.candidates[0] if len(evidence.candidates) == 1 else None
    if only is not None and not evidence.count(only.layers) and evidence.left > 0:
        wanted = _wanted(evidence, only.layers, "single")
        return Step("anchor", f"{why.only(evidence)}: measure its speed", (wanted,))
    if evidence.left > 0 and not evidence.anchored and (missing := anchors.missing_anchors(evidence)):
        loads = tuple(_wanted(evidence, candidate.layers, "anchor") for candidate in missing)
        return Step("anchor", why.anchors(evidence, missing), loads)
    measured = [candidate for candidate in evidence.candidates if evidence.count(candidate.layers)]
    if not measured and evidence.left <= 0:
        return Step("impossible", why.no_split(evidence))
    if only is not None:
        return _decided(evidence, measured[0], None)
    step = _equal(evidence, measured) or _as_good(evidence) or _confirm(evidence, measured)
    if step.decision is None:
        return step
    # equal or confirmed as splits over so many devices
    winner = evidence.by_layers.get(tuple(step.decision["layers"]))
    fewer = None if winner is None else choice.fewer_devices(evidence, winner)
    return step if winner is None or fewer is None else _beside(evidence, winner, fewer)


def _own_split(evidence: Evidence) -> Step | None:
    """Return the step that tries the engine's own split, where memory ran out twice or no other load may tell.

    It is what the choice is compared with anyway, and lies between what devices have held and what failed.
    """
    default = evidence.problem.default
    count = evidence.splits.out_of_memory_count
    tells = count >= 2 or (count and evidence.left == 1)
    if evidence.left <= 0 or not tells or not evidence.splits.may_load(default):
        return None
    engine, failure = evidence.problem.engine, why.failed(evidence.last_failure)
    sentence = f"{failure}; measure {engine}'s own split {split_name(default)}"
    return Step("anchor", sentence, (_wanted(evidence, default, "anchor"),))


def _equal(evidence: Evidence, measured: list[Candidate]) -> Step | None:
    """Return the step where all splits are practically equal by the fit."""
    within = equality.equal_within(evidence)
    if within is not None and evidence.left > 0 and math.isinf(within):
        winner = choice.best(evidence, evidence.candidates)
        default = evidence.by_layers.get(evidence.problem.default, winner)
        third = next((c for c in (winner, default) if not evidence.count(c.layers)), winner)
        sentence = why.confirm(evidence.problem, evidence, third, None)
        return Step("confirm", sentence, (_wanted(evidence, third.layers, "confirm"),))
    if within is not None and within <= 100 * equality.EQUIVALENCE_FACTOR * evidence.problem.indifference:
        winner = choice.best(evidence, measured)
        return _decided(evidence, winner, choice.rival(evidence, winner, measured))
    return None


def _as_good(evidence: Evidence) -> Step | None:
    """Return the step where the engine's own split is practically as fast as the best by the fit."""
    same = equality.as_good_as_default(evidence)
    if same is None:
        return None
    default = evidence.by_layers[evidence.problem.default]
    measured = evidence.count(same.layers)
    if evidence.left > 0 and (len(evidence.ok_loads) < 3 or not measured):
        third = default if measured else same
        return Step(
            "confirm",
            f"{split_name(same.layers)} should be as good as any and as {evidence.problem.engine}'s default: measure "
            f"{split_name(third.layers)} to see whether the fit holds",
            (_wanted(evidence, third.layers, "confirm"),),
        )
    if not measured:
        return None
    known = default != same and evidence.count(default.layers)
    return _decided(evidence, same, default if known else None, "no_difference")


def _decided(evidence: Evidence, winner: Candidate, rival: Candidate | None, verdict: str | None = None) -> Step:
    decision = layer_decision.decide(evidence, winner, rival, verdict)
    return Step("decided", decision["why"], decision=decision)


def _confirm(evidence: Evidence, measured: list[Candidate]) -> Step:
    """Return the loads that confirm the winner, or the decision."""
    among = evidence.candidates
    winner = _single_to_try(evidence) or choice.to_try(evidence, choice.best(evidence, among))
    rival = choice.rival(evidence, winner, among)
    # With too few loads left for both, the rival is one that is measured already; with none left for the winner, so is
    # the winner. One load of the predicted winner tells more than a second one of a split that it should beat.
    if _unmeasured(evidence, winner, rival) > evidence.left:
        rival = choice.rival(evidence, winner, [*measured, winner])
    if _unmeasured(evidence, winner, rival) > evidence.left:
        winner = choice.best(evidence, measured)
        rival = choice.rival(evidence, winner, measured)
    first = [c for c in (winner, rival) if c is not None and not evidence.count(c.layers)]
    if not first and evidence.left > _open_loads(evidence, winner, rival):
        extra = anchors.interior_anchor(evidence)
        if extra is not None:
            return Step(
                "anchor",
                f"the fit misses a measured split by {evidence.objective_residual:.1f} %: measure "
                f"{split_name(extra.layers)} as well, far from the others",
                (_wanted(evidence, extra.layers, "anchor"),),
            )
    # A B, then B A
    verdict = layer_decision.verdict_of(evidence, winner, rival)
    sure = evidence.carried and verdict != "inconclusive"
    second = [] if sure else _open_arms(evidence, winner, rival)
    wanted = (first or second)[: max(0, evidence.left)]
    # what may be better is looked for before the confirmation is complete, while loads for that are left
    spare = not first and not sure and evidence.left > _open_loads(evidence, winner, rival)
    fewer = choice.fewer_devices(evidence, winner) if spare and not wanted else None
    if fewer is not None:
        return _beside(evidence, winner, fewer)
    better = choice.may_be_better(evidence, winner) if spare else None
    surer = rival is not None and evidence.left >= 2 and verdict == "inconclusive"
    if better is not None and not (surer and better[1] < choice.WORTH_MORE):
        return _beside(evidence, winner, better[0])
    if not wanted and rival is not None and surer:
        wanted = [winner, rival]
    if not wanted:
        taken = choice.settled(evidence, winner)
        return _decided(evidence, taken, rival if taken == winner else choice.rival(evidence, taken, measured))
    loads = tuple(_wanted(evidence, candidate.layers, "confirm") for candidate in wanted)
    return Step("confirm", why.confirm(evidence.problem, evidence, winner, rival), loads)


def _beside(evidence: Evidence, winner: Candidate, other: Candidate) -> Step:
    """Return the step that measures a split which may be better than the winner."""
    sentence = (
        f"{split_name(winner.layers)} is the best by the loads so far, and {split_name(other.layers)} may be better: "
        "measure it as well"
    )
    return Step("confirm", sentence, (_wanted(evidence, other.layers, "neighbour"),))


def _single_to_try(evidence: Evidence) -> Candidate | None:
    """Return the device that alone may well be the best, while that was not measured.

    What the fit says of it contains hops that it does not make, so it counts as better by what these may be. Only where
    one can still afford a load to be wrong about.
    """
    singles = [c for c in evidence.candidates if is_single(c)]
    if any(evidence.count(c.layers) for c in singles) or evidence.left < 3:
        return None
    best = min(singles, key=lambda c: (evidence.objective(c.layers), c.layers), default=None)
    limit = min(evidence.objective(c.layers) for c in evidence.candidates)
    _prompt, generated = evidence.problem.counted(evidence.problem.objective)
    of_prompt = hop_savings.PREFILL_SHARE if "prefill" in evidence.problem.kinds else 0.0
    hops = hop_savings.DECODE_MS * generated / limit + of_prompt
    if best is None or evidence.objective(best.layers) * (1 - min(hop_savings.DECODE_SHARE, hops)) > limit:
        return None
    return best


def _unmeasured(evidence: Evidence, *arms: Candidate | None) -> int:
    """Return how many of the splits have no load yet."""
    return sum(1 for candidate in arms if candidate is not None and not evidence.count(candidate.layers))


def _open_arms(evidence: Evidence, winner: Candidate, rival: Candidate | None) -> list[Candidate]:
    """Return which of the two have too few loads: below two, but one is enough of a rival that is plainly slower."""
    few = [c for c in (rival, winner) if c is not None and evidence.count(c.layers) < 2]
    if rival is None or rival not in few or not layer_decision.plainly_slower(evidence, rival, winner):
        return few
    told = winner in few or layer_decision.verdict_of(evidence, winner, rival) == "faster"
    return [c for c in few if c != rival or not told]


def _open_loads(evidence: Evidence, winner: Candidate, rival: Candidate | None) -> int:
    """Return how many loads are missing until both have enough."""
    return sum(2 - evidence.count(c.layers) for c in _open_arms(evidence, winner, rival))


def _wanted(evidence: Evidence, layers: Layers, purpose: str) -> Wanted:
    return Wanted(layers, evidence.next_number(layers), purpose)


def _load_out(problem: Problem, wanted: Wanted) -> Json:
    return {
        "label": layer_split.load_label(wanted.layers, wanted.number),
        "split_mode": "layer",
        "layers": list(wanted.layers),
        "load": wanted.number,
        "purpose": wanted.purpose,
        "tests": [dict(test) for test in problem.raw["tests"]],
    }
