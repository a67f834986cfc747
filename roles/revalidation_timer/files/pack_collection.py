# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Pack the collection that runs now, without tests, documentation and scenarios, for the host to run itself.

pack_collection.py DIRECTORY            print the digest of what would be packed
pack_collection.py DIRECTORY ARCHIVE    and write it, as ansible_collections/homelab/mixed_gpu in a tar.gz
"""

from __future__ import annotations

import hashlib
import pathlib
import sys
import tarfile

PARTS = ("plugins", "roles", "playbooks", "meta", "galaxy.yml", "MANIFEST.json", "LICENSE")
PLACE = pathlib.PurePath("ansible_collections/homelab/mixed_gpu")


def files(root: pathlib.Path) -> list[pathlib.Path]:
    """All files to pack, in order."""
    found = [path for part in PARTS for path in [root / part, *(root / part).rglob("*")]]
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


def digest(root: pathlib.Path) -> str:
    """Digest of names and contents; owners, modes and times do not count."""
    together = hashlib.sha256()
    for path in files(root):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        together.update(f"{path.relative_to(root)} {content}\n".encode())
    return together.hexdigest()[:16]


def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """As root's, readable by all."""
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    info.mode = 0o644
    return info


def main() -> None:
    """Do what the arguments say."""
    root = pathlib.Path(sys.argv[1])
    print(digest(root))
    if len(sys.argv) > 2:
        with tarfile.open(sys.argv[2], "w:gz", dereference=True) as archive:
            for path in files(root):
                archive.add(path, arcname=str(PLACE / path.relative_to(root)), filter=plain)


if __name__ == "__main__":
    main()
