# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which configuration to take, and what would change that. Private to this collection. Pure functions only.

It answers what guides ask: do you own a card, what does selling it lose, one user or many?
"""

from __future__ import annotations

import typing as t

from .._base.types import Mapping
from .._split import card_costs

#: From so many requests at a time on, speculation gained nothing in published runs.
MANY_USERS: t.Final = 4


def advise(
    found: t.Sequence[Mapping], rows: t.Sequence[Mapping], costs: card_costs.Costs, users: int
) -> list[str]:
    """Return the advice, one sentence each.

    C(found): of card_costs.describe. C(rows): of configurations.serves, about the first model of interest.
    """
    by_name = {row["configuration"]: row for row in rows if row["fits"]}
    if not by_name:
        return ["None of these configurations holds the model: take a smaller quant, or more memory."]
    able = [(each, by_name[each["name"]]) for each in found if each["name"] in by_name]
    said = [_fastest(able)]
    priced = [(each, row) for each, row in able if each["outlay_usd"] is not None]
    if priced:
        said += _cheapest(priced, costs)
    ram = max(int(row["ram_mib"]) for _each, row in able)
    if ram:
        said.append(f"Experts go into RAM: up to {ram} MiB of it, which no price contains.")
    said.append(_owned(costs))
    said.append(_users(users))
    pair = next((each for each, _row in able if len(set(each["cards"])) == 2 and len(each["cards"]) == 2), None)
    if pair is not None:
        said.append(
            f"An unlike pair ({pair['name']}) pays where one of its cards is there already: two equal cards share each"
            " layer evenly, and other engines want them so."
        )
    return said


def _expected(row: Mapping) -> float:
    return float(row[row["fastest"]]["expected"])


def _fastest(able: t.Sequence[tuple[Mapping, Mapping]]) -> str:
    each, row = max(able, key=lambda item: _expected(item[1]))
    speed = row[row["fastest"]]
    near = [other["name"] for other, own in able if other is not each and own[own["fastest"]]["high"] >= speed["low"]]
    doubt = f"; the ranges of {', '.join(near)} overlap with it" if near else ""
    return (
        f"{each['name']} is expected to be the fastest with {speed['low']:.0f} to {speed['high']:.0f} tokens per second"
        f" in {row['fastest']} mode{doubt}."
    )


def _cheapest(priced: t.Sequence[tuple[Mapping, Mapping]], costs: card_costs.Costs) -> list[str]:
    """Return which configuration costs the least for its speed, and from which price on another one would."""

    def rate(item: tuple[Mapping, Mapping]) -> float:
        return max(0.0, _middle(item[0])) / _expected(item[1])

    ranked = sorted(priced, key=rate)
    each, row = ranked[0]
    what = "to pay, less what sold cards bring" if costs.owned else "to pay"
    said = [
        f"{each['name']} costs the least for its speed: {_money(each['outlay_usd'])} {what},"
        f" {rate(ranked[0]):.0f} $ for each token per second."
    ]
    if len(ranked) > 1:
        other, other_row = ranked[1]
        limit = max(0.0, _middle(other)) * _expected(row) / _expected(other_row)
        said.append(f"What would change it: at more than {limit:.0f} $, {other['name']} costs less for its speed.")
    return said


def _middle(each: Mapping) -> float:
    low, high = each["outlay_usd"]
    return float(low + high) / 2


def _money(span: t.Sequence[float]) -> str:
    low, high = span
    return f"{low:.0f} $" if low == high else f"{low:.0f} to {high:.0f} $"


def _owned(costs: card_costs.Costs) -> str:
    if not costs.owned:
        return (
            "What would change it: a card that is owned costs nothing; name it with -e '{mixed_gpu_owned: [rtx3090]}'."
        )
    worth = [(card, costs.price(card)) for card in costs.owned]
    told = ", ".join(f"{card} {price[0]:.0f} $" if price else f"{card} nothing known" for card, price in worth)
    return f"Owned cards that a configuration does not use count as sold ({told}): give what they would really bring."


def _users(users: int) -> str:
    if users >= MANY_USERS:
        return (
            f"With {users} users at a time speculation gains nothing, and prompts count more than tokens of one answer:"
            " two equal cards, or one card that holds the model, serve many users best."
        )
    return f"With {MANY_USERS} users at a time or more the gain of speculation would be gone (published runs)."
