# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which driver branch and which kernel modules a host's cards need. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.errors import UserError
from .._hardware import card_ages
from .driver_systems import BRANCHES, SYSTEMS, Source

#: What to do about cards that no single driver serves.
CURE: t.Final = (
    "take a card out, or name the slot of a card that may stay without a driver in nvidia_driver_slots_left_out"
)


class Choice(t.NamedTuple):
    """The driver's branch and kind of kernel modules. C(note) is "" or what is worth knowing about the cards."""

    branch: str
    open_modules: bool
    note: str


def choose(
    branch: str, open_modules: bool | None, system: str, source: str, cards: t.Sequence[card_ages.Card]
) -> Choice:
    """Return branch and modules: those that are asked for, or, where nothing is ("" and None), what the cards need.

    `system` is a key of driver_systems.SYSTEMS or any other name, and `source` distribution or nvidia. Raises UserError
    where no driver serves all cards, and for a wish that a card does not stand, with the reason and the cure.
    """
    needs = card_ages.needs(cards)
    if needs.problem:
        raise UserError(f"{needs.problem}: {CURE}.")
    chosen = branch or _branch(system, source, needs, cards)
    if chosen.isdigit():
        _check_branch(chosen, needs, cards)
    modules = open_modules if open_modules is not None else needs.open_modules is not False
    _check_modules(modules, chosen, cards)
    note = f"Not known to this collection, so nothing was derived from it: {' and '.join(needs.unknown)}."
    return Choice(chosen, modules, note if needs.unknown else "")


def _offered(origin: Source | None) -> list[int]:
    """Return the maintained branches of a source, oldest first; those of NVIDIA where the system is not known."""
    if origin is None:
        return sorted(int(name) for name, life in BRANCHES.items() if not life)
    kept = origin.get("maintained", [])
    names = [name for name, life in BRANCHES.items() if (not life and not origin.get("branches")) or name in kept]
    return sorted(int(name) for name in names if int(name) >= origin.get("oldest", 0))


def _stood(branches: t.Iterable[int], needs: card_ages.Needs) -> list[int]:
    """Return the branches that drive all cards."""
    return [branch for branch in branches if (needs.first_branch or 0) <= branch <= (needs.last_branch or branch)]


def _branch(system: str, source: str, needs: card_ages.Needs, cards: t.Sequence[card_ages.Card]) -> str:
    """Return the usual branch of a system's source, or the nearest that the cards stand."""
    sources = SYSTEMS.get(system, {})
    origin = sources.get(source)
    fitting = _stood(_offered(origin), needs)
    usual = int(origin.get("default", card_ages.USUAL_BRANCH)) if origin else card_ages.USUAL_BRANCH
    if fitting:
        return str(min(fitting, key=lambda branch: (abs(branch - usual), branch)))
    limiting = [
        card.label
        for card in cards
        if card.architecture and (card.architecture.first_branch or card.architecture.last_branch)
    ]
    who = f"that drives {' and '.join(limiting)}" if limiting else "that is still maintained"
    other = [name for name, there in sources.items() if name != source and _stood(_offered(there), needs)]
    cure = (
        f"set nvidia_driver_source to {other[0]}"
        if other
        else (f"use {' or '.join(systems_for(needs)) or 'another system'}, or {CURE}")
    )
    raise UserError(f"{system} has no driver branch from the source {source} {who}: {cure}.")


def systems_for(needs: card_ages.Needs) -> list[str]:
    """Return the systems with a maintained branch, from any source, that drives all cards."""
    return [
        name for name, sources in SYSTEMS.items() if any(_stood(_offered(source), needs) for source in sources.values())
    ]


def _check_branch(branch: str, needs: card_ages.Needs, cards: t.Sequence[card_ages.Card]) -> None:
    """Raise UserError where a card needs an older or a newer branch."""
    for card in cards:
        kind = card.architecture
        if kind and kind.last_branch and int(branch) > kind.last_branch:
            raise UserError(
                f"Driver branch {branch} does not drive the {card.label}, whose last branch is {kind.last_branch}: set "
                f'nvidia_driver_branch to "{needs.last_branch}" or leave it out, or {CURE}.'
            )
        if kind and kind.first_branch and int(branch) < kind.first_branch:
            raise UserError(
                f"Driver branch {branch} does not drive the {card.label}, whose first branch is {kind.first_branch}: "
                f'set nvidia_driver_branch to "{max(needs.first_branch or 0, card_ages.USUAL_BRANCH)}" or leave it '
                f"out, or {CURE}."
            )


def _check_modules(open_modules: bool, branch: str, cards: t.Sequence[card_ages.Card]) -> None:
    """Raise UserError where the kind of kernel modules does not drive a card, or does not exist."""
    for card in cards:
        kind = card.architecture
        if kind and open_modules and not kind.open_modules:
            raise UserError(
                f"nvidia_driver_open_modules is true, and the open kernel modules do not drive the {card.label}, since "
                f"they begin with Turing: set it to false or leave it out, or {CURE}."
            )
        if kind and not open_modules and not kind.closed_modules:
            raise UserError(
                f"nvidia_driver_open_modules is false, and only the open kernel modules drive the {card.label}: set it "
                f"to true or leave it out, or {CURE}."
            )
    if not open_modules and branch.isdigit() and int(branch) >= card_ages.OPEN_ONLY_BRANCH:
        raise UserError(
            f"nvidia_driver_open_modules is false, and branch {branch} has the open kernel modules only: set it to "
            f'true or leave it out, or set nvidia_driver_branch to "{card_ages.USUAL_BRANCH}".'
        )
