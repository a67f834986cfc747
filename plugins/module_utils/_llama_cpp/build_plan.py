# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which builds of llama.cpp the variables ask for, their CMake options and keys. Private to this collection.

Pure functions only. `settings` are the variables of the role llama_cpp without their prefix.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import typing as t

from .._base import fingerprints
from .._base.errors import UserError
from .._driver import cuda_compat
from . import quick_compile, web_ui_plan

Settings = t.Mapping[str, t.Any]

SCHEMA = 1
MAIN: t.Final = "main"
BACKENDS = ("cpu", "cuda", "rpc", "vulkan")

# No test or example is built, the chat page is made before (web_ui_build), and nothing may be fetched while building.
# $ORIGIN: the programs find their libraries beside themselves, wherever the directory is moved to. It is the install
# RPATH, because CMake's build RPATH ends with an empty entry, which would mean the current directory.
_ALWAYS: dict[str, t.Any] = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_BUILD_WITH_INSTALL_RPATH": True,
    "CMAKE_INSTALL_RPATH": "$ORIGIN",
    "CMAKE_INSTALL_RPATH_USE_LINK_PATH": True,
    "FETCHCONTENT_FULLY_DISCONNECTED": True,
    "GGML_CCACHE": True,
    "LLAMA_ALL_WARNINGS": False,
    "LLAMA_BUILD_TESTS": False,
    "LLAMA_BUILD_EXAMPLES": False,
    "LLAMA_BUILD_APP": False,
    "LLAMA_BUILD_UI": False,
    "LLAMA_USE_PREBUILT_UI": False,
    "LLAMA_OPENSSL": False,
}
_BACKEND_OPTIONS = {"cuda": "GGML_CUDA", "rpc": "GGML_RPC", "vulkan": "GGML_VULKAN"}
# They say which source was built; the build itself sets them from the source.
_FROM_SOURCE = ("LLAMA_BUILD_NUMBER", "LLAMA_BUILD_COMMIT")

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_ARCHITECTURE = re.compile(r"[0-9]{2,3}[af]?(?:-real|-virtual)?")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_GIT_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OPEN_TRANSPORT = re.compile(r"(?:http|git|ftp)://", re.IGNORECASE)
_NUMBERED_TAG = re.compile(r"b([0-9]+)")
_COMPILER = "install build-essential."
_TOOLKIT = (
    "the backend cuda needs the CUDA toolkit; run the role cuda_toolkit, correct llama_cpp_cuda_root, or remove cuda "
    "from llama_cpp_backends."
)
_COMPILE_PACKAGES = ("build-essential", "ccache", "cmake", "ninja-build")
_SOURCE_PACKAGES = {
    "sdist": ("ca-certificates",),
    "git": ("ca-certificates", "git"),
    "archive": ("ca-certificates",),
}
_VULKAN_PACKAGES = ("glslc", "libvulkan-dev", "spirv-headers")


@dataclasses.dataclass(frozen=True)
class Tool:
    """A program whose output identifies a part of the toolchain; `cure` says what to do where it does not run."""

    name: str
    argv: tuple[str, ...]
    cure: str


@dataclasses.dataclass(frozen=True)
class Build:
    """One build: what build.json says of it, but for `built_at`.

    `record` has `build` and `commit` unknown (0, None) where only the source itself tells.
    """

    record: dict[str, t.Any]

    @property
    def name(self) -> str:
        """Return the name of the build, `main` for the first."""
        return str(self.record["name"])

    @property
    def link(self) -> str:
        """Return the name of the link below the prefix."""
        return link(self.name)

    @property
    def directory(self) -> str:
        """Return the name of the directory below the prefix: the version and twelve digits of the key."""
        return directory(self.record)


def link(name: str) -> str:
    """Return the name of the link to a build."""
    return "current" if name == MAIN else name


def directory(record: t.Mapping[str, t.Any]) -> str:
    """Return the name of the directory of a recorded build."""
    return f"{record['version']}-{record['key'][:12]}"


def validate(settings: Settings) -> None:
    """Raise UserError where the variables contradict one another, or lack what pins the source."""
    kind = settings["source"]
    if kind == "archive" and not (settings["archive_url"] and _SHA256.fullmatch(settings["archive_sha256"])):
        raise UserError(
            "llama_cpp_source is archive, and its address or its SHA-256 is missing; set llama_cpp_archive_url, and "
            "llama_cpp_archive_sha256 to 64 hexadecimal digits."
        )
    if kind == "sdist" and not _SHA256.fullmatch(settings["sdist_sha256"]):
        raise UserError(f'llama_cpp_sdist_sha256 is "{settings["sdist_sha256"]}"; set it to 64 hexadecimal digits.')
    if kind == "git":
        _validate_git(settings["git_url"], settings["git_version"])
    names = [build["name"] for build in settings["extra_builds"]]
    if kind == "package" and names:
        raise UserError(
            "llama_cpp_source is package, which builds nothing, and llama_cpp_extra_builds is not empty; "
            "choose another source, or empty llama_cpp_extra_builds."
        )
    for name in names:
        if not _NAME.fullmatch(name) or name in (MAIN, link(MAIN)) or names.count(name) > 1:
            raise UserError(
                f"llama_cpp_extra_builds has an entry named {name!r}; give each build a name of its own, of lower "
                "case letters, digits, - and _, and neither current nor main."
            )


def _validate_git(url: str, version: str) -> None:
    if not _GIT_VERSION.fullmatch(version):
        raise UserError(f"llama_cpp_git_version is {version!r}; set it to a full commit, or a tag such as b11312.")
    if _OPEN_TRANSPORT.match(url) and not is_commit(version):
        raise UserError(
            f"llama_cpp_git_url is {url}, where anybody on the way may change what {version} means; "
            "use https or ssh, or set llama_cpp_git_version to a full commit."
        )


def is_commit(version: str) -> bool:
    """Return whether a git version is a full commit, which pins the content."""
    return _COMMIT.fullmatch(version) is not None


def packages(settings: Settings) -> list[str]:
    """Return the distribution's packages that the builds need."""
    if settings["source"] == "package":
        return list(settings["packages"])
    vulkan = any("vulkan" in build["backends"] for build in _wanted(settings))
    return [*_COMPILE_PACKAGES, *_SOURCE_PACKAGES[settings["source"]], *(_VULKAN_PACKAGES if vulkan else ())]


def uses_cuda(settings: Settings) -> bool:
    """Return whether any of the builds has the backend cuda."""
    return settings["source"] != "package" and any("cuda" in build["backends"] for build in _wanted(settings))


def tools(settings: Settings) -> list[Tool]:
    """Return the programs that identify the toolchain; `native` is what the compiler makes of this CPU."""
    if settings["source"] == "package":
        return []
    found = [
        Tool("c", ("cc", "--version"), _COMPILER),
        Tool("cxx", ("c++", "--version"), _COMPILER),
        Tool("native", ("cc", "-march=native", "-E", "-dM", "-x", "c", "/dev/null"), _COMPILER),
    ]
    nvcc = Tool("cuda", (f"{settings['cuda_root'].rstrip('/')}/bin/nvcc", "--version"), _TOOLKIT)
    return [*found, nvcc] if uses_cuda(settings) else found


def source(settings: Settings, installed: t.Mapping[str, str]) -> dict[str, t.Any]:
    """Return the source as it is hashed into the key; `installed` maps packages to their versions.

    The address of an archive is left out: its content is what counts.
    """
    kind = settings["source"]
    if kind == "git":
        return {"kind": kind, "url": settings["git_url"], "version": settings["git_version"]}
    if kind == "package":
        versions = [f"{name} {installed[name]}" for name in sorted(settings["packages"]) if name in installed]
        return {"kind": kind, "version": ", ".join(versions)}
    found = {
        "kind": kind,
        "sha256": settings[f"{kind}_sha256"].lower(),
        "build": settings[f"{kind}_build_number"],
        "commit": settings[f"{kind}_build_commit"] or None,
    }
    return found | {"version": settings["sdist_version"]} if kind == "sdist" else found


def cmake_arguments(settings: Settings, architectures: t.Sequence[str]) -> list[str]:
    """Return the CMake arguments of the main build for these compute capabilities. Raises UserError as C(plan)."""
    return _arguments(_wanted(settings)[0], settings, architectures)


def summarise_toolchain(said: t.Mapping[str, str]) -> dict[str, str]:
    """Return what identifies each tool in its output: one line, or a hash of the macros that describe this CPU."""
    summary = {}
    for tool, output in said.items():
        lines = [line.strip() for line in output.splitlines() if line.strip()] or [""]
        if tool == "native":
            summary[tool] = hashlib.sha256(output.encode("utf-8")).hexdigest()
        else:
            # nvcc tells its build in the last line, compilers tell it in the first
            summary[tool] = lines[-1] if tool == "cuda" else lines[0]
    return summary


def plan(
    settings: Settings,
    wanted_source: t.Mapping[str, t.Any],
    toolchain: t.Mapping[str, str],
    architectures: t.Sequence[str | int],
    further: t.Sequence[str] = (),
) -> list[Build]:
    """Return the builds that the variables ask for, the main one first.

    `wanted_source` is the result of `source`; `toolchain` maps the names of `tools` to what those print;
    `architectures` are compute capabilities without their dot; the main build has C(further) ones, of hosts that copy
    it. An equal key means an equal build.
    Raises UserError for what CMake would misread, and for cards that the CUDA toolkit does not compile for.
    """
    if uses_cuda(settings):
        _check_targets(cuda_compat.nvcc_release(toolchain["cuda"]), [str(number) for number in architectures])
    main, *extra = _wanted(settings)
    builds = [_build(build, settings, wanted_source, toolchain, architectures) for build in extra]
    return [_build(main, settings, wanted_source, toolchain, architectures, further), *builds]


def _check_targets(release: str, architectures: t.Sequence[str]) -> None:
    problem = cuda_compat.architecture_problem(release, architectures)
    if problem:
        raise UserError(
            f"{problem}: use another toolkit (role cuda_toolkit, or llama_cpp_cuda_root), or name the cards that are "
            "to be used in llama_cpp_cuda_architectures, such as [86, 89]."
        )


def _wanted(settings: Settings) -> list[dict[str, t.Any]]:
    """Return name, targets, native, backends and cmake_options of each build; the main one is the default."""
    main = {name: settings[name] for name in ("targets", "native", "backends", "cmake_options")} | {"name": MAIN}
    extra = [
        {"native": main["native"], "backends": main["backends"], "cmake_options": {}}
        | {option: value for option, value in build.items() if value is not None}
        for build in settings["extra_builds"]
    ]
    return [main, *extra]


def _build(
    wanted: t.Mapping[str, t.Any],
    settings: Settings,
    wanted_source: t.Mapping[str, t.Any],
    toolchain: t.Mapping[str, str],
    architectures: t.Sequence[str | int],
    further: t.Sequence[str] = (),
) -> Build:
    name, kind = wanted["name"], wanted_source["kind"]
    if not wanted["targets"]:
        raise UserError(
            f"The build {name} of llama.cpp has no targets; name at least one program, such as llama-server."
        )
    for target in wanted["targets"]:
        if not _TARGET.fullmatch(target):
            raise UserError(
                f"The build {name} of llama.cpp has the target {target!r}; name a program, such as llama-server."
            )
    arguments: list[str] = []
    used: dict[str, str] = {}
    if kind != "package":
        arguments = _arguments(wanted, settings, [*architectures, *further])
        needed = ["c", "cxx", *(["cuda"] if "cuda" in wanted["backends"] else [])]
        needed += ["native"] if wanted["native"] else []
        used = summarise_toolchain({tool: toolchain[tool] for tool in needed})
    quick = bool(settings["quick_compile"]) and kind != "package"
    node = web_ui_plan.node_of(settings, wanted["targets"])
    parts = {
        "source": wanted_source,
        "cmake_arguments": arguments,
        "quick_compile": quick_compile.CMAKE if quick else "",
        "web_ui_node": node,
        "targets": sorted(set(wanted["targets"])),
        "toolchain": used,
    }
    numbered = _NUMBERED_TAG.fullmatch(str(wanted_source["version"])) if kind == "git" else None
    return Build({
        "schema": SCHEMA,
        "name": name,
        "key": fingerprints.fingerprint(parts),
        "version": version(wanted_source),
        "build": int(numbered[1]) if numbered else int(wanted_source.get("build") or 0),
        "commit": wanted_source.get("commit"),
        "source": dict(wanted_source),
        "cmake_arguments": arguments,
        "further_architectures": list(further),
        "quick_compile": quick,
        "web_ui_node": node,
        "targets": list(dict.fromkeys(wanted["targets"])),
        "toolchain": used,
    })  # fmt: skip


def _arguments(
    wanted: t.Mapping[str, t.Any], settings: Settings, architectures: t.Sequence[str | int]
) -> list[str]:
    return [f"-D{option}={value}" for option, value in sorted(_options(wanted, settings, architectures).items())]


def _options(wanted: t.Mapping[str, t.Any], settings: Settings, architectures: t.Sequence[str | int]) -> dict[str, str]:
    """Return every CMake option of a build; those that the user gives win."""
    unknown = sorted(set(wanted["backends"]) - set(BACKENDS))
    if unknown:
        raise UserError(f"llama_cpp_backends names {unknown[0]!r}; choose from {', '.join(BACKENDS)}.")
    chosen: dict[str, t.Any] = dict(_ALWAYS, GGML_NATIVE=wanted["native"])
    chosen |= {option: backend in wanted["backends"] for backend, option in _BACKEND_OPTIONS.items()}
    if "cuda" in wanted["backends"]:
        chosen |= _cuda_options(settings, [str(architecture) for architecture in architectures])
    for option, value in wanted["cmake_options"].items():
        if not _OPTION.fullmatch(option):
            raise UserError(f"{option!r} is no name of a CMake option; write it without -D, such as GGML_CUDA_GRAPHS.")
        if option in _FROM_SOURCE:
            raise UserError(f"The CMake option {option} is set from the source; remove it from the options.")
        chosen[option] = value
    return {option: _value(option, value) for option, value in chosen.items()}


def _cuda_options(settings: Settings, architectures: t.Sequence[str]) -> dict[str, t.Any]:
    if not architectures:
        raise UserError(
            "The backend cuda needs a compute capability; set llama_cpp_cuda_architectures, such as [86, 89]."
        )
    for architecture in architectures:
        if not _ARCHITECTURE.fullmatch(architecture):
            raise UserError(
                f"{architecture!r} in llama_cpp_cuda_architectures is no CUDA architecture; write a compute capability "
                "without its dot, such as 89."
            )
    root, nccl = settings["cuda_root"].rstrip("/"), settings["nccl_root"]
    return {
        "CUDAToolkit_ROOT": root,
        "CMAKE_CUDA_COMPILER": f"{root}/bin/nvcc",
        "CMAKE_CUDA_ARCHITECTURES": ";".join(architectures),
        # CMake leaves out what nvcc itself searches; without it neither ld nor the programs find a toolkit of wheels
        "CMAKE_INSTALL_RPATH": f"$ORIGIN;{root}/lib64;{root}/lib",
        # said, not found: NCCL that comes or goes must change the key, and CMake takes whatever it comes across
        "GGML_CUDA_NCCL": bool(nccl),
        **({"NCCL_ROOT": nccl} if nccl else {}),
    }


def _value(option: str, value: t.Any) -> str:
    if isinstance(value, bool):
        return "ON" if value else "OFF"
    if isinstance(value, (str, int, float)) and "\n" not in str(value):
        return str(value)
    raise UserError(f"The CMake option {option} has the value {value!r}; give it text, a number or a boolean.")


def version(wanted_source: t.Mapping[str, t.Any]) -> str:
    """Return the first half of the directory's name: what a person calls this source."""
    kind = wanted_source["kind"]
    if kind == "git":
        version = str(wanted_source["version"])
        return version[:9] if is_commit(version) else re.sub(r"[^A-Za-z0-9._+-]", "-", version)
    if kind == "package":
        return "package"
    return f"b{wanted_source['build']}" if wanted_source["build"] else f"archive-{wanted_source['sha256'][:9]}"
