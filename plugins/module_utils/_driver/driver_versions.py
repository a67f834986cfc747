# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which NVIDIA driver is loaded, and which one is installed. Private to this collection.

Reads the kernel module alone: a user-space driver of another version does not work at all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import typing as t

from . import driver_packages

#: Names of the kernel module; Debian's packages have names of their own.
MODULES: t.Final = ("nvidia", "nvidia-current-open", "nvidia-current")


class Versions(t.NamedTuple):
    """Versions of the driver, such as C(580.95.05)."""

    #: "" where no driver is loaded.
    loaded: str
    #: In the newest kernel that has the module; "" where none has, None where that cannot be known.
    installed: str | None


def loaded_version(text: str) -> str:
    """Return the version in C(/proc/driver/nvidia/version), or "" where there is none. Pure."""
    found = re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", text, re.MULTILINE)
    return found[1] if found else ""


def loaded(root: str = "/") -> str:
    """Return the version of the loaded driver, or ""."""
    try:
        with open(os.path.join(root, "proc/driver/nvidia/version"), encoding="utf-8", errors="replace") as handle:
            return loaded_version(handle.read())
    except OSError:
        return ""


def _installed(directory: str) -> str | None:
    """Return the version in the newest kernel below a directory that has the module."""
    program = shutil.which("modinfo", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    kernels = os.listdir(directory) if os.path.isdir(directory) else []
    if program is None or not kernels:
        return None
    for kernel in sorted(kernels, key=driver_packages.version_key, reverse=True):
        for name in MODULES:
            command = [program, "-k", kernel, "-F", "version", name]
            asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
            if asked.returncode == 0 and asked.stdout.strip():
                return asked.stdout.strip()
    return ""


def read(root: str) -> Versions:
    """Return the versions on this host."""
    return Versions(loaded(root), _installed(os.path.join(root, "lib/modules")))
