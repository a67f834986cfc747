# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What rules of thumb say of a pair of cards, beside what was measured. Private to this collection. Pure functions."""

from __future__ import annotations

import typing as t

from .._base.types import Json

#: How far apart utilisations are when a rule of thumb calls one much higher, in percent points.
MUCH_HIGHER_POINTS = 20.0


def rules(entry: Json, observed: t.Sequence[Json], layer_advice: Json) -> list[Json]:
    """Return what the usual rules of thumb for an RTX 4090 with an RTX 3090 say here, beside what was measured.

    Each is {rule, says, measured, agrees, why}; C(agrees) is None where the rule does not apply. They are about two
    devices; with more or fewer the list is empty.
    """
    decision = entry["decision"]
    if len(decision["layers"]) != 2 or not all(decision["layers"]) or decision["split_mode"] != "layer":
        return []
    if decision.get("experts_in_ram"):
        return []
    decode = next((phase for phase in observed if phase["kind"] == "decode"), None)
    found = [
        *(_busier_gets_more(phase, layer_advice) for phase in observed),
        _usual_ratio(entry),
        _faster_waits(decode) if decode else None,
    ]
    return [rule for rule in found if rule is not None]


def _usual_ratio(entry: Json) -> Json | None:
    """Return the rule about the ratio of layers, for the pair that it is about."""
    first, second = entry["decision"]["layers"]
    pair = [device["description"] for device in entry["devices"]]
    if "4090" not in pair[0] or "3090" not in pair[1]:
        return None
    ratio, percent = first / second, 100 * first / (first + second)
    return {
        "rule": "the RTX 4090 gets 1.15 to 1.25 times the layers (55 % of them)",
        "says": "a ratio of 1.15 to 1.25",
        "measured": f"{first}/{second}, a ratio of {ratio:.2f} ({percent:.0f} %)",
        "agrees": 1.15 <= ratio <= 1.25,
        "why": "the ratio follows from memory and what a layer costs on each card; only whole layers count",
    }


def _faster_waits(decode: Json) -> Json | None:
    """Return the rule about the faster card's waiting, where the time of each card is known."""
    if len(decode["devices"]) != 2 or not all(row["ms_per_layer"] for row in decode["devices"]):
        return None
    fast, slow = sorted(decode["devices"], key=lambda row: row["ms_per_layer"])
    waits = 100 - fast["share_percent"]
    return {
        "rule": "the faster card spends 30 % of its time waiting for the slower one",
        "says": "30 % of waiting",
        "measured": f"while a token is generated {fast['device']} waits {waits:.0f} % of the time, "
        f"{slow['device']} {100 - slow['share_percent']:.0f} %",
        "agrees": abs(waits - 30) <= 5,
        "why": "they take turns, so each waits while the other works, whatever the split; more layers on the "
        f"faster one save time because a layer takes {slow['ms_per_layer'] / fast['ms_per_layer']:.2f} times "
        f"as long on {slow['device']}",
    }


def _busier_gets_more(phase: Json, layer_advice: Json) -> Json | None:
    """Return the rule "the card with the higher utilisation gets more layers", if utilisations are seen."""
    rows = phase["devices"]
    if len(rows) != 2 or any(row["utilisation_percent"] is None for row in rows):
        return None
    idle, busy = sorted(rows, key=lambda row: row["utilisation_percent"])
    apart = busy["utilisation_percent"] - idle["utilisation_percent"]
    seen = ", ".join(f"{row['device']} {row['utilisation_percent']:.0f} %" for row in rows)
    expected_text = ", ".join(
        f"{row['device']} {row['expected_utilisation_percent']:.0f} %"
        for row in rows
        if row["expected_utilisation_percent"] is not None
    )
    measured = f"{phase['kind']}: {seen}" + (f" (expected of this split: {expected_text})" if expected_text else "")
    rule = "one card at 95 %, the other at 30 %: give the busier one more layers"
    wants = {one["to"] for one in layer_advice["moves"]}
    if apart < MUCH_HIGHER_POINTS:
        says, agrees = f"nothing: they are {apart:.0f} points apart", None
    else:
        says = f"move layers from {idle['device']} to {busy['device']}"
        agrees = busy["device"] in wants
    if phase["kind"] == "decode":
        why = (
            "while a token is generated the cards take turns: utilisation is the share of time per token, which more "
            "layers on a card raise further. What a layer costs on each card decides, and memory"
        )
    else:
        why = "a prompt passes through both at once and the busier one sets the pace: more layers on it make it slower"
    return {"rule": rule, "says": says, "measured": measured, "agrees": agrees, "why": why}
