# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a host says about itself before anything is installed on it. Private to this collection.

Reads files and the room on file systems, asks `ss` for listening processes, and changes nothing. Standard library only.
"""

from __future__ import annotations

import os
import platform
import re
import typing as t

from .._base.types import Json
from . import host_hardware
from .host_hardware import read

#: Runs a command and returns its exit code, output and error output: AnsibleModule.run_command.
Run = t.Callable[[list[str]], tuple[int, str, str]]

MIB: t.Final = 1 << 20


def describe() -> Json:
    """Return what the module host_info documents as C(host): system, memory and cards."""
    return {
        "os": operating_system(read("/etc/os-release") or read("/usr/lib/os-release") or ""),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "kernel_version": platform.version(),
        "kernels": host_hardware.kernels(),
        "firmware": host_hardware.firmware(),
        "python_version": platform.python_version(),
        "uid": os.geteuid(),
        "init": read("/proc/1/comm"),
        "container": container(),
        "hypervisor": host_hardware.hypervisor(),
        "secure_boot": host_hardware.secure_boot(),
        **memory(read("/proc/meminfo") or ""),
        "nvidia_pci": host_hardware.nvidia_pci(),
        "nvidia_devices": host_hardware.nvidia_devices(),
        "nvidia_nodes": host_hardware.nvidia_nodes(),
        "nvidia_module_version": read("/sys/module/nvidia/version"),
        "nouveau_loaded": os.path.isdir("/sys/module/nouveau"),
    }


def listening(port: int | None, ss: str | None, run: Run) -> list[Json] | None:
    """Return who listens on a TCP port, one entry per process; None without a port, or where `ss` cannot tell."""
    if port is None or ss is None:
        return None
    rc, out, _err = run([ss, "-Hltnp", "--cgroup", f"sport = :{port}"])
    return host_hardware.listeners(out) if rc == 0 else None


def operating_system(text: str) -> dict[str, str | None]:
    """Return what /etc/os-release says; keys that the file lacks are None."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    names = {"id": "ID", "version_id": "VERSION_ID", "pretty_name": "PRETTY_NAME"}
    return {key: values[name].strip().strip("\"'") if name in values else None for key, name in names.items()}


def memory(text: str) -> dict[str, int]:
    """Return MiB from the text of /proc/meminfo, which counts in KiB."""
    kib = {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+)", text, re.MULTILINE)}
    swap_total = kib.get("SwapTotal", 0)
    return {
        "memory_total_mib": kib.get("MemTotal", 0) // 1024,
        "memory_available_mib": kib.get("MemAvailable", 0) // 1024,
        "swap_total_mib": swap_total // 1024,
        "swap_used_mib": (swap_total - kib.get("SwapFree", swap_total)) // 1024,
    }


def processor() -> dict[str, int]:
    """Return C({physical_cores, threads}) that this process may use, each 1 at least."""
    threads = sorted(os.sched_getaffinity(0))
    siblings = {host_hardware.siblings(thread) or str(thread) for thread in threads}
    return {"physical_cores": max(1, len(siblings)), "threads": max(1, len(threads))}


def size_bytes(path: str) -> int | None:
    """Return the size of a regular file, or None."""
    return os.path.getsize(path) if os.path.isfile(path) else None


def disk(path: str) -> dict[str, str | int | None]:
    """Return the room of the file system that holds the path, or the nearest parent that exists."""
    there = os.path.abspath(path)
    while not os.path.exists(there):
        there = os.path.dirname(there)
    mount_point = os.path.realpath(there)
    while not os.path.ismount(mount_point):
        mount_point = os.path.dirname(mount_point)
    room = os.statvfs(there)
    return {
        "path": path,
        "mount_point": mount_point,
        "medium": host_hardware.medium(there),
        "total_mib": room.f_blocks * room.f_frsize // MIB,
        "free_mib": room.f_bavail * room.f_frsize // MIB,
        "held_mib": _held_bytes(path) // MIB,
    }


def _held_bytes(path: str) -> int:
    """Return the disk space of everything below a path."""
    blocks = 0
    for directory, _directories, names in os.walk(path):
        for name in names:
            try:
                blocks += os.lstat(os.path.join(directory, name)).st_blocks
            except OSError:  # removed in the meantime
                continue
    return blocks * 512


def container() -> str | None:
    """Return the kind of container, as systemd notes it, or as the environment of process 1 or a marker file says."""
    noted = read("/run/systemd/container")
    if noted:
        return noted
    first = re.search(r"(?:^|\0)container=([^\0]+)", read("/proc/1/environ") or "")
    if first:
        return first[1]
    marks = {"/run/.containerenv": "podman", "/.dockerenv": "docker"}
    return next((kind for mark, kind in marks.items() if os.path.exists(mark)), None)
