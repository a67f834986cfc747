# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Speculation, once split and mode are settled: what is measured next, and what becomes of it. Private. Pure.

Loads are served (module speculation_benchmark), for llama-bench cannot speculate. speculation_search.py says which arm
is next, speculation_offers.py which there are. An arm that ends without a result takes its family out.
"""

from __future__ import annotations

import dataclasses
import functools
import typing as t

from .._base.types import Json, Mapping
from .._split import memory_plan, speculation
from .._split.layer_split import Layers, split_name
from .._split.speculation import Arm, Offer
from .._split.split_problem import Problem
from . import speculation_modes, speculation_search, speculation_table, speculation_words
from .speculation_offers import Draft, Found, Offers, memory_of, verifying

PURPOSE: t.Final = "speculation"
#: What C(auto) tries.
AUTO: t.Final = (*speculation.LINE_KINDS, "ngram-mod")


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked: the decision so far, the splits that remain, drafts, kinds to try, and the weights of texts."""

    problem: Problem
    decision: Mapping
    splits: t.Sequence[Layers]
    drafts: t.Sequence[Draft]
    kinds: t.Sequence[str]
    weights: Mapping

    @property
    def prompt_tokens(self) -> float:
        """Tokens of a prompt that are waited for with each generated one."""
        prompt, generated = self.problem.counted(self.problem.objective)
        return prompt / generated if generated else 0.0


def kinds(wanted: str | t.Sequence[str]) -> tuple[str, ...]:
    """Return the kinds in C(split_tuning_speculation). Raises ValueError for one that is unknown."""
    if wanted == "auto":
        return AUTO
    if wanted == speculation.NONE:
        return ()
    listed = [wanted] if isinstance(wanted, str) else list(wanted)
    strange = [kind for kind in listed if kind not in speculation.KINDS or kind == speculation.NONE]
    if strange:
        known = ", ".join(speculation.KINDS[1:])
        raise ValueError(f"split_tuning_speculation names {strange[0]!r}: it must be auto, none, or a list of {known}")
    return tuple(listed)


def why_not(decision: Mapping, objective: str) -> str | None:
    """Return why speculation is not tried with a decision, or None."""
    if objective in ("prefill", "ttft"):
        return f"the objective {objective} does not wait for generated text"
    if not decision.get("decode_tokens_per_second"):
        return "the speed of the chosen split is not known"
    return None


class Stage:
    """The stage at one moment."""

    #: How its loads are searched.
    searching: t.ClassVar[type[speculation_search.Search]] = speculation_search.Search

    def __init__(self, question: Question, loads: t.Sequence[Mapping]) -> None:
        """Take a question that C(why_not) lets pass, and all loads of this stage so far."""
        self.question, self.loads = question, [load for load in loads if load.get("purpose") == PURPOSE]

    @functools.cached_property
    def found(self) -> Found:
        """All that is offered."""
        asked = self.question
        found = Offers(asked.problem, asked.decision, asked.splits, asked.drafts, asked.kinds).find()
        if self.other is not None:
            # how much n-grams give there is known no better than here
            lines = [kind for kind in asked.kinds if kind in speculation.LINE_KINDS]
            mode = self.other["split_mode"]
            more = Offers(asked.problem, self.other, asked.splits, asked.drafts, lines, mode).find()
            found = Found([*found.offers, *more.offers], {**found.mib, **more.mib}, found.refused)
        return found

    @functools.cached_property
    def other(self) -> Json | None:
        """The decision as it would be in the other split mode; None where that is out."""
        return speculation_modes.other_mode(self.question.problem, self.question.decision)

    def decision_of(self, arm: Arm) -> Mapping:
        """Return the decision in the split mode of an arm. An arm of a mode that is out has none: KeyError."""
        if not arm.mode:
            return self.question.decision
        if self.other is None:
            raise KeyError(arm.mode)
        return self.other

    @functools.cached_property
    def failed(self) -> list[Mapping]:
        """Loads that ended without a result."""
        return [load for load in self.loads if load["status"] != "ok"]

    @functools.cached_property
    def offers(self) -> list[Offer]:
        """What is still offered: families of which no load failed, in modes that brought no device down."""
        out = {speculation.from_json(load["speculation"]).family for load in self.failed}
        modes = {mode for mode, status in self._ends if status == "device_lost"}
        # on another device, or in the other mode, such a head has nothing to read either
        heads = {load["speculation"]["draft"] for load in self.failed if speculation_words.nothing_to_read(load)}
        return [
            offer for offer in self.found.offers
            if offer.family not in out and offer.mode not in modes and offer.draft not in heads
        ]  # fmt: skip

    @property
    def _ends(self) -> list[tuple[str, str]]:
        """Mode and status of the loads without a result."""
        return [(speculation.from_json(load["speculation"]).mode, load["status"]) for load in self.failed]

    @functools.cached_property
    def search(self) -> speculation_search.Search:
        """The search over what is offered."""
        question = self.question
        still = {offer.family for offer in self.offers} | {Arm().family}
        measured = [speculation_table.served(load) for load in self.loads if load["status"] == "ok"]
        reference_ms = 1000 / question.decision["decode_tokens_per_second"]
        counting = [load for load in measured if load.arm.family in still]
        # loads that failed, or of a mode that failed its trial, took their time as well
        most = speculation_search.MAX_LOADS - (len(self.loads) - len(counting))
        return self.searching(
            self.offers, reference_ms, question.weights, counting, question.problem.indifference, most,
            question.prompt_tokens, verifying(question.problem.memory.model, question.decision),
        )  # fmt: skip

    @property
    def next_load(self) -> Json | None:
        """The next load, or None when the outcome is known."""
        if not self.found.offers or self._hopeless:
            return None
        arm = self.search.next_arm()
        return None if arm is None else self.load(arm)

    @property
    def next_trial(self) -> Json | None:
        """The trial of tensor mode that is due once no load is: drafts in it are faster, and nothing else was."""
        if not self.found.offers or self._hopeless or self.next_load is not None:
            return None
        verdict = self.search.verdict()
        if verdict.verdict != "faster" or verdict.arm.mode != "tensor":
            return None
        return speculation_modes.trial(self.question.decision, self.decision_of(verdict.arm))

    @property
    def _hopeless(self) -> bool:
        # a device that another mode brought down is a reason against that mode
        lost = ("", "device_lost") in self._ends
        without = any(speculation.from_json(load["speculation"]) == Arm() for load in self.failed)
        return lost or without or not self.offers

    def _offer_of(self, arm: Arm) -> Offer | None:
        return next((offer for offer in self.found.offers if arm in offer.arms()), None)

    def load(self, arm: Arm) -> Json:
        """Return the next load of an arm."""
        decision, offer = self.decision_of(arm), self._offer_of(arm)
        layers = list(offer.layers if offer is not None else decision["layers"])
        told = speculation.as_json(arm)
        number = 1 + sum(1 for load in self.loads if speculation.from_json(load["speculation"]) == arm)
        in_ram = decision.get("experts_in_ram")
        return {
            "label": f"{split_name(layers)} {self._name(arm)} load {number}",
            "split_mode": decision["split_mode"],
            "layers": layers,
            "load": number,
            "purpose": PURPOSE,
            "environment": decision.get("environment") or {},
            "micro_batch_size": decision["micro_batch_size"],
            **({"experts_in_ram": in_ram} if in_ram else {}),
            "speculation": {**told, **self._of_draft(arm)},
        }

    def _name(self, arm: Arm) -> str:
        return arm.name(self._device_name(arm))

    def _device_name(self, arm: Arm) -> str:
        ids = [str(device["id"]) for device in self.question.problem.raw["devices"]]
        return self.question.problem.names[ids.index(arm.device)] if arm.device in ids else ""

    def _of_draft(self, arm: Arm) -> Json:
        """Return what llama-server is told of the model that drafts; nothing of a kind without one."""
        serving = self.question.problem.raw["serving"]
        types = {name: serving[name] for name in ("cache_type_k", "cache_type_v")}
        if arm.kind not in speculation.LINE_KINDS:
            return {}
        path = next((draft.path for draft in self.question.drafts if draft.id == arm.draft), "")
        return {"path": path, **types}

    # --- what becomes of it ------------------------------------------------------------------------------------------

    @functools.cached_property
    def outcome(self) -> Json:
        """Return what became of speculation, as the decision keeps it (docs/data_formats.md)."""
        if self._hopeless or not self.found.offers:
            verdict = speculation_search.Verdict("not_tried", Arm(), None)
        else:
            verdict = self.search.verdict()
        kept = verdict.verdict == "faster"
        result = verdict.comparison
        interval = None if result is None or result.low is None or result.high is None else (result.low, result.high)
        table = speculation_table.with_arm(self.table, self.search, self.loads, verdict.arm, self._name(verdict.arm))
        row = next((row for row in table if speculation.from_json(row) == verdict.arm), None)
        return {
            "verdict": verdict.verdict,
            "why": speculation_words.why(self, verdict, row),
            "served": self._served(verdict.arm) if kept else None,
            "less_percent": None if result is None else round(result.percent, 2),
            "interval_percent": None if interval is None else [round(value, 2) for value in interval],
            "weights": {name: round(weight, 4) for name, weight in self.search.weights.items()},
            "first_divergence": self._first_divergence(verdict.arm) if kept else None,
            "refused": self.refused,
            "loads": len(self.loads),
            "table": table,
        }

    @property
    def refused(self) -> list[str]:
        """Why others are no offers, and what speaks against a mode in which drafts were measured."""
        measured = any(load["speculation"].get("mode") == "tensor" for load in self.loads)
        reason = speculation_modes.distrust(self.question.decision)
        failed = [f"drafts in tensor mode are not served: {reason}"] if measured and reason else []
        return [*self.found.refused, *failed]

    def _first_divergence(self, arm: Arm) -> int | None:
        """Return the first token of a greedy answer that is another one than without speculation; None: all agree.

        Near ties may fall differently, since several tokens are computed at once; it is told, and judges nothing.
        """
        answers = {
            speculation.from_json(load["speculation"]): row["tokens"]
            for load in self.loads
            for row in load["results"]
            if row["kind"] == "greedy"
        }
        # where the arm had no load of its own, one with longer drafts tells
        own = [other for other in answers if other.family == arm.family and other.n_max >= arm.n_max]
        drafted_by = min(own, key=lambda other: other.n_max, default=arm)
        both = zip(answers.get(Arm(), ()), answers.get(drafted_by, ()), strict=False)
        return next((place for place, (plain, drafted) in enumerate(both) if plain != drafted), None)

    def _served(self, arm: Arm) -> Json:
        """Return what is served: the arm, its split, and what each device holds and has left then (MiB)."""
        decision, offer = self.decision_of(arm), self._offer_of(arm)
        layers = offer.layers if offer is not None else tuple(decision["layers"])
        mib, room = decision["mib"], decision["headroom_mib"]
        if list(layers) != list(decision["layers"]):
            problem = self.question.problem
            mib = memory_of(problem, decision).mib(layers)
            room = memory_plan.headroom_mib(mib, problem.budgets)
        own = self.found.mib.get(arm.family) or (0,) * len(layers)
        return {
            **speculation.as_json(arm),
            **self._of_draft(arm),
            "layers": list(layers),
            "split_mode": decision["split_mode"],
            "environment": decision.get("environment") or {},
            "own_mib": list(own),
            **({"ram_bytes": self._ram_bytes(arm)} if decision.get("experts_in_ram") else {}),
            "mib": [planned + more for planned, more in zip(mib, own, strict=True)],
            "headroom_mib": [left - more for left, more in zip(room, own, strict=True)],
        }

    def _ram_bytes(self, arm: Arm) -> int:
        """Return what a draft keeps in RAM, wherever it lies: its token embedding."""
        drafts = (draft.model for draft in self.question.drafts if draft.id == arm.draft)
        return sum(int(model["token_embedding_bytes"]) for model in drafts)

    @functools.cached_property
    def table(self) -> list[Json]:
        """One row per arm that was measured, in the order of measuring."""
        return speculation_table.rows(self.search, self.loads, self._name)


def settled(decision: Mapping, outcome: Mapping | None) -> Json:
    """Return the decision with the outcome of speculation; what is kept takes its memory, and its split if another."""
    found: Json = {**decision, "speculation": outcome}
    kept = outcome["served"] if outcome else None
    if kept is None:
        return found
    if (list(decision["layers"]), decision["split_mode"]) != (kept["layers"], kept["split_mode"]):
        # what was measured and said of splits is about the split before
        found |= {
            "decode_tokens_per_second": None,
            "prefill_tokens_per_second": None,
            "single_device": sum(map(bool, kept["layers"])) == 1,
            "verdict": "inconclusive",
            "advice": [],
            "best_by_objective": {},
            "range_percent": None,
            "gain_over_default_percent": None,
            "gain_interval_percent": None,
            "why": speculation_words.moved(decision, kept),
            "tensor": speculation_modes.told(decision, kept),
        }
    return found | {name: kept[name] for name in ("layers", "split_mode", "environment", "mib", "headroom_mib")}
