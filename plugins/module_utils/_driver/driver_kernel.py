# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The kernel that boots next, and whether the NVIDIA module compiles and loads there. Private to this collection.

Pure functions only.
"""

from __future__ import annotations

import re
import typing as t

from . import boot_menu
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


class NextKernel(t.NamedTuple):
    """The kernel that boots next and why. Where that is not `known`, `release` is a guess: any installed one may."""

    release: str
    why: str
    known: bool = True


def next_kernel(
    kernels: t.Sequence[str], running: str, grub_default: str, grub_environment: str, grub_menu: str
) -> NextKernel:
    """Return the kernel that GRUB boots next.

    GRUB takes `next_entry` of `grub_environment` once, else the entry of GRUB_DEFAULT: a number, a title or an id in
    the menu (`grub_menu`, the text of grub.cfg), or `saved`. Without a menu the names of kernels in these and the
    first entry, which is the newest kernel (/etc/grub.d/10_linux sorts by version), can be told, and nothing else.
    `kernels` are the releases in /boot. Without any, the running one counts.
    """
    if not kernels:
        return NextKernel(running, "no kernel is in /boot: the running one counts")
    stated = dict(re.findall(r"^(next_entry|saved_entry)=(.+)$", grub_environment, re.MULTILINE))
    name, default = "GRUB_DEFAULT", grub_default or "0"
    if default == "saved":
        name, default = "saved_entry of GRUB", stated.get("saved_entry") or "0"
    written = boot_menu.written_default(grub_menu)
    if stated.get("next_entry"):
        name, default = "next_entry of GRUB", stated["next_entry"]
    elif written is not None and written != (grub_default or "0"):
        return not_known(kernels, running, f"grub.cfg was made for GRUB_DEFAULT={written}, not {grub_default or 0}")
    menu = boot_menu.parse(grub_menu)
    return _of_menu(kernels, running, name, boot_menu.find(menu, default)) if menu else (
        _without_menu(kernels, running, name, default)
    )


def not_known(kernels: t.Sequence[str], running: str, why: str) -> NextKernel:
    """Return the running kernel, or else the newest, as a guess."""
    return NextKernel(running if running in kernels else max(kernels, key=version_key), why, known=False)


def _of_menu(kernels: t.Sequence[str], running: str, name: str, entry: boot_menu.Entry) -> NextKernel:
    if entry.release in kernels:
        return NextKernel(entry.release, f"{name} starts '{entry.title}'")
    what = f"kernel {entry.release}, which is not in /boot" if entry.release else "no kernel of this system"
    return not_known(kernels, running, f"{name} starts '{entry.title}', {what}")


def _without_menu(kernels: t.Sequence[str], running: str, name: str, default: str) -> NextKernel:
    named = [kernel for kernel in kernels if boot_menu.names(default, kernel)]
    if named:
        return NextKernel(max(named, key=len), f"{name} names it")
    # an entry of a kernel that is gone: GRUB takes the first one
    if default == "0" or re.search(r"[0-9]+\.[0-9]+\.[0-9]+-", default):
        return NextKernel(max(kernels, key=version_key), "it is the newest in /boot")
    return not_known(kernels, running, f"{name} is '{default}', and there is no grub.cfg to look it up in")


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


def bad_for_next(host: HostDriver, version: str, open_modules: bool) -> str:
    """Return known_bad of the kernels that may boot next."""
    found = (known_bad(version, kernel, open_modules) for kernel in host["kernels_next"])
    return next((bad for bad in found if bad), "")


def is_built(host: HostDriver, exact: str) -> bool:
    """Whether a module (of the exact version, where that is not "") is built for every kernel that may boot next."""
    modules = [host["modules"].get(kernel) for kernel in host["kernels_next"]]
    return all(module is not None and (not exact or module["version"] == upstream(exact)) for module in modules)


def built_problem(host: HostDriver, version: str) -> str:
    """Return "" when the module of this version is built for every kernel that may boot next, else one sentence."""
    problems = (_built_problem(host, kernel, upstream(version)) for kernel in host["kernels_next"])
    return next((problem for problem in problems if problem), "")


def without_module(host: HostDriver, version: str) -> list[str]:
    """Return the kernels that may boot next for which no module of this version is built."""
    return [kernel for kernel in host["kernels_next"] if _built_problem(host, kernel, upstream(version))]


def _boots(host: HostDriver) -> str:
    """Return words behind a kernel's release: that it boots next, or may."""
    if len(host["kernels_next"]) == 1:
        return f"which boots next ({host['kernel_next_why']})"
    return f"which may boot next (which one does is not known: {host['kernel_next_why']})"


def _built_problem(host: HostDriver, kernel: str, version: str) -> str:
    module = host["modules"].get(kernel)
    if module and module["version"] == version:
        return ""
    if module:
        return (
            f"The NVIDIA kernel module for kernel {kernel}, {_boots(host)}, is {module['version']}, and the packages "
            f"are {version}: read 'dkms status', remove the module of the other version, and run the play again."
        )
    states = [line for line in host["dkms"] if line.startswith("nvidia") and f", {kernel}," in line]
    states = states or [line for line in host["dkms"] if line.startswith("nvidia")]
    said = f"dkms says '{'; '.join(states)}'" if states else "dkms has no NVIDIA module"
    return (
        f"The NVIDIA kernel module {version} is not there for kernel {kernel}, {_boots(host)}; {said}: read "
        "/var/lib/dkms/nvidia*/*/build/make.log, then choose another nvidia_driver_branch or nvidia_driver_version, or "
        "boot and keep a kernel that this driver supports"
        + (f", and remove kernel {kernel}." if len(host["kernels_next"]) > 1 else ".")
    )


def secure_boot(host: HostDriver) -> tuple[str, str]:
    """Return (note, problem): what Secure Boot means for the modules of the next kernels; one of the two is ""."""
    answers = [_secure_boot(host, kernel) for kernel in host["kernels_next"]]
    return next((answer for answer in answers if answer[1]), answers[0])


def _secure_boot(host: HostDriver, kernel: str) -> tuple[str, str]:
    module = host["modules"].get(kernel) or {"version": "", "signer": ""}
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
