# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The comparison of configurations of cards, put together. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base import text
from .._base.types import Json, Mapping
from .._models import model_shapes
from .._split import card_costs
from .._split.types import Model
from . import configuration_table, configurations, predicted_network, purchase_advice, ram_speed

#: Compared where no model is named: the two of guides to pairs of cards with 24 GB.
USUAL: t.Final = ("llama_3_3_70b_q4_k_m", "qwen2_5_coder_32b_q4_k_m")


def shape(name: str) -> Model:
    """Return a well-known model. Raises ValueError for an unknown one, with what is known."""
    return t.cast(Model, model_shapes.model(name))


def shown_name(model: Mapping) -> str:
    """Return a model's name with its quantisation."""
    return " ".join(filter(None, (model["name"], model["file_type"])))


def compare(
    names: t.Sequence[str],
    models: t.Sequence[Model],
    question: Mapping,
    costs: card_costs.Costs,
    users: int,
    record: Mapping | None,
) -> Json:
    """Return the C(comparison) of docs/data_formats.md.

    C(names): profiles. C(models): of interest, the first one decides the advice. C(question): as predictor.expect
    takes it, without the model. C(record): of the user's own host, or None. Raises ValueError for an unknown profile.
    """
    found = card_costs.read(names)
    described = [card_costs.describe(each, costs) for each in found]
    shown = {shown_name(model): model for model in models}
    rows = [
        {**configurations.serves(each, model, question), "model": name}
        for name, model in shown.items()
        for each in found
    ]
    others = {
        shown_name(other): {
            each.name: _expected(configurations.serves(each, other, question)) for each in found
        }
        for other in map(shape, model_shapes.known())
        if shown_name(other) not in shown
    }
    first = [row for row in rows if row["model"] == next(iter(shown))]
    comparison: Json = {
        "prediction": True, "serving": question["serving"],
        "ram_speed": ram_speed.of(question.get("experts_in_ram")).source, "configurations": described,
        "models": list(shown), "rows": rows, "others": others,
        "measured": [] if record is None else configuration_table.measured(record, shown),
        "advice": [
            *purchase_advice.advise(described, first, costs, users),
            *predicted_network.left_out([device for each in found for device in each.devices]),
        ],
    }  # fmt: skip
    return {**comparison, "lines": configuration_table.lines(comparison)}


def _expected(row: Mapping) -> float | str | None:
    """Return the expected speed, as text with where it needs RAM for experts; None where the model does not fit."""
    if not row["fits"]:
        return None
    expected = float(row[row["fastest"]]["expected"])
    return f"{text.number(expected)} with RAM" if row["blocks_in_ram"] else expected
