# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which driver packages a host is to have, and in which versions. Private to this collection. Pure functions only.

What cannot be had raises UserError with one message: value, cause, cure.
"""

from __future__ import annotations

import re
import typing as t

from .._base.errors import UserError
from .._base.types import Json, Mapping
from . import driver_kernel, kernel_headers
from .driver_packages import branch_of, is_driver, is_module_package, upstream
from .driver_systems import BRANCHES, SYSTEMS, Packages, Source
from .driver_types import HostDriver, Plan, Request, Step

Policies = t.Mapping[str, Mapping]


def plan(host: HostDriver, request: Request, recorded: t.Container[str]) -> Plan:
    """Decide which packages the host is to have, before anything is asked of apt.

    `recorded` are the packages of the newest recorded state, where the role nvidia_driver made that state.
    """
    sources = SYSTEMS.get(host["system"])
    if sources is None:
        raise UserError(
            f"The role nvidia_driver knows no driver packages for {host['system']}: use {' or '.join(SYSTEMS)}, or "
            "name one of these in nvidia_driver_system to try its packages, or install a driver yourself and set "
            "nvidia_driver_manage to false."
        )
    branch, exact = request["branch"], request["version"]
    _check_branch(host["system"], sources, request)
    source = sources[request["source"]]
    flavour = ("open" if request["open_modules"] else "proprietary") + ("_signed" if request["signed_modules"] else "")
    packages = [
        name.format(branch=branch, kernel=kernel)
        for name in _names(source, branch, flavour, host["system"])
        for kernel in (host["kernels_next"] if "{kernel}" in name else host["kernels_next"][:1])
    ]
    headers = [] if request["signed_modules"] else kernel_headers.wanted(host)
    main = packages[0]
    installed = host["packages"][main]["version"] if main in host["packages"] else ""
    if (exact or installed) and not driver_kernel.is_built(host, exact):
        bad = driver_kernel.bad_for_next(host, exact or installed, request["open_modules"])
        if bad:
            raise UserError(bad)
    foreign = "" if installed else _foreign(host, branch, recorded)
    if foreign:
        missing = []
    elif installed and not _satisfies(installed, branch, exact):
        missing = [*headers, *packages]
    else:
        whole = {name for name, entry in host["packages"].items() if entry["whole"]}
        missing = [name for name in [*headers, *packages] if name not in whole]
    ended = BRANCHES.get(branch, {}).get("end_of_life")
    note = f"NVIDIA ended branch {branch} ({ended}); {host['system']} still maintains it." if ended else ""
    return {
        "branch": branch, "packages": packages, "headers": headers, "main": main, "installed": installed,
        "missing": missing, "foreign": foreign, "note": note, "cure": source["cure"],
    }  # fmt: skip


def _check_branch(system: str, sources: t.Mapping[str, Source], request: Request) -> None:
    """Raise UserError where the system's source does not have the branch, or the branch has ended."""
    branch, exact = request["branch"], request["version"]
    source = sources[request["source"]]
    if not re.fullmatch(r"[0-9]{3}", branch):
        raise UserError(
            f'nvidia_driver_branch is "{branch}", which is no driver branch; set it to three digits, such as 580.'
        )
    if exact and branch_of(exact) != branch:
        raise UserError(
            f'nvidia_driver_version is "{exact}", which is not of branch {branch}: set nvidia_driver_branch to '
            f'"{branch_of(exact) or "its first number"}", or correct the version.'
        )
    life = BRANCHES.get(branch, {})
    if life.get("end_of_life") and branch not in source.get("maintained", []):
        raise UserError(
            f"Driver branch {branch} is end of life ({life['end_of_life']}) and gets no fixes: set "
            f'nvidia_driver_branch to "{life["instead"]}"{_other_source(sources, request, life["instead"])}.'
        )
    only = source.get("branches", [])
    if only and branch not in only:
        raise UserError(
            f"{system} has driver branch {' or '.join(only)} from the source {request['source']}, not {branch}: "
            f'set nvidia_driver_branch to "{only[0]}"{_other_source(sources, request, branch)}.'
        )
    if int(branch) < source.get("oldest", 0):
        raise UserError(
            f"NVIDIA's repository for {system} begins with branch {source['oldest']}, not {branch}: set "
            f'nvidia_driver_branch to "{source["default"]}".'
        )


def _names(source: Source, branch: str, flavour: str, system: str) -> list[str]:
    for layout in source["packages"]:
        names: Packages = layout
        if int(branch) >= names.get("first_branch", 0) and flavour in names:
            return t.cast("dict[str, list[str]]", names)[flavour]
    raise UserError(
        f"{system} has no signed kernel modules from the wanted source: set nvidia_driver_signed_modules to false, or "
        "nvidia_driver_source to distribution on Ubuntu."
    )


def _other_source(sources: t.Mapping[str, Source], request: Request, branch: str) -> str:
    """Words about the other source, where the asked one does not have the branch."""
    mine = sources[request["source"]]
    other = sources["nvidia" if request["source"] == "distribution" else "distribution"]
    if mine.get("branches") and branch not in mine["branches"]:
        if int(branch) >= other.get("oldest", 0) and not other.get("branches"):
            return " and nvidia_driver_source to nvidia"
        return f' ("{other.get("default", "595")}") and nvidia_driver_source to nvidia' if other.get("oldest") else ""
    return ""


def _satisfies(version: str, branch: str, exact: str) -> bool:
    if not exact:
        return branch_of(version) == branch
    return version == exact or ("-" not in exact and upstream(version) == exact)


def _foreign(host: HostDriver, branch: str, recorded: t.Container[str]) -> str:
    """Return "", or one sentence about a driver of the wanted branch from other packages than the planned ones.

    Raises UserError where somebody else holds a driver of another branch.
    """
    others = {
        name: entry
        for name, entry in host["packages"].items()
        if is_module_package(name) and name not in recorded and branch_of(entry["version"])
    }
    for name, entry in others.items():
        if branch_of(entry["version"]) == branch:
            return (
                f"Driver {upstream(entry['version'])} ({name}) is of the wanted branch and from other packages than "
                "this role's: it is left as it is."
            )
    held = [name for name, entry in others.items() if entry["held"]]
    if held:
        raise UserError(
            f"{held[0]} (branch {branch_of(others[held[0]]['version'])}) was held by somebody else, and branch "
            f"{branch} would replace it: run 'apt-mark unhold {' '.join(held)}', or set nvidia_driver_manage to false."
        )
    loaded = host["loaded_version"]
    if not others and loaded and branch_of(loaded) == branch:
        return f"Driver {loaded} is loaded, of the wanted branch and from no known package: it is left as it is."
    return ""


def choose(planned: Plan, host: HostDriver, request: Request) -> Step:
    """Decide which version of each missing package to install.

    `host["policies"]` has planned["missing"], planned["main"] and the driver's installed packages. `remove` of the
    result names packages of another driver that must go in the same step.
    """
    policies: Policies = host["policies"]
    nothing: Json = {"versions": []}
    known = {name: policies.get(name, nothing)["versions"] for name in planned["missing"]}
    _check_known(known, planned, host)
    version = _version(policies.get(planned["main"], nothing)["versions"], planned, host, request)
    bad = driver_kernel.bad_for_next(host, version, request["open_modules"])
    if bad:
        raise UserError(bad)
    install = {}
    for name, versions in known.items():
        same = [other for other in versions if upstream(other) == upstream(version)]
        # what follows the driver's version has it; persistenced of Debian, firmware and headers have their own
        install[name] = version if version in versions else (same or versions)[0]
    # whatever else of the driver is there follows: a metapackage may be content with any newer module
    for name, entry in host["packages"].items():
        offered = policies.get(name, nothing)["versions"]
        if is_driver(name, entry["source"]) and version in offered and entry["version"] != version:
            install[name] = version
    others = [name for name in host["packages"] if is_module_package(name) and name != planned["main"]]
    remove = [name for name in others if name not in install and not _belongs(name, planned)]
    return {"version": version, "install": install, "files": {}, "remove": remove}


def _check_known(known: t.Mapping[str, t.Sequence[str]], planned: Plan, host: HostDriver) -> None:
    """Raise UserError where the host's apt sources lack a package."""
    lacking = [name for name, versions in known.items() if not versions]
    if not lacking:
        return
    cure = planned["cure"]
    if all(name in planned["headers"] for name in lacking):
        cure = kernel_headers.cure(host)
    raise UserError(f"The host's apt sources do not have {', '.join(lacking)}: {cure}.")


def _version(available: t.Sequence[str], planned: Plan, host: HostDriver, request: Request) -> str:
    """Return the version of the main package to install, of those that can be fetched, newest first."""
    main, branch, exact = planned["main"], planned["branch"], request["version"]
    fitting = [version for version in available if _satisfies(version, branch, exact)]
    if exact and not fitting:
        raise UserError(
            f"The host's apt sources do not have {main} in version {exact}, only {', '.join(available) or 'none'}: "
            "choose one of these, or go back to a version that was kept (playbook driver_rollback)."
        )
    newest = available[0] if available else ""
    # An old branch's name lives on as an empty package that depends on the next branch.
    if branch in main and not exact and branch_of(newest) != branch:
        raise UserError(
            f"{main} is only a transitional package by now and would install branch {branch_of(newest)} ({newest}) "
            f'instead of {branch}: set nvidia_driver_branch to "{branch_of(newest)}" if that will do.'
        )
    if not fitting:
        offered = sorted({branch_of(version) for version in available})
        raise UserError(
            f"On {host['system']} the package {main} is of driver branch {' or '.join(offered)}, not of {branch}: set "
            f'nvidia_driver_branch to "{offered[-1]}" if that will do.'
        )
    return fitting[0]


def _belongs(name: str, planned: Plan) -> bool:
    """Whether a package that brings a module is a part of the planned driver, as nvidia-dkms-580-server-open is."""
    wanted_open, branch = "-open" in planned["main"], planned["branch"]
    return branch in name and branch in planned["main"] and (("-open" in name) == wanted_open)
