# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Machines that preflight looks at, described in hosts/*.yml: files below /proc, /sys, /dev and /boot, what NVML
answers, and processes. Everything between these and the table is the collection's code.

A description holds

- host: what differs from BASE, of what host_info reads elsewhere than in such files;
- pci: NVIDIA's cards, by address; a card has device, driver, speed, width, speed_max, width_max, slot_speed,
  slot_width, bar1_mib and iommu;
- files: further files by path;
- nvml: a description for tests/fake_nvml, or pair for pair.txt, before which nvml_more goes, since the first value
  counts; without it there is no environment that could ask;
- sample_seconds: for how long the cards are watched;
- processes: by pid, cmdline, environ and unit;
- recorded: the host fact mixed_gpu;
- wanted: what differs from WANTED; models are entries of llm_models;
- expected: every check that is not ok, by name, as [severity, words that its text has ...]; second: of checks that
  appear twice, the other one;
- seen: words of the text of checks that are ok.
"""

from __future__ import annotations

import pathlib
import typing as t

import yaml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import host_hardware
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import model_checks, other_engines

HERE = pathlib.Path(__file__).resolve().parent
MIB = 1 << 20

BASE: dict[str, t.Any] = {
    "os": {"id": "ubuntu", "version_id": "24.04", "pretty_name": "Ubuntu 24.04.3 LTS"},
    "machine": "x86_64", "kernel": "6.8.0-87-generic", "kernel_version": "#88-Ubuntu SMP PREEMPT_DYNAMIC",
    "python_version": "3.12.3", "uid": 0, "init": "systemd", "container": None,
    "memory_total_mib": 64211, "memory_available_mib": 61000, "swap_total_mib": 8191, "swap_used_mib": 0,
    "disks": [
        {"path": path, "mount_point": "/", "medium": "nvme", "total_mib": 953000, "free_mib": 700000, "held_mib": 0}
        for path in ("/opt/llama.cpp", "/srv/models")
    ],
    "files": [], "listeners": [], "nvidia_module_version": None, "nouveau_loaded": False,
    "revalidation": {"needed": False},
    "upgrade": {"needed": False},
}
WANTED: dict[str, t.Any] = {
    "port": 8080, "server_unit": "llama-server.service", "memory_mib": 2048,
    "disk": [{"path": "/opt/llama.cpp", "needed_mib": 3072}, {"path": "/srv/models", "needed_mib": 1024}],
    "gpus_expected": ["RTX 4090", "RTX 3090"], "models": [], "psu_watts": 1600, "rest_of_machine_watts": 200,
    "power_limits_watts": {}, "locked_clocks_mhz": {}, "budgets_mib": {}, "power_budget_policy": "warn",
}
CARD: dict[str, t.Any] = {
    "driver": "nvidia", "speed": "2.5 GT/s PCIe", "width": 8, "speed_max": "16.0 GT/s PCIe", "width_max": 16,
    "slot_speed": "16.0 GT/s PCIe", "slot_width": 8, "bar1_mib": 32768, "iommu": None,
}


def names() -> list[str]:
    """All described machines."""
    return sorted(path.stem for path in (HERE / "hosts").glob("*.yml"))


def description(name: str) -> dict[str, t.Any]:
    """One description."""
    return yaml.safe_load((HERE / "hosts" / f"{name}.yml").read_text(encoding="utf-8"))


def nvml_text(machine: t.Mapping[str, t.Any]) -> str | None:
    """What tests/fake_nvml is to answer, or None where it is not asked."""
    text = machine.get("nvml")
    if text == "pair":
        text = (HERE / "pair.txt").read_text(encoding="utf-8")
    return None if text is None else (machine.get("nvml_more") or "") + text


def build(machine: t.Mapping[str, t.Any], root: pathlib.Path, at: pathlib.Path | None = None) -> None:
    """Write the machine's files below `root`; links lead to `at`, where they will be, or to where they are."""
    for directory in ("proc", "sys/bus/pci/devices", "dev", "boot"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    for number, (address, given) in enumerate(machine.get("pci", {}).items()):
        card(root, at or root, number, address, {**CARD, **given})
    for path, text in machine.get("files", {}).items():
        write(root / path.lstrip("/"), text)
    for pid, process in machine.get("processes", {}).items():
        here = root / "proc" / str(pid)
        write(here / "cmdline", "".join(f"{word}\0" for word in process["cmdline"]))
        write(here / "environ", "".join(f"{key}={value}\0" for key, value in process.get("environ", {}).items()))
        write(here / "cgroup", f"0::/system.slice/{process.get('unit', 'session-3.scope')}\n")


def write(path: pathlib.Path, text: str) -> None:
    """Write a file and its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("latin-1"))


def card(root: pathlib.Path, at: pathlib.Path, number: int, address: str, given: t.Mapping[str, t.Any]) -> None:
    """One card behind its own root port, as sysfs shows it."""
    place = f"sys/devices/pci0000:00/0000:00:{number + 1:02x}.0"
    port, here = root / place, root / place / address
    start = 0x4000000000 * (number + 1)
    resource = ["0x00000000a0000000 0x00000000a0ffffff 0x0000000000040200"]
    resource.append(f"{start:#018x} {start + given['bar1_mib'] * MIB - 1:#018x} 0x000000000014220c")
    for name, text in {
        "vendor": "0x10de", "class": "0x030000", "device": given["device"], "current_link_speed": given["speed"],
        "current_link_width": str(given["width"]), "max_link_speed": given["speed_max"],
        "max_link_width": str(given["width_max"]), "resource": "\n".join(resource),
    }.items():
        write(here / name, f"{text}\n")
    write(port / "max_link_speed", f"{given['slot_speed']}\n")
    write(port / "max_link_width", f"{given['slot_width']}\n")
    if given["iommu"]:
        write(root / f"sys/kernel/iommu_groups/{number}/type", f"{given['iommu']}\n")
        (here / "iommu_group").symlink_to(at / f"sys/kernel/iommu_groups/{number}")
    if given["driver"]:
        (root / "sys/bus/pci/drivers" / given["driver"]).mkdir(parents=True, exist_ok=True)
        (here / "driver").symlink_to(at / "sys/bus/pci/drivers" / given["driver"])
    (root / "sys/bus/pci/devices" / address).symlink_to(at / place / address)


def host(machine: t.Mapping[str, t.Any], root: pathlib.Path, gpus: t.Any = None) -> dict[str, t.Any]:
    """What the module preflight_info sees of the machine below `root`; `gpus` is what NVML says."""
    return {
        **BASE,
        "kernels": host_hardware.kernels(str(root)),
        "hypervisor": host_hardware.hypervisor(str(root)),
        "secure_boot": host_hardware.secure_boot(str(root)),
        "nvidia_pci": host_hardware.nvidia_pci(str(root)),
        "nvidia_devices": host_hardware.nvidia_devices(str(root)),
        "nvidia_nodes": host_hardware.nvidia_nodes(str(root)),
        "gpus": gpus,
        "engines": other_engines.running(str(root)),
        "recorded": machine.get("recorded"),
        **machine.get("host", {}),
    }


def wanted(machine: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What is wanted of the machine."""
    found = {**WANTED, **machine.get("wanted", {})}
    return {**found, "models": model_checks.read_models(found["models"], "/srv/models", {})}
