# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What devices of other hosts would cost and buy, before anything is measured. Private. Pure functions only.

Such a device has C(link), the way to it (known_devices.lent_devices).
"""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._split import network_links
from . import expected_speeds

Devices = t.Sequence[Mapping]


def of_box(devices: Devices) -> list[Mapping]:
    """Return the devices of the box itself."""
    return [device for device in devices if device.get("link") is None]


def ordered(devices: Devices, model: Mapping, objective: Mapping, in_ram: t.Callable[[], bool]) -> list[Json]:
    """Return the devices in the order that a tuning would take."""
    links = {str(device["id"]): device["link"] for device in devices if device.get("link")}
    return network_links.ordered(
        [dict(device) for device in devices], links, model, objective, bool(links) and in_ram()
    )


def judged(speeds: expected_speeds.Speeds, best: Mapping, devices: Devices, without: Mapping | None) -> Json:
    """Return what the network costs a predicted split and what it buys, as network_links.said.

    C(without) is the split that the devices of the box would serve with; None where nothing fits on them.
    """
    layers = best["layers"]
    near = speeds.without_network()
    shares = [
        None if far is None or not far or here is None else 100 * (1 - here / far)
        for far, here in (
            (speeds.decode_ms(layers), near.decode_ms(layers)), (speeds.ttft_ms(layers), near.ttft_ms(layers))
        )
    ]  # fmt: skip
    found = network_links.said([device.get("link") for device in devices], layers, best["mib"], (shares[0], shares[1]))
    rate = None if without is None else without["decode_tokens_per_second"]
    alone = "the model does not fit" if without is None else "the model fits"
    speed = f" and gives {rate:.1f} tokens per second" if rate else ""
    return {**found, "why": f"{found['why']}; without other hosts {alone}{speed}"}


def left_out(devices: Devices) -> list[str]:
    """Return what is said where experts are in RAM, whose prediction knows no network."""
    far = len(of_box(devices)) < len(devices)
    return ["Where weights are in RAM, the network to other hosts is in no speed."] if far else []
