# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a server has to be restarted, and what is in the way. Private to this collection. Pure functions only.

What is in the way is told in sentences with cause and cure; an empty list means that there is nothing.
"""

from __future__ import annotations

import typing as t

from .._base.types import Mapping
from .._split import expert_placement, placement


class File(t.NamedTuple):
    """A file that a server reads when it starts. A text is None where there is no file, or must be none."""

    path: str
    now: str | None
    wanted: str | None
    written_at: float  # seconds since the epoch; 0 without a file


def due(unit: Mapping, started_at: float, files: t.Iterable[File]) -> str | None:
    """Return in words why a restart is due, or None.

    C(unit) has systemd's LoadState, ActiveState, SubState and NeedDaemonReload. A file that was written after the start
    counts as changed, since a play that died may not have come to the restart.
    """
    if unit.get("LoadState") == "not-found":
        return "the unit does not exist yet"
    if unit.get("SubState") == "auto-restart" or unit.get("ActiveState") not in ("active", "reloading", "activating"):
        return f"the server does not run ({unit.get('SubState') or unit.get('ActiveState')})"
    for file in files:
        if file.now != file.wanted:
            return f"{file.path} changes"
        if file.written_at > started_at:
            return f"{file.path} was written after the start of the server"
    return "systemd has not read the unit again" if unit.get("NeedDaemonReload") == "yes" else None


def measurement(unit: str, active_state: str) -> list[str]:
    """Return whether a measurement holds the devices: C(active_state) is systemd's of the lease's C(unit)."""
    if active_state not in ("active", "activating"):
        return []
    return [
        f"A measurement is using the devices of this host ({unit} is active): wait until it is done, or end it with"
        f" systemctl stop {unit}."
    ]


def port(number: int, listeners: t.Iterable[Mapping], stopped: t.Container[str]) -> list[str]:
    """Return who else listens on the port.

    C(listeners) are host_hardware.listeners; those of the units C(stopped) will have gone.
    """
    names = {named(listener) for listener in listeners if listener["unit"] not in stopped}
    if not names:
        return []
    return [f"Port {number} is taken by {', '.join(sorted(names))}: stop it, or choose another port."]


def named(listener: Mapping) -> str:
    """Return who listens, in words."""
    process = f"{listener['process']} (pid {listener['pid']})" if listener["process"] else "a process"
    return f"{process} of {listener['unit']}" if listener["unit"] else process


def ram(deployment: Mapping, available_mib: int, total_mib: int, one_leaves: bool) -> list[str]:
    """Return whether RAM is missing for the weights that the plan keeps there.

    Where a server runs that will leave (C(one_leaves)), what it holds is not known, so only the whole RAM is looked at.
    """
    kept = [deployment.get("experts_in_ram") or {}, deployment.get("speculation") or {}]
    needed = sum(part.get("ram_bytes", 0) for part in kept)
    room, word = (total_mib, "in all") if one_leaves else (available_mib, "available")
    missing = expert_placement.ram_missing_mib(needed, room) if needed else 0
    if not missing:
        return []
    return [
        f"The host has {room} MiB of RAM {word}, and the recorded placement keeps {needed // expert_placement.MIB} MiB "
        f"of weights there, with {expert_placement.RAM_KEPT_FREE_MIB} MiB to spare: {missing} MiB are missing (swap "
        "does not count). Stop what uses memory, or run the tuning play again."
    ]


def memory(deployment: Mapping, gpus: t.Iterable[Mapping], leaving_pids: t.Container[int]) -> list[str]:
    """Return the cards that are absent, or have less memory free than the plan counts on them.

    C(gpus) are the cards of NVML. Devices that NVML does not know (RPC, CPU) are left out, and so is a card whose plan
    or free memory is unknown. What the processes C(leaving_pids) hold counts as free.
    """
    by_id = {gpu.get("id"): gpu for gpu in gpus}
    found = []
    for device in placement.used_devices(deployment):
        if device["backend"] != "CUDA" or device["id"] == device["device"]:
            continue
        card = f"{device['description']} ({device['id']})"
        if device["id"] not in by_id:
            found.append(
                f"{card} is part of the recorded placement, but the driver does not list it: check the card, or run"
                " the tuning play again."
            )
            continue
        free, others = _free_mib(by_id[device["id"]], leaving_pids)
        if free is not None and device["mib"] is not None and free < device["mib"]:
            found.append(
                f"{card} has {free} MiB free and the plan needs {device['mib']} MiB: {device['mib'] - free} MiB are"
                f" missing; in the way: {', '.join(others) or 'nothing that the driver names'}. Stop what is in the"
                " way, or run the tuning play again with less memory."
            )
    return found


def _free_mib(gpu: Mapping, leaving_pids: t.Container[int]) -> tuple[int | None, list[str]]:
    """Return what will be free once the leaving processes have gone (None where unknown), and who else holds memory."""
    free, others = gpu.get("memory_free_mib"), []
    for process in gpu.get("processes") or []:
        used = process.get("memory_mib")
        if process.get("pid") not in leaving_pids:
            held = "unknown" if used is None else f"{used} MiB"
            others.append(f"{process.get('name') or 'process'} (pid {process.get('pid')}, {held})")
        else:
            free = None if used is None or free is None else free + used
    return free, others
