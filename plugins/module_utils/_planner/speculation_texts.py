# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The texts by which ways to speculate are compared. Private to this collection. Pure functions only.

How many drafted tokens are right depends on the text, so each kind of text is measured by itself. The prompts are our
own; each asks for an answer that is longer than what is measured of it.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping

_MODULE: t.Final = '''\
def load_settings(path):
    settings = {}
    handle = open(path)
    for line in handle.readlines():
        line = line.strip()
        if line == "" or line.startswith("#"):
            continue
        name, value = line.split("=")
        settings[name.strip()] = value.strip()
    handle.close()
    return settings


def save_settings(path, settings):
    handle = open(path, "w")
    for name in settings:
        handle.write(name + "=" + settings[name] + "\\n")
    handle.close()
'''

_LETTER: t.Final = """\
Dear neighbours,
the workshop in the old mill is open again on thursday. bring what is broken: lamps, chairs, bicycles, radios. we have
tools for wood and metal, a soldering station and two sewing machines. coffee is free, spare parts are paid for.
children are welcome if somebody looks after them. we close at nine. whoever wants to help can come at five.
"""

#: name of the kind -> (share of what is generated, prompts)
OWN: t.Final[dict[str, tuple[float, tuple[str, ...]]]] = {
    "code": (0.4, (
        "Write a Python class for a priority queue on a binary heap, with push, pop, peek and a method that changes "
        "the priority of an item. Add type hints, docstrings and unit tests.",
        "Write a C program that reads a CSV file, sums each numeric column and prints a table with aligned columns. "
        "Handle quoted fields and missing values, and free all memory.",
    )),
    "prose": (0.2, (
        "Describe a harbour town on the evening before a storm, as the first page of a novel. Do not use dialogue.",
        "Write an essay about why people keep diaries, with examples from several centuries.",
    )),
    "chat": (0.2, (
        "My bread is always too dense. I use wheat flour, dry yeast and an ordinary oven. What may be wrong, and what "
        "should I try first? Explain why.",
        "Compare travelling from Lisbon to Warsaw by train, by bus and by plane: time, price, comfort, and what to "
        "book when.",
    )),
    "edit": (0.2, (
        f"Return this module with context managers instead of open and close, and with type hints. Change nothing "
        f"else, and return the whole module.\n\n{_MODULE}",
        f"Return this letter with correct capital letters, and with Friday instead of Thursday. Change nothing else, "
        f"and return the whole letter three times.\n\n{_LETTER}",
    )),
}  # fmt: skip


def read(given: t.Sequence[Mapping], words_only: bool = False) -> tuple[list[Json], dict[str, float]]:
    """Return the texts (name, prompt) and the weight of each kind: those of C(split_tuning_texts), else our own.

    Raises ValueError with one sentence for a text that is none, or token ids where C(words_only) are taken.
    """
    if not given:
        texts = [{"name": name, "prompt": prompt} for name, (_weight, prompts) in OWN.items() for prompt in prompts]
        return texts, {name: weight for name, (weight, _prompts) in OWN.items()}
    weights: dict[str, float] = {}
    for place, text in enumerate(given):
        where = f"split_tuning_texts[{place}]"
        unknown = sorted(set(text) - {"name", "prompt", "weight"})
        if unknown:
            raise ValueError(f"{where} has {unknown[0]!r}: known are name, prompt and weight")
        if not isinstance(text.get("name"), str) or not text["name"].strip():
            raise ValueError(f"{where} has no name: give the kind of text that it is, such as code")
        prompt = text.get("prompt")
        ids = isinstance(prompt, list) and all(isinstance(token, int) for token in prompt)
        if not (isinstance(prompt, str) and prompt.strip()) and not (ids and prompt):
            raise ValueError(f"{where} ({text['name']}) has no prompt, or an empty one: give a text")
        if ids and words_only:
            raise ValueError(f"{where} ({text['name']}) is a list of token ids, and TabbyAPI takes none: give words")
        weight = text.get("weight", weights.get(text["name"], 1.0))
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight <= 0:
            raise ValueError(f"{where} ({text['name']}) has the weight {weight!r}: give a number above 0")
        weights[text["name"]] = float(weight)
    return [{"name": text["name"], "prompt": text["prompt"]} for text in given], weights
