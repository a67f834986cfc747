# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The kernel that boots next, and whether the NVIDIA module compiles and loads there. Private to this collection.

Pure functions only.
"""

from __future__ import annotations

import re
import typing as t

from .driver_packages import branch_of, upstream, version_key
from .driver_types import HostDriver


class BadBuild(t.NamedTuple):
    """Drivers whose kernel module is known not to compile: versions before `before`, for kernels from `kernel` on."""

    branch: str
    before: str
    kernel: str
    open_only: bool  # only the open module does not compile
    cure: str
    source: str


_BAD_BUILDS = (
    BadBuild("550", "550.163.01-5", "6.12.97", True, "set nvidia_driver_open_modules to false",
             "NVIDIA/open-gpu-kernel-modules#1272"),
    BadBuild("580", "580.126.17", "7.0", False, "boot and keep a kernel of the 6 series, or take 580.159.04 or later",
             "NVIDIA/infra-controller#6049"),
    BadBuild("580", "580.159", "7.1", False, "boot and keep an older kernel, or take 580.159.04 or later",
             "void-linux/void-packages#61087"),
)  # fmt: skip


def next_kernel(
    kernels: t.Sequence[str], running: str, grub_default: str = "", grub_environment: str = ""
) -> tuple[str, str]:
    """Return the kernel that boots next and why: (release, sentence).

    GRUB takes `next_entry` once, else the entry of GRUB_DEFAULT (a name, or `saved`), else the newest kernel
    (/etc/grub.d/10_linux sorts by version). `kernels` are the releases in /boot. Without any, the running one counts.
    """
    if not kernels:
        return running, "no kernel is in /boot: the running one counts"
    newest = max(kernels, key=version_key)
    stated = dict(re.findall(r"^(next_entry|saved_entry)=(.+)$", grub_environment, re.MULTILINE))
    chosen = [("next_entry of GRUB", stated.get("next_entry", ""))]
    if grub_default == "saved":
        chosen.append(("saved_entry of GRUB", stated.get("saved_entry", "")))
    else:
        chosen.append(("GRUB_DEFAULT", grub_default))
    for name, entry in chosen:
        named = [kernel for kernel in kernels if re.search(rf"(?<![0-9.]){re.escape(kernel)}(?![A-Za-z0-9+])", entry)]
        if named:
            return max(named, key=len), f"{name} names it"
    return newest, "it is the newest in /boot"


def known_bad(version: str, kernel: str, open_modules: bool) -> str:
    """Return why this version's module does not compile for a kernel, or "" when nothing is known against it."""
    release = re.match(r"[0-9.]+", kernel)
    for bad in _BAD_BUILDS:
        if (
            branch_of(version) == bad.branch
            and version_key(version) < version_key(bad.before)
            and release
            and version_key(release[0]) >= version_key(bad.kernel)
            and (open_modules or not bad.open_only)
        ):
            kind = "open kernel module" if bad.open_only else "kernel module"
            return (
                f"The {kind} of driver {version} does not compile for kernel {kernel}, which boots next "
                f"({bad.source}): {bad.cure}."
            )
    return ""


def is_built(host: HostDriver, exact: str = "") -> bool:
    """Whether a module (of the exact version, where one is given) is built for the kernel that boots next."""
    module = host["modules"].get(host["kernel_next"])
    return module is not None and (not exact or module["version"] == upstream(exact))


def built_problem(host: HostDriver, version: str) -> str:
    """Return "" when the module of this version is built for the kernel that boots next, else one sentence."""
    kernel, version = host["kernel_next"], upstream(version)
    module = host["modules"].get(kernel)
    if module and module["version"] == version:
        return ""
    if module:
        return (
            f"The NVIDIA kernel module for kernel {kernel}, which boots next ({host['kernel_next_why']}), is "
            f"{module['version']}, and the packages are {version}: read 'dkms status', remove the module of the other "
            "version, and run the play again."
        )
    states = [line for line in host["dkms"] if line.startswith("nvidia") and f", {kernel}," in line]
    states = states or [line for line in host["dkms"] if line.startswith("nvidia")]
    said = f"dkms says '{'; '.join(states)}'" if states else "dkms has no NVIDIA module"
    return (
        f"The NVIDIA kernel module {version} is not there for kernel {kernel}, which boots next "
        f"({host['kernel_next_why']}); {said}: read /var/lib/dkms/nvidia*/*/build/make.log, then choose another "
        "nvidia_driver_branch or nvidia_driver_version, or boot and keep a kernel that this driver supports."
    )


def secure_boot(host: HostDriver) -> tuple[str, str]:
    """Return (note, problem): what Secure Boot means for the module of the next kernel; one of the two is ""."""
    module = host["modules"].get(host["kernel_next"]) or {"version": "", "signer": ""}
    if host["secure_boot"] is None:
        return "Secure Boot: the firmware does not say whether it is on", ""
    if not host["secure_boot"]:
        return "Secure Boot is off", ""
    if "Canonical" in module["signer"]:
        return f"Secure Boot is on, and the module is signed by {module['signer']}", ""
    enrolled = [path for path, state in host["mok"].items() if state == "enrolled"]
    if module["signer"] and enrolled:
        return f"Secure Boot is on, the module is signed by {module['signer']}, and {enrolled[0]} is enrolled", ""
    cause = f"the key of {module['signer']} is not enrolled" if module["signer"] else "the module is not signed"
    key = next(iter(host["mok"]), "")
    importing = f"run 'mokutil --import {key}'" if key else "create a key (dkms does) and import it with mokutil"
    return "", (
        f"Secure Boot is on and {cause}, so the kernel will not load the module: {importing} as root, reboot, and "
        "choose 'Enroll MOK' on the machine's own screen (which cannot be done over the network); or set "
        "nvidia_driver_signed_modules to true on Ubuntu; or switch Secure Boot off in the firmware."
    )
