# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the kernel says about the machine, its slots and its disks. Private to this collection.

Reads files below `root`/proc, /sys, /dev and /boot, and nothing else; needs no driver. What cannot be read is None.
Standard library only.
"""

from __future__ import annotations

import os
import re

from .._base.types import Json

MIB = 1 << 20
NVIDIA_VENDOR = "0x10de"
DISPLAY_CLASS = "0x03"  # VGA and 3D controllers; the cards' audio functions are of another class


#: Transfer rate per lane (GT/s) that marks each PCIe generation, from the PCIe base specifications.
GENERATIONS = {"2.5": 1, "5": 2, "5.0": 2, "8": 3, "8.0": 3, "16": 4, "16.0": 4, "32": 5, "32.0": 5, "64": 6, "64.0": 6}

#: The variable that firmware reports Secure Boot in: four bytes of attributes, then 0 or 1 (UEFI specification 3.3).
SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"

_LISTENER = re.compile(r'\("(?P<process>[^"]+)",pid=(?P<pid>\d+)')
_UNIT = re.compile(r"cgroup:\S*?(?P<unit>[^/\s]+\.(?:service|scope))(?:\s|/|$)")

#: Makers of virtual machines as they call themselves in DMI's sys_vendor.
_VIRTUAL_VENDORS = {
    "QEMU": "KVM or QEMU", "KVM": "KVM or QEMU", "VMware, Inc.": "VMware", "innotek GmbH": "VirtualBox",
    "Microsoft Corporation": "Hyper-V", "Xen": "Xen", "Parallels Software International Inc.": "Parallels",
    "Amazon EC2": "Amazon EC2", "Google": "Google Compute Engine",
}


def read(path: str) -> str | None:
    """The stripped text of a file, or None where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read().strip()
    except OSError:
        return None


def listeners(text: str) -> list[dict[str, str | int | None]]:
    """One entry per line of `ss -Hltnp --cgroup`; a server that listens on IPv4 and IPv6 is one entry."""
    found = []
    for line in text.splitlines():
        process, unit = _LISTENER.search(line), _UNIT.search(line)
        entry: dict[str, str | int | None] = {
            "pid": int(process["pid"]) if process else None,
            "process": process["process"] if process else None,
            "unit": unit["unit"] if unit else None,
        }
        if entry not in found:
            found.append(entry)
    return found


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


# --- the cards, as the PCI bus knows them -----------------------------------------------------------------------------


def nvidia_pci(root: str = "") -> list[str]:
    """Addresses of NVIDIA's display controllers, in order."""
    directory = f"{root}/sys/bus/pci/devices"
    return [
        address
        for address in _names(directory)
        if read(f"{directory}/{address}/vendor") == NVIDIA_VENDOR
        and (read(f"{directory}/{address}/class") or "").startswith(DISPLAY_CLASS)
    ]


def generation(speed: str | None) -> int | None:
    """PCIe generation of a link speed as sysfs words it, "16.0 GT/s PCIe"; None for "Unknown"."""
    return GENERATIONS.get((speed or "").split(" ")[0])


def aperture_mib(text: str | None) -> int | None:
    """Size of the window to a card's memory from its `resource` file, whose lines hold start, end and flags.

    It is the largest of the six base address registers: NVIDIA's BAR1, which is the kernel's region 1 on GeForce cards
    and region 2 where BAR0 is a 64-bit one. What follows the six belongs to virtual functions.
    """
    sizes = [0]
    for line in (text or "").splitlines()[:6]:
        start, end = (int(word, 16) for word in line.split()[:2])
        sizes.append((end - start + 1) // MIB if end > start else 0)
    return max(sizes) or None


def nvidia_devices(root: str = "") -> list[Json]:
    """One entry per address of nvidia_pci: identity, name, bound driver, link now and at most, slot, BAR1, IOMMU."""
    found = []
    names = _product_names(root)
    for address in nvidia_pci(root):
        here = f"{root}/sys/bus/pci/devices/{address}"
        port = os.path.dirname(os.path.realpath(here))  # the bridge above it, which is the slot
        driver = f"{here}/driver"
        found.append({
            "address": address,
            "device_id": read(f"{here}/device"),
            "name": names.get((read(f"{here}/device") or "").removeprefix("0x")),
            "driver": os.path.basename(os.readlink(driver)) if os.path.islink(driver) else None,
            "generation": generation(read(f"{here}/current_link_speed")),
            "generation_max": generation(read(f"{here}/max_link_speed")),
            "width": _lanes(read(f"{here}/current_link_width")),
            "width_max": _lanes(read(f"{here}/max_link_width")),
            "slot_generation_max": generation(read(f"{port}/max_link_speed")),
            "slot_width_max": _lanes(read(f"{port}/max_link_width")),
            "bar1_mib": aperture_mib(read(f"{here}/resource")),
            "iommu": read(f"{here}/iommu_group/type"),
        })
    return found


def _product_names(root: str) -> dict[str, str]:
    """Return NVIDIA's product names by device id (2204) from the list that lspci reads; empty where none is there."""
    text = read(f"{root}/usr/share/misc/pci.ids") or read(f"{root}/usr/share/hwdata/pci.ids") or ""
    part = re.search(r"^10de  .*\n((?:[\t#].*\n|\n)*)", f"{text}\n", re.MULTILINE)
    entries = re.findall(r"^\t([0-9a-f]{4})  (.+)$", part[1] if part else "", re.MULTILINE)
    # the name that is sold stands in brackets behind the chip's: GA102 [GeForce RTX 3090]
    return {number: (re.findall(r"\[(.+)\]", name) or [name])[0] for number, name in entries}


def _lanes(text: str | None) -> int | None:
    """A link without partner reports 0 or 255 lanes."""
    lanes = _number(text)
    return lanes if lanes and lanes < 64 else None


def nvidia_nodes(root: str = "") -> list[str]:
    """Names of NVIDIA's device files, which a program needs to reach a card."""
    return [name for name in _names(f"{root}/dev") if re.fullmatch(r"nvidia(\d+|ctl|-uvm)", name)]


# --- the machine ------------------------------------------------------------------------------------------------------


def siblings(thread: int, root: str = "") -> str | None:
    """Return which threads share a core with this one, in the kernel's words, or None where it does not say."""
    return read(f"{root}/sys/devices/system/cpu/cpu{thread}/topology/thread_siblings_list")


def kernels(root: str = "") -> list[str]:
    """Releases of the installed kernels, oldest first, compared number by number as package versions are."""
    names = [name.removeprefix("vmlinuz-") for name in _names(f"{root}/boot") if name.startswith("vmlinuz-")]
    return sorted(names, key=release_key)


def release_key(release: str) -> list[tuple[int, int, str]]:
    """Sort key of a kernel release: numbers compare as numbers."""
    words = re.findall(r"\d+|[a-z]+", release)
    return [(1, int(word), "") if word.isdigit() else (0, 0, word) for word in words]


def secure_boot(root: str = "") -> bool | None:
    """Whether firmware checks signatures; False without UEFI, None where its variables cannot be read."""
    if not os.path.isdir(f"{root}/sys/firmware/efi"):
        return False
    try:
        with open(f"{root}/sys/firmware/efi/efivars/{SECURE_BOOT}", "rb") as handle:
            value = handle.read()
    except FileNotFoundError:
        # firmware without the variable has no Secure Boot; an empty directory is one that is not mounted
        return False if _names(f"{root}/sys/firmware/efi/efivars") else None
    except OSError:
        return None
    return bool(value[4]) if len(value) > 4 else None


def firmware() -> str | None:
    """Version and date of the mainboard's firmware, as DMI has them; None where the machine does not say."""
    words = [read(f"/sys/class/dmi/id/{name}") for name in ("bios_version", "bios_date")]
    return " ".join(word.strip() for word in words if word and word.strip()) or None


def cpu_flags(root: str = "") -> list[str]:
    """Flags of the CPU as the kernel names them; none where it names none."""
    flags = re.search(r"^flags\s*:(.*)$", read(f"{root}/proc/cpuinfo") or "", re.MULTILINE)
    return flags[1].split() if flags else []


def hypervisor(root: str = "") -> str | None:
    """What this is a virtual machine of, or None on bare metal."""
    kind = read(f"{root}/sys/hypervisor/type")
    if kind:
        return kind.capitalize()
    if "hypervisor" not in cpu_flags(root):
        return None
    return _VIRTUAL_VENDORS.get(read(f"{root}/sys/class/dmi/id/sys_vendor") or "", "an unknown hypervisor")


# --- disks ------------------------------------------------------------------------------------------------------------


def medium(path: str) -> str | None:
    """What the file system of an existing path lies on: nvme, ssd or disk; None where it is no local disk."""
    number = os.stat(path).st_dev
    return block_medium(f"{os.major(number)}:{os.minor(number)}")


def block_medium(number: str, root: str = "") -> str | None:
    """The same for a block device by "major:minor"; of several disks below it (RAID, LVM) the slowest kind."""
    start = f"{root}/sys/dev/block/{number}"
    if not os.path.exists(start):
        return None
    kinds = {_whole_disk(disk) for disk in _disks_below(os.path.realpath(start))}
    return next((kind for kind in ("disk", "ssd", "nvme") if kind in kinds), None)


def _disks_below(device: str) -> list[str]:
    below = [os.path.realpath(f"{device}/slaves/{name}") for name in _names(f"{device}/slaves")]
    if not below:
        return [device]
    return [disk for each in below for disk in _disks_below(each)]


def _whole_disk(device: str) -> str | None:
    if os.path.exists(f"{device}/partition"):
        device = os.path.dirname(device)
    if os.path.basename(device).startswith("nvme"):
        return "nvme"
    if os.path.basename(device).startswith(("vd", "xvd")):
        return None  # a virtual machine's; that it rotates is only a default
    return {"1": "disk", "0": "ssd"}.get(read(f"{device}/queue/rotational") or "")
