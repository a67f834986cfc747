# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A build of llama.cpp as one file, for another host. Private to this collection.

It acts on hosts on behalf of the module llama_cpp_copy. What a host takes is one folder of programs and their
libraries: nothing in an archive gets a place outside.
"""

from __future__ import annotations

import pathlib
import re
import shutil
import tarfile
import typing as t

from .._base import job
from .._base.errors import UserError

_MEMBER: t.Final = re.compile(r"build\.(?:json|log)|bin/[^/]+")


def pack(build: pathlib.Path, archive: pathlib.Path) -> str:
    """Write a build as an archive that any user may read; return its SHA-256."""
    archive.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    part = archive.with_name(f"{archive.name}.part")
    # level 1: cubins are compressed already
    with tarfile.open(part, "w:gz", compresslevel=1) as file:
        for path in sorted([build / "build.json", build / "build.log", *(build / "bin").iterdir()]):
            file.add(path, str(path.relative_to(build)), recursive=False)
    part.chmod(0o644)
    part.replace(archive)
    return job.sha256(archive)


def unpack(archive: pathlib.Path, sha256: str, stage: pathlib.Path) -> None:
    """Put the build in an archive at C(stage), a folder that is made anew.

    Raises UserError for another SHA-256, for a damaged archive, and for what is no file or link of a build.
    """
    found = job.sha256(archive)
    if found != sha256:
        raise UserError(
            f"{archive} has the SHA-256 {found} and not {sha256}, so nothing was replaced: run the play again."
        )
    shutil.rmtree(stage, ignore_errors=True)
    (stage / "bin").mkdir(parents=True)
    try:
        with tarfile.open(archive, "r:gz") as file:
            for member in file:
                _place(file, member, stage)
    except (tarfile.TarError, EOFError) as exc:
        raise UserError(f"{archive} is damaged ({exc}), so nothing was replaced: run the play again.") from exc


def _place(file: tarfile.TarFile, member: tarfile.TarInfo, stage: pathlib.Path) -> None:
    target = stage / member.name
    if not _MEMBER.fullmatch(member.name) or target.name in (".", "..") or target.is_symlink() or target.exists():
        raise UserError(f"The archive of a build holds {member.name!r}, no part of one: do not trust its host.")
    if member.issym() and "/" not in member.linkname and member.linkname not in (".", ".."):
        target.symlink_to(member.linkname)
        return
    content = file.extractfile(member) if member.isfile() else None
    if content is None:
        raise UserError(f"The archive of a build holds {member.name!r}, no file: do not trust its host.")
    with target.open("xb") as made:
        shutil.copyfileobj(content, made, job.MIB)
    target.chmod(0o755 if member.mode & 0o100 else 0o644)
