# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What one build of llama.cpp consists of, and its key. Private to this collection. Pure functions only."""

from __future__ import annotations

import hashlib
import re
import typing as t

from .._base import fingerprints
from .._base.errors import UserError

SCHEMA = 1
SOURCES = ("sdist", "git", "archive", "package")
BACKENDS = ("cpu", "cuda", "rpc", "vulkan")

# No test, example or web page is built, and nothing may be fetched while building.
# $ORIGIN: the programs find their libraries beside themselves, wherever the directory is moved to. It is the install
# RPATH, because CMake's build RPATH ends with an empty entry, which would mean the current directory.
_ALWAYS: dict[str, t.Any] = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_BUILD_WITH_INSTALL_RPATH": True,
    "CMAKE_INSTALL_RPATH": "$ORIGIN",
    "CMAKE_INSTALL_RPATH_USE_LINK_PATH": True,
    "FETCHCONTENT_FULLY_DISCONNECTED": True,
    "GGML_CCACHE": True,
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

_NAME = re.compile(r"[a-z][a-z0-9_-]*\Z")
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*\Z")
_ARCHITECTURE = re.compile(r"[0-9]{2,3}[af]?(?:-real|-virtual)?\Z")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_NUMBERED_TAG = re.compile(r"b([0-9]+)\Z")


class BuildError(ValueError):
    """A build that cannot be planned; the message names what is wrong and what to write instead."""


def _value(option: str, value: t.Any) -> str:
    if isinstance(value, bool):
        return "ON" if value else "OFF"
    if isinstance(value, (str, int, float)):
        text = str(value)
        if "\n" not in text:
            return text
    raise BuildError(f"the CMake option {option} has the value {value!r}; give it text, a number or a boolean")


def _version(source: t.Mapping[str, t.Any]) -> str:
    """Return the first half of the directory's name: what a person calls this source."""
    kind = source["kind"]
    if kind == "git":
        version = str(source["version"])
        return version[:9] if _COMMIT.match(version) else re.sub(r"[^A-Za-z0-9._+-]", "-", version)
    if kind == "package":
        return "package"
    return f"b{source['build']}" if source["build"] else f"archive-{source['sha256'][:9]}"


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


def options(
    backends: t.Sequence[str],
    native: bool,
    cuda_root: str,
    cuda_architectures: t.Sequence[str | int],
    extra: t.Mapping[str, t.Any],
) -> dict[str, str]:
    """Return every CMake option of a build, `extra` last. Raises BuildError for what CMake would misread."""
    unknown = sorted(set(backends) - set(BACKENDS))
    if unknown:
        raise BuildError(f"the backend {unknown[0]} is unknown; choose from {', '.join(BACKENDS)}")
    chosen: dict[str, t.Any] = dict(_ALWAYS, GGML_NATIVE=native)
    for backend, option in _BACKEND_OPTIONS.items():
        chosen[option] = backend in backends
    if "cuda" in backends:
        architectures = [str(architecture) for architecture in cuda_architectures]
        if not architectures:
            raise BuildError("the backend cuda needs at least one compute capability, such as 86 or 89")
        for architecture in architectures:
            if not _ARCHITECTURE.match(architecture):
                raise BuildError(
                    f"{architecture!r} is no CUDA architecture; write a compute capability without its dot, such as 89"
                )
        root = cuda_root.rstrip("/")
        chosen["CUDAToolkit_ROOT"] = root
        chosen["CMAKE_CUDA_COMPILER"] = f"{root}/bin/nvcc"
        chosen["CMAKE_CUDA_ARCHITECTURES"] = ";".join(architectures)
        # CMake leaves out what nvcc itself searches; without it neither ld nor the programs find a toolkit of wheels
        chosen["CMAKE_INSTALL_RPATH"] = f"$ORIGIN;{root}/lib64;{root}/lib"
    for option, value in extra.items():
        if not _OPTION.match(option):
            raise BuildError(f"{option!r} is no name of a CMake option; write it without -D, such as GGML_CUDA_GRAPHS")
        if option in _FROM_SOURCE:
            raise BuildError(f"the CMake option {option} is set from the source; remove it from the options")
        chosen[option] = value
    return {option: _value(option, value) for option, value in chosen.items()}


def _check(name: str, source: t.Mapping[str, t.Any], targets: t.Sequence[str]) -> None:
    """Raise BuildError for a name, a source or a target that cannot be built."""
    if not _NAME.match(name) or name == "current":
        raise BuildError(f"{name!r} cannot name a build; use lower case letters, digits, - and _, and not current")
    if not targets:
        raise BuildError(f"the build {name} has no targets; name at least one program, such as llama-server")
    for target in targets:
        if not _TARGET.match(target):
            raise BuildError(f"{target!r} cannot be a target of the build {name}; name a program, such as llama-server")
    if source["kind"] not in SOURCES:
        raise BuildError(f"the source {source['kind']!r} is unknown; choose from {', '.join(SOURCES)}")
    if source["kind"] == "git" and not re.match(r"[A-Za-z0-9][A-Za-z0-9._/+-]*\Z", str(source["version"])):
        raise BuildError(f"{source['version']!r} is no git tag or commit; give a full commit, or a tag such as b11312")


def plan(
    name: str,
    source: t.Mapping[str, t.Any],
    backends: t.Sequence[str],
    native: bool,
    cuda_root: str,
    cuda_architectures: t.Sequence[str | int],
    cmake_options: t.Mapping[str, t.Any],
    targets: t.Sequence[str],
    toolchain: t.Mapping[str, str],
) -> dict[str, t.Any]:
    """Return one build as {name, key, directory, cmake_arguments, record}.

    `source` is {kind: sdist|git|archive|package, ...} with `sha256`, `build` (number) and `commit` for a sdist or an
    archive, `url` and `version` for git, and `version` for packages. `toolchain` maps c, cxx, cuda and native to what
    the tools print; native is the macros for this CPU. The key is the SHA-256 of all that changes the result,
    so an equal key means an equal build. `record` is what build.json says, but for `built_at`, and with `build` and
    `commit` unknown (0, null) where only the source itself tells.
    Raises BuildError.
    """
    _check(name, source, targets)
    arguments: list[str] = []
    tools: dict[str, str] = {}
    if source["kind"] != "package":
        flags = options(backends, native, cuda_root, cuda_architectures, cmake_options)
        arguments = [f"-D{option}={value}" for option, value in sorted(flags.items())]
        wanted = ["c", "cxx", *(["cuda"] if "cuda" in backends else []), *(["native"] if native else [])]
        tools = summarise_toolchain({tool: toolchain[tool] for tool in wanted})
    parts = {"source": source, "cmake_arguments": arguments, "targets": sorted(set(targets)), "toolchain": tools}
    try:
        key = fingerprints.fingerprint(parts)
    except UserError as exc:
        raise BuildError(str(exc)) from exc
    build = int(source.get("build") or 0)
    numbered = _NUMBERED_TAG.match(str(source["version"])) if source["kind"] == "git" else None
    if numbered:
        build = int(numbered.group(1))
    record = {
        "schema": SCHEMA,
        "name": name,
        "key": key,
        "version": _version(source),
        "build": build,
        "commit": source.get("commit"),
        "source": dict(source),
        "cmake_arguments": arguments,
        "targets": list(dict.fromkeys(targets)),
        "toolchain": tools,
    }
    return {
        "name": name,
        "key": key,
        "directory": f"{record['version']}-{key[:12]}",
        "cmake_arguments": arguments,
        "record": record,
    }
