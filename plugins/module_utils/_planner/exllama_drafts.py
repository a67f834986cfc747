# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Drafts beside a model of ExLlama, served by TabbyAPI. Private to this collection. Pure functions only.

The search, its loads and the verdict are those of llama.cpp (speculation_stage.py); what differs is here. TabbyAPI
loads the draft before the model and has no say in how many tokens ExLlamaV2 drafts, so each draft is one arm per card.
Both engines count a card's C(gpu_split) without what the draft took before: the model's own numbers stay as they are.
"""

from __future__ import annotations

import functools
import math
import statistics
import typing as t

from .._base.types import Json, Mapping
from .._models import vocabulary
from .._split import engines, speculation
from .._split.layer_split import Layers
from .._split.speculation import Arm
from . import round_costs, speculation_offers, speculation_search, speculation_stage, speculation_table

KIND: t.Final = speculation.OF_EXLLAMA
#: TabbyAPI takes no seed, so no two loads sample the same answers: a draft of which 40 % is right scatters so (1,500
#: tokens in 600 rounds), and speeds by less.
SAMPLED_SCATTER: t.Final = 0.03
#: The draft's number of gigabytes is that much larger than what it is planned to take: a bound, not an allocation.
_ROOM: t.Final = 1.25


def kinds(asked: t.Sequence[str], drafts: t.Collection[str]) -> tuple[str, ...]:
    """Return the kinds to try, by those of llama.cpp that C(split_tuning_speculation) names: small models alone."""
    return (KIND,) if drafts and "draft-simple" in asked else ()


class Draft(speculation_offers.Draft):
    """A model in a folder that may draft."""

    @property
    def kind(self) -> str:
        return KIND


def unusable(engine: engines.Engine, model: Mapping, draft: Mapping) -> str | None:
    """Return why a draft cannot speak for a model, as a clause, or None; both are dicts of exl_model_info."""
    stored = str(draft["file_type"])
    strange = [name for name in ("EXL2", "EXL3") if stored.startswith(name) and name[-1] != engine.name[-1]]
    if strange:
        return f"it is an {strange[0]} model, which {engine.display} does not load"
    return vocabulary.why_not(model.get("vocabulary") or {}, draft.get("vocabulary") or {})


class Offers(speculation_offers.Offers):
    """What is offered beside one decision."""

    def find(self) -> speculation_offers.Found:
        if self.decision["split_mode"] == "tensor":
            why = "ExLlamaV3's drafts are tried where cards take turns, and here they share each layer"
            return speculation_offers.Found([], {}, [why])
        return super().find()

    def _of_draft(self, draft: speculation_offers.Draft, found: speculation_offers.Found) -> None:
        why = unusable(engines.of(self.serving), self.model, draft.model)
        if why is None:
            super()._of_draft(draft, found)
        else:
            found.refused.append(f"{draft.id} cannot draft for this model: {why}")


class Search(speculation_search.Search):
    """The search, for answers that are sampled anew in each load."""

    usual_scatter = SAMPLED_SCATTER

    def _without_a_line(self, arm: Arm) -> round_costs.Estimate:
        """Return what a token takes: of a draft that was measured on another card about as much as there."""
        elsewhere = [self.mix_ms(load) for load in self.with_draft if load.arm.source == arm.source]
        if self.of_arm(arm) or not elsewhere:
            return super()._without_a_line(arm)
        return round_costs.Estimate(statistics.fmean(elsewhere), speculation_search.UNKNOWN_ERROR)


class Stage(speculation_stage.Stage):
    """The stage at one moment."""

    searching = Search

    def __init__(
        self, question: speculation_stage.Question, loads: t.Sequence[Mapping],
        gpu_splits: t.Mapping[Layers, list[float]],
    ) -> None:  # fmt: skip
        """As the stage of llama.cpp; C(gpu_splits) has the numbers that placed each split which may be served."""
        super().__init__(question, loads)
        self.gpu_splits = gpu_splits

    @functools.cached_property
    def found(self) -> speculation_offers.Found:
        """All that is offered: beside splits that were measured, for of no other the numbers are known."""
        asked = self.question
        return Offers(asked.problem, asked.decision, list(self.gpu_splits), asked.drafts, asked.kinds).find()

    @functools.cached_property
    def other(self) -> Json | None:
        """No other split mode: ExLlamaV3's is asked for by its owner."""
        return None

    def load(self, arm: Arm) -> Json:
        """Return the next load of an arm."""
        load = super().load(arm)
        return {**load, "gpu_split_gb": self.gpu_splits[tuple(load["layers"])]}

    def _of_draft(self, arm: Arm) -> Json:
        """Return what TabbyAPI is told of the model that drafts."""
        if arm.kind != KIND:
            return {}
        draft = next(draft for draft in self.question.drafts if draft.id == arm.draft)
        serving = self.question.problem.memory.serving
        mib = speculation_offers.draft_mib(draft, serving)
        gigabytes = math.ceil(_ROOM * mib) / 1024
        return {"path": draft.path, "cache_mode": self.question.problem.raw["serving"]["cache_mode"],
                "memory_gb": round(gigabytes, 3)}  # fmt: skip

    @functools.cached_property
    def table(self) -> list[Json]:
        """One row per arm; ExLlamaV2's TabbyAPI does not count drafted tokens, so nobody knows what a round gave."""
        rows = speculation_table.rows(self.search, self.loads, self._name)
        known = [row["kind"] == speculation.NONE or any(row["acceptance"].values()) for row in rows]
        return [row if told else {**row, "tokens_per_round": {}} for row, told in zip(rows, known, strict=True)]


def gpu_splits(decision: Mapping, loads: t.Sequence[Mapping]) -> dict[Layers, list[float]]:
    """Return the numbers that placed each split in the decision's mode, as the last load of it says."""
    way = (decision["split_mode"], decision.get("environment") or {})
    return {
        tuple(load["layers"]): list(load["gpu_split_gb"])
        for load in loads
        if load["status"] == "ok" and "gpu_split_gb" in load
        and (load["split_mode"], load.get("environment") or {}) == way
    }  # fmt: skip


def stage(question: speculation_stage.Question, loads: t.Sequence[Mapping]) -> Stage:
    """Return the stage of a question after all C(loads), those of the model alone among them."""
    return Stage(question, loads, gpu_splits(question.decision, loads))
