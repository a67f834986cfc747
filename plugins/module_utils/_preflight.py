# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What host_preflight thinks of a host. Private to this collection.

A check is a dict {name, ok, severity, detail, cure}. `severity` says what a check that is not ok means: "error" cannot
work, "warning" works badly, "note" is worth knowing. `cure` is None where nothing needs one.
"""

from __future__ import annotations

import textwrap
import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils import _nvml

# Releases that are tested. Newer ones of the same distributions probably work, older ones lack Python 3.11.
TESTED_RELEASES = {"debian": ["12", "13"], "ubuntu": ["24.04"]}
OLDEST_PYTHON = (3, 11)
WIDTH = 74  # Ansible's own output breaks lines beyond that
SWAP_USED_MIB = 512  # more swap in use than this says that the host is short of memory

Check = dict[str, t.Any]


def checks(host: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> list[Check]:
    """All checks of one host, in the order in which they are shown.

    `host` is what the module host_info returns as `host`, with `gpus`, the fact mixed_gpu_gpus, or None where it could
    not be asked. `wanted` holds port (int), memory_mib (int), disk ([{path, needed_mib}]), gpus_expected (UUIDs or
    parts of names) and server_unit (the unit that may hold the port). Raises KeyError for a missing key.
    """
    found = [
        _operating_system(host["os"]),
        _check("architecture", host["machine"] == "x86_64", "error", host["machine"], "use an x86_64 machine"),
        _python(host["python_version"]),
        _root(host["uid"]),
        _check(
            "systemd",
            host["init"] == "systemd",
            "error",
            f"process 1 is {host['init'] or 'unknown'}",
            "boot the host with systemd; a container needs an image whose command is systemd",
        ),
        _memory(host, wanted["memory_mib"]),
        _swap(host),
    ]
    found += _disks(list(zip(host["disks"], wanted["disk"], strict=True)))
    found.append(_port(host["listeners"], wanted["port"], wanted["server_unit"]))
    found.append(_gpus(host, wanted["gpus_expected"]))
    return found


def table(found: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """The checks as lines of text, at most WIDTH columns wide: verdict, name, what was seen, and below it the cure."""
    width = max((len(check["name"]) for check in found), default=0)
    lines = []
    for check in found:
        verdict = "ok" if check["ok"] else {"error": "FAIL", "warning": "warn"}.get(check["severity"], "note")
        text = check["detail"] if check["ok"] or check["cure"] is None else f"{check['detail']}; {check['cure']}"
        start = f"{verdict:<5}{check['name']:<{width}}  "
        lines += textwrap.wrap(
            text, width=WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def _check(name: str, ok: bool, severity: str, detail: str, cure: str | None) -> Check:
    return {"name": name, "ok": ok, "severity": severity, "detail": detail, "cure": None if ok else cure}


def _operating_system(system: t.Mapping[str, t.Any]) -> Check:
    detail = system["pretty_name"] or system["id"] or "unknown"
    tested = TESTED_RELEASES.get(system["id"] or "")
    version = system["version_id"] or ""
    if tested is not None and version in tested:
        return _check("operating system", True, "error", detail, None)
    if tested is not None and _numbers(version) > _numbers(tested[-1]):
        cure = f"newer than what is tested ({', '.join(tested)}); go on, and say so when you report a problem"
        return _check("operating system", False, "warning", detail, cure)
    detail = f"{detail} is not supported"
    return _check("operating system", False, "error", detail, "use Debian 12 or 13, or Ubuntu 24.04")


def _python(version: str) -> Check:
    return _check(
        "Python",
        _numbers(version)[:2] >= OLDEST_PYTHON,
        "error",
        version,
        "set ansible_python_interpreter to a Python of 3.11 or later, as Debian 12 and Ubuntu 24.04 have it",
    )


def _root(uid: int) -> Check:
    detail = "tasks run as root" if uid == 0 else f"tasks run as user id {uid}"
    return _check("root", uid == 0, "error", detail, "set become to true, with a user that may use sudo")


def _memory(host: t.Mapping[str, t.Any], needed_mib: int) -> Check:
    total, available = host["memory_total_mib"], host["memory_available_mib"]
    return _check(
        "memory",
        total >= needed_mib,
        "error",
        f"{total} MiB, {available} MiB of it available; {needed_mib} MiB needed",
        "add memory, or lower host_preflight_memory_mib if you know better",
    )


def _swap(host: t.Mapping[str, t.Any]) -> Check:
    total, used = host["swap_total_mib"], host["swap_used_mib"]
    return _check(
        "swap",
        used <= SWAP_USED_MIB,
        "warning",
        f"{used} of {total} MiB in use" if total else "none",
        "the host is short of memory, and measurements would vary: stop what fills it, then 'swapoff -a && swapon -a'",
    )


def _disks(pairs: t.Sequence[tuple[t.Mapping[str, t.Any], t.Mapping[str, t.Any]]]) -> list[Check]:
    """One check per (disk, what is wanted there).

    What already lies below a path counts as room, or a host that is done would be called too small; what several paths
    still need of one file system adds up.
    """
    growth: dict[str, int] = {}
    for disk, want in pairs:
        still = max(0, want["needed_mib"] - disk["held_mib"])
        growth[disk["mount_point"]] = growth.get(disk["mount_point"], 0) + still
    found = []
    for disk, want in pairs:
        mount, free, held, needed = disk["mount_point"], disk["free_mib"], disk["held_mib"], want["needed_mib"]
        detail = f"{free} MiB free on {mount}{f', {held} MiB there already' * bool(held)}; {needed} MiB needed"
        if growth[mount] > needed - held > 0:
            detail += f", {growth[mount]} MiB with what the other paths need there"
        cure = f"free {growth[mount] - free} MiB on {mount}, or mount a larger disk at {want['path']}"
        ok = needed <= held or free >= growth[mount]
        found.append(_check(f"disk {want['path']}", ok, "error", detail, cure))
    return found


def _port(listeners: t.Sequence[t.Mapping[str, t.Any]] | None, port: int, server_unit: str) -> Check:
    name = f"port {port}"
    if listeners is None:
        return _check(name, False, "note", "unknown, the host has no ss", "install iproute2 to have it looked at")
    others = [listener for listener in listeners if listener["unit"] != server_unit]
    if not others:
        return _check(name, True, "error", f"{server_unit} listens" if listeners else "free", None)
    who = sorted({_listener_words(listener) for listener in others})
    return _check(
        name, False, "error", f"taken by {' and '.join(who)}", "stop it, or choose another llama_server_port"
    )


def _listener_words(listener: t.Mapping[str, t.Any]) -> str:
    process = f"{listener['process']} (pid {listener['pid']})" if listener["process"] else "a process"
    return f"{process} of {listener['unit']}" if listener["unit"] else process


def _gpus(host: t.Mapping[str, t.Any], expected: t.Sequence[str]) -> Check:
    """Too few cards on the bus is an error; a missing or broken driver is not, because a later role installs it."""
    slots, gpus, loaded = host["nvidia_pci"], host["gpus"], host["nvidia_module_version"]
    on_bus = f"{len(slots)} NVIDIA card{'s' * (len(slots) != 1)} on the PCI bus"
    if len(slots) < len(expected) and not (gpus and gpus["available"]):
        cure = "check seating and power, pass the cards through to a VM, or correct host_preflight_gpus_expected"
        return _check("GPUs", False, "error", f"{on_bus}, {len(expected)} expected ({', '.join(expected)})", cure)
    if gpus and gpus["available"]:
        names = ", ".join(gpu["name"] or gpu["uuid"] or "unnamed" for gpu in gpus["gpus"])
        detail = f"{names}; driver {gpus['driver_version']}"
        missing = _nvml.missing_gpus(list(expected), gpus["gpus"])
        cure = f"missing is {', '.join(missing)}: check seating and power, or correct host_preflight_gpus_expected"
        return _check("GPUs", not missing, "error", detail, cure)
    if not slots:
        return _check("GPUs", True, "note", "no NVIDIA card, and none expected", None)
    if loaded is None:
        who = "nouveau holds them" if host["nouveau_loaded"] else "no NVIDIA driver is loaded"
        return _check("GPUs", False, "warning", f"{on_bus}, {who}", "the role nvidia_driver installs the driver")
    if gpus is None:
        detail = f"{on_bus}, driver {loaded} is loaded; their names are read once the role host_python has run"
        return _check("GPUs", True, "note", detail, None)
    return _check("GPUs", False, "warning", f"{on_bus}, driver {loaded} is loaded", gpus["reason"])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
