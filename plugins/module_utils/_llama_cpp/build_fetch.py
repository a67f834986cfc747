# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Verified downloads of a build of llama.cpp: from an address, or from a package index. Private to this collection.

It acts on the host, on behalf of the module llama_cpp_build. A download appears under its name only when it has the
pinned SHA-256, and nothing of an index is run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import os
import pathlib
import shutil
import sys
import typing as t

from .._base import host_python, job, package_index
from .._base.errors import UserError


class Answer(t.NamedTuple):
    """What a server sends: the body, its own URL after redirects, its size in bytes where that is told."""

    body: t.IO[bytes]
    url: str
    length: int | None


#: Opens a URL with headers; raises UserError where that fails.
Open = t.Callable[[str, t.Mapping[str, str]], Answer]

_PAGE_MIB: t.Final = 64
_ARCHIVE_MIB: t.Final = 512


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A file of a package index: what it is, its project, name and SHA-256, and what cures another or a missing one."""

    what: str
    project: str
    name: str
    sha256: str
    other_cure: str
    missing_cure: str


def from_index(
    wanted: Wanted, work: pathlib.Path, destination: pathlib.Path, log: job.Log, open_: Open
) -> pathlib.Path:
    """Return `destination`, fetched from the index that pip is configured for on this host unless it is there.

    `work` is a folder for what is not complete. Raises UserError where no index has the file with that hash.
    """
    if cached(destination, wanted.sha256, log):
        return destination
    reasons: list[str] = []
    for file in offers(wanted, log, open_, reasons):
        try:
            fetch(file, wanted.sha256, wanted.other_cure, work, destination, log, open_)
            return destination
        except UserError as exc:
            log.write(str(exc))
            reasons.append(str(exc).rstrip("."))
    raise UserError(f"{wanted.what} {wanted.name} was not found.")  # offers has said so, and why


def cached(path: pathlib.Path, sha256: str, log: job.Log) -> bool:
    """Return whether a file is there with that hash; one of another hash is said in the log."""
    if not path.is_file():
        return False
    log.write(f"checking {path}")
    if job.sha256(path) == sha256:
        os.utime(path)      # the sources that were used last are kept
        return True
    log.write(f"{path} does not have the SHA-256 {sha256}; downloading again")
    return False


def publish(file: pathlib.Path, destination: pathlib.Path) -> None:
    """Move a complete file to its place, also across file systems, so that nobody ever sees half of it."""
    destination.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    part = destination.with_name(f".{destination.name}.{os.getpid()}")
    try:
        shutil.move(file, part)
        os.replace(part, destination)
    finally:
        part.unlink(missing_ok=True)


def fetch(
    url: str, wanted: str, cure: str, work: pathlib.Path, destination: pathlib.Path, log: job.Log, open_: Open
) -> None:
    """Publish what is at a URL, hashed while it is read. Raises UserError, and publishes nothing, for another hash.

    C(wanted) is the SHA-256, and C(cure) what to do about another one, beside not trusting the file.
    """
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
                f"{cure}, or do not trust this archive."
            )
        publish(part, destination)
    finally:
        part.unlink(missing_ok=True)


def _chunks(answer: Answer, url: str, most_mib: int) -> t.Iterator[bytes]:
    """Yield the body of an answer. Raises UserError where that breaks off, or is longer than `most_mib`."""
    shown, read = package_index.without_password(url), 0
    try:
        while chunk := answer.body.read(job.MIB):
            read += len(chunk)
            if read > most_mib * job.MIB:
                raise UserError(f"{shown} is larger than {most_mib} MiB, more than builds fetch: correct the address.")
            yield chunk
    except (OSError, http.client.HTTPException) as exc:
        raise UserError(f"{shown} broke off after {read} bytes ({exc}); run the play again.") from exc
    if answer.length is not None and read < answer.length:
        raise UserError(f"{shown} broke off after {read} of {answer.length} bytes; run the play again.")


def offers(wanted: Wanted, log: job.Log, open_: Open, reasons: list[str]) -> t.Iterator[str]:
    """Yield where the package index that pip is configured for on this host has a file. Raises UserError at the end.

    C(reasons) is what is told then, with what the caller adds.
    """
    own = package_index.own_index([sys.executable, host_python.DEFAULT])
    index = package_index.settings(package_index.configuration_texts(os.environ), os.environ, own)
    for url in [*package_index.local_files(index, wanted.name), *package_index.pages(index, wanted.project)]:
        try:
            file = url if url.endswith(f"/{wanted.name}") else _linked(url, wanted.name, log, open_)
            if file is None:
                reasons.append(f"{package_index.without_password(url)} does not have that file")
        except UserError as exc:
            log.write(str(exc))
            reasons.append(str(exc).rstrip("."))
            continue
        if file is not None:
            yield file
    told = "; ".join(reasons) or "pip's configuration names no index, and no pip is here that knows its own"
    raise UserError(f"{wanted.what} {wanted.name} was not found ({told}): {wanted.missing_cure}.")


def _linked(url: str, name: str, log: job.Log, open_: Open) -> str | None:
    """Return the URL of a file that a page of an index links to."""
    log.write(f"asking {package_index.without_password(url)} for {name}")
    answer = open_(url, {"Accept": package_index.ACCEPT})
    page = b"".join(_chunks(answer, url, _PAGE_MIB))
    return package_index.link(page.decode("utf-8", errors="replace"), answer.url, name)
