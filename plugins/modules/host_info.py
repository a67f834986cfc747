#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: Look at a host before anything is installed on it
version_added: 0.1.0
description:
  - Reads system, memory, disk room, listening processes and the NVIDIA cards on the PCI bus, mostly from files below
    C(/proc) and C(/sys).
  - Needs nothing but Python, and takes well under a second.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
    details:
      - This action does not modify state.
  diff_mode:
    support: N/A
    details:
      - This action does not modify state.
options:
  paths:
    description: Paths whose room is asked for. They need not exist.
    type: list
    elements: path
    default: []
  port:
    description: TCP port; which processes listen on it is asked with C(ss).
    type: int
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Look at the host
  homelab.mixed_gpu.host_info:
    paths: [/srv/models]
    port: 8080
  register: found

- name: Show the room for models
  ansible.builtin.debug:
    msg: "{{ found.host.disks[0].free_mib }} MiB"
"""

RETURN = r"""
host:
  description: What was found.
  type: dict
  returned: always
  contains:
    os:
      description: C(id), C(version_id) and C(pretty_name) of C(/etc/os-release); each is none where it is not stated.
      type: dict
      returned: always
      sample: {id: debian, version_id: "13", pretty_name: Debian GNU/Linux 13 (trixie)}
    machine:
      description: CPU architecture as C(uname -m) names it.
      type: str
      returned: always
      sample: x86_64
    kernel:
      description: Release of the running kernel.
      type: str
      returned: always
    python_version:
      description: Version of the Python that runs this module.
      type: str
      returned: always
      sample: 3.13.5
    uid:
      description: Effective user id.
      type: int
      returned: always
    init:
      description: Name of process 1.
      type: str
      returned: always
      sample: systemd
    container:
      description: Kind of container that this is, or none.
      type: str
      returned: always
      sample: podman
    memory_total_mib:
      description: Main memory.
      type: int
      returned: always
    memory_available_mib:
      description: Main memory that programs can get without swapping.
      type: int
      returned: always
    swap_total_mib:
      description: Swap space.
      type: int
      returned: always
    swap_used_mib:
      description: Swap space in use.
      type: int
      returned: always
    disks:
      description: One entry per path of O(paths), in that order.
      type: list
      elements: dict
      returned: always
      contains:
        path:
          description: The path.
          type: str
          returned: always
        mount_point:
          description: Where the file system that holds it, or will hold it, is mounted.
          type: str
          returned: always
        free_mib:
          description: Room on that file system, without what is reserved for root.
          type: int
          returned: always
        held_mib:
          description: Disk space of what lies below the path already.
          type: int
          returned: always
    listeners:
      description: One entry per process that listens on O(port); none where C(ss) is missing or no port was given.
      type: list
      elements: dict
      returned: always
      contains:
        pid:
          description: Process id, or none where it may not be seen.
          type: int
          returned: always
        process:
          description: Program, or none where it may not be seen.
          type: str
          returned: always
        unit:
          description: systemd unit, or none.
          type: str
          returned: always
    nvidia_pci:
      description: PCI addresses of the NVIDIA display controllers, in order.
      type: list
      elements: str
      returned: always
      sample: ["0000:01:00.0", "0000:02:00.0"]
    nvidia_module_version:
      description: Version of the loaded NVIDIA kernel module, or none.
      type: str
      returned: always
    nouveau_loaded:
      description: Whether the kernel module nouveau is loaded.
      type: bool
      returned: always
"""

import os
import platform
import re

from ansible.module_utils.basic import AnsibleModule

MIB = 1 << 20
NVIDIA_VENDOR = "0x10de"
DISPLAY_CLASS = "0x03"  # VGA and 3D controllers; the cards' audio functions are of another class
LISTENER = re.compile(r'\("(?P<process>[^"]+)",pid=(?P<pid>\d+)')
UNIT = re.compile(r"cgroup:\S*?(?P<unit>[^/\s]+\.(?:service|scope))(?:\s|/|$)")


def read(path: str) -> str | None:
    """The stripped text of a file, or None where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read().strip()
    except OSError:
        return None


def operating_system(text: str) -> dict[str, str | None]:
    """What /etc/os-release says; keys that it lacks are None."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    names = {"id": "ID", "version_id": "VERSION_ID", "pretty_name": "PRETTY_NAME"}
    return {key: values[name].strip().strip("\"'") if name in values else None for key, name in names.items()}


def memory(text: str) -> dict[str, int]:
    """MiB from the text of /proc/meminfo, which counts in KiB."""
    kib = {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+)", text, re.MULTILINE)}
    swap_total = kib.get("SwapTotal", 0)
    return {
        "memory_total_mib": kib.get("MemTotal", 0) // 1024,
        "memory_available_mib": kib.get("MemAvailable", 0) // 1024,
        "swap_total_mib": swap_total // 1024,
        "swap_used_mib": (swap_total - kib.get("SwapFree", swap_total)) // 1024,
    }


def disk(path: str) -> dict[str, str | int]:
    """Room of the file system that holds the path, or its nearest existing parent."""
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
        "free_mib": room.f_bavail * room.f_frsize // MIB,
        "held_mib": _held(path) // MIB,
    }


def _held(path: str) -> int:
    blocks = 0
    for directory, _directories, names in os.walk(path):
        for name in names:
            try:
                blocks += os.lstat(os.path.join(directory, name)).st_blocks
            except OSError:  # gone while we looked
                continue
    return blocks * 512


def listeners(text: str) -> list[dict[str, str | int | None]]:
    """One entry per line of `ss -Hltnp --cgroup`; a server that listens on IPv4 and IPv6 is one entry."""
    found = []
    for line in text.splitlines():
        process, unit = LISTENER.search(line), UNIT.search(line)
        entry: dict[str, str | int | None] = {
            "pid": int(process["pid"]) if process else None,
            "process": process["process"] if process else None,
            "unit": unit["unit"] if unit else None,
        }
        if entry not in found:
            found.append(entry)
    return found


def nvidia_pci(directory: str) -> list[str]:
    """Addresses of NVIDIA's display controllers below a directory such as /sys/bus/pci/devices."""
    try:
        addresses = sorted(os.listdir(directory))
    except OSError:
        return []
    return [
        address
        for address in addresses
        if read(f"{directory}/{address}/vendor") == NVIDIA_VENDOR
        and (read(f"{directory}/{address}/class") or "").startswith(DISPLAY_CLASS)
    ]


def container() -> str | None:
    """The kind of container, as systemd notes it, or as the environment of process 1 or a marker file says."""
    noted = read("/run/systemd/container")
    if noted:
        return noted
    first = re.search(r"(?:^|\0)container=([^\0]+)", read("/proc/1/environ") or "")
    if first:
        return first[1]
    marks = {"/run/.containerenv": "podman", "/.dockerenv": "docker"}
    return next((kind for mark, kind in marks.items() if os.path.exists(mark)), None)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "default": []},
            "port": {"type": "int"},
        },
        supports_check_mode=True,
    )
    port, ss = module.params["port"], module.get_bin_path("ss")
    found = None
    if port is not None and ss is not None:
        rc, out, _err = module.run_command([ss, "-Hltnp", "--cgroup", f"sport = :{port}"])
        found = listeners(out) if rc == 0 else None
    module.exit_json(
        changed=False,
        host={
            "os": operating_system(read("/etc/os-release") or read("/usr/lib/os-release") or ""),
            "machine": platform.machine(),
            "kernel": platform.release(),
            "python_version": platform.python_version(),
            "uid": os.geteuid(),
            "init": read("/proc/1/comm"),
            "container": container(),
            **memory(read("/proc/meminfo") or ""),
            "disks": [disk(path) for path in module.params["paths"]],
            "listeners": found,
            "nvidia_pci": nvidia_pci("/sys/bus/pci/devices"),
            "nvidia_module_version": read("/sys/module/nvidia/version"),
            "nouveau_loaded": os.path.isdir("/sys/module/nouveau"),
        },
    )


if __name__ == "__main__":
    main()
