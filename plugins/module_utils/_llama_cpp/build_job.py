# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Builds llama.cpp on a host and publishes the result. Private to this collection.

It acts on behalf of the module llama_cpp_build, under the lock of the job. A build appears under its final name only
when complete and tried; a build that was interrupted continues where it was.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import typing as t

from .._base import job, json_file, sandboxed_run
from .._base.errors import UserError
from . import (
    build_archive,
    build_fetch,
    build_plan,
    build_source,
    build_state,
    quick_compile,
    web_ui_build,
    web_ui_plan,
)

_DISK_MIB: t.Final = 3072
_DOWNLOAD_MIB: t.Final = 200
_MEMORY_MIB: t.Final = 1500
_COMPILER_MIB: t.Final = {True: 3000, False: 1500}  # nvcc, or the C++ compiler alone
# where distributions put programs that are not in PATH
_HIDDEN_PROGRAM_DIRS = ("usr/libexec/*/llama/bin", "usr/lib/*/llama/bin", "usr/libexec/llama.cpp", "usr/lib/llama.cpp")


def check_resources(settings: build_plan.Settings) -> None:
    """Raise UserError when the disk or the memory is too small for compiling."""
    if settings["source"] == "package":
        return
    disk_mib = _DISK_MIB + (web_ui_plan.DISK_MIB if web_ui_plan.node_of(settings, settings["targets"]) else 0)
    for name, wanted in (("prefix", disk_mib), ("download_dir", _DOWNLOAD_MIB)):
        free = job.free_mib(pathlib.Path(settings[name]))
        if free < wanted:
            raise UserError(
                f"the file system of {settings[name]} has {free} MiB free and a build of llama.cpp needs {wanted} MiB; "
                f"free {wanted - free} MiB there, or set llama_cpp_{name} to another directory."
            )
    available = job.available_memory_mib()
    if available < _MEMORY_MIB:
        raise UserError(
            f"{available} MiB of memory are available and compiling llama.cpp needs {_MEMORY_MIB} MiB; "
            "stop what uses the memory, or add memory or swap."
        )


def build(
    planned: build_plan.Build,
    settings: build_plan.Settings,
    shell: job.Shell,
    open_: build_fetch.Open,
) -> None:
    """Build and publish one build. Raises UserError, and publishes nothing then."""
    prefix, record = pathlib.Path(settings["prefix"]), dict(planned.record)
    mark, stage = shell.log.size_bytes(), prefix / ".work" / f"stage-{planned.directory}"
    shutil.rmtree(stage, ignore_errors=True)
    if record["source"]["kind"] == "package":
        _link_packages(record, stage / "bin", shell.log)
        _try_programs(stage / "bin", record["targets"], shell.log)
        made = None
    else:
        check_resources(settings)
        tree = build_source.tree(settings, record["source"], shell, open_)
        record["commit"] = build_source.commit(record["source"], tree)
        record["rpc_protocol"] = build_source.rpc_protocol(tree)
        if record["web_ui_node"]:
            web_ui_build.place(tree, pathlib.Path(settings["download_dir"]), shell, open_)
        else:
            web_ui_build.remove(tree)
        made = _compile(planned.directory, record, settings, tree, shell)
        job.copy_programs(made / "bin", stage / "bin")
        _try_without(made, stage / "bin", record["targets"], shell.log)
    if not record["build"]:
        answers = [build_state.say_version(stage / "bin" / target) for target in record["targets"]]
        record["build"], commit = next((answer for answer in answers if answer[0]), (0, None))
        record["commit"] = record["commit"] or commit
    final = prefix / planned.directory
    shell.log.write(f"publishing {final}")
    shell.log.copy_from(mark, stage / "build.log")
    _publish(stage, final, record | {"built_at": json_file.utc_now()})
    if made:
        shutil.rmtree(made, ignore_errors=True)


def _compile(
    directory: str,
    record: t.Mapping[str, t.Any],
    settings: build_plan.Settings,
    tree: pathlib.Path,
    shell: job.Shell,
) -> pathlib.Path:
    """Configure and compile in a sandbox; return CMake's build directory, whose bin/ has the programs."""
    build_dir, cache = tree.parent / f"build-{directory}", pathlib.Path(settings["ccache_dir"])
    box = sandboxed_run.Build((str(build_dir), str(cache)))
    env = {
        "CCACHE_DIR": str(cache),
        "CCACHE_BASEDIR": str(tree.parent),
        "CCACHE_NOHASHDIR": "1",
        "CCACHE_SLOPPINESS": "pch_defines,time_macros",
        "NINJA_STATUS": "[%f/%t %p] ",
    }
    if "native" in record["toolchain"]:
        # ccache hashes the words -march=native and not what they mean here; a cache that moves to, or is shared with,
        # another CPU would hand out code that does not run
        env["CCACHE_NAMESPACE"] = record["toolchain"]["native"][:12]
    for folder in (build_dir, cache):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    unboxed = "systemd does not run here: building without a sandbox"
    shell.log.write("building in a sandbox without a network" if sandboxed_run.booted() else unboxed)
    arguments = [
        *record["cmake_arguments"],
        f"-DLLAMA_BUILD_NUMBER={record['build']}",
        f"-DLLAMA_BUILD_COMMIT={record['commit'] or 'unknown'}",
    ]
    if record["quick_compile"]:
        included = tree.parent / quick_compile.FILE
        included.write_text(quick_compile.CMAKE, encoding="utf-8")
        arguments.append(f"-DCMAKE_PROJECT_INCLUDE={included}")
    what = f"llama.cpp {record['version']} ({record['name']})"
    cmake = ["cmake", "-S", str(tree), "-B", str(build_dir), "-G", "Ninja", *arguments]
    try:
        shell.run(cmake, f"configuring {what}", env=env, box=box)
    except UserError:
        # what a failed configuration leaves behind can make the next one fail too
        shutil.rmtree(build_dir, ignore_errors=True)
        raise
    jobs = job.compilers(settings["jobs"], _COMPILER_MIB["cuda" in record["toolchain"]])
    shell.log.write(f"targets: {', '.join(record['targets'])}; {jobs} compilers at a time")
    ninja = ["ninja", "-C", str(build_dir), f"-j{jobs}", *record["targets"]]
    shell.run(ninja, f"compiling {what}", env=env, box=box)
    return build_dir


def receive(
    offered: t.Mapping[str, t.Any], archive: pathlib.Path, sha256: str, prefix: pathlib.Path, log: job.Log
) -> None:
    """Publish the build of another host from its archive, once its programs run here.

    Raises UserError, and publishes nothing then, also where the archive is not the build that was offered.
    """
    final = prefix / build_plan.directory(offered)
    stage = prefix / ".work" / f"stage-{final.name}"
    log.write(f"unpacking {archive}")
    build_archive.unpack(archive, sha256, stage)
    if build_state.parse(stage / "build.json") != offered:
        raise UserError(f"{archive} holds another build than the offered one: run the play again.")
    cure = "; build it on this host, with llama_cpp_copy: false"
    _try_programs(stage / "bin", offered["targets"], log, cure)
    log.write(f"publishing {final}")
    _publish(stage, final, offered)


def _link_packages(record: t.Mapping[str, t.Any], stage: pathlib.Path, log: job.Log) -> None:
    """Fill the stage with links to the programs that packages installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/bin", "/usr/bin", "/usr/sbin"])
    stage.mkdir(parents=True)
    for target in record["targets"]:
        hidden = [f for place in _HIDDEN_PROGRAM_DIRS for f in sorted(pathlib.Path("/").glob(f"{place}/{target}"))]
        program = shutil.which(target, path=path) or next((str(f) for f in hidden if os.access(f, os.X_OK)), None)
        if program is None:
            raise UserError(
                f"no installed package has the program {target}; add its package to llama_cpp_packages, "
                "or remove it from llama_cpp_targets."
            )
        (stage / target).symlink_to(os.path.realpath(program))
        log.write(f"{target} is {program}")


def _try_programs(stage: pathlib.Path, targets: t.Sequence[str], log: job.Log, cure: str = "") -> None:
    """Run every program once from where it is. Raises UserError with what the loader said, and the cure."""
    for target in targets:
        if not (stage / target).exists():
            raise UserError(f"the target {target} made no program {target}; correct llama_cpp_targets.")
        reason, _text = build_state.ask_help(stage / target)
        if reason:
            raise UserError(f"{target} was built but does not run: {reason}{cure}.")
        log.write(f"{target} runs")


def _try_without(made: pathlib.Path, stage: pathlib.Path, targets: t.Sequence[str], log: job.Log) -> None:
    """Try the programs while the build directory, which they must not need, is out of the way."""
    hidden = made.with_name(f"{made.name}.hidden")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(made, hidden)
    try:
        _try_programs(stage, targets, log)
    finally:
        os.rename(hidden, made)


def _publish(stage: pathlib.Path, final: pathlib.Path, record: t.Mapping[str, t.Any]) -> None:
    """Make a complete build appear under its name."""
    (stage / "build.json").write_text(json_file.to_text(record), encoding="utf-8")
    for path in (stage, stage / "bin"):
        path.chmod(0o755)
    for name in ("build.log", "build.json"):
        (stage / name).chmod(0o644)
    os.sync()
    # a directory without build.json was damaged: nothing incomplete is ever put there
    damaged = final.with_name(f".old-{final.name}-{os.getpid()}")
    if final.exists():
        os.rename(final, damaged)
    os.rename(stage, final)
    json_file.sync_directory(str(final.parent))
    shutil.rmtree(damaged, ignore_errors=True)
