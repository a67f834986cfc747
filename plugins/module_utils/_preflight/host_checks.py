# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What host_preflight thinks of a host's system, memory, disks and port. Private to this collection. Pure functions.

A check is a dict {name, ok, severity, detail, cure}. `severity` says what a check that is not ok means: "error" cannot
work, "warning" works badly, "note" is worth knowing. `cure` is None where nothing needs one.
"""

from __future__ import annotations

import typing as t

from .._base.checks import check
from .._llama_cpp import restart_check

Check = dict[str, t.Any]

_SERVER: t.Final = "llama-server.service"
#: Releases that are tested. Newer ones of the same distributions probably work, older ones lack Python 3.11.
TESTED_RELEASES: t.Final = {"debian": ["12", "13"], "ubuntu": ["24.04"]}
#: Releases whose packages and repositories are known from what was published, and that were never tried.
UNTRIED_RELEASES: t.Final = {"ubuntu": ["26.04"]}
OLDEST_PYTHON: t.Final = (3, 11)
#: More swap in use than this says that the host is short of memory.
SWAP_USED_MIB: t.Final = 512
#: 580 branch: 580.126.16 fails to build on Linux 7.0 and 580.142 on 7.1; 580.159.04 builds.
NEWEST_SAFE_KERNEL: t.Final = (6, 99)


def operating_system(system: t.Mapping[str, t.Any], treated_as: str) -> Check:
    """Return whether the distribution is one that is tested.

    `treated_as` is the system, such as Ubuntu 24.04, whose packages the owner wants to try on another one, or "".
    """
    detail = system["pretty_name"] or system["id"] or "unknown"
    version = system["version_id"] or ""
    tested = TESTED_RELEASES.get(system["id"] or "")
    if tested is not None and version in tested:
        return check("operating system", True, "error", detail, None)
    report = "name the release when you report a problem"
    if treated_as:
        detail = f"{detail}, treated as {treated_as} (nvidia_driver_system)"
        return check("operating system", False, "warning", detail, f"nothing of this was tried; {report}")
    if version in UNTRIED_RELEASES.get(system["id"] or "", []):
        cure = f"its packages and repositories are known, and none of them was tried; {report}"
        return check("operating system", False, "warning", detail, cure)
    if tested is not None and _numbers(version) > _numbers(tested[-1]):
        cure = (
            f"newer than what is tested ({', '.join(tested)}); driver and toolkit are refused unless "
            f"nvidia_driver_system names the release whose packages to try; {report}"
        )
        return check("operating system", False, "warning", detail, cure)
    cure = (
        "use Debian 12 or 13, or Ubuntu 24.04 or 26.04; or name one of them in nvidia_driver_system to try its packages"
        " anyway"
    )
    return check("operating system", False, "error", f"{detail} is not supported", cure)


def architecture(machine: str) -> Check:
    """Return whether the CPU is one that the packages and builds are for."""
    return check("architecture", machine == "x86_64", "error", machine, "use an x86_64 machine")


def systemd(init: str | None) -> Check:
    """Return whether systemd is process 1."""
    cure = "boot the host with systemd; a container needs an image whose command is systemd"
    return check("systemd", init == "systemd", "error", f"process 1 is {init or 'unknown'}", cure)


def python(version: str) -> Check:
    """Return whether the Python that runs the modules is new enough."""
    return check(
        "Python",
        _numbers(version)[:2] >= OLDEST_PYTHON,
        "error",
        version,
        "set ansible_python_interpreter to a Python of 3.11 or later, as Debian 12 and Ubuntu 24.04 have it",
    )


def root(uid: int) -> Check:
    """Return whether tasks run as root."""
    detail = "tasks run as root" if uid == 0 else f"tasks run as user id {uid}"
    return check("root", uid == 0, "error", detail, "set become to true, with a user that may use sudo")


def memory(host: t.Mapping[str, t.Any], needed_mib: int) -> Check:
    """Return whether there is main memory enough to build and serve."""
    total, available = host["memory_total_mib"], host["memory_available_mib"]
    return check(
        "memory",
        total >= needed_mib,
        "error",
        f"{total} MiB, {available} MiB of it available; {needed_mib} MiB needed",
        "add memory, or lower host_preflight_memory_mib if less is enough",
    )


def swap(host: t.Mapping[str, t.Any]) -> Check:
    """Return whether the host is short of memory, as swap in use shows."""
    total, used = host["swap_total_mib"], host["swap_used_mib"]
    return check(
        "swap",
        used <= SWAP_USED_MIB,
        "warning",
        f"{used} of {total} MiB in use" if total else "none",
        "the host is short of memory, and measurements would vary: stop what fills it, then 'swapoff -a && swapon -a'",
    )


def disks(pairs: t.Sequence[tuple[t.Mapping[str, t.Any], t.Mapping[str, t.Any]]]) -> list[Check]:
    """Return one check per (disk, what is wanted there).

    What already lies below a path counts as room, or an installed host would be called too small. What several paths
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
        found.append(check(f"disk {want['path']}", ok, "error", detail, cure))
    return found


def port(listeners: t.Sequence[t.Mapping[str, t.Any]] | None, number: int) -> Check:
    """Return whether the server's port is free, or held by the server."""
    name = f"port {number}"
    if listeners is None:
        cure = "install iproute2, which has ss"
        return check(name, False, "note", "unknown, the host has no ss", cure)
    others = [listener for listener in listeners if listener["unit"] != _SERVER]
    if not others:
        return check(name, True, "error", f"{_SERVER} listens" if listeners else "free", None)
    who = sorted({restart_check.named(listener) for listener in others})
    return check(
        name, False, "error", f"taken by {' and '.join(who)}", "stop it, or choose another llama_server_port"
    )


def kernel(host: t.Mapping[str, t.Any]) -> list[Check]:
    """Return the check of the running kernel, the one that boots next, and those that no driver's module builds for."""
    release, installed = host["kernel"], host["kernels"]
    newest = installed[-1] if installed else release
    detail = release
    if host["container"]:
        return [check("kernel", True, "note", f"{release}, of the machine around this container", None)]
    if "-rt" in release or "PREEMPT_RT" in host["kernel_version"]:
        cure = "boot a kernel without PREEMPT_RT: NVIDIA's modules are not built for it"
        return [check("kernel", False, "warning", f"{release}, a real-time kernel", cure)]
    if newest != release and release in installed:
        cure = "reboot before the driver is installed, or check its module for both kernels ('dkms status')"
        detail = f"{release} runs, {newest} is newer and boots next unless told otherwise"
        return [check("kernel", False, "note", detail, cure)]
    if host["nvidia_pci"] and host["nvidia_module_version"] is None and _numbers(release)[:2] > NEWEST_SAFE_KERNEL:
        cure = "use driver 580.159.04 or later, or the distribution's kernel 6.x: older 580 do not build on Linux 7"
        return [check("kernel", False, "warning", detail, cure)]
    return [check("kernel", True, "note", detail, None)]


def secure_boot(host: t.Mapping[str, t.Any]) -> list[Check]:
    """Return the check of Secure Boot, which matters until a module is loaded: then its signature is accepted."""
    state, loaded = host["secure_boot"], host["nvidia_module_version"]
    if host["container"]:
        return []
    if state is None:
        return [check("Secure Boot", True, "note", "unknown: the firmware's variables cannot be read", None)]
    if not state or loaded or not host["nvidia_pci"]:
        detail = "off" if not state else "on, and the driver is loaded" if loaded else "on"
        return [check("Secure Boot", True, "note", detail, None)]
    cure = (
        "use modules that the distribution signed (Ubuntu's linux-modules-nvidia-*), or enrol the key that DKMS signs"
        " with ('mokutil --import', confirmed at the console of the next boot), or switch Secure Boot off"
    )
    return [check("Secure Boot", False, "warning", "on: the kernel refuses an unsigned driver", cure)]


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that a version or a kernel's release begins with."""
    return tuple(int(part) for part in version.split("-")[0].split(".") if part.isdigit())
