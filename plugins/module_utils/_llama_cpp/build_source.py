# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The verified source tree of a build of llama.cpp. Private to this collection.

It fetches and unpacks on the host, on behalf of the module llama_cpp_build. Downloads appear under their name only
when they have the pinned SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import typing as t

from .._base import job
from .._base.errors import UserError
from . import build_plan

Source = t.Mapping[str, t.Any]
#: Writes what is at a URL into a file; raises UserError where that fails.
Download = t.Callable[[str, pathlib.Path], None]


def tree(settings: build_plan.Settings, source: Source, shell: job.Shell, download: Download) -> pathlib.Path:
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
        fetch = _sdist if source["kind"] == "sdist" else _archive
        _unpack(fetch(settings, source, work, shell, download), found, shell)
    return found


def commit(source: Source, found: pathlib.Path) -> str | None:
    """Return the commit of a source tree, in nine digits where git has to be asked."""
    if source["kind"] != "git":
        return t.cast("str | None", source["commit"])
    head = subprocess.run(["git", "-C", str(found), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        raise UserError(f"git does not know which commit {found} is; remove {found.parent} and run the play again.")
    return head.stdout.strip()[:9]


def _is_tree(path: pathlib.Path) -> bool:
    return (path / "CMakeLists.txt").is_file() and (path / "ggml").is_dir() and (path / "tools").is_dir()


def _cached(path: pathlib.Path, sha256: str, log: job.Log) -> bool:
    if not path.is_file():
        return False
    log.write(f"checking {path}")
    if job.sha256(path) == sha256:
        return True
    log.write(f"{path} does not have the SHA-256 {sha256}; downloading again")
    return False


def _publish(file: pathlib.Path, destination: pathlib.Path) -> None:
    """Move a complete file to its place, also across file systems, so that nobody ever sees half of it."""
    destination.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    part = destination.with_name(f".{destination.name}.{os.getpid()}")
    try:
        shutil.move(file, part)
        os.replace(part, destination)
    finally:
        part.unlink(missing_ok=True)


def _sdist(
    settings: build_plan.Settings, source: Source, work: pathlib.Path, shell: job.Shell, _download: Download
) -> pathlib.Path:
    """Return the source distribution, through pip: that is how the host's mirror or proxy is set."""
    archive = pathlib.Path(settings["download_dir"]) / f"llama_cpp_python-{source['version']}.tar.gz"
    if _cached(archive, source["sha256"], shell.log):
        return archive
    requirement = f"llama-cpp-python=={source['version']}"
    fresh = work / f"download-{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    listed = fresh / "requirements.txt"
    listed.write_text(f"{requirement} --hash=sha256:{source['sha256']}\n", encoding="utf-8")
    argv = [
        sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--progress-bar", "off",
        "--no-deps", "--no-binary", "llama-cpp-python", "--require-hashes", "--dest", str(fresh),
        "--requirement", str(listed),
    ]  # fmt: skip
    try:
        shell.run(argv, f"downloading {requirement}")
        _publish(fresh / archive.name, archive)
    except UserError as exc:
        if "DO NOT MATCH THE HASHES" in shell.log.path.read_text(encoding="utf-8", errors="replace"):
            raise UserError(
                f"the source {requirement} does not have the SHA-256 {source['sha256']}, so nothing was replaced; "
                "correct llama_cpp_sdist_sha256, or do not trust this download."
            ) from exc
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return archive


def _archive(
    settings: build_plan.Settings, source: Source, work: pathlib.Path, shell: job.Shell, download: Download
) -> pathlib.Path:
    """Return the archive at llama_cpp_archive_url."""
    url, wanted = settings["archive_url"], source["sha256"]
    archive = pathlib.Path(settings["download_dir"]) / f"llama.cpp-{wanted[:12]}.tar"
    if _cached(archive, wanted, shell.log):
        return archive
    part = work / f"download-{os.getpid()}"
    try:
        shell.log.write(f"downloading {url}")
        download(url, part)
        found = job.sha256(part)
        if found != wanted:
            raise UserError(
                f"{url} has the SHA-256 {found} and not {wanted}, so nothing was replaced; "
                "correct llama_cpp_archive_sha256, or do not trust this archive."
            )
        _publish(part, archive)
    finally:
        part.unlink(missing_ok=True)
    return archive


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
            os.rename(candidate, found)
            shutil.rmtree(part, ignore_errors=True)
            return
    raise UserError(f"{archive} holds no source tree of llama.cpp; correct the source.")


def _clone(source: Source, found: pathlib.Path, shell: job.Shell) -> None:
    """Put a shallow checkout at `found`, in one step."""
    part = found.with_name(found.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    url, version = source["url"], source["version"]
    what, quiet = f"fetching {version} from {url}", {"GIT_TERMINAL_PROMPT": "0"}
    git = ["git", "-C", str(part), "-c", "advice.detachedHead=false"]
    shell.run(["git", "init", "--quiet", str(part)], what, env=quiet)
    shell.run([*git, "fetch", "--progress", "--no-tags", "--depth", "1", "--", url, version], what, env=quiet)
    shell.run([*git, "checkout", "--quiet", "FETCH_HEAD"], what, env=quiet)
    if not _is_tree(part):
        raise UserError(
            f"{version} of {url} is no source tree of llama.cpp; correct llama_cpp_git_url or llama_cpp_git_version."
        )
    os.rename(part, found)
