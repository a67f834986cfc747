# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Configurations of cards by name: what they cost and draw. Private to this collection. Pure functions only.

Prices and power limits are those of the table of known cards, unless the user gives others.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._base.types import Json, Mapping
from .._hardware import known_cards
from . import known_devices
from .types import KnownDevice

#: Part of their power limits that cards drew together while they worked: two RTX 5060 Ti 293 of 360 W in tensor mode.
DRAWN: t.Final = 0.81
DRAWN_SOURCE: t.Final = "sudoingX, qwen38-mtp, sweeps/multi-gpu.md, August 2026"


@dataclasses.dataclass(frozen=True)
class Costs:
    """Prices and power limits of cards by short name, where the user knows better, and the cards already owned."""

    prices_usd: Mapping
    watts: Mapping
    owned: tuple[str, ...]

    def price(self, card: str) -> tuple[float, float] | None:
        """Return the least and the most that a card costs."""
        given = self.prices_usd.get(card)
        if given is not None:
            return float(given), float(given)
        known = known_cards.CARDS[card].price
        return None if known is None else (float(known.low_usd), float(known.high_usd))

    def source(self, card: str) -> str:
        """Return where the price of a card comes from."""
        known = known_cards.CARDS[card].price
        if card in self.prices_usd:
            return "given"
        return "unknown: give one" if known is None else f"{known.source}, {known.month}"

    def limit_watts(self, card: str) -> float:
        """Return the power limit of a card."""
        return float(self.watts.get(card, known_cards.CARDS[card].limit_watts))


class Configuration(t.NamedTuple):
    """Cards by name."""

    name: str
    cards: tuple[str, ...]
    nvlink: bool
    devices: list[KnownDevice]


def read(names: t.Sequence[str]) -> list[Configuration]:
    """Return the configurations of profiles. Raises ValueError for an unknown one, with what is known."""
    found = []
    for name in dict.fromkeys(names):
        profile = known_devices.read_profile(name)
        cards = (*profile.cards, *(card for card, _link in profile.lent))
        found.append(Configuration(name, cards, profile.nvlink, known_devices.profile_devices(name)))
    return found


def outlay(cards: t.Sequence[str], costs: Costs) -> tuple[float, float] | None:
    """Return what the cards cost that are not owned, less what the owned ones bring that are not among them.

    None where a price is unknown. A card that is sold brings the least that it costs.
    """
    left = list(costs.owned)
    low = high = 0.0
    for card in cards:
        if card in left:
            left.remove(card)
            continue
        price = costs.price(card)
        if price is None:
            return None
        low, high = low + price[0], high + price[1]
    sold = sum((costs.price(card) or (0.0, 0.0))[0] for card in left)
    return low - sold, high - sold


def describe(configuration: Configuration, costs: Costs) -> Json:
    """Return what does not depend on a model: cards, memory, power and price."""
    limits = [costs.limit_watts(card) for card in configuration.cards]
    prices = [costs.price(card) for card in configuration.cards]
    spent = outlay(configuration.cards, costs)
    known = [price for price in prices if price is not None]
    return {
        "name": configuration.name,
        "cards": [device["description"] for device in configuration.devices],
        "nvlink": configuration.nvlink,
        "pcie": [list(known_cards.CARDS[card].pcie) for card in configuration.cards],
        "total_mib": sum(device["total_mib"] for device in configuration.devices),
        "limit_watts": sum(limits),
        # in layer mode the cards take turns; in tensor mode, and over prompts, they work together
        "watts": {"layer": [DRAWN * min(limits), DRAWN * sum(limits)], "tensor": [DRAWN * sum(limits), sum(limits)]},
        "price_usd": [sum(low for low, _high in known), sum(high for _low, high in known)]
        if len(known) == len(prices) else None,
        "outlay_usd": None if spent is None else list(spent),
        "price_sources": {card: costs.source(card) for card in configuration.cards},
    }  # fmt: skip


def check(prices_usd: Mapping, watts: Mapping, owned: t.Sequence[str]) -> None:
    """Raise ValueError, with what is known, for an unknown card, and for a price or limit that is no number."""
    for words, cards in (("a price", prices_usd), ("a power limit", watts), ("an owned card", owned)):
        strange = next((card for card in cards if card not in known_cards.CARDS), None)
        if strange is not None:
            known = ", ".join(sorted(known_cards.CARDS))
            raise ValueError(f"{words} is given for {strange!r}, which is no card of the table: known are {known}")
    for words, numbers in (("price", prices_usd), ("power limit", watts)):
        for card, value in numbers.items():
            if not str(value).replace(".", "", 1).isdigit():
                raise ValueError(f"the {words} of {card} is {value!r}: it must be a number")
