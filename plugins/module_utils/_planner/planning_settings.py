# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a plan is asked about beside the variables of a tuning. Private to this collection. Pure functions only."""

from __future__ import annotations

import dataclasses
import typing as t

from .._base import variables
from .._split import card_costs


@dataclasses.dataclass(frozen=True)
class Question:
    """One field per variable, without C(split_tuning_); roles/split_tuning/meta/argument_specs.yml describes them."""

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
    return question
