# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is known of kinds of cards. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

Json = dict[str, t.Any]

#: PCI device ids of cards whose driver is not there yet.
DEVICE_IDS = {"0x2684": "NVIDIA GeForce RTX 4090", "0x2204": "NVIDIA GeForce RTX 3090"}


def of_host(host: t.Mapping[str, t.Any]) -> list[Json]:
    """What is known of each card: entries of gpu_facts, or, before there is a driver, names by PCI device id."""
    gpus = host["gpus"]
    if gpus and gpus["gpus"]:
        return list(gpus["gpus"])
    return [
        {"name": DEVICE_IDS.get(device["device_id"]), "pci_bus_id": device["address"]}
        for device in host["nvidia_devices"]
    ]
