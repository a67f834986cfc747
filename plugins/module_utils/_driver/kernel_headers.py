# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which packages have the headers of a kernel, of the archive or of another vendor. Private. Pure functions only.

Every vendor names its headers as its image: proxmox-kernel-6.17.2-1-pve-signed and proxmox-headers-6.17.2-1-pve,
linux-image-6.12.9-zabbly+ and linux-headers-6.12.9-zabbly+, linux-image-current-x86 and linux-headers-current-x86.
"""

from __future__ import annotations

import re

from .driver_types import HostDriver

# metapackages of images that have one of headers beside them
_METAPACKAGE = re.compile(
    r"linux-image-(generic|lowlatency|virtual|oem|amd64|cloud-amd64|rt-amd64|liquorix-amd64)(-hwe)?"
    r"(-[0-9]{2}\.[0-9]{2}[a-z]?)?(-edge)?|proxmox-default-kernel|(proxmox|pve)-kernel-[0-9]+\.[0-9]+"
)
_IMAGE = re.compile(r"(?P<vendor>[a-z0-9.+-]+?)-(?:image|kernel)(?:-unsigned)?-(?P<rest>.+?)(?:-(?:un)?signed)?\Z")


def owner(said: str) -> str:
    """Return the package that `dpkg-query -S PATH` names, or ""."""
    found = re.search(r"^([a-z0-9][a-z0-9.+-]*)(?::[a-z0-9-]+)?(?:, [^:]+)?: ", said, re.MULTILINE)
    return found[1] if found else ""


def of_image(image: str) -> str:
    """Return the name of the headers of an image's package, or "" for a name of another form."""
    found = _IMAGE.match(image)
    return f"{found['vendor']}-headers-{found['rest']}" if found else ""


def of_kernel(host: HostDriver, kernel: str) -> list[str]:
    """Return the package that has, or must bring, the headers of a kernel; [] for headers that no package owns."""
    if kernel in host["headers"]:
        return [host["headers"][kernel]] if host["headers"][kernel] else []
    names = [name for name in host["packages"] if name.endswith(f"headers-{kernel}")]
    if names:
        return names[:1]
    images = [name for name in host["packages"] if re.search(rf"-(image|kernel)-(unsigned-)?{re.escape(kernel)}", name)]
    image = host["images"].get(kernel) or (images or [""])[0]
    return [of_image(image) or f"{_vendor(kernel)}-headers-{kernel}"]


def _vendor(kernel: str) -> str:
    """Return who names a kernel of no known package: Proxmox, whose names changed with 6.5, or everybody else."""
    numbers = re.match(r"([0-9]+)\.([0-9]+)", kernel)
    if not kernel.endswith("-pve") or not numbers:
        return "linux"
    return "proxmox" if (int(numbers[1]), int(numbers[2])) >= (6, 5) else "pve"


def wanted(host: HostDriver) -> list[str]:
    """Return the headers of the kernels that may boot next, and what pulls headers of later kernels as images come."""
    needed = [name for kernel in host["kernels_next"] for name in of_kernel(host, kernel)]
    pulling = [name for name in host["packages"] if _METAPACKAGE.fullmatch(name)]
    return list(dict.fromkeys([*needed, *(re.sub("-(image|kernel)", "-headers", name) for name in pulling)]))


def cure(host: HostDriver) -> str:
    """Return what to do where apt's sources lack headers."""
    kernels = " and ".join(host["kernels_next"])
    return (
        f"kernel {kernels} boots next, or may, and the headers of its vendor are in no source of apt: enable "
        f"the vendor's repository, install the headers under /lib/modules/{host['kernel_next']}/build another way, or "
        "install a kernel of the archive and reboot into it"
    )
