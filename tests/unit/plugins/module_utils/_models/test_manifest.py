# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import hashlib
import os

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import disk, manifest


@pytest.fixture
def narrow_umask():
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_directories_and_files_can_be_read_by_the_server_whatever_the_umask(tmp_path, narrow_umask):
    os.chmod(tmp_path, 0o700)
    path = tmp_path / "a" / "b" / "m.gguf"
    disk.make_parents(str(path))
    disk.make_parents(str(path))
    part = tmp_path / "part"
    part.write_text("new")
    disk.publish(str(part), str(path), os.rename)
    assert [each.stat().st_mode & 0o777 for each in (path, path.parent, path.parent.parent)] == [0o644, 0o755, 0o755]
    assert tmp_path.stat().st_mode & 0o777 == 0o700             # was there before
    assert path.read_text() == "new" and not part.exists()


def test_free_space_is_that_of_the_nearest_directory(tmp_path):
    directory, free = disk.free_space(str(tmp_path / "a" / "b" / "m.gguf"))
    assert directory == str(tmp_path)
    assert 0 < free <= os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize


def test_sha256_tells_how_far_it_is(tmp_path):
    data = os.urandom(2 * manifest.CHUNK_BYTES + 5)
    (tmp_path / "f").write_bytes(data)
    ticks = []
    assert manifest.digest(str(tmp_path / "f"), tick=ticks.append).sha256 == hashlib.sha256(data).hexdigest()
    assert ticks == [manifest.CHUNK_BYTES, 2 * manifest.CHUNK_BYTES, len(data)]


def test_a_recorded_hash_is_believed_until_the_file_changes(tmp_path):
    path, warnings = str(tmp_path / "m.gguf"), []
    with open(path, "w") as handle:
        handle.write("one")
    file = manifest.manifest_path(str(tmp_path / "manifests"), path)
    assert manifest.read_manifest(file, warnings.append) is None
    digest = manifest.Digest("ab" * 32)
    manifest.write_manifest(file, path, digest, {"kind": "local"}, os.rename)
    recorded = manifest.read_manifest(file, warnings.append)
    assert manifest.believed(recorded, path) == digest
    status = os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert manifest.believed(recorded, path) is None
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert manifest.believed(recorded, path) is None    # the time was put back, and the ctime tells
    manifest.write_manifest(file, path, digest, {"kind": "local"}, os.rename)
    recorded = manifest.read_manifest(file, warnings.append)
    assert manifest.believed(recorded, path) == digest
    os.rename(path, path + ".old")
    with open(path, "w") as handle:
        handle.write("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert manifest.believed(recorded, path) is None    # another inode
    assert warnings == []


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "\x00", "[" * 100_000, "{}", '{"schema": 2, "sha256": "%s"}' % ("ab" * 32),
        '{"schema": 1, "sha256": null}', '{"schema": 1, "sha256": "x"}',
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_as_good_as_none(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    warnings = []
    assert manifest.read_manifest(str(tmp_path / "m.json"), warnings.append) is None
    assert len(warnings) == 1 and warnings[0].startswith(f"{tmp_path}/m.json cannot be used (it")


def test_a_manifest_describes_one_state_of_one_file(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF")
    recorded = {"schema": 1, "sha256": "ab" * 32, **manifest.state(str(path))}
    assert manifest.believed(recorded, str(path)) == manifest.Digest("ab" * 32)
    assert manifest.believed(None, str(path)) is None
    for name in ("size_bytes", "mtime_ns", "ctime_ns", "inode"):
        assert manifest.believed(recorded | {name: recorded[name] + 1}, str(path)) is None
    assert manifest.manifest_name("/a/x.gguf") != manifest.manifest_name("/b/x.gguf")
