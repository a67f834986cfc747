# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Everything that the HTML page of a plan shows, as text and bar widths. Private. Pure functions only.

The plan is what the planner C(planning) returned: a prediction, the quants of a repository, a comparison, or lines
alone that say why there is none.
"""

from __future__ import annotations

import re
import textwrap
import typing as t

from .._base.text import number, span
from .._base.types import Json, Mapping
from .._planner import configuration_table
from .._split import layer_split

#: What a picture of a card shows, from the left.
_PARTS: t.Final = (
    ("weights_mib", "weights"), ("kv_mib", "KV cache"), ("compute_mib", "buffers"),
)  # fmt: skip
#: Columns of a sentence among the lines.
WIDTH: t.Final = 110


def view(plan: Mapping) -> Json:
    """Return C({title, sentences, parts, pictures, lines}); KeyError for what is no plan.

    A picture has a C(title), C(words) and C(cards), each with C(name), C(words), and C(parts) with C(percent) of the
    card. C(parts) are the names of all of them. C(lines) are those of the screen, the longest sentences broken.
    """
    if "comparison" in plan:
        comparison = plan["comparison"]
        title, sentences = "Configurations side by side", comparison["advice"]
        pictures = [_of_configuration(row) for row in comparison["rows"] if row["fits"]]
    elif "start" in plan:
        title, sentences, pictures = f"A start of vLLM: {plan['start']['model']}", [f"{plan['why']}."], []
    elif "quants" in plan:
        title, sentences = "Every quant of the repository", [f"{plan['why']}."]
        pictures = [_of_quant(row) for row in plan["quants"] if row["layers"] is not None]
    elif "prediction" not in plan:
        title, sentences, pictures = "No prediction", [], []
    else:
        prediction = plan["prediction"]
        title, sentences = str(prediction["model"]["name"]), [f"{prediction['why']}."]
        pictures = _of_prediction(prediction)
    drawn = {part["name"] for picture in pictures for card in picture["cards"] for part in card["parts"]}
    return {
        "title": title,
        "sentences": sentences,
        "parts": [name for _key, name in _PARTS if name in drawn],
        "pictures": pictures,
        # a broken command is none
        "lines": plan["lines"] if "start" in plan else [
            line for said in plan["lines"] if said not in sentences for line in _broken(said)
        ],
    }


def _broken(line: str) -> list[str]:
    """Return a line as lines of a width that a page shows; a row of a table stays whole."""
    if len(line) <= WIDTH or re.search(r"\S {2,}\S", line):
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(line, WIDTH, subsequent_indent=f"{indent}    ", break_long_words=False, break_on_hyphens=False)


def _of_configuration(row: Mapping) -> Json:
    speeds = [f"{mode} {configuration_table.ranged(row[mode])}" for mode in ("layer", "tensor") if row[mode]]
    title = f"{row['configuration']}: {row['model']}"
    return {"title": title, "words": f"{', '.join(speeds)} tokens per second", "cards": _cards(row["memory"])}


def _speed(row: Mapping) -> str:
    """Return the speed of a row of a prediction, a range with experts in RAM, and what they take there."""
    if not row.get("blocks_in_ram"):
        return f"{number(row['decode_tokens_per_second'])} tokens per second"
    return f"{span(row['decode_interval'])} tokens per second with {row['ram_mib']} MiB of weights in RAM"


def _of_quant(row: Mapping) -> Json:
    words = f"{_speed(row)}, {row['size_bytes'] / 1e9:.1f} GB to download"
    if row["context_size"]:
        words += f", context up to {row['context_size']}"
    return {"title": row["quant"], "words": words, "cards": _cards(row["memory"])}


def _of_prediction(prediction: Mapping) -> list[Json]:
    best = prediction["best"]
    if best is None:
        return []
    cards = _cards(prediction["memory"])
    return [{"title": layer_split.split_name(best["layers"]), "words": _speed(best), "cards": cards}]


def _cards(memory: t.Sequence[Mapping]) -> list[Json]:
    """Return the pictures of the cards; what is free, and what a driver holds, stays empty at the right."""
    return [
        {
            "name": card["card"],
            "words": f"{card['layers']} layers, {card['free_mib']} of {card['total_mib']} MiB free",
            "parts": [
                {"name": name, "mib": card[key], "percent": round(100 * card[key] / card["total_mib"], 2)}
                for key, name in _PARTS
                if card.get(key, 0) > 0
            ],
        }
        for card in memory
    ]  # fmt: skip
