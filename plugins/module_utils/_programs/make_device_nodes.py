# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Loads nvidia_uvm and makes the device nodes that CUDA opens, as root, before a sandboxed server needs them.

The role nvidia_driver copies this file to the host, where mixed-gpu-nodes.service runs it at boot and udev again when
a driver was loaded. The module nvidia_driver_plan imports it, so that what a play checks is what the boot makes. It
uses the standard library alone, and imports nothing of the collection.

A node is right when it is a character device with the numbers of /proc/devices: the number of nvidia-uvm is another
after each load of the module. Access follows the driver's own parameters (NVreg_DeviceFileMode and its like).
"""

from __future__ import annotations

import argparse
import glob
import os
import shutil
import stat
import subprocess
import sys
import time
import typing as t

UVM: t.Final = "nvidia-uvm"
CONTROL: t.Final = "nvidiactl"
CONTROL_MINOR: t.Final = 255
POLL_SECONDS: t.Final = 1.0
_DRIVER_NAMES: t.Final = ("nvidia", "nvidia-frontend", CONTROL)  # in /proc/devices; nvidia-frontend until 535
_NVIDIA_VENDOR: t.Final = "0x10de"
_DISPLAY_CLASS: t.Final = "0x03"
_PASSED_THROUGH: t.Final = "vfio-pci"


class Node(t.NamedTuple):
    """A device node that should exist; `number` is (major, minor), None where the kernel does not know it (yet)."""

    name: str
    number: tuple[int, int] | None
    why_unknown: str


class Host(t.NamedTuple):
    """Where the kernel is asked; tests stand in for it."""

    proc: str = "/proc"
    sys: str = "/sys"
    dev: str = "/dev"
    left_out: tuple[str, ...] = ()  # PCI addresses of cards that may stay without a driver


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read().strip()
    except OSError:
        return ""


def _majors(host: Host) -> dict[str, int]:
    """Return the major number of each group of character devices."""
    text = _read(f"{host.proc}/devices").partition("Block devices:")[0]
    pairs = [line.split() for line in text.splitlines()]
    return {words[1]: int(words[0]) for words in pairs if len(words) == 2 and words[0].isdigit()}


def _slot(address: str) -> tuple[str, ...]:
    """Return the parts of a PCI address: its domain is written with four digits or eight, or left out."""
    domain, bus, slot = f"0:{address.strip().lower()}".split(":")[-3:]
    return domain.lstrip("0"), bus, slot


def cards(host: Host) -> list[str]:
    """Return the PCI addresses of NVIDIA's display controllers that this host itself is to use, in order."""
    found = []
    left_out = [_slot(address) for address in host.left_out]
    for path in sorted(glob.glob(f"{host.sys}/bus/pci/devices/*")):
        driver = os.path.basename(os.path.realpath(f"{path}/driver"))
        ours = _read(f"{path}/vendor") == _NVIDIA_VENDOR and _read(f"{path}/class").startswith(_DISPLAY_CLASS)
        address = os.path.basename(path)
        if ours and driver != _PASSED_THROUGH and _slot(address) not in left_out:
            found.append(address)
    return found


def _minor(host: Host, address: str) -> int | None:
    """Return the number of a card's node, None where the driver does not have the card."""
    for line in _read(f"{host.proc}/driver/nvidia/gpus/{address}/information").splitlines():
        label, _colon, value = line.partition(":")
        if label.strip() == "Device Minor" and value.strip().isdigit():
            return int(value)
    return None


def wanted(host: Host) -> list[Node]:
    """Return the nodes that CUDA needs: control node, one per card, and those of nvidia_uvm, in this order."""
    majors = _majors(host)
    driver = next((majors[name] for name in _DRIVER_NAMES if name in majors), None)
    uvm = majors.get(UVM)
    no_driver = "the kernel module nvidia is not loaded"
    nodes = [Node(CONTROL, None if driver is None else (driver, CONTROL_MINOR), no_driver)]
    here = cards(host)
    if not here:
        nodes.append(Node("nvidia0", None, "the PCI bus has no NVIDIA card"))
    for index, address in enumerate(here):
        minor = _minor(host, address)
        if driver is None or minor is None:
            why = no_driver if driver is None else f"the driver does not have the card {address}"
            nodes.append(Node(f"nvidia{index}", None, why))
        else:
            nodes.append(Node(f"nvidia{minor}", (driver, minor), ""))
    no_uvm = "the kernel module nvidia_uvm is not loaded"
    nodes += [
        Node(name, None if uvm is None else (uvm, minor), no_uvm)
        for minor, name in enumerate((UVM, f"{UVM}-tools"))
    ]  # fmt: skip
    return nodes


def _is_right(host: Host, node: Node) -> bool:
    try:
        found = os.stat(f"{host.dev}/{node.name}")
    except OSError:
        return False
    numbers = (os.major(found.st_rdev), os.minor(found.st_rdev))
    return stat.S_ISCHR(found.st_mode) and numbers == node.number


def missing(host: Host) -> list[str]:
    """Return one phrase for each node that is missing or wrong, such as "/dev/nvidia-uvm (why)"."""
    found = []
    for node in wanted(host):
        if node.number is None:
            found.append(f"/dev/{node.name} ({node.why_unknown})")
        elif not _is_right(host, node):
            state = "has other numbers" if os.path.lexists(f"{host.dev}/{node.name}") else "was not made"
            found.append(f"/dev/{node.name} ({state}; it should be character device {node.number[0]}:{node.number[1]})")
    return found


def _access(host: Host) -> tuple[int, int, int]:
    """Return (mode, uid, gid) of the nodes, by the parameters of the loaded module."""
    pairs = (line.partition(":") for line in _read(f"{host.proc}/driver/nvidia/params").splitlines())
    said = {name.strip(): value.strip() for name, _colon, value in pairs}
    mode, uid, gid = (said.get(f"DeviceFile{name}", "") for name in ("Mode", "UID", "GID"))
    return (
        int(mode) if mode.isdigit() else 0o666,
        int(uid) if uid.isdigit() else 0,
        int(gid) if gid.isdigit() else 0,
    )


def make(host: Host) -> str:
    """Make the nodes whose numbers are known and that are missing or wrong; return "", or why one could not be made."""
    mode, uid, gid = _access(host)
    for node in wanted(host):
        if node.number is None or _is_right(host, node):
            continue
        path = f"{host.dev}/{node.name}"
        new = f"{path}.new"
        try:
            if os.path.lexists(new):
                os.unlink(new)
            os.mknod(new, stat.S_IFCHR | 0o600, os.makedev(*node.number))
            os.chown(new, uid, gid)
            os.chmod(new, mode)
            os.replace(new, path)
        except OSError as exc:
            return f"{path} cannot be made: {exc.strerror}"
    return ""


def _run(*command: str) -> str:
    """Run a program where it exists; return "", or the last line of what it complains about."""
    program = shutil.which(command[0], path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"{command[0]}: {exc}"
    lines = done.stderr.strip().splitlines() or [f"{command[0]}: exit status {done.returncode}"]
    return "" if done.returncode == 0 else lines[-1]


def attempt(host: Host) -> str:
    """Load what is not loaded and make what is not there; return "", or the last complaint."""
    majors = _majors(host)
    complaint = ""
    if not any(name in majors for name in _DRIVER_NAMES):
        complaint = _run("modprobe", "nvidia")
    if UVM not in majors:
        complaint = _run("modprobe", UVM) or complaint
    if missing(host) and host.dev == Host().dev and host.proc == Host().proc:
        # where it is installed it knows this driver best; what it leaves out is made below
        minors = [str(node.number[1]) for node in wanted(host) if node.number and not node.name.startswith(UVM)]
        _run("nvidia-modprobe", "-u", *(word for minor in minors for word in ("-c", minor)))
    return make(host) or complaint


def wait(host: Host, seconds: float) -> str:
    """Try until all nodes are there or the time is over; return "", or one sentence that names what is missing."""
    deadline = time.monotonic() + seconds
    while True:
        complaint = attempt(host)
        absent = missing(host)
        if not absent:
            return ""
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
    last = f" The last complaint was: {complaint}." if complaint else ""
    return (
        "CUDA cannot use all cards, because device nodes are missing after "
        f"{seconds:g} seconds: {', '.join(absent)}.{last} Read 'dmesg | grep -i nvrm', run 'modprobe nvidia-uvm', then "
        "'systemctl restart mixed-gpu-nodes.service'."
    )


def main() -> int:
    """Make the nodes; what mixed-gpu-nodes.service runs. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Load nvidia_uvm and make the device nodes of the NVIDIA cards.")
    parser.add_argument("--wait-seconds", type=float, default=0.0, help="how long to wait for driver and cards")
    parser.add_argument("--left-out", default="", help="PCI addresses of cards that may stay without a driver")
    for path in ("/proc", "/sys", "/dev"):
        parser.add_argument(f"-{path.replace('/', '-')}", default=path, help=f"stands in for {path} (for tests)")
    given = parser.parse_args()
    left_out = tuple(address for address in given.left_out.split(",") if address)
    problem = wait(Host(given.proc, given.sys, given.dev, left_out), given.wait_seconds)
    if problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
