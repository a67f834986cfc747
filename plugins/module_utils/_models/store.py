# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The folder of models on the host: one directory per model, what it occupies, and its manifests."""

from __future__ import annotations

import glob
import os
import re
import typing as t

from .._base.types import Json
from . import disk, manifest

_SET_ASIDE = re.compile(r"\.(corrupt|replaced(-[0-9]+)?)\Z")


def disk_bytes(directory: str) -> dict[str, int]:
    """Return the bytes that a directory occupies, unfinished and set-aside files also apart; hard links count once."""
    found = {"disk_bytes": 0, "unfinished_bytes": 0, "set_aside_bytes": 0}
    seen = set()
    for root, _directories, names in os.walk(directory):
        for name in names:
            status = os.lstat(os.path.join(root, name))
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            used = status.st_blocks * 512
            found["disk_bytes"] += used
            if name.endswith(".part"):
                found["unfinished_bytes"] += used
            elif _SET_ASIDE.search(name):
                found["set_aside_bytes"] += used
    return found


def look(path: str, manifest_dir: str, served: str | None, warn: t.Callable[[str], t.Any]) -> Json:
    """Return the models' folder: path, filesystem, free_bytes, total_bytes and one dict per directory.

    ``served``: path of the model that is served, or None. Raises OSError where the folder cannot be read.
    """
    manifests: dict[str, list[str]] = {}
    for file in sorted(glob.glob(os.path.join(glob.escape(manifest_dir), "*.json"))):
        of = (manifest.read_manifest(file, warn) or {}).get("path")
        if isinstance(of, str) and of.startswith(f"{path}/"):
            manifests.setdefault(of[len(path) + 1 :].split("/", 1)[0], []).append(file)
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir()) if os.path.isdir(path) else []
    directory, free_bytes = disk.free_space(os.path.join(path, "x"))
    status = os.statvfs(directory)
    return {
        "path": path, "filesystem": disk.filesystem(os.path.join(path, "x")), "free_bytes": free_bytes,
        "total_bytes": status.f_blocks * status.f_frsize,
        "directories": [
            {
                "name": name, "path": os.path.join(path, name), **disk_bytes(os.path.join(path, name)),
                "served": f"{served or ''}/".startswith(f"{path}/{name}/"), "manifests": manifests.get(name, []),
            }
            for name in names
        ],
    }  # fmt: skip
