# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What passes between the files of this room. Private to this collection."""

from __future__ import annotations

import typing as t

from .._base.types import Json


class Package(t.TypedDict):
    """An installed package. `whole` is false for one that was left half installed."""

    version: str
    source: str
    arch: str
    held: bool
    whole: bool


class KernelModule(t.TypedDict):
    """The NVIDIA module of one kernel, as modinfo describes it. `signer` is "" for an unsigned one."""

    version: str
    signer: str


class PersistenceUnit(t.TypedDict):
    """nvidia-persistenced.service. `static` (no [Install]) and `exec_start` are of the unit's own file, without
    drop-ins; `present` says whether that file is on the disk, `stale` whether systemd has not read it yet.
    `dropin` is the text of this collection's drop-in, or "".
    """

    present: bool
    unit_file_state: str
    static: bool
    active: bool
    exec_start: str
    stale: bool
    wanted_at_boot: bool
    dropin: str


class HostDriver(t.TypedDict):
    """What a host says about its driver. Versions are "" and dicts empty where there is nothing."""

    system: str  # name and release, such as Debian 13
    packages: dict[str, Package]
    kernel_running: str
    kernel_next: str  # the release that boots next, or a guess
    kernels_next: list[str]  # kernel_next, or all installed ones where it is not known which boots next
    kernel_next_why: str
    modules: dict[str, KernelModule | None]  # by kernel: the running one and the next
    headers: dict[str, str]  # by kernel: the package with its headers, "" for headers of no package; none where missing
    images: dict[str, str]  # by kernel: the package with its image
    dkms: list[str]
    loaded_version: str
    nouveau_loaded: bool
    secure_boot: bool | None
    mok: dict[str, str]  # key file: enrolled, not enrolled or unknown
    persistence: PersistenceUnit
    initramfs_mtime: float | None  # of the kernels that may boot next, the oldest
    nouveau_mtime: float | None  # of the blacklist of nouveau, where that is as this collection writes it
    policies: Json  # what apt.parse_policy returns
    kept: dict[str, dict[str, str]]  # package: version: path of a kept package file


class Request(t.TypedDict):
    """The driver that the variables ask for."""

    source: str  # distribution or nvidia
    branch: str
    version: str  # exact version, or ""
    open_modules: bool
    signed_modules: bool


class Plan(t.TypedDict):
    """The packages of the driver that is asked for.

    `main` brings the kernel module or depends on it, and has the driver's version; `installed` is its installed version
    or "". `missing` is what must be installed or changed. `foreign` is "", or one sentence about a driver of the wanted
    branch that is not this collection's. `note` is "" or one sentence.
    """

    branch: str
    packages: list[str]
    headers: list[str]
    main: str
    installed: str
    missing: list[str]
    foreign: str
    note: str
    cure: str


class Step(t.TypedDict):
    """One step of apt: versions by package, package files by package, packages to remove. `version` is the driver's."""

    version: str
    install: dict[str, str]
    files: dict[str, str]
    remove: list[str]
