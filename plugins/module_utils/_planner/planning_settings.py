# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a plan is asked about beside the variables of a tuning. Private to this collection. Pure functions only."""

from __future__ import annotations

import dataclasses
import typing as t

from .._base import fields, variables
from .._split import card_costs
from . import tuning_settings


@dataclasses.dataclass(frozen=True)
class Question:
    """One field per variable, without C(split_tuning_); roles/split_tuning/meta/argument_specs.yml describes them."""

    profile: str
    lent: list[str]
    repo: str
    quant: str
    revision: str
    hub_endpoint: str
    hub_token_file: str
    profiles: list[str]
    prices_usd: dict[str, t.Any]
    card_watts: dict[str, t.Any]
    owned_cards: list[str]
    users: int
    measured_here: bool
    start_engine: str                     # of another host's start, that is vllm_ray, or what site installs
    start_model: str
    nodes: list[dict[str, t.Any]]
    plan_page: str                        # which the role writes
    plan_json: str

    @property
    def costs(self) -> card_costs.Costs:
        """What cards cost and draw, where the user knows better."""
        return card_costs.Costs(self.prices_usd, self.card_watts, tuple(self.owned_cards))


def read(given: t.Mapping[str, t.Any]) -> Question:
    """Return the question in variables of the role. Raises ValueError that names the variable and its value."""
    question = variables.read(Question, given, "split_tuning")
    card_costs.check(question.prices_usd, question.card_watts, question.owned_cards)
    _check_lent(question)
    fields.check("mixed_gpu_users", question.users, *tuning_settings.BOUNDS["split_tuning_users"])
    return question


def _check_lent(question: Question) -> None:
    """Raise ValueError for lent cards beside cards by name, which are all the cards of a plan."""
    named = {
        "mixed_gpu_profile": question.profile, "mixed_gpu_profiles": question.profiles,
        "mixed_gpu_nodes": question.nodes,
    }  # fmt: skip
    variable = next((name for name, given in named.items() if given), "")
    if question.lent and variable:
        raise ValueError(
            f"mixed_gpu_lent is {', '.join(question.lent)}, which adds to the cards of a host, and {variable} names all"
            f" cards of the plan: take it out, or write lent cards behind a plus in a profile (+{question.lent[0]})"
        )
