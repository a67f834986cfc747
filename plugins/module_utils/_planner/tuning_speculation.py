# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Speculation within a tuning: what the done steps say of it. Private to this collection. Pure."""

from __future__ import annotations

import functools
import typing as t

from .._base.types import Json, Mapping
from .._split import split_problem
from . import exllama_drafts, speculation_stage, speculation_texts
from .speculation_offers import Draft

if t.TYPE_CHECKING:
    from .tuning_state import State


class Speculation:
    """Speculation at one moment of a tuning. Each property needs the steps that it is made of."""

    def __init__(self, state: State) -> None:
        self.state, self.settings = state, state.settings

    @functools.cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of speculation to try."""
        if "speculation" not in self.state.engine.stages:
            return ()
        asked = speculation_stage.kinds(self.settings.speculation)
        return exllama_drafts.kinds(asked, self.settings.own_drafts) if self._exllama else asked

    @property
    def _exllama(self) -> bool:
        return self.state.engine.family == "exllama"

    @property
    def key(self) -> Json:
        """What of it belongs to the fingerprint."""
        if not self.kinds:
            return {"kinds": []}
        drafts = {name: draft.get("sha256") for name, draft in self.settings.own_drafts.items()}
        tokens = self.settings.speculation_tokens
        return {"kinds": list(self.kinds), "drafts": drafts, "texts": list(self.texts), "tokens": tokens}

    @functools.cached_property
    def texts(self) -> tuple[list[Json], dict[str, float]]:
        """The texts by which it is judged, and the weight of each kind."""
        return speculation_texts.read(self.settings.texts)

    @property
    def why_not(self) -> str | None:
        """Why it is not tried with the decision, or None."""
        return speculation_stage.why_not(t.cast(Mapping, self.state.plan["decision"]), self.settings.objective)

    @property
    def tried(self) -> bool:
        """Whether it is tried with the decision."""
        return bool(self.kinds) and self.why_not is None

    @property
    def drafts(self) -> list[Draft]:
        """The drafts with their headers, and what the dry run said of each."""
        found = []
        for name, entry in self.settings.own_drafts.items():
            model = self.state.needed(f"sizes of draft {name}")["model"]
            asked = (self.state.result(f"dry run of draft {name}") or {}).get("dry_run")
            read = exllama_drafts.Draft if self._exllama else Draft
            found.append(read(name, entry["path"], model, asked["mib"][0] if asked else None))
        return found

    @property
    def own_mib(self) -> list[int]:
        """What drafting takes of each device (MiB), where it is served."""
        served = (self.state.decision["speculation"] or {}).get("served")
        return list(served["own_mib"]) if served else [0] * len(self.state.devices)

    @functools.cached_property
    def stage(self) -> speculation_stage.Stage | None:
        """The stage; None where it is not tried."""
        if not self.tried:
            return None
        problem = split_problem.read_problem(self.state.problem)
        decision = t.cast(Mapping, self.state.plan["decision"])
        splits = [tuple(row["layers"]) for row in self.state.plan["feasible"]]
        question = speculation_stage.Question(problem, decision, splits, self.drafts, self.kinds, self.texts[1])
        stage = exllama_drafts.stage if self._exllama else speculation_stage.Stage
        return stage(question, self.state.all_loads)

    def settled(self, decided: Json) -> Json:
        """Return a decision with what became of speculation, once that is known."""
        if not self.kinds:
            return speculation_stage.settled(decided, None)
        if self.stage is not None:
            open_now = self.stage.next_load or self.stage.next_trial
            return decided if open_now else speculation_stage.settled(decided, self.stage.outcome)
        why = f"speculation was not tried: {self.why_not}"
        nothing: Json = {"verdict": "not_tried", "why": why, "served": None, "refused": [], "loads": 0, "table": []}
        return speculation_stage.settled(decided, nothing)
