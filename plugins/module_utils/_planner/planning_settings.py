# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a plan is asked about beside the variables of a tuning. Private to this collection. Pure functions only."""

from __future__ import annotations

import dataclasses
import typing as t

from .._base import variables


@dataclasses.dataclass(frozen=True)
class Question:
    """One field per variable, without C(split_tuning_); roles/split_tuning/meta/argument_specs.yml describes them."""

    repo: str
    quant: str
    revision: str
    hub_endpoint: str
    hub_token_file: str


def read(given: t.Mapping[str, t.Any]) -> Question:
    """Return the question in variables of the role. Raises ValueError that names the variable and its value."""
    return variables.read(Question, given, "split_tuning")
