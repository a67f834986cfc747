# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Names and versions of the driver's packages, and what dpkg says about them. Private to this collection.

Pure functions only, and no import of this collection.
"""

from __future__ import annotations

import re
import typing as t

# By source package where the distribution names it well, else by name; toolkits and container tools come and go alone.
_DRIVER_SOURCE = re.compile(
    r"nvidia-(graphics-drivers|open-gpu-kernel-modules|persistenced|modprobe)|firmware-nvidia|linux-restricted-|linux-signatures-nvidia"
)
_DRIVER_NAME = re.compile(
    r"(nvidia-|libnvidia-|cuda-drivers|linux-(modules|objects|signatures)-nvidia-|xserver-xorg-video-nvidia)"
)
_OTHER_NAME = re.compile(
    r"(nvidia-(cuda|container|ctk|docker|visual-profiler|profiler|nsight|cudnn|fs|gds|egl|vaapi|texture)|libnvidia-(container|egl))"
)
# The package that brings the kernel module decides whose driver a host has.
_MODULE_PACKAGE = re.compile(
    r"(nvidia-(tesla-[0-9]+-)?(open-)?kernel(-open)?-dkms|nvidia-dkms(-[0-9]+)?(-server)?(-open)?"
    r"|linux-modules-nvidia-[0-9]+.*)"
)
# Ubuntu and Debian; any vendor's image or headers without a release in the name; liquorix, xanmod, zabbly; Proxmox
_KERNEL_METAPACKAGE = re.compile(
    r"linux-((image|headers|modules-extra|tools)-)?(generic|lowlatency|virtual|oem|amd64|cloud-amd64|rt-amd64)"
    r"(-hwe)?(-[0-9]{2}\.[0-9]{2}[a-z]?)?(-edge)?"
    r"|linux-(image|headers)-(?!.*[0-9]+\.[0-9]+\.[0-9]+)(?!.*-(dbg|signed-template)$)[a-z][a-z0-9.+-]*"
    r"|linux-(xanmod|zabbly|liquorix)(-[a-z0-9.-]+)?"
    r"|proxmox-default-(kernel|headers)|(proxmox|pve)-(kernel|headers)-[0-9]+\.[0-9]+"
)
_KERNEL_PACKAGE = re.compile(r"(linux|proxmox|pve)-(.*-)?(image|kernel|headers)-")

DPKG_FORMAT = "${db:Status-Want}\t${db:Status-Status}\t${Package}\t${Architecture}\t${Version}\t${source:Package}\n"


def version_key(version: str) -> tuple[t.Any, ...]:
    """Return a sort key of a Debian version (or of a kernel release), ordered as dpkg --compare-versions does.

    Source: deb-version(7). Epoch, upstream version and revision are compared one after the other; in each, runs of
    non-digits (letters before other characters, ~ before the end) and of digits (as numbers) alternate.
    """
    epoch, _colon, rest = version.rpartition(":")
    upstream_version, dash, revision = rest.rpartition("-")
    if not dash:
        upstream_version, revision = rest, ""
    return (int(epoch or 0), _part_key(upstream_version), _part_key(revision))


def _part_key(text: str) -> tuple[t.Any, ...]:
    key: list[t.Any] = []
    for letters, digits in re.findall(r"([^0-9]*)([0-9]*)", text):
        if not letters and not digits:
            continue
        # 0 ends a run: after ~ (-1), before every letter and every other character
        key.append((*(-1 if char == "~" else ord(char) + (0 if char.isalpha() else 256) for char in letters), 0))
        key.append(int(digits or 0))
    return (*key, (0,))


def upstream(version: str) -> str:
    """Return the driver's own version in a package version: 580.95.05 of 1:580.95.05-0ubuntu0.24.04.1."""
    return version.rpartition(":")[2].split("-", 1)[0].split("~", 1)[0].split("+", 1)[0]


def branch_of(version: str) -> str:
    """Return the branch of a version of the driver, such as 580, or "" where the text is no such version."""
    major = re.match(r"([0-9]+)\.", upstream(version))
    return major[1] if major else ""


def is_driver(name: str, source: str) -> bool:
    """Whether a package belongs to the driver, so that it must stay of one version with the loaded module."""
    if _OTHER_NAME.match(name):
        return False
    return bool(_DRIVER_SOURCE.match(source) or _DRIVER_NAME.match(name))


def is_module_package(name: str) -> bool:
    """Whether a package brings the kernel module of a driver."""
    return bool(_MODULE_PACKAGE.fullmatch(name))


def is_kernel_metapackage(name: str) -> bool:
    """Whether a package only pulls the newest kernel or its headers."""
    return bool(_KERNEL_METAPACKAGE.fullmatch(name))


def parse_dpkg(text: str) -> dict[str, t.Any]:
    """Return the driver's packages, those of kernels and their headers, and dkms, by name.

    `text` is what dpkg-query prints for ``DPKG_FORMAT``. A package is {version, source, arch, held, whole}. A held
    package counts: its status abbreviation is hi, not ii. One that was left half installed counts as well, with `whole`
    false. Of several architectures the first is kept.
    """
    found: dict[str, dict[str, t.Any]] = {}
    for line in text.splitlines():
        want, status, name, arch, version, source = (*line.split("\t"), *[""] * 6)[:6]
        if status not in ("", "not-installed", "config-files") and name not in found:
            whole = status in ("installed", "triggers-awaited", "triggers-pending")
            found[name] = {"version": version, "source": source, "arch": arch, "held": want == "hold", "whole": whole}
    return {
        name: entry
        for name, entry in sorted(found.items())
        if is_driver(name, entry["source"]) or is_kernel_metapackage(name) or _KERNEL_PACKAGE.match(name)
        or name == "dkms"
    }


def own_versions(packages: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Return the versions of the driver's own packages among those that `parse_dpkg` returns."""
    return {name: entry["version"] for name, entry in packages.items() if is_driver(name, entry["source"])}
