# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a host is that decides what is compiled for it, and where that runs. Private to this collection. Reads only."""

from __future__ import annotations

import typing as t

from .._hardware import card_ages, cards, host, host_hardware


class Targets(t.NamedTuple):
    """CUDA architectures of the cards of a host, None where one is unknown, and why the driver does not tell."""

    architectures: list[str] | None
    reason: str


def system() -> tuple[str, list[str]]:
    """Return distribution and release, such as "debian 13", and the flags of the CPU as the kernel names them."""
    found = host.operating_system(host_hardware.read("/etc/os-release") or "")
    return f"{found['id']} {found['version_id'] or 'without a release'}", host_hardware.cpu_flags()


def targets(python: str, slots_left_out: t.Sequence[str]) -> Targets:
    """Return the CUDA architectures of the cards here; C(python) is an interpreter that has nvidia-ml-py."""
    told = cards.read(python)
    on_bus = card_ages.cards(host_hardware.nvidia_devices(), slots_left_out)
    return Targets(card_ages.targets(told, on_bus), str(told["reason"]))
