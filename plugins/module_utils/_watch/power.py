# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the cards of a deployment draw while the server generates. Private to this collection. Pure functions only."""

from __future__ import annotations

import statistics
import typing as t

from .._base.types import Json, Mapping
from .._split import network_links


def unseen(devices: t.Sequence[Mapping]) -> str | None:
    """Return why NVML of this host does not know what the devices of a deployment draw, or None."""
    lent = network_links.remote(device["id"] for device in devices if device["backend"] == "RPC")
    if lent:
        return f"{' and '.join(lent)} is on another host, and what its card draws is not seen from here"
    if not devices or any(device["backend"] != "CUDA" for device in devices):
        return "the devices of this deployment are not NVIDIA cards, so there is no NVML to ask"
    return None


def drawn(
    devices: t.Sequence[Mapping],
    readings: t.Mapping[str, t.Sequence[Mapping]],
    tokens_per_second: float | None,
) -> Json | None:
    """Return {watts, cards: [{device, id, watts}], joules_per_token}, or None where a card has no reading.

    The median per card leaves out the readings before the first and after the last token. C(watts) is that of all
    cards together; C(joules_per_token) divides them by the tokens per second.
    """
    cards = []
    for device in devices:
        seen = [row["power_draw_watts"] for row in readings.get(device["id"], ())]
        known = [watts for watts in seen if watts is not None]
        if not known:
            return None
        cards.append({"device": device["device"], "id": device["id"], "watts": round(statistics.median(known), 1)})
    watts = round(sum(card["watts"] for card in cards), 1)
    joules = round(watts / tokens_per_second, 2) if tokens_per_second else None
    return {"watts": watts, "cards": cards, "joules_per_token": joules}
