# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Power settings of a host's cards, from what was asked for. Private to this collection. Pure functions only.

The settings are those that _programs/apply_power_limits puts into force.
"""

from __future__ import annotations

import typing as t

from .._base import unit_sandbox
from .._base.types import Json, Mapping

SCHEMA: t.Final = 1
#: The transient unit that brings limits back, and in a folder of its own what it needs: settings, program.
RESTORE_UNIT: t.Final = "mixed-gpu-power-restore.service"
RESTORE_FILES: t.Final = ("power_limits_found.json", "apply_power_limits.py")

#: What mixed-gpu-power.service has, too. It waits, and then sets limits: NVML alone, as root.
_SANDBOX: t.Final = (
    *unit_sandbox.EVERY_UNIT,
    "CapabilityBoundingSet=CAP_SYS_ADMIN",
    "SystemCallFilter=~@privileged @resources",
    "ProtectHome=read-only",  # Python may be there
    "DevicePolicy=closed",
    "DeviceAllow=char-195 rw",
    "DeviceAllow=char-nvidia* rw",
    "PrivateNetwork=yes",
    "IPAddressDeny=any",
    "RestrictAddressFamilies=AF_UNIX",
    "MemoryDenyWriteExecute=yes",
    "RemoveIPC=yes",
)

Settings = Json
Card = Mapping


def settings(
    gpus: t.Sequence[Card], limits_watts: Mapping, limits_by_name_watts: Mapping,
    locked_clocks_mhz: Mapping, persistence: bool,
) -> Settings:
    """Return the settings for the cards of a host, of those that anything is asked for.

    `limits_watts` and `locked_clocks_mhz` ([lowest, highest]) are by UUID; `limits_by_name_watts` holds for every card
    whose product name ends with the key ("RTX 3090" is not "RTX 3090 Ti") and that no UUID names. Cards that are named
    and not there are kept, so that problems() can say so.
    """
    names = {str(gpu["id"]): str(gpu["name"] or "") for gpu in gpus}
    wanted: Json = {}
    for card_id, name in names.items():
        for ending, watts in limits_by_name_watts.items():
            if name.lower().endswith(str(ending).lower()):
                wanted[card_id] = watts
    wanted.update(limits_watts)
    order = [*names, *(card_id for card_id in [*limits_watts, *locked_clocks_mhz] if card_id not in names)]
    cards = [
        {
            "id": card_id,
            "power_limit_watts": wanted.get(card_id),
            "locked_clocks_mhz": locked_clocks_mhz.get(card_id),
            "persistence_mode": True if persistence else None,
        }
        for card_id in dict.fromkeys(order)
        if card_id in wanted or card_id in locked_clocks_mhz
    ]
    return {"schema": SCHEMA, "cards": cards}


def found_settings(cards: t.Sequence[Card]) -> Settings:
    """Return the settings that bring the cards back to how they are now; locked clocks, which are unknown, stay."""
    return {
        "schema": SCHEMA,
        "cards": [
            {
                "id": card["id"],
                "power_limit_watts": card["power_limit_watts"],
                "locked_clocks_mhz": None,
                "persistence_mode": card["persistence_mode"],
            }
            for card in cards
        ],
    }


def restore_unit(systemd_run: str, bound_to: str, restore: t.Sequence[str]) -> list[str]:
    """Return the command that starts RESTORE_UNIT, but for the program that it waits in.

    It ends with the unit C(bound_to), before what that one starts again is started, and then runs C(restore).
    """
    properties = {
        "Description": "Restores the power limits of the cards",
        "BindsTo": bound_to,
        "After": bound_to,
        "ExecStopPost": " ".join(restore),
    }
    given = [*(f"{name}={value}" for name, value in properties.items()), *_SANDBOX]
    values = [f"--property={value}" for value in given]
    return [systemd_run, "--quiet", "--collect", f"--unit={RESTORE_UNIT}", *values]
