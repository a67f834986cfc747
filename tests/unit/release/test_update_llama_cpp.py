# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Finding a source distribution: a package index on loopback, and a repository with tags. What is built is not here."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import os
import pathlib
import shutil
import subprocess
import tarfile
import threading
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.tests.release import llama_cpp_pin, update_llama_cpp

BUILD = update_llama_cpp.build
OLD = llama_cpp_pin.Pin("0.3.1", "0" * 64, 1000, "0123456789" * 4)


class Index(t.NamedTuple):
    """The folder that a server on loopback shows, and the commit that the archive of version 0.3.10 holds."""

    folder: pathlib.Path
    commit: str

    def offers(self, version: str, sha256: str) -> None:
        """Let the index have one source distribution with a stated hash."""
        name = f"llama_cpp_python-{version}.tar.gz"
        page = {"files": [{"filename": name, "url": f"../{name}", "hashes": {"sha256": sha256}}]}
        (self.folder / "llama-cpp-python/index.html").write_text(json.dumps(page), encoding="utf-8")


@pytest.fixture
def index(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Index]:
    """A package index with llama-cpp-python 0.3.10, whose llama.cpp is the tag b1234 of a repository."""
    repository, folder = tmp_path / "repository", tmp_path / "index"
    (folder / "llama-cpp-python").mkdir(parents=True)
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@example.invalid"]
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    for command in (["commit", "-q", "--allow-empty", "-m", "x"], ["tag", "b1234"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    text = f"{head}\n".encode()
    with tarfile.open(folder / "llama_cpp_python-0.3.10.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("llama_cpp_python-0.3.10/.git/modules/vendor/llama.cpp/HEAD")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(update_llama_cpp, "CACHE", tmp_path / "cache")
        monkeypatch.setattr(llama_cpp_pin, "defaults", lambda _root: {"llama_cpp_git_url": str(repository)})
        found = Index(folder, head)
        found.offers("0.3.10", hashlib.sha256((folder / "llama_cpp_python-0.3.10.tar.gz").read_bytes()).hexdigest())
        yield found
        server.shutdown()


@pytest.mark.parametrize("version", ["", "newest", "0.3.10"])
def test_a_pin_is_read_from_index_archive_and_repository(index: Index, version: str) -> None:
    pin, archive = update_llama_cpp.wanted(version, "", OLD)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert pin == llama_cpp_pin.Pin("0.3.10", sha256, 1234, index.commit)


def test_a_given_number_needs_no_repository(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp_pin, "defaults", lambda _root: {"llama_cpp_git_url": "/nowhere"})
    assert update_llama_cpp.wanted("", "77", OLD)[0].build == 77
    with pytest.raises(llama_cpp_pin.PinError, match=r"a tag of /nowhere, which cannot be asked .* BUILD_NUMBER"):
        update_llama_cpp.wanted("", "", OLD)


def test_a_file_with_another_hash_than_the_index_states_is_not_kept(index: Index) -> None:
    index.offers("0.3.10", "f" * 64)
    with pytest.raises(llama_cpp_pin.PinError, match="do not trust this file"):
        update_llama_cpp.wanted("", "", OLD)
    assert not (update_llama_cpp.CACHE / "downloads").exists()


def test_a_version_that_the_index_lacks(index: Index) -> None:
    with pytest.raises(llama_cpp_pin.PinError, match=r"no source distribution .* 9\.9; the newest is 0\.3\.10"):
        update_llama_cpp.wanted("9.9", "", OLD)


def test_an_index_without_the_project(index: Index) -> None:
    (index.folder / "llama-cpp-python/index.html").write_text('{"files": []}', encoding="utf-8")
    with pytest.raises(llama_cpp_pin.PinError, match=r"\(http://127\.0\.0\.1:\d+/llama-cpp-python/: none is there\)"):
        update_llama_cpp.wanted("", "", OLD)


def test_a_proxy_of_pip_is_used(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    # a proxy is asked for whole addresses, which the server takes for a path
    (index.folder / "http:").mkdir()
    (index.folder / "http:/index.invalid").symlink_to(index.folder)
    monkeypatch.setenv("PIP_PROXY", os.environ["PIP_INDEX_URL"])
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid")
    assert update_llama_cpp.wanted("", "", OLD)[0].build == 1234


def test_no_index_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(llama_cpp_pin.PinError, match=r"no package index has .* \(none is configured\)"):
        update_llama_cpp.wanted("", "", OLD)


@pytest.fixture
def checkout(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The files with the pin, a test host that answers --help alone, and a newer source that is found."""
    folder = tmp_path / "checkout"
    for place in llama_cpp_pin.PLACES:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(llama_cpp_pin.ROOT / place, folder / place)
    (folder / "plugins").mkdir()
    (folder / "plugins/reader.py").write_text(f"# lines of b{llama_cpp_pin.pinned(folder).build}\n", encoding="utf-8")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    new = llama_cpp_pin.Pin("0.4.0", "ab" * 32, 12001, "1234567890" * 4)
    built = iter(["-m, --model\n-x, --gone\n", "-m, --model\n--added\n"])
    monkeypatch.setattr(update_llama_cpp, "ROOT", folder)
    monkeypatch.setattr(update_llama_cpp, "WORK", folder / "build/llama-cpp")
    monkeypatch.setattr(update_llama_cpp, "wanted", lambda *_arguments: (new, folder / "x.tar.gz"))
    monkeypatch.setattr(update_llama_cpp, "formats_hold", lambda _archive: True)
    monkeypatch.setattr(update_llama_cpp, "build", lambda _pin: ({"llama-server": next(built)}, True))
    monkeypatch.setattr(update_llama_cpp, "lab", lambda *_command, **_options: "")
    return folder


def test_the_pin_moves_when_everything_held(checkout: pathlib.Path) -> None:
    old = llama_cpp_pin.pinned(checkout)
    update_llama_cpp.main([])
    assert llama_cpp_pin.pinned(checkout).version == "0.4.0"
    said = (checkout / "build/llama-cpp/changes.md").read_text(encoding="utf-8")
    assert f"# llama.cpp b{old.build} to b12001 ({old.version} to 0.4.0)" in said
    assert "- llama-server (3 flags): gone: --gone, -x; new: --added" in said
    assert f"Read or recorded of b{old.build}; look whether it still holds:\n\n- plugins/reader.py\n" in said


@pytest.mark.parametrize("broken", ["formats_hold", "run_live_tests"])
def test_nothing_moves_where_something_did_not_hold(
    checkout: pathlib.Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fails(*_arguments: t.Any) -> bool:
        if broken == "formats_hold":
            return False
        raise llama_cpp_pin.PinError("a live test failed")

    old = llama_cpp_pin.pinned(checkout)
    monkeypatch.setattr(update_llama_cpp, broken, fails)
    with pytest.raises(llama_cpp_pin.PinError):
        update_llama_cpp.main([])
    assert llama_cpp_pin.pinned(checkout) == old
    assert "gone: --gone" in (checkout / "build/llama-cpp/changes.md").read_text(encoding="utf-8")


def test_a_source_that_only_owners_can_build_is_tried_and_does_not_become_the_pin(
    checkout: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = llama_cpp_pin.pinned(checkout)
    built: list[tuple[str, bool]] = []

    def run_role(pin: llama_cpp_pin.Pin, quick: bool) -> None:
        built.append((pin.version, quick))
        if quick and pin.version == "0.4.0":
            raise llama_cpp_pin.PinError("redefinition of a function")

    monkeypatch.setattr(update_llama_cpp, "build", BUILD)
    monkeypatch.setattr(update_llama_cpp, "run_role", run_role)
    monkeypatch.setattr(update_llama_cpp, "inside", lambda *_command, **_options: "-m, --model\n")
    with pytest.raises(llama_cpp_pin.PinError, match=r"correct what test hosts compile as one \(.*quick_compile\.py\)"):
        update_llama_cpp.main([])
    assert built == [(old.version, True), ("0.4.0", True), ("0.4.0", False)]
    assert llama_cpp_pin.pinned(checkout) == old
