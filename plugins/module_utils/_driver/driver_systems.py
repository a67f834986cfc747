# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is known about driver packages and branches. Private to this collection. Sources in brackets.

A name in braces is filled in: {branch}, {kernel} (the release that boots next).
"""

from __future__ import annotations

import typing as t


class Packages(t.TypedDict, total=False):
    """Names by flavour. The first name of a flavour has the driver's version."""

    first_branch: int  # the first branch with these names
    open: list[str]
    proprietary: list[str]
    open_signed: list[str]
    proprietary_signed: list[str]


class Source(t.TypedDict, total=False):
    """Where packages of one system come from."""

    packages: t.Required[list[Packages]]  # newest layout first
    cure: t.Required[str]  # what to do where apt does not know a package
    branches: list[str]  # all that the source has; many, where missing
    maintained: list[str]  # branches that NVIDIA ended and the distribution still maintains
    oldest: int  # first branch of NVIDIA's repository
    default: str  # the branch where nothing is said, and the one to name instead of an older one; 580 where missing


class Branch(t.TypedDict, total=False):
    """Life of a branch: when it ended, and the branch to take instead."""

    end_of_life: str
    instead: str


_UBUNTU_CURE = (
    "enable the components restricted and multiverse in the host's apt sources, or choose another nvidia_driver_branch"
)
_DEBIAN_CURE = "enable the components contrib, non-free and non-free-firmware in the host's apt sources"
_NVIDIA_CURE = "choose another nvidia_driver_branch, or look whether NVIDIA's repository can be reached"

# [trixie and bookworm non-free: one branch per release; the open module is in contrib]
_DEBIAN: Packages = {
    "open": ["nvidia-open-kernel-dkms", "firmware-nvidia-gsp", "libcuda1", "nvidia-smi", "nvidia-persistenced"],
    "proprietary": ["nvidia-kernel-dkms", "libcuda1", "nvidia-smi", "nvidia-persistenced"],
}
# [NVIDIA Driver Installation Guide, Debian, "Compute-only"]
_NVIDIA_DEBIAN: Packages = {
    "open": ["nvidia-kernel-open-dkms", "nvidia-driver-cuda", "nvidia-persistenced"],
    "proprietary": ["nvidia-kernel-dkms", "nvidia-driver-cuda", "nvidia-persistenced"],
}
# [Ubuntu archive: nvidia-graphics-drivers-NNN-server, linux-restricted-modules; compute only, without a display server]
_UBUNTU_TOOLS = ["nvidia-utils-{branch}-server", "nvidia-compute-utils-{branch}-server"]
_UBUNTU: Packages = {
    "open": ["nvidia-headless-{branch}-server-open", *_UBUNTU_TOOLS],
    "proprietary": ["nvidia-headless-{branch}-server", *_UBUNTU_TOOLS],
    # modules that Canonical built and signed: for Secure Boot without a key of one's own
    "open_signed": [
        "nvidia-headless-no-dkms-{branch}-server-open", "linux-modules-nvidia-{branch}-server-open-{kernel}",
        *_UBUNTU_TOOLS,
    ],
    "proprietary_signed": [
        "nvidia-headless-no-dkms-{branch}-server", "linux-modules-nvidia-{branch}-server-{kernel}", *_UBUNTU_TOOLS,
    ],
}  # fmt: skip
# [NVIDIA Driver Installation Guide, Ubuntu, "Ubuntu 590 and later packages": names lose their branch from 590 on]
_NVIDIA_UBUNTU: list[Packages] = [
    {
        "first_branch": 590,
        "open": ["nvidia-dkms-open", "libnvidia-compute", "nvidia-persistenced"],
        "proprietary": ["nvidia-dkms", "libnvidia-compute", "nvidia-persistenced"],
    },
    {
        "open": [
            "nvidia-dkms-{branch}-open", "libnvidia-compute-{branch}", "nvidia-utils-{branch}",
            "nvidia-compute-utils-{branch}",
        ],
        "proprietary": [
            "nvidia-dkms-{branch}", "libnvidia-compute-{branch}", "nvidia-utils-{branch}",
            "nvidia-compute-utils-{branch}",
        ],
    },
]  # fmt: skip

#: Sources (distribution, nvidia) by system.
SYSTEMS: dict[str, dict[str, Source]] = {
    # [names of the archive and of NVIDIA's repository: NVIDIA/gpu-driver-container, ubuntu26.04; the repository begins
    # with 595, Driver Installation Guide 610]
    "Ubuntu 26.04": {
        "distribution": {"packages": [_UBUNTU], "cure": _UBUNTU_CURE, "default": "595"},
        "nvidia": {"packages": _NVIDIA_UBUNTU, "cure": _NVIDIA_CURE, "oldest": 595, "default": "595"},
    },
    "Ubuntu 24.04": {
        "distribution": {"packages": [_UBUNTU], "cure": _UBUNTU_CURE},
        "nvidia": {"packages": _NVIDIA_UBUNTU, "cure": _NVIDIA_CURE, "oldest": 570, "default": "580"},
    },
    "Debian 13": {
        "distribution": {"packages": [_DEBIAN], "cure": _DEBIAN_CURE, "branches": ["550"], "maintained": ["550"]},
        # [NVIDIA/cuda-repo-management#38: debian13 begins with 590]
        "nvidia": {"packages": [_NVIDIA_DEBIAN], "cure": _NVIDIA_CURE, "oldest": 590, "default": "595"},
    },
    "Debian 12": {
        "distribution": {"packages": [_DEBIAN], "cure": _DEBIAN_CURE, "branches": ["535"]},
        "nvidia": {"packages": [_NVIDIA_DEBIAN], "cure": _NVIDIA_CURE, "oldest": 560, "default": "580"},
    },
}

# [docs.nvidia.com/datacenter/tesla/drivers, supported drivers and CUDA toolkit versions, read in November 2026]
_LISTED = "listed as ended by NVIDIA"
BRANCHES: dict[str, Branch] = {
    **{
        name: {"end_of_life": _LISTED, "instead": "580"}
        for name in ("470", "515", "525", "530", "545", "550", "555", "560", "565", "575")
    },
    "535": {"end_of_life": "June 2026", "instead": "580"},
    "570": {"end_of_life": "February 2026", "instead": "580"},
    "580": {},  # long-term support until August 2028
    "595": {},
    "610": {},
}


def system_name(os_id: str, version_id: str) -> str:
    """Return the key of `SYSTEMS` for ID and VERSION_ID of /etc/os-release, such as Debian 13 or Ubuntu 24.04."""
    return f"{os_id.title()} {version_id}"
