# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The verified source tree of a build of llama.cpp. Private to this collection.

It fetches and unpacks on the host, on behalf of the module llama_cpp_build.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import typing as t

from .._base import job
from .._base.errors import UserError
from . import build_fetch, build_plan

Source = t.Mapping[str, t.Any]


#: Names of the archives of download_dir.
ARCHIVE: t.Final = re.compile(r"llama_cpp_python-[^/]+\.tar\.gz|llama\.cpp-[0-9a-f]{12}\.tar")
_PROTOCOL: t.Final = re.compile(r"^#define\s+RPC_PROTO_(MAJOR|MINOR)_VERSION\s+([0-9]+)", re.MULTILINE)
_GIT_CURE: t.Final = (
    "correct llama_cpp_git_url, or set llama_cpp_git_version to a full commit or a tag (a branch moves)"
)


def tree(settings: build_plan.Settings, source: Source, shell: job.Shell, open_: build_fetch.Open) -> pathlib.Path:
    """Return the directory of the unpacked source, fetched unless it is there."""
    work = pathlib.Path(settings["prefix"]) / ".work"
    identity = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:12]
    # Source and builds lie side by side under names that do not tell versions apart: ccache then finds the files that
    # two versions have in common.
    found = work / f"tree-{identity}" / "source"
    if _is_tree(found):
        return found
    shutil.rmtree(found, ignore_errors=True)
    found.parent.mkdir(parents=True, exist_ok=True)
    if source["kind"] == "git":
        _clone(source, found, shell)
    else:
        archive = pathlib.Path(settings["download_dir"]) / (archive_name(source) or "")
        if source["kind"] == "sdist":
            build_fetch.from_index(_sdist(source), work, archive, shell.log, open_)
        elif not build_fetch.cached(archive, source["sha256"], shell.log):
            url, cure = settings["archive_url"], "correct llama_cpp_archive_sha256"
            build_fetch.fetch(url, source["sha256"], cure, work, archive, shell.log, open_)
        _unpack(archive, found, shell)
    return found


def check_offered(settings: build_plan.Settings, source: Source, log: job.Log, open_: build_fetch.Open) -> None:
    """Raise UserError for a source that cannot be had, before anything is measured or built for it.

    Of a commit git has to fetch its name, of the rest the index or the address is asked. Hashes are checked later.
    """
    name = archive_name(source)
    if name and (pathlib.Path(settings["download_dir"]) / name).is_file():
        return
    if source["kind"] == "git" and shutil.which("git"):
        _check_git(source)
    elif source["kind"] == "archive":
        open_(settings["archive_url"], {}).body.close()
    elif source["kind"] == "sdist":
        next(build_fetch.offers(_sdist(source), log, open_, []))


def _check_git(source: Source) -> None:
    url, version = source["url"], source["version"]
    with tempfile.TemporaryDirectory() as place:
        git = ["git", "-C", place]
        command = [*git, "ls-remote", "--quiet", "--exit-code", "--", url, _wanted(version)]
        if build_plan.is_commit(version):
            subprocess.run([*git, "init", "--quiet"], capture_output=True, check=False)
            command = [*git, "fetch", "--quiet", "--no-tags", "--depth", "1", "--filter=tree:0", "--", url, version]
        variables = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        asked = subprocess.run(command, capture_output=True, text=True, errors="replace", env=variables, check=False)
    if asked.returncode != 0:
        said = (asked.stderr.strip().splitlines() or ["it has no such tag"])[-1]
        raise UserError(f"{version} cannot be had from {url} ({said}): {_GIT_CURE}.")


def _wanted(version: str) -> str:
    """Return what git is asked for: a commit or a tag, never a branch."""
    return version if build_plan.is_commit(version) else f"refs/tags/{version.removeprefix('refs/tags/')}"


def archive_name(source: Source) -> str | None:
    """Return the name of a source's archive in download_dir, or None for a source without one."""
    if source["kind"] == "sdist":
        return f"llama_cpp_python-{source['version']}.tar.gz"
    return f"llama.cpp-{source['sha256'][:12]}.tar" if source["kind"] == "archive" else None


def commit(source: Source, found: pathlib.Path) -> str | None:
    """Return the commit of a source tree, in nine digits where git has to be asked."""
    if source["kind"] != "git":
        return t.cast("str | None", source["commit"])
    head = subprocess.run(["git", "-C", str(found), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        raise UserError(f"git does not know which commit {found} is; remove {found.parent} and run the play again.")
    return head.stdout.strip()[:9]


def rpc_protocol(found: pathlib.Path) -> str:
    """Return the version of the RPC protocol, as C(major.minor), that a source tree has; empty where it says none."""
    header = found / "ggml/include/ggml-rpc.h"
    text = header.read_text(encoding="utf-8", errors="replace") if header.is_file() else ""
    numbers = dict(_PROTOCOL.findall(text))
    return f"{numbers['MAJOR']}.{numbers['MINOR']}" if {"MAJOR", "MINOR"} <= set(numbers) else ""


def _is_tree(path: pathlib.Path) -> bool:
    return (path / "CMakeLists.txt").is_file() and (path / "ggml").is_dir() and (path / "tools").is_dir()


def _sdist(source: Source) -> build_fetch.Wanted:
    return build_fetch.Wanted(
        "the source", "llama-cpp-python", archive_name(source) or "", source["sha256"],
        "correct llama_cpp_sdist_sha256",
        "correct llama_cpp_sdist_version, pip's index-url on this host, or the network",
    )  # fmt: skip


def _unpack(archive: pathlib.Path, found: pathlib.Path, shell: job.Shell) -> None:
    """Put the llama.cpp tree inside an archive at `found`, in one step."""
    part = found.with_name(found.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    argv = ["tar", "-x", "-f", str(archive), "-C", str(part), "--no-same-owner", "--no-same-permissions"]
    shell.run(argv, f"unpacking {archive}")
    tops = [part, *(path for path in part.iterdir() if path.is_dir())]
    for candidate in [path for top in tops for path in (top, top / "vendor/llama.cpp")]:
        if _is_tree(candidate):
            os.sync()
            os.rename(candidate, found)
            shutil.rmtree(part, ignore_errors=True)
            return
    raise UserError(f"{archive} holds no source tree of llama.cpp; correct the source.")


def _clone(source: Source, found: pathlib.Path, shell: job.Shell) -> None:
    """Put a shallow checkout at `found`, in one step. What came must be the commit, or a tag, never a branch."""
    part = found.with_name(found.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    url, version = source["url"], source["version"]
    what, quiet = f"fetching {version} from {url}", {"GIT_TERMINAL_PROMPT": "0"}
    cure = _GIT_CURE
    git = ["git", "-C", str(part), "-c", "advice.detachedHead=false"]
    wanted = _wanted(version)
    shell.run(["git", "init", "--quiet", str(part)], what, env=quiet)
    shell.run([*git, "fetch", "--progress", "--no-tags", "--depth", "1", "--", url, wanted], what, cure, env=quiet)
    shell.run([*git, "checkout", "--quiet", "FETCH_HEAD"], what, env=quiet)
    head = shell.run([*git, "rev-parse", "HEAD"], what, env=quiet)
    if build_plan.is_commit(version) and head != [version]:
        raise UserError(f"{url} answered with {' '.join(head)} and not with the commit {version}; {cure}.")
    if not _is_tree(part):
        raise UserError(
            f"{version} of {url} is no source tree of llama.cpp; correct llama_cpp_git_url or llama_cpp_git_version."
        )
    os.sync()
    os.rename(part, found)
