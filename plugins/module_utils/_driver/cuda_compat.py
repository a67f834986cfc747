# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which CUDA toolkit compiles on a system and runs with its driver. Private to this collection. Pure functions only."""

from __future__ import annotations

import re
import typing as t

Version = tuple[int, int]

# Per CUDA release from which it holds: the newest gcc that crt/host_config.h accepts, and the first glibc whose
# headers clash with
# crt/math_functions.h (None: none known). Read in the files of the releases named here; those between behave as the
# one before.
# 12.x: cospi, sinpi and rsqrt clash with glibc 2.41 (NVIDIA/cuda-samples#378). 13.0 to 13.3: rsqrt with glibc 2.42.
COMPILERS: dict[Version, tuple[int, Version | None]] = {
    (12, 4): (13, (2, 41)),
    (12, 8): (14, (2, 41)),
    (13, 0): (15, (2, 42)),
    (13, 4): (16, None),
}
OLDEST: Version = min(COMPILERS)
# The first driver branch that runs any release of a major version (CUDA compatibility guide, "minor version
# compatibility").
DRIVERS = {12: 525, 13: 580}
# Per system and source, the releases to name as good ones, best first. Debian's own is patched for its C library and
# brings g++-13.
OFFERS: dict[str, dict[str, tuple[str, ...]]] = {
    "Ubuntu 24.04": {"nvidia": ("13.0", "12.8", "12.6"), "wheels": ("13.0",)},
    "Debian 13": {"wheels": ("13.0",), "nvidia": ("13.0",), "distribution": ("12.4",)},
    "Debian 12": {"wheels": ("13.0",), "nvidia": ("13.0", "12.8", "12.6")},
}
# What `auto` takes, best first. Without a known driver Debian 13 stays with what its own driver runs.
PREFERRED: dict[str, tuple[str, ...]] = {
    "Ubuntu 24.04": ("nvidia", "wheels"),
    "Debian 13": ("wheels", "distribution", "nvidia"),
    "Debian 12": ("wheels", "nvidia"),
}


def parse(version: str) -> Version:
    """Return major and minor of a version such as 13.0 or 13.0.2. Raises ValueError for what is none."""
    found = re.match(r"([0-9]+)\.([0-9]+)(\.|\Z)", version)
    if not found:
        raise ValueError(f"{version!r} is no version")
    return int(found[1]), int(found[2])


def trouble(version: str, source: str, system: t.Mapping[str, t.Any]) -> str:
    """Return why a toolkit does not fit a system, without a full stop, or "" when nothing speaks against it.

    `system` is {system (name and release), gcc (major of the compiler that nvcc would use, 0 for none known), glibc
    ("2.41", or "" for
    not known), driver (version of the loaded driver, or "")}.
    """
    cuda = parse(version)
    if cuda < OLDEST:
        return f"CUDA {version} is older than {OLDEST[0]}.{OLDEST[1]}, the oldest that this collection knows"
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


def good_ones(system: t.Mapping[str, t.Any]) -> list[tuple[str, str]]:
    """Return (source, version) of all offers that fit, in the order of preference."""
    offers = OFFERS.get(system["system"], {})
    return [
        (source, version)
        for source in PREFERRED.get(system["system"], ())
        for version in offers.get(source, ())
        if not trouble(version, source, system)
    ]


def advice(system: t.Mapping[str, t.Any]) -> str:
    """Return what to write instead, as the end of a sentence."""
    good = good_ones(system)
    if not good:
        return "install a newer driver (nvidia_driver_branch), or set cuda_toolkit_manage to false"
    source, version = good[0]
    return f"set cuda_toolkit_source to {source}" + (
        f' and cuda_toolkit_version to "{version}"' if source == "nvidia" else f" (CUDA {version})"
    )


def choose(request: t.Mapping[str, t.Any], system: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Decide where the toolkit comes from: {error, source, version}.

    `request` is {source (auto, existing, distribution, nvidia or wheels), version (for nvidia), wheels_version,
    existing (version of the
    toolkit that is there, or "")}. `source` is "none" where `auto` finds nothing for the system. `error` is "" or
    one sentence.
    """
    name, source = system["system"], request["source"]
    offers = OFFERS.get(name, {})
    if source == "auto":
        if request["existing"]:
            source = "existing"
        else:
            fitting = [offer for offer, _version in good_ones(system)]
            if not system["driver"] and "distribution" in offers:
                fitting = ["distribution"]
            source = (fitting or ["none"])[0]
    versions = {
        "existing": request["existing"],
        "nvidia": str(request["version"]),
        "wheels": request["wheels_version"],
        "distribution": (offers.get("distribution") or ("",))[0],
        "none": "",
    }
    version = versions[source]
    decision = {"error": "", "source": source, "version": version}
    if source == "none":
        why = (
            f"has no CUDA toolkit that runs with driver {system['driver']}"
            if offers
            else "is not known to the role cuda_toolkit"
        )
        cure = (
            advice(system)
            if offers
            else ("install one yourself and set cuda_toolkit_root to it, or set cuda_toolkit_manage to false")
        )
        return {**decision, "error": f"{name} {why}: {cure}."}
    if source == "existing":
        if not version:
            return {
                **decision,
                "error": "cuda_toolkit_source is existing, but there is no nvcc that says its version below "
                "cuda_toolkit_root: correct "
                f"cuda_toolkit_root, or {advice(system)}.",
            }
    elif source not in offers:
        return {**decision, "error": f"{name} has no CUDA toolkit from the source {source}: {advice(system)}."}
    try:
        problem = trouble(version, source, system)
    except ValueError:
        sentence = f'cuda_toolkit_version is "{version}", which is no version: set it to "13.0", for example.'
        return {**decision, "error": sentence}
    if problem:
        return {**decision, "error": f"{problem}: {advice(system)}."}
    return decision
