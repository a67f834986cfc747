# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which CUDA toolkit compiles on a system and runs with its driver. Private to this collection. Pure functions only."""

from __future__ import annotations

import re
import typing as t

from .._base.errors import UserError
from .._hardware import card_ages

Version = tuple[int, int]
#: The CUDA release of NVIDIA's wheels that the role cuda_toolkit pins.
WHEELS_VERSION: t.Final = "13.0"


class System(t.TypedDict):
    """A host: name and release, major version of the gcc that nvcc would use (0 for none known), glibc ("2.41", or ""
    for not known), version of the loaded driver, or "", and compute capabilities of the cards, where they are known.
    """

    system: str
    gcc: int
    glibc: str
    driver: str
    targets: t.NotRequired[list[str]]


# Per CUDA release from which it holds: the newest gcc that crt/host_config.h accepts, and the first glibc whose
# headers clash with crt/math_functions.h (None: none known). Read in the files of the releases named here; those
# between behave as the release before.
# 12.x: cospi, sinpi and rsqrt clash with glibc 2.41 (NVIDIA/cuda-samples#378). 13.0 and 13.1: rsqrt with glibc 2.42.
COMPILERS: dict[Version, tuple[int, Version | None]] = {
    (12, 4): (13, (2, 41)),
    (12, 8): (14, (2, 41)),
    (13, 0): (15, (2, 42)),
    (13, 2): (15, None),
    (13, 4): (16, None),
}
OLDEST: Version = min(COMPILERS)
# The first driver branch that runs any release of a major version (CUDA compatibility guide, "minor version
# compatibility").
DRIVERS = {12: 525, 13: 580}
# Per system and source, the releases to name as good ones, best first. Debian's own is patched for its C library and
# brings g++-13.
OFFERS: dict[str, dict[str, tuple[str, ...]]] = {
    # [NVIDIA's repository ubuntu2604 begins with 13.3; the wheels of 13.0 clash with its glibc 2.43]
    "Ubuntu 26.04": {"nvidia": ("13.3",)},
    "Ubuntu 24.04": {"nvidia": ("13.0", "12.8", "12.6"), "wheels": (WHEELS_VERSION,)},
    "Debian 13": {"wheels": (WHEELS_VERSION,), "nvidia": ("13.0",), "distribution": ("12.4",)},
    "Debian 12": {"wheels": (WHEELS_VERSION,), "nvidia": ("13.0", "12.8", "12.6")},
}
# What `auto` takes, best first. Without a known driver Debian 13 stays with what its own driver runs.
PREFERRED: dict[str, tuple[str, ...]] = {
    "Ubuntu 26.04": ("nvidia",),
    "Ubuntu 24.04": ("nvidia", "wheels"),
    "Debian 13": ("wheels", "distribution", "nvidia"),
    "Debian 12": ("wheels", "nvidia"),
}


_UNKNOWN: t.Final = (
    f"name one of {', '.join(OFFERS)} in cuda_toolkit_system to try its toolkits, or install a toolkit yourself and "
    "set cuda_toolkit_root to it, or set cuda_toolkit_manage to false"
)


def parse(version: str) -> Version:
    """Return major and minor of a version such as 13.0 or 13.0.2. Raises ValueError for any other text."""
    found = re.match(r"([0-9]+)\.([0-9]+)(\.|\Z)", version)
    if not found:
        raise ValueError(f"{version!r} is no version")
    return int(found[1]), int(found[2])


def nvcc_release(said: str) -> str:
    """Return the release that `nvcc --version` states, such as 13.0, or ""."""
    found = re.search(r"release ([0-9]+[.][0-9]+)", said)
    return found[1] if found else ""


def architecture_problem(release: str, architectures: t.Iterable[str]) -> str:
    """Return why a CUDA release does not compile for architectures as CMake writes them (61, 90a-real), or "".

    Without a full stop; a release of "" is not known and no problem.
    """
    numbers = [found[0] for found in (re.match(r"[0-9]+", text) for text in architectures) if found]
    return card_ages.target_problem(release, [f"{text[:-1]}.{text[-1]}" for text in numbers]) if release else ""


def trouble(version: str, source: str, system: System) -> str:
    """Return why a toolkit does not fit a system, without a full stop, or "" when nothing speaks against it."""
    cuda = parse(version)
    if cuda < OLDEST:
        return f"CUDA {version} is older than {OLDEST[0]}.{OLDEST[1]}, the oldest that this collection knows"
    target = card_ages.target_problem(f"{cuda[0]}.{cuda[1]}", system.get("targets", []))
    if target:
        return target
    gcc, clash = COMPILERS[max(known for known in COMPILERS if known <= cuda)]
    # Debian's package is patched and has a compiler of its own
    if source != "distribution":
        if system["gcc"] > gcc:
            return f"CUDA {version} takes gcc up to {gcc}, and this system has gcc {system['gcc']}"
        if clash and system["glibc"] and parse(system["glibc"]) >= clash:
            return (
                f"CUDA {version} does not compile with glibc {system['glibc']} (it clashes from "
                f"{clash[0]}.{clash[1]} on)"
            )
    branch = DRIVERS.get(cuda[0])
    driver = re.match(r"[0-9]+", system["driver"])
    if branch and driver and int(driver[0]) < branch:
        return f"CUDA {cuda[0]} needs driver {branch} or later, and {system['driver']} is loaded"
    return ""


def good_ones(system: System) -> list[tuple[str, str]]:
    """Return (source, version) of all offers that fit, in the order of preference."""
    offers = OFFERS.get(system["system"], {})
    return [
        (source, version)
        for source in PREFERRED.get(system["system"], ())
        for version in offers.get(source, ())
        if not trouble(version, source, system)
    ]


def advice(system: System) -> str:
    """Return what to write instead, as the end of a sentence."""
    good = good_ones(system)
    if system["system"] not in OFFERS:
        return _UNKNOWN
    if not good:
        return _no_offer(system)
    source, version = good[0]
    return f"set cuda_toolkit_source to {source}" + (
        f' and cuda_toolkit_version to "{version}"' if source == "nvidia" else f" (CUDA {version})"
    )


def _no_offer(system: System) -> str:
    """Return what to do where no offer fits: because of the cards, or because of the driver."""
    targets = system.get("targets", [])
    first, last = card_ages.cuda_range(targets)
    cards = " and ".join(targets)
    if first and last and first > last:
        return (
            f"no CUDA release compiles for compute capabilities {cards} together, so take a card out, or leave its "
            "slot out with nvidia_driver_slots_left_out"
        )
    limited = card_ages.words(last) if last else card_ages.words(first) if first else ""
    if limited and good_ones({**system, "targets": []}):
        return (
            f"install CUDA {limited} yourself, which compiles for compute capability {cards}, and set "
            "cuda_toolkit_root to it, or set cuda_toolkit_manage to false"
        )
    return "install a newer driver (nvidia_driver_branch), or set cuda_toolkit_manage to false"


def _release(version: str, source: str, system: System) -> str:
    """Return the release of a source: the one that is asked for, or the first that fits, or the first."""
    offers = OFFERS[system["system"]][source]
    fitting = [offer for offer in offers if not trouble(offer, source, system)]
    return version or (fitting or list(offers))[0]


def choose(wanted: str, version: str, existing: str, system: System) -> tuple[str, str]:
    """Decide where the toolkit comes from: (source, version).

    `wanted` is auto, existing, distribution, nvidia or wheels, `version` the release that is wanted from NVIDIA's
    repository ("" for one that fits), `existing` the release that is installed, or "". Raises UserError for a
    combination that cannot work, and names one that does.
    """
    source = _auto(existing, system) if wanted == "auto" else wanted
    offers = OFFERS.get(system["system"], {})
    if source == "existing" and not existing:
        raise UserError(
            "cuda_toolkit_source is existing, but there is no nvcc that says its version below cuda_toolkit_root: "
            f"correct cuda_toolkit_root, or {advice(system)}."
        )
    if source != "existing" and source not in offers:
        raise UserError(f"{system['system']} has no CUDA toolkit from the source {source}: {advice(system)}.")
    release = existing if source == "existing" else _release(version if source == "nvidia" else "", source, system)
    try:
        problem = trouble(release, source, system)
    except ValueError:
        raise UserError(
            f'cuda_toolkit_version is "{release}", which is no version: set it to "13.0", for example.'
        ) from None
    if problem:
        raise UserError(f"{problem}: {advice(system)}.")
    return source, release


def _auto(existing: str, system: System) -> str:
    """The source that `auto` stands for."""
    if existing:
        return "existing"
    offers = OFFERS.get(system["system"])
    if offers is None:
        raise UserError(
            f"{system['system']} is not known to the role cuda_toolkit: {_UNKNOWN}."
        )
    good = good_ones(system)
    if not system["driver"] and any(source == "distribution" for source, _version in good):
        return "distribution"
    if not good:
        driver = f" that runs with driver {system['driver']}" if system["driver"] else ""
        targets = system.get("targets", [])
        cards = f" and compiles for its cards ({' and '.join(targets)})" if targets else ""
        raise UserError(f"{system['system']} has no CUDA toolkit{driver}{cards}: {advice(system)}.")
    return good[0][0]
