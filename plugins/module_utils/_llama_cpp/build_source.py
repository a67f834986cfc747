# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The verified source tree of a build of llama.cpp. Private to this collection.

It fetches and unpacks on the host, on behalf of the module llama_cpp_build. Downloads appear under their name only
when they have the pinned SHA-256.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import typing as t

from .._base import host_python, job, package_index
from .._base.errors import UserError
from . import build_plan

Source = t.Mapping[str, t.Any]


class Answer(t.NamedTuple):
    """What a server sends: the body, its own URL after redirects, its size in bytes where that is told."""

    body: t.IO[bytes]
    url: str
    length: int | None


#: Opens a URL with headers; raises UserError where that fails.
Open = t.Callable[[str, t.Mapping[str, str]], Answer]

#: Names of the archives of download_dir.
ARCHIVE: t.Final = re.compile(r"llama_cpp_python-[^/]+\.tar\.gz|llama\.cpp-[0-9a-f]{12}\.tar")
_GIT_CURE: t.Final = (
    "correct llama_cpp_git_url, or set llama_cpp_git_version to a full commit or a tag (a branch moves)"
)
_PAGE_MIB: t.Final = 64
_ARCHIVE_MIB: t.Final = 512


def tree(settings: build_plan.Settings, source: Source, shell: job.Shell, open_: Open) -> pathlib.Path:
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
        _unpack(fetch(settings, source, work, shell.log, open_), found, shell)
    return found


def check_offered(settings: build_plan.Settings, source: Source, log: job.Log, open_: Open) -> None:
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
        next(_offers(name or "", log, open_, []))


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


def _is_tree(path: pathlib.Path) -> bool:
    return (path / "CMakeLists.txt").is_file() and (path / "ggml").is_dir() and (path / "tools").is_dir()


def _cached(path: pathlib.Path, sha256: str, log: job.Log) -> bool:
    if not path.is_file():
        return False
    log.write(f"checking {path}")
    if job.sha256(path) == sha256:
        os.utime(path)      # the sources that were used last are kept
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
    settings: build_plan.Settings, source: Source, work: pathlib.Path, log: job.Log, open_: Open
) -> pathlib.Path:
    """Return the source distribution, from the package index that pip is configured for on this host."""
    name = archive_name(source) or ""
    archive = pathlib.Path(settings["download_dir"]) / name
    if _cached(archive, source["sha256"], log):
        return archive
    reasons: list[str] = []
    for file in _offers(name, log, open_, reasons):
        try:
            _fetch(file, source["sha256"], "llama_cpp_sdist_sha256", work, archive, log, open_)
            return archive
        except UserError as exc:
            log.write(str(exc))
            reasons.append(str(exc).rstrip("."))
    raise UserError(f"the source {name} was not found.")  # _offers has said so, and why


def _offers(name: str, log: job.Log, open_: Open, reasons: list[str]) -> t.Iterator[str]:
    """Yield where the package index that pip is configured for on this host has a file. Raises UserError at the end.

    C(reasons) is what is told then, with what the caller adds.
    """
    own = package_index.own_index([sys.executable, host_python.DEFAULT])
    index = package_index.settings(package_index.configuration_texts(os.environ), os.environ, own)
    for url in [*package_index.local_files(index, name), *package_index.pages(index, "llama-cpp-python")]:
        try:
            file = url if url.endswith(f"/{name}") else _linked(url, name, log, open_)
            if file is None:
                reasons.append(f"{package_index.without_password(url)} does not have that file")
        except UserError as exc:
            log.write(str(exc))
            reasons.append(str(exc).rstrip("."))
            continue
        if file is not None:
            yield file
    told = "; ".join(reasons) or "pip's configuration names no index, and no pip is here that knows its own"
    raise UserError(
        f"the source {name} was not found ({told}): correct llama_cpp_sdist_version, pip's index-url on this host, or "
        "the network."
    )


def _linked(url: str, name: str, log: job.Log, open_: Open) -> str | None:
    """Return the URL of a file that a page of an index links to."""
    log.write(f"asking {package_index.without_password(url)} for {name}")
    answer = open_(url, {"Accept": package_index.ACCEPT})
    page = b"".join(_chunks(answer, url, _PAGE_MIB))
    return package_index.link(page.decode("utf-8", errors="replace"), answer.url, name)


def _archive(
    settings: build_plan.Settings, source: Source, work: pathlib.Path, log: job.Log, open_: Open
) -> pathlib.Path:
    """Return the archive at llama_cpp_archive_url."""
    wanted = source["sha256"]
    archive = pathlib.Path(settings["download_dir"]) / (archive_name(source) or "")
    if not _cached(archive, wanted, log):
        _fetch(settings["archive_url"], wanted, "llama_cpp_archive_sha256", work, archive, log, open_)
    return archive


def _fetch(
    url: str, wanted: str, variable: str, work: pathlib.Path, destination: pathlib.Path, log: job.Log, open_: Open
) -> None:
    """Publish what is at a URL, hashed while it is read. Raises UserError, and publishes nothing, for another hash."""
    shown, part, digest = package_index.without_password(url), work / f"download-{os.getpid()}", hashlib.sha256()
    log.write(f"downloading {shown}")
    try:
        with part.open("wb") as file:
            for chunk in _chunks(open_(url, {}), url, _ARCHIVE_MIB):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != wanted:
            raise UserError(
                f"{shown} has the SHA-256 {digest.hexdigest()} and not {wanted}, so nothing was replaced; "
                f"correct {variable}, or do not trust this archive."
            )
        _publish(part, destination)
    finally:
        part.unlink(missing_ok=True)


def _chunks(answer: Answer, url: str, most_mib: int) -> t.Iterator[bytes]:
    """Yield the body of an answer. Raises UserError where that breaks off, or is longer than `most_mib`."""
    shown, read = package_index.without_password(url), 0
    try:
        while chunk := answer.body.read(job.MIB):
            read += len(chunk)
            if read > most_mib * job.MIB:
                raise UserError(f"{shown} is larger than {most_mib} MiB, more than the source of llama.cpp can be.")
            yield chunk
    except (OSError, http.client.HTTPException) as exc:
        raise UserError(f"{shown} broke off after {read} bytes ({exc}); run the play again.") from exc
    if answer.length is not None and read < answer.length:
        raise UserError(f"{shown} broke off after {read} of {answer.length} bytes; run the play again.")


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
