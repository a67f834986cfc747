# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The largest context that fits, where C(max) is asked for. Private to this collection. Pure functions only.

The memory plan says which it is. llama.cpp's dry run has the final word: where it sees a device beyond its budget, the
next smaller context is asked about, and where it sees room the next larger one, until it has said yes to one and no to
the one above.
"""

from __future__ import annotations

import typing as t

from .._base.errors import UserError
from .._base.types import Mapping
from .._split import context_room, layer_split, memory_plan
from .._split.layer_split import Layers
from .._split.types import Model, Serving

MAX: t.Final = "max"
#: Questions to the dry run, of about a second each; the plan is within 1 % of it.
_MOST_QUESTIONS: t.Final = 12


def asked(serving: Mapping) -> bool:
    """Return whether a profile asks for the largest context."""
    return bool(serving["context_size"] == MAX)


def planned(model: Model, serving: Mapping, devices: t.Sequence[Mapping], reserve_mib: int) -> Serving:
    """Return the profile with the largest context by the memory plan. Raises UserError where not even one step fits."""
    budgets = memory_plan.budgets_mib(devices, reserve_mib)
    context = context_room.largest(model, serving, budgets)
    if not context:
        raise UserError(_why_none(model, serving, devices, budgets, reserve_mib))
    return context_room.with_context(serving, context)


def _why_none(
    model: Model, serving: Mapping, devices: t.Sequence[Mapping], budgets: t.Sequence[int], reserve_mib: int
) -> str:
    least = context_room.with_context(serving, context_room.STEP)
    room = context_room.Room(model, least, budgets)
    why = memory_plan.why_nothing_fits(devices, model, least, [room.roomiest()], budgets, reserve_mib)
    return f"split_tuning_context_size is max, and not even a context of {context_room.STEP} tokens fits: {why}"


def placed(model: Model, serving: Serving, devices: t.Sequence[Mapping], reserve_mib: int) -> Layers:
    """Return the split that a context is asked about: the one that the plan leaves the most room."""
    budgets = memory_plan.budgets_mib(devices, reserve_mib)
    return context_room.Room(model, serving, budgets).roomiest()


def question(context: int, layers: t.Sequence[int]) -> str:
    """Return the name of the step that asks about a context."""
    return f"dry run of a context of {context} as {layer_split.split_name(layers)}"


class Settled(t.NamedTuple):
    """The context to go on with, and the next one to ask about; None where the dry run has said its word."""

    context: int
    ask: int | None


def settle(
    model: Model, first: int, budgets: t.Sequence[int], answer: t.Callable[[int], Mapping | None]
) -> Settled:
    """Return where the search stands; C(answer) gives the dry run's answer about a context, None while not asked.

    C(first) is the context by the plan. Where the dry run does not answer, the plan stands. Raises UserError where the
    dry run refuses every context.
    """
    top = context_room.trained(model)
    context, works = first, 0
    for _question in range(_MOST_QUESTIONS):
        told = answer(context)
        if told is None:
            return Settled(context, context)
        if not told["available"]:
            return Settled(works or first, None)
        over = max(device["mib"] - budget for device, budget in zip(told["devices"], budgets, strict=True))
        if over <= 0:
            works = context
            # what was refused above is no more to be asked about
            if context >= top or context < first:
                return Settled(works, None)
            context += context_room.STEP
        elif works:
            return Settled(works, None)
        else:
            context -= context_room.STEP
            if context < context_room.STEP:
                raise UserError(
                    "split_tuning_context_size is max, and llama.cpp's dry run finds no room for a context of"
                    f" {context_room.STEP} tokens: {over} MiB are missing; take a smaller model or a smaller KV cache"
                )
    return Settled(works or context, None)
