# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a build of another host is copied, or llama.cpp is built here. Private to this collection.

Pure functions only. An offer is what another host says of its build in use: C(host) (its name), C(record) (its
build.json), C(packages) (which its programs need) and C(runs_on) (the fields of Machine). An empty one means no build.
"""

from __future__ import annotations

import re
import typing as t

from .._base.errors import UserError
from .._base.types import Json, Mapping
from .._driver import cuda_compat
from . import build_plan

#: Flags of the kernel that name instructions which a compiler may use for this CPU.
_INSTRUCTIONS: t.Final = re.compile(
    r"(?:3dnow|abm|adx|aes|amx|avx|bmi|cldemote|clflushopt|clwb|clzero|cmpccxadd|cx16|enqcmd|f16c|fma|fsgsbase|fxsr|"
    r"gfni|hle|hreset|lahf_lm|lwp|mmx|movbe|movdir|mwaitx|pclmul|pconfig|pni|popcnt|prefetch|ptwrite|raoint|rdpid|"
    r"rdpru|rdrand|rdseed|rtm|serialize|sha|sm[34]|sse|ssse|tbm|tsxldtrk|uintr|vaes|vpclmul|waitpkg|wbnoinvd|xop|xsave)"
    r"\w*"
)
#: Libraries that the driver and the toolkit bring, and no package of the distribution.
_OF_CARDS: t.Final = re.compile(r"lib(?:cu|nccl|nv)\w*\.so")
_NEEDED: t.Final = re.compile(r"\(NEEDED\)\s+Shared library: \[([^]]+)\]")
_PACKAGE: t.Final = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9]")
_ARCHITECTURES: t.Final = "CMAKE_CUDA_ARCHITECTURES"
_KEY: t.Final = re.compile(r"[0-9a-f]{64}")
_PROGRAM: t.Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_OWNER: t.Final = re.compile(r"^([a-z0-9][a-z0-9+.-]+)(?::[a-z0-9]+)?: /")


class Machine(t.NamedTuple):
    """What of a host decides whether a build runs there."""

    system: str  # distribution and release, such as "debian 13"
    cpu_flags: t.Sequence[str]  # as the kernel names them
    toolkit: str  # last line of nvcc --version; empty where nvcc does not run
    targets: t.Sequence[str] | None  # compute capabilities of its cards without their dot; None where unknown


def offer(host: str, record: Mapping | None, machine: Machine, packages: t.Sequence[str]) -> Json:
    """Return what a host offers to others; nothing without a build of its own."""
    if record is None or record["source"]["kind"] == "package":
        return {}
    return {"host": host, "record": dict(record), "packages": list(packages), "runs_on": machine._asdict()}


def described(settings: build_plan.Settings, here: Machine) -> Json:
    """Return what decides on a host whether it copies a build, for the host that builds."""
    return {"settings": dict(settings), "runs_on": here._asdict()}


def further_architectures(
    settings: build_plan.Settings, record: Mapping, there: Machine, in_use: Mapping | None
) -> list[str]:
    """Return the CUDA architectures that the main build needs beside its own, so that other hosts can copy it.

    C(record) is what build.json will say without them; C(there) is the host that builds, its toolkit as all that nvcc
    says; offer_to of C(settings) has what C(described) said of each other host. One that would build for itself with
    them as well adds none. Where nothing is said of others, those of the build C(in_use) stay: who is away now must
    not change what is built. None that the toolkit does not compile for, and none where the variables name some.
    """
    if "cuda" not in record["toolchain"] or settings["cuda_architectures"]:
        return []
    others, own, found = settings["offer_to"], _built_for(record), set()
    for other in others:
        here = Machine(**other["runs_on"])
        lacking = [target for target in here.targets or () if target not in own]
        offered = {"host": "", "record": _widened(record, lacking), "packages": [], "runs_on": there._asdict()}
        found |= set() if why_not(offered, other["settings"], here) else set(lacking)
    if not others and in_use is not None:
        found = set(in_use["further_architectures"]) - set(own)
    release = cuda_compat.nvcc_release(there.toolkit)
    return sorted((one for one in found if not cuda_compat.architecture_problem(release, [one])), key=int)


def _widened(record: Mapping, targets: t.Sequence[str]) -> Json:
    """Return the record of a build that is compiled for further CUDA architectures."""
    option = f"-D{_ARCHITECTURES}="
    arguments = [
        ";".join([argument, *targets]) if argument.startswith(option) else argument
        for argument in record["cmake_arguments"]
    ]
    return {**record, "cmake_arguments": arguments}


def why_not(offered: Mapping, settings: build_plan.Settings, here: Machine) -> str:
    """Return why the build that another host offers is not copied, as a clause; empty where it is.

    C(settings) are the variables of the role llama_cpp here, without their prefix. The chat page makes no difference.
    Raises UserError for an offer that no host of ours makes: its names become paths, and packages to install.
    """
    if not settings["copy"]:
        return "llama_cpp_copy is false"
    if not offered:
        return "no other host has a build to copy"
    record, there = offered["record"], Machine(**offered["runs_on"])
    whole = (
        record["name"] == build_plan.MAIN
        and _KEY.fullmatch(record["key"])
        and record["version"] == build_plan.version(record["source"])
        and all(_PROGRAM.fullmatch(target) for target in record["targets"])
        and all(_PACKAGE.fullmatch(name) for name in offered["packages"])
    )
    checks = (
        _of_another_kind(record, settings),
        _for_another_system(offered["host"], there, here),
        _for_another_cpu(record, there, here),
        _for_other_cards(record, there, here),
    )
    why = next((why for why in checks if why), "")
    if not why and not whole:
        raise UserError(
            f"The build that {offered['host']} offers has names that no build has: look who has changed"
            f" {offered['host']}, or set llama_cpp_copy: false."
        )
    return why


def _of_another_kind(record: Mapping, settings: build_plan.Settings) -> str:
    if settings["source"] == "package" or record["source"] != build_plan.source(settings, {}):
        return "its variables ask for another source"
    if settings["extra_builds"]:
        return "llama_cpp_extra_builds asks for further builds"
    lacking = [target for target in settings["targets"] if target not in record["targets"]]
    if lacking:
        return f"llama_cpp_targets asks for {', '.join(lacking)}, too"
    if build_plan.uses_cuda(settings) and not _built_for(record):
        return "its variables ask for the backend cuda"
    wanted = dict(_options(build_plan.cmake_arguments(settings, _built_for(record))))
    built = dict(_options(record["cmake_arguments"]))
    other = sorted(name for name in {*wanted, *built} if wanted.get(name) != built.get(name))
    if other:
        return f"its variables ask for another value of {', '.join(other)}"
    if bool(settings["quick_compile"]) != bool(record["quick_compile"]):
        return "its variables ask for another value of llama_cpp_quick_compile"
    return ""


def _options(arguments: t.Iterable[str]) -> t.Iterator[tuple[str, str]]:
    for argument in arguments:
        name, _equals, value = argument.removeprefix("-D").partition("=")
        yield name, value


def _built_for(record: Mapping) -> list[str]:
    """Return the CUDA architectures of a build."""
    found = dict(_options(record["cmake_arguments"])).get(_ARCHITECTURES, "")
    return [one for one in found.split(";") if one]


def _for_another_system(host: str, there: Machine, here: Machine) -> str:
    return f"it runs {here.system} and {host} {there.system}" if here.system != there.system else ""


def _for_another_cpu(record: Mapping, there: Machine, here: Machine) -> str:
    """A build that is not native has the instructions that its options say, on all hosts the same."""
    if "native" not in record["toolchain"]:
        return ""
    lacking = sorted({flag for flag in there.cpu_flags if _INSTRUCTIONS.fullmatch(flag)} - set(here.cpu_flags))
    if not there.cpu_flags or not here.cpu_flags:
        return "the instructions of a CPU are unknown"
    return f"its CPU has no {', '.join(lacking)}" if lacking else ""


def _for_other_cards(record: Mapping, there: Machine, here: Machine) -> str:
    built_with = record["toolchain"].get("cuda")
    if built_with is None:
        return ""
    if here.toolkit != built_with:
        return f"its CUDA toolkit is {here.toolkit or 'unknown'} and not {built_with}"
    if here.targets is None:
        return "the CUDA architecture of its cards is unknown"
    known = {one.removesuffix("-real") for one in _built_for(record)}
    lacking = [target for target in here.targets if target not in known]
    return f"its cards need the CUDA architecture {', '.join(lacking)}" if lacking else ""


def libraries(dynamic: str, own: t.Collection[str]) -> list[str]:
    """Return the libraries of the distribution that programs need, from C(readelf -d); without C(own)."""
    found = set(_NEEDED.findall(dynamic))
    return sorted(name for name in found if name not in own and not _OF_CARDS.match(name))


def owners(answer: str) -> list[str]:
    """Return the packages that C(dpkg-query -S) names."""
    return sorted({found[1] for line in answer.splitlines() if (found := _OWNER.match(line))})
