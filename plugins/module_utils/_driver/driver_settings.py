# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What keeps an installed driver as it is: holds, files, the persistence daemon. Private to this collection.

Pure functions only.
"""

from __future__ import annotations

import os.path
import typing as t

from .._base import escaping
from . import driver_kernel
from .driver_packages import is_driver, is_kernel_metapackage, upstream
from .driver_types import HostDriver, Package, PersistenceUnit

PIN_PATH: t.Final = "/etc/apt/preferences.d/mixed_gpu-nvidia"
BLACKLIST_PATH: t.Final = "/etc/apt/apt.conf.d/52mixed_gpu-nvidia"
NOUVEAU_PATH: t.Final = "/etc/modprobe.d/mixed_gpu-nouveau.conf"
UVM_PATH: t.Final = "/etc/modprobe.d/mixed_gpu-nvidia-uvm.conf"
DROPIN_PATH: t.Final = "/etc/systemd/system/nvidia-persistenced.service.d/mixed_gpu.conf"

_HEADER = "# Written by the role homelab.mixed_gpu.nvidia_driver.\n"
NOUVEAU: t.Final = f"{_HEADER}blacklist nouveau\noptions nouveau modeset=0\n"
UVM: t.Final = f"{_HEADER}options nvidia_uvm uvm_disable_hmm=1\n"

#: What apt may remove when one driver takes another's place: a regular expression of whole names.
REMOVABLE: t.Final = (
    r"(lib|lib32)?nvidia.*|libcuda1.*|libnvcuvid1.*|cuda-(drivers|compat).*|firmware-nvidia.*"
    r"|linux-(modules|objects|signatures)-nvidia.*|xserver-xorg-video-nvidia.*|glx-.*nvidia.*"
)

# What unattended-upgrades must leave alone; Python regular expressions, matched at the start of a name.
_BLACKLISTED = (
    "nvidia-", "libnvidia-", "libcuda1", "libnvcuvid1", "cuda-drivers", "firmware-nvidia-", "linux-modules-nvidia-",
    "linux-objects-nvidia-", "linux-signatures-nvidia-", "xserver-xorg-video-nvidia",
)  # fmt: skip
_BLACKLISTED_KERNELS = (
    "linux-image-", "linux-headers-", "linux-generic", "linux-modules-", "linux-lowlatency", "linux-virtual",
    "linux-oem-", "linux-xanmod", "linux-zabbly", "linux-liquorix", "proxmox-default-kernel",
    "proxmox-default-headers", "proxmox-kernel-[0-9]", "proxmox-headers-", "pve-kernel-[0-9]", "pve-headers",
)  # fmt: skip


class Wishes(t.TypedDict):
    """The variables nvidia_driver_hold, nvidia_driver_hold_kernel and nvidia_driver_uvm_disable_hmm."""

    hold: bool
    hold_kernel: bool
    uvm_disable_hmm: bool


class File(t.TypedDict):
    """A file to write."""

    path: str
    content: str


class Settings(t.TypedDict):
    """What to change around the installed driver. `ours` is false where nothing but holds and files is to change.

    `build_for` are kernels that may boot next without a module of this version. `initramfs` names the kernel whose
    initramfs lacks the nouveau blacklist, or is "all" or "". `link_persistence`: a static unit must be linked into
    multi-user.target. `problem` is "", or why the driver will not work after the next boot.
    """

    ours: bool
    build_for: list[str]
    hold: list[str]
    unhold: list[str]
    directories: list[str]
    files: list[File]
    absent: list[str]
    initramfs: str
    link_persistence: bool
    enable_persistence: bool
    reload_systemd: bool
    restart_persistence: bool
    load_module: bool
    note: str
    problem: str


def pin(version: str) -> str:
    """Return the apt preferences that keep every package of the driver at one version, and allow going back to it.

    A priority of 1000 and more also downgrades (apt_preferences(5)). By source package, because pinning a metapackage
    alone leaves its dependencies free. The glob covers packages of other revisions of the same driver version.
    """
    upstream_version = escaping.escaped(upstream(version), "word", "the version of the driver")
    return (
        "# Written by the role homelab.mixed_gpu.nvidia_driver: the driver stays at this version, also by going back.\n"
        "Package: src:*nvidia*:any src:cuda-drivers:any src:cuda-compat:any\n"
        f"Pin: version {version.rpartition(':')[0] and '*'}{upstream_version}*\n"
        "Pin-Priority: 1001\n"
    )


def blacklist(with_kernel: bool) -> str:
    """Return apt configuration that keeps unattended-upgrades away from the driver, and from kernels where wanted."""
    patterns = (*_BLACKLISTED, *(_BLACKLISTED_KERNELS if with_kernel else ()))
    lines = "".join(f'    "^{pattern}";\n' for pattern in patterns)
    return (
        "// Written by the role homelab.mixed_gpu.nvidia_driver: the driver is upgraded on purpose, or not at all.\n"
        f"Unattended-Upgrade::Package-Blacklist {{\n{lines}}};\n"
    )


def hold_changes(packages: t.Mapping[str, Package], hold: bool, hold_kernel: bool) -> tuple[list[str], list[str]]:
    """Return (hold, unhold): packages whose hold has to change. Kernel metapackages are held with both wishes."""
    changes: dict[bool, list[str]] = {True: [], False: []}
    for name, entry in packages.items():
        if is_kernel_metapackage(name):
            should = hold and hold_kernel
        elif is_driver(name, entry["source"]):
            should = hold
        else:
            continue
        if should != entry["held"]:
            changes[should].append(name)
    return changes[True], changes[False]


def persistence(unit: PersistenceUnit) -> tuple[str, bool]:
    """Return (drop-in or "", link): what the persistence daemon needs to keep the cards awake from boot on.

    Ubuntu's unit is static, so that it cannot be enabled, stops when unneeded, and is started with
    --no-persistence-mode.
    """
    if not unit["present"]:
        return "", False
    words = unit["exec_start"].split()
    static = unit["static"]
    if not static and "--no-persistence-mode" not in words:
        return "", False
    words = [word for word in words if word not in ("--no-persistence-mode", "--persistence-mode")]
    dropin = (
        _HEADER
        + ("[Unit]\nStopWhenUnneeded=false\n" if static else "")
        + f"[Service]\nExecStart=\nExecStart={' '.join([words[0], '--persistence-mode', *words[1:]])}\n"
    )
    return dropin, static and not unit["wanted_at_boot"]


def settings(host: HostDriver, main: str, wishes: Wishes) -> Settings:
    """Return what to change around the driver of this collection, whose package `main` states the version."""
    version = host["packages"][main]["version"]
    unit = host["persistence"]
    dropin, link = persistence(unit)
    hold, unhold = hold_changes(host["packages"], wishes["hold"], wishes["hold_kernel"])
    contents = {
        PIN_PATH: pin(version) if wishes["hold"] else "",
        BLACKLIST_PATH: blacklist(wishes["hold_kernel"]) if wishes["hold"] else "",
        NOUVEAU_PATH: NOUVEAU,
        UVM_PATH: UVM if wishes["uvm_disable_hmm"] else "",
        DROPIN_PATH: dropin,
    }
    note, problem = driver_kernel.secure_boot(host)
    stale = host["nouveau_mtime"] is None or (host["initramfs_mtime"] or 0) < host["nouveau_mtime"]
    kernels = host["kernel_next"] if len(host["kernels_next"]) == 1 else "all"
    reload_systemd = unit["stale"] or unit["dropin"] != dropin
    return {
        "ours": True,
        "build_for": driver_kernel.without_module(host, version),
        "hold": hold,
        "unhold": unhold,
        "directories": [os.path.dirname(DROPIN_PATH)] if dropin else [],
        "files": [{"path": path, "content": text} for path, text in contents.items() if text],
        "absent": [path for path, text in contents.items() if not text],
        "initramfs": kernels if host["initramfs_mtime"] is not None and stale else "",
        "link_persistence": link,
        "enable_persistence": unit["unit_file_state"] == "disabled",
        "reload_systemd": reload_systemd,
        "restart_persistence": reload_systemd and unit["present"] and unit["active"],
        "load_module": not host["loaded_version"] and not host["nouveau_loaded"],
        "note": note,
        "problem": driver_kernel.built_problem(host, version) or problem,
    }


def restored(packages: t.Mapping[str, Package], holds: t.Collection[str]) -> Settings:
    """Return what gives back a driver of somebody else: the recorded holds, and no file of this role for apt."""
    held = {name for name, entry in packages.items() if entry["held"]}
    return {
        **unchanged(),
        "hold": sorted(set(holds) - held),
        "unhold": sorted(held - set(holds)),
        "absent": [PIN_PATH, BLACKLIST_PATH],
    }


def unchanged() -> Settings:
    """Return settings that change nothing."""
    return {
        "ours": False,
        "build_for": [],
        "hold": [],
        "unhold": [],
        "directories": [],
        "files": [],
        "absent": [],
        "initramfs": "",
        "link_persistence": False,
        "enable_persistence": False,
        "reload_systemd": False,
        "restart_persistence": False,
        "load_module": False,
        "note": "",
        "problem": "",
    }
