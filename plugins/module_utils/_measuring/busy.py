# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether the devices are in use, so that measuring would disturb somebody. Private to this collection. Pure."""

from __future__ import annotations

import typing as t

from .._base.types import Mapping

Look = t.Sequence[Mapping]
#: A card that computes for this share of the time is in use. A desktop alone takes a few percent.
BUSY_PERCENT: t.Final = 20


def of_slots(looks: t.Sequence[Look]) -> str | None:
    """Return what the server was doing, in words, from several answers of /slots in order; None when it was idle.

    A request that came and went between two looks shows by the number of the slot's last task (id_task).
    """
    most = max((sum(bool(slot["is_processing"]) for slot in look) for look in looks), default=0)
    if most:
        return f"llama-server is answering {_count(most, 'request')} in {_count(len(looks[-1]), 'slot')}"
    tasks = [[slot.get("id_task") for slot in look] for look in looks]
    if any(look != tasks[0] for look in tasks):
        return "llama-server answered a request just now"
    return None


def of_cards(gpus: t.Sequence[Mapping]) -> str | None:
    """Return which cards computed, in words, of gpu_facts' sampled cards; None when none did for BUSY_PERCENT."""
    used = []
    for gpu in gpus:
        utilisation = ((gpu["sampled"] or {}).get("utilization_gpu_percent") or {}).get("mean")
        if utilisation is not None and utilisation >= BUSY_PERCENT:
            used.append(f"{gpu['name']} ({gpu['id']}) computed {utilisation:g} % of the time")
    return " and ".join(used) or None


def can_tell(gpus: t.Sequence[Mapping]) -> bool:
    """Whether the cards say how much they compute."""
    return bool(gpus) and all((gpu["sampled"] or {}).get("utilization_gpu_percent") for gpu in gpus)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
