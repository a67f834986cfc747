# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Everything that the HTML page of a plan shows, as text and bar widths. Private. Pure functions only.

The plan is what the planner C(planning) returned: a prediction, the quants of a repository, a comparison, or lines
alone that say why there is none.
"""

from __future__ import annotations

import typing as t

from .._base.text import number
from .._base.types import Json, Mapping
from .._planner import configuration_table
from .._split import layer_split

#: What a picture of a card shows, from the left.
_PARTS: t.Final = (("weights_mib", "weights"), ("kv_mib", "KV cache"), ("compute_mib", "buffers"), ("free_mib", "free"))


def view(plan: Mapping) -> Json:
    """Return C({title, sentences, pictures, lines}); KeyError for what is no plan.

    A picture has a C(title) and C(cards), each with C(name), C(words), and C(parts) with C(percent) of the card.
    """
    if "comparison" in plan:
        comparison = plan["comparison"]
        title, sentences = "Configurations side by side", comparison["advice"]
        pictures = [_of_configuration(row) for row in comparison["rows"] if row["fits"]]
    elif "quants" in plan:
        title, sentences = "Every quant of the repository", [f"{plan['why']}."]
        pictures = [_of_quant(row) for row in plan["quants"] if row["layers"] is not None]
    elif "prediction" not in plan:
        title, sentences, pictures = "No prediction", [], []
    else:
        prediction = plan["prediction"]
        title, sentences = str(prediction["model"]["name"]), [f"{prediction['why']}."]
        pictures = _of_prediction(prediction)
    return {"title": title, "sentences": sentences, "pictures": pictures, "lines": plan["lines"]}


def _of_configuration(row: Mapping) -> Json:
    speeds = [f"{mode} {configuration_table.ranged(row[mode])}" for mode in ("layer", "tensor") if row[mode]]
    title = f"{row['configuration']}: {row['model']}"
    return {"title": title, "words": f"{', '.join(speeds)} tokens per second", "cards": _cards(row["memory"])}


def _of_quant(row: Mapping) -> Json:
    words = (
        f"{number(row['decode_tokens_per_second'])} tokens per second, {row['size_bytes'] / 1e9:.1f} GB to download,"
        f" context up to {row['context_size']}"
    )
    return {"title": row["quant"], "words": words, "cards": _cards(row["memory"])}


def _of_prediction(prediction: Mapping) -> list[Json]:
    best = prediction["best"]
    if best is None:
        return []
    memory = [
        {
            "card": device["description"], "total_mib": device["total_mib"], "layers": count, "weights_mib": mib,
            "kv_mib": 0, "compute_mib": 0, "free_mib": left,
        }
        for device, count, mib, left in zip(
            prediction["devices"], best["layers"], best["mib"], best["headroom_mib"], strict=True
        )
    ]  # fmt: skip
    words = f"{number(best['decode_tokens_per_second'])} tokens per second"
    return [{"title": layer_split.split_name(best["layers"]), "words": words, "cards": _cards(memory)}]


def _cards(memory: t.Sequence[Mapping]) -> list[Json]:
    """Return the pictures of the cards; what a driver holds stays empty at the right."""
    return [
        {
            "name": card["card"],
            "words": f"{card['layers']} layers, {card['free_mib']} of {card['total_mib']} MiB free",
            "parts": [
                {"name": name, "mib": card[key], "percent": round(100 * card[key] / card["total_mib"], 2)}
                for key, name in _PARTS
                if card[key] > 0
            ],
        }
        for card in memory
    ]  # fmt: skip
