# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the cards of a deployment draw while the server generates. Private to this collection. Pure functions only."""

from __future__ import annotations

import statistics
import typing as t

from .._base.text import one_line
from .._base.types import Json, Mapping
from .._split import lent_devices, network_links

#: Cards of lenders are watched for so long, one host after the other starts that, and the server answers meanwhile.
WATCH_SECONDS: t.Final = 8.0
#: It answers no longer, whatever became of those hosts.
LOAD_SECONDS: t.Final = 300.0
TOO_LATE: t.Final = f"the cards of the lenders were not watched within {LOAD_SECONDS:.0f} s"


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
    return _together(cards, tokens_per_second)


def _together(cards: list[Json], tokens_per_second: float | None) -> Json:
    watts = round(sum(card["watts"] for card in cards), 1)
    joules = round(watts / tokens_per_second, 2) if tokens_per_second else None
    return {"watts": watts, "cards": cards, "joules_per_token": joules}


def own(devices: t.Sequence[Mapping]) -> list[Mapping]:
    """Return the cards of this host among the devices of a deployment."""
    return [device for device in devices if device["backend"] == "CUDA"]


def lending(devices: t.Sequence[Mapping], lenders: t.Mapping[str, Mapping]) -> list[str]:
    """Return the lenders whose cards a deployment uses; none where a device is no card: a part would be missing.

    C(lenders) are those of the record (lent_devices).
    """
    cards = _cards(lenders)
    lent = {cards[device["id"]][0] for device in devices if device["id"] in cards}
    whole = all(device["backend"] == "CUDA" or device["id"] in cards for device in devices)
    return [name for name in lenders if name in lent] if whole else []


def _cards(lenders: t.Mapping[str, Mapping]) -> dict[str, tuple[str, str]]:
    """Return the lender and the UUID of its card by the endpoint of the card's RPC server."""
    return {
        server["endpoint"]: (name, server["card"]["id"])
        for name, lender in lenders.items() for server in lender["servers"] if server["card"]
    }  # fmt: skip


def of_group(
    devices: t.Sequence[Mapping], lenders: t.Mapping[str, Mapping], load: Mapping, looks: lent_devices.Looks
) -> Json:
    """Return what cards of a box and of its lenders drew, as C(drawn) does, with C(reason); or the reason alone.

    C(load) is {reason, cards (of C(drawn)), tokens_per_second} of the box while it answered, C(looks) what gpu_facts
    saw meanwhile. A lent card has its mean.
    """
    if load["reason"]:
        return {"reason": load["reason"]}
    cards, lent = {card["id"]: card for card in load["cards"]}, _cards(lenders)
    rows: list[Json] = []
    for device in devices:
        if device["id"] in cards:
            rows.append(cards[device["id"]])
            continue
        name, uuid = lent[device["id"]]
        unseen_why = looks.unseen[name].why if name in looks.unseen else "it is not in the inventory"
        gpus = looks.gpus.get(name) or {"gpus": [], "reason": unseen_why}
        watts = _watts(gpus, uuid)
        if watts is None:
            why = gpus["reason"] or "it does not say what its card draws"
            return {"reason": f"{name} was not seen: {one_line(why, 200)}"}
        rows.append({"device": device["device"], "id": device["id"], "host": name, "watts": watts})
    return {"reason": None, **_together(rows, load["tokens_per_second"])}


def _watts(gpus: Mapping, uuid: str) -> float | None:
    """Return the mean draw of a card while it was watched."""
    sampled = next((gpu.get("sampled") or {} for gpu in gpus["gpus"] if gpu["id"] == uuid), {})
    drawn_watts = sampled.get("power_draw_watts")
    return None if drawn_watts is None else float(drawn_watts["mean"])
