# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes a release of ExLlama on a host, and removes old ones. Private to this collection.

It acts on behalf of the module exllama_release, under the lock of the job. A release is PREFIX/DIRECTORY: `tabbyapi`
(a checkout at exactly the commit), `venv` (PyTorch, the engine, its extension), `build.json`, `build.log`. An
environment cannot be moved, so it is made in its place; build.json is written last and says that the release is
complete and was tried. What an interrupted run finished is not done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import typing as t

from .._base import job, json_file, json_state, sandboxed_run, unit_sandbox
from .._base.errors import UserError
from . import release_plan

#: PyTorch with NVIDIA's libraries takes 5 GB, its packages before they are unpacked 2.5 GB, the objects of the
#: extension less than 1 GB.
DISK_MIB: t.Final = 9216
#: What one nvcc needs at most, for two architectures.
_COMPILER_MIB: t.Final = 2500
FORM: t.Final = json_state.Form(release_plan.SCHEMA, "run the role exllamav2 again: it completes that release")
#: PyTorch and the engine are imported by then, also from a slow disk.
_ASK_SECONDS: t.Final = 600
_NINJA = re.compile(r"^\[(\d+/\d+)\] .*?([\w.+-]+\.(?:o|so))\b")
_DIRECTORY = re.compile(r".+-[0-9a-f]{12}")

# Imports in the finished environment what the server will import, and prints what was found.
_TRY = """
import importlib, json, sys
package, module = sys.argv[1:]
names = {name: importlib.import_module(name) for name in (package, module)}
torch = sys.modules.get("torch")
print(json.dumps({"module": names[module].__file__, "torch_cuda": torch.version.cuda if torch else None}))
"""
# Prints where packages are installed, and where NVIDIA's are.
_WHERE = """
import importlib.util, json, sysconfig
found = importlib.util.find_spec("nvidia")
print(json.dumps([sysconfig.get_path("purelib"), list(found.submodule_search_locations) if found else []]))
"""
# Lets the engine compile its own extension now instead of at its first import. The engine knows its sources and flags;
# PyTorch compiles them below TORCH_EXTENSIONS_DIR for TORCH_CUDA_ARCH_LIST, and is told to print its progress.
_COMPILE = """
import importlib, os, pathlib, sys
# PyTorch waits for ever for a run that was killed and left its lock; our lock says that there is none
for left in pathlib.Path(os.environ["TORCH_EXTENSIONS_DIR"]).rglob("lock"):
    left.unlink()
from torch.utils import cpp_extension
load = cpp_extension.load
cpp_extension.load = lambda *args, **options: load(*args, **{**options, "verbose": True})
importlib.import_module(f"{sys.argv[1]}.ext")
"""


def check_disk(prefix: pathlib.Path) -> None:
    """Raise UserError when the disk is too small for a release."""
    free = job.free_mib(prefix)
    if free < DISK_MIB:
        raise UserError(
            f"the file system of {prefix} has {free} MiB free, and making a release of ExLlama with PyTorch needs "
            f"{DISK_MIB} MiB: free {DISK_MIB - free} MiB there, or set exllamav2_root to another file system."
        )


def make(record: release_plan.Record, settings: release_plan.Settings, shell: job.Shell) -> None:
    """Make a release. Raises UserError, and leaves the release without build.json then."""
    release = pathlib.Path(settings["prefix"]) / release_plan.directory(record)
    release.mkdir(mode=0o755, exist_ok=True)
    mark = shell.log.size_bytes()
    _checkout(record["server"]["url"], record["server"]["commit"], release / "tabbyapi", shell)
    _environment(record, settings, release / "venv", shell)
    if record["build_extension"]:
        compile_extension(record, settings, release / "venv", shell)
    shell.log.write("importing engine and extension")
    found = try_import(record, release / "venv")
    for rest in (".objects", ".links"):
        shutil.rmtree(release / rest, ignore_errors=True)
    shell.log.write(f"{release} is complete")
    shell.log.copy_from(mark, release / "build.log")
    os.sync()
    json_file.write_text(str(release / "build.json"), json_file.to_text(record | {"found": found}), 0o644, os.replace)


def try_import(record: t.Mapping[str, t.Any], venv: pathlib.Path) -> dict[str, t.Any]:
    """Import engine and extension as the server will; return where the extension is, and PyTorch's CUDA."""
    code = [_TRY, record["package"], record["module"]]
    done = _ask(venv, code, {"TORCH_EXTENSIONS_DIR": "/nonexistent", "CUDA_HOME": "/nonexistent"})
    if done.rc:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.rc}"])[-1][:300]
        hint = "" if record["build_extension"] else ", or set exllamav2_build_extension to true"
        raise UserError(
            f"{record['package']} and {record['module']} of {venv} cannot be imported ({reason}): correct "
            f"exllamav2_requirements_file{hint}, or remove {venv.parent}, and run the role exllamav2 again."
        )
    return dict(json_file.from_text(done.stdout.strip().splitlines()[-1]))


def _ask(venv: pathlib.Path, code: t.Sequence[str], env: t.Mapping[str, str]) -> sandboxed_run.Ended:
    """Run Python code, with its arguments, in the environment, in the sandbox of the server. Raises UserError."""
    python = venv / "bin/python"
    if not python.exists():
        raise UserError(f"{venv} does not work (there is no {python}): remove {venv.parent} and run the role again.")
    box = sandboxed_run.Sandbox(engine="exllama", device_nodes=unit_sandbox.nodes(["CUDA"]))
    return sandboxed_run.run([str(python), "-c", *code], box, env, _ASK_SECONDS)


def _checkout(url: str, commit: str, tree: pathlib.Path, shell: job.Shell) -> None:
    """Put a checkout of exactly `commit` at `tree`, unless it is there."""
    if (tree / ".git").is_dir() and _head(tree) == commit:
        # what somebody changed in the checkout is not what was pinned
        git = ["git", "-C", str(tree), "reset", "--quiet", "--hard", commit]
        shell.run(git, "checking the server's files", f"remove {tree}")
        return
    shutil.rmtree(tree, ignore_errors=True)
    quiet = {"GIT_TERMINAL_PROMPT": "0"}
    cure = "correct exllamav2_server_git_url or exllamav2_server_commit, and check the host's network"
    what = f"fetching commit {commit[:12]} of {url}"
    shell.run(["git", "init", "--quiet", str(tree)], what, cure)
    git = ["git", "-C", str(tree), "-c", "advice.detachedHead=false"]
    try:
        shell.run([*git, "fetch", "--quiet", "--no-tags", "--depth", "1", "--", url, commit], what, cure, quiet)
    except UserError:
        # a server may hand out branches only; then the commit is in one of them, or nowhere
        shell.log.write(f"{url} does not hand out a single commit; fetching its branches")
        branches = "+refs/heads/*:refs/remotes/origin/*"
        shell.run([*git, "fetch", "--quiet", "--no-tags", "--", url, branches], what, cure, quiet)
    shell.run([*git, "checkout", "--quiet", "--detach", commit], what, cure, quiet)
    if not (tree / "main.py").is_file():
        raise UserError(f"commit {commit[:12]} of {url} holds no main.py, so it is not TabbyAPI: {cure}.")


def _head(tree: pathlib.Path) -> str:
    done = subprocess.run(["git", "-C", str(tree), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _environment(
    record: t.Mapping[str, t.Any], settings: release_plan.Settings, venv: pathlib.Path, shell: job.Shell
) -> None:
    """Make the virtual environment and install the pinned packages, unless that was finished."""
    stamp, requirements = venv / "mixed_gpu_stamp", settings["requirements"]
    wanted = hashlib.sha256(requirements.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    what = f"making the environment for {record['package']} {record['version']}"
    shell.run([settings["python"], "-m", "venv", "--clear", str(venv)], what, "install python3-venv")
    listed = venv / "requirements.txt"
    listed.write_text(requirements, encoding="utf-8")
    pip = [
        str(venv / "bin/python"), "-m", "pip", "install", "--require-hashes", "--no-deps", "--only-binary=:all:",
        "--no-input", "--disable-pip-version-check", "--progress-bar=off", "--requirement", str(listed),
    ]  # fmt: skip
    shell.run(
        pip, "installing the pinned packages (PyTorch and NVIDIA's libraries are some GB)",
        "check the host's network, its disk, and its settings for pip", {"PIP_CACHE_DIR": settings["pip_cache_dir"]},
    )  # fmt: skip
    os.sync()
    json_file.write_text(str(stamp), wanted, 0o644, os.replace)


def _short(line: str) -> str:
    """Return ninja's lines, which are whole commands of some thousand characters, as the counter and the file."""
    found = _NINJA.match(line)
    return f"compiling [{found[1]}] {found[2]}" if found else line


def compile_extension(
    record: t.Mapping[str, t.Any], settings: release_plan.Settings, venv: pathlib.Path, shell: job.Shell
) -> None:
    """Compile the engine's extension into the environment, for exactly the architectures of the record.

    Of the settings it reads `cuda_root`, `jobs` and `ccache_dir`.
    """
    module, python = record["module"], str(venv / "bin/python")
    asked = _ask(venv, [_WHERE], {})
    if asked.rc:
        raise UserError(f"{venv} does not work ({asked.stderr.strip()[-300:]}): remove {venv.parent} and run the role.")
    packages, libraries = json_file.from_text(asked.stdout)
    target, objects = pathlib.Path(packages) / f"{module}.so", venv.parent / ".objects"
    if not target.is_relative_to(venv):
        raise UserError(f"{venv} installs packages into {packages}: remove {venv.parent} and run the role again.")
    if target.exists():
        return
    pathlib.Path(settings["ccache_dir"]).mkdir(mode=0o755, parents=True, exist_ok=True)
    objects.mkdir(exist_ok=True)
    what = f"compiling {module} for {record['arch_list']}"
    cure = (
        "see in the role's README which combination is known to work; this is PyTorch "
        f"{record['torch']} and nvcc {record['nvcc']}"
    )
    env = _compiler_environment(record, settings, venv, objects, libraries)
    box = sandboxed_run.Build((str(objects), settings["ccache_dir"]))
    shell.run([python, "-c", _COMPILE, record["package"]], what, cure, env, _short, box)
    built = [path for path in objects.rglob(f"{module}.so") if path.is_file() and not path.is_symlink()]
    if len(built) != 1:
        raise UserError(
            f"{what} made {len(built)} files {module}.so below {objects}; remove that directory and run the play again."
        )
    code = built[0].read_bytes()
    lacking = [text for text in record["arch_list"].split(";") if f"sm_{text.replace('.', '')}".encode() not in code]
    if lacking:
        raise UserError(f"{what} made no code for {', '.join(lacking)}: {cure}.")
    part = target.with_suffix(".part")
    shutil.copyfile(built[0], part)
    part.chmod(0o755)
    os.sync()
    os.replace(part, target)


def _compiler_environment(
    record: t.Mapping[str, t.Any],
    settings: release_plan.Settings,
    venv: pathlib.Path,
    objects: pathlib.Path,
    libraries: t.Sequence[str],
) -> dict[str, str]:
    """Return the variables under which PyTorch finds the compilers, headers and libraries."""
    root = settings["cuda_root"]
    nvcc = f"{root}/bin/nvcc"
    # NVIDIA's packages have libraries with a version only, and a linker looks for those without
    links = venv.parent / ".links"
    links.mkdir(exist_ok=True)
    for runtime in [path for place in libraries for path in pathlib.Path(place).glob("*/lib/libcudart.so.*")]:
        (links / "libcudart.so").unlink(missing_ok=True)
        (links / "libcudart.so").symlink_to(runtime)
    return {
        "CUDA_HOME": root,
        # the toolkit out of wheels lacks headers that PyTorch includes (cusparse, cusolver); its own packages have them
        "CPATH": ":".join(str(path) for place in libraries for path in sorted(pathlib.Path(place).glob("*/include"))),
        "LIBRARY_PATH": str(links),
        "MAX_JOBS": str(job.compilers(settings["jobs"], _COMPILER_MIB)),
        "PYTORCH_NVCC": f"ccache {nvcc}" if shutil.which("ccache") else nvcc,
        "PATH": f"{venv}/bin:/usr/lib/ccache:{root}/bin:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "CCACHE_DIR": settings["ccache_dir"],
        "CCACHE_BASEDIR": str(venv.parent),
        "CCACHE_NOHASHDIR": "1",
        "TORCH_CUDA_ARCH_LIST": record["arch_list"],
        "TORCH_EXTENSIONS_DIR": str(objects),
        "PYTHONUNBUFFERED": "1",
    }


def running(prefix: pathlib.Path) -> set[str]:
    """Return the names of the releases that command lines of running processes name."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process ended
            words = path.read_bytes().split(b"\0")
            parents = [parent for word in words for parent in pathlib.Path(os.fsdecode(word)).parents]
            found |= {parent.name for parent in parents if parent.parent == prefix}
    return found


def superfluous(prefix: pathlib.Path, keep_releases: int, in_use: str, previous: str) -> list[pathlib.Path]:
    """Return the old and unfinished releases to remove once the release `in_use` is in use.

    `keep_releases` remain: the one in use, the one before (`previous`), then the newest; and whatever a process still
    runs from, such as a server that was not restarted yet.
    """
    found = prefix.iterdir() if prefix.is_dir() else ()
    others = [path for path in found if path.is_dir() and not path.is_symlink() and path.name != in_use]
    others = [path for path in others if _DIRECTORY.fullmatch(path.name)]
    complete = [path for path in others if (path / "build.json").is_file()]
    complete.sort(key=lambda path: (path.name == previous, (path / "build.json").stat().st_mtime), reverse=True)
    old = complete[max(keep_releases - 1, 0) :] + [path for path in others if path not in complete]
    needed = running(prefix)
    return [path for path in old if path.name not in needed]


def prune(prefix: pathlib.Path, keep_releases: int, previous: str) -> list[str]:
    """Remove superfluous releases; return their names."""
    removed = superfluous(prefix, keep_releases, os.path.basename(os.path.realpath(prefix / "current")), previous)
    for path in removed:
        # without build.json it is unfinished, whatever becomes of the rest
        (path / "build.json").unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    return sorted(path.name for path in removed)
