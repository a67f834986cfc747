# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program that packs the collection for a host."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tarfile

ROLE = pathlib.Path(__file__).parents[3] / "roles/revalidation_timer"


def pack(*arguments):
    command = [sys.executable, str(ROLE / "files/pack_collection.py"), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_collection_is_packed_without_tests_and_known_by_its_content(tmp_path):
    root = tmp_path / "mixed_gpu"
    packed = ("galaxy.yml", "playbooks/c.yml", "plugins/modules/a.py")
    for name in (*packed, "plugins/__pycache__/a.pyc", "tests/unit/b.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    first = pack(root, tmp_path / "a.tar.gz")
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        names = archive.getnames()
    place = "ansible_collections/homelab/mixed_gpu/"
    assert sorted(names) == [place + name for name in packed]
    (root / "tests/unit/b.py").write_text("other")
    os.utime(root / "galaxy.yml", (1, 1))
    assert pack(root) == first
    (root / "playbooks/c.yml").write_text("other")
    assert pack(root) != first
