# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Real builds of a tiny project, through the module; the archive comes from a server on loopback."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import compile_host
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import cards, host_hardware
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import build_copy
from ansible_collections.homelab.mixed_gpu.plugins.modules import llama_cpp_build
from ansible_collections.homelab.mixed_gpu.tests import local_server

needs_cmake = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("ninja") and shutil.which("cc")), reason="needs cc, CMake and Ninja"
)

CMAKE_LISTS = """\
cmake_minimum_required(VERSION 3.18)
project(tiny C)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
if (BREAK_CONFIGURATION)
  message(FATAL_ERROR "the option BREAK_CONFIGURATION is on")
endif()
add_library(tiny SHARED tiny.c)
add_executable(llama-bench tool.c)
target_link_libraries(llama-bench tiny)
target_compile_definitions(llama-bench PRIVATE NUMBER=${LLAMA_BUILD_NUMBER} COMMIT=${LLAMA_BUILD_COMMIT} STATUS=0)
add_executable(llama-server tool.c)
target_link_libraries(llama-server tiny)
target_compile_definitions(llama-server PRIVATE NUMBER=${LLAMA_BUILD_NUMBER} COMMIT=${LLAMA_BUILD_COMMIT} STATUS=0)
if (EXISTS ${CMAKE_SOURCE_DIR}/tools/ui/dist/index.html)
  target_compile_definitions(llama-server PRIVATE PAGE)
endif()
add_executable(fails tool.c)
target_link_libraries(fails tiny)
target_compile_definitions(fails PRIVATE NUMBER=0 COMMIT=none STATUS=3)
add_executable(does_not_compile http_error.c)
"""
TOOL = """\
#include <stdio.h>
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
int tiny(void);
int main(void) {
#ifdef PAGE
  printf("it has a page\\n");
#endif
  printf("version: %d (%s)\\n", NUMBER, TEXT(COMMIT)); return STATUS + tiny();
}
"""


RPC_HEADER = """\
#pragma once
#define RPC_PROTO_MAJOR_VERSION    7
#define RPC_PROTO_MINOR_VERSION    1
#define RPC_PROTO_PATCH_VERSION    2
"""


def make_tree(root):
    for directory in ("ggml", "tools"):
        (root / directory).mkdir(parents=True)
        (root / directory / "README").write_text("here\n")
    (root / "ggml/include").mkdir()
    (root / "ggml/include/ggml-rpc.h").write_text(RPC_HEADER)
    (root / "CMakeLists.txt").write_text(CMAKE_LISTS)
    (root / "tiny.c").write_text("int tiny(void) { return 0; }\n")
    (root / "tool.c").write_text(TOOL)
    (root / "http_error.c").write_text("int main(void) { return missing_name; }\n")
    return root


@pytest.fixture
def site(tmp_path):
    """A loopback HTTP server; returns its directory and address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args):
            pass

    directory = tmp_path / "site"
    directory.mkdir()
    with local_server.serving(functools.partial(Handler, directory=str(directory))) as server:
        yield directory, server.url


@pytest.fixture
def bin_dir(tmp_path, monkeypatch):
    """A directory at the front of PATH, with a dpkg-query that knows every package."""
    path = tmp_path / "bin"
    path.mkdir()
    program(path / "dpkg-query", "shift 4; for p; do echo $p installed 1-1; done")
    monkeypatch.setenv("PATH", f"{path}{os.pathsep}{os.environ['PATH']}")
    return path


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def settings(tmp_path, site, bin_dir):
    """Settings that build a tiny program from an archive."""
    directory, address = site
    tree = make_tree(tmp_path / "unpacked" / "llama.cpp-b7")
    with tarfile.open(directory / "source.tar.gz", "w:gz") as archive:
        archive.add(tree, "llama.cpp-b7")
    return {
        "source": "archive",
        "archive_url": f"{address}/source.tar.gz",
        "archive_sha256": hashlib.sha256((directory / "source.tar.gz").read_bytes()).hexdigest(),
        "archive_build_number": 7,
        "archive_build_commit": "abc",
        "packages": ["llama.cpp-tools"],
        "download_dir": str(tmp_path / "downloads"),
        "backends": ["cpu"],
        "native": False,
        "cuda_root": "/nonexistent",
        "cuda_architectures": [],
        "nccl_root": "",
        "cmake_options": {},
        "targets": ["llama-bench"],
        "extra_builds": [],
        "quick_compile": False,
        "copy": True,
        "offer_to": [],
        "web_ui": False,
        "prefix": str(tmp_path / "prefix"),
        "keep_builds": 2,
        "keep_downloads": 2,
        "jobs": 1,
        "ccache_dir": str(tmp_path / "ccache"),
        "required_flags": {},
    }


def arguments(state, settings, **more):
    paths = {"host_python": "/nonexistent/python", "upgrade_record": "/nonexistent/upgrade.json"}
    return {"state": state, "settings": settings, **paths, **more}


@pytest.fixture
def run(call_module):
    """Call the module in this process; return its result."""

    def _run(state, settings, **more):
        return call_module(llama_cpp_build, arguments(state, settings, **more))

    return _run


def failure(result):
    """Return the one sentence of a module that failed."""
    assert result.get("failed"), result
    assert len(result["msg"].splitlines()) == 1
    return result["msg"]


def in_use(settings):
    return pathlib.Path(settings["prefix"]) / os.readlink(pathlib.Path(settings["prefix"]) / "current")


@needs_cmake
def test_builds_switches_and_then_has_nothing_to_do(run, settings):
    planned = run("planned", settings)
    assert planned["changed"] and planned["missing_packages"] == []
    assert planned["planned"]["present"] == {"version": "", "builds": {}}
    done = run("present", settings)
    assert done["changed"] and done["removed"] == [], done
    final, prefix = in_use(settings), pathlib.Path(settings["prefix"])
    assert final.name == planned["planned"]["wanted"]["builds"]["main"]
    record = json.loads((final / "build.json").read_text())
    assert record["built_at"].endswith("Z") and (record["version"], record["commit"]) == ("b7", "abc")
    assert record["rpc_protocol"] == "7.1"
    assert "publishing" in (final / "build.log").read_text()
    assert {path.name for path in (prefix / ".work").iterdir()} == {"lock", "build.log"}
    # the programs find their library wherever they are
    final.rename(prefix / "elsewhere")
    said = subprocess.run([prefix / "elsewhere/bin/llama-bench"], capture_output=True, text=True, check=True)
    assert said.stdout == "version: 7 (abc)\n"
    (prefix / "elsewhere").rename(final)

    again = run("planned", settings)
    assert not again["changed"] and again["actions"] == []
    assert again["planned"]["present"] == {"version": "b7", "builds": {"main": final.name}}
    assert not run("present", settings)["changed"]
    assert [path.name for path in pathlib.Path(settings["download_dir"]).iterdir()] == [
        f"llama.cpp-{settings['archive_sha256'][:12]}.tar"
    ]


@needs_cmake
def test_check_mode_says_what_would_be_done_and_does_nothing(run, settings):
    planned = run("planned", settings, _ansible_check_mode=True, _ansible_diff=True)
    directory = planned["planned"]["wanted"]["builds"]["main"]
    assert planned["changed"] and planned["actions"] == [
        f"Build {directory} (main: llama-bench).", f"Switch {settings['prefix']}/current to {directory}.",
    ]  # fmt: skip
    assert planned["diff"] == {"before": "", "after": f"{settings['prefix']}/current -> {directory}\n"}
    assert run("present", settings, _ansible_check_mode=True)["changed"]
    assert not pathlib.Path(settings["prefix"]).exists()
    verified = run("verified", settings, _ansible_check_mode=True)
    assert not verified["installed"]["present"] and verified["installed"]["extra_builds"] == {}


@needs_cmake
def test_what_a_switch_removes_is_told_before(run, settings):
    settings = settings | {"keep_builds": 1, "keep_downloads": 1}
    downloads = pathlib.Path(settings["download_dir"])
    run("present", settings)
    first = in_use(settings)
    old = downloads / "llama_cpp_python-0.3.1.tar.gz"
    old.write_text("x")
    os.utime(old, (1, 1))
    assert run("planned", settings)["actions"] == [], "nothing is removed without a switch"
    other = settings | {"cmake_options": {"OTHER": True}}
    told = run("planned", other, _ansible_check_mode=True)["actions"][-1]
    assert told == f"Remove {first}, {old} (llama_cpp_keep_builds, llama_cpp_keep_downloads)."
    assert sorted(run("present", other)["removed"]) == sorted([first.name, old.name])
    assert not first.exists() and [path.name for path in downloads.iterdir()] == [
        f"llama.cpp-{settings['archive_sha256'][:12]}.tar"
    ]


@needs_cmake
def test_an_extra_build_is_built_linked_and_verified_beside_the_main_one(run, settings):
    slow = {"name": "slow", "targets": ["llama-bench"], "cmake_options": {"GGML_AVX": False}}
    settings = settings | {"extra_builds": [slow]}
    assert run("present", settings)["changed"]
    installed = run("verified", settings)["installed"]
    extra = installed["extra_builds"]["slow"]
    assert installed["key"] != extra["key"] and (installed["build"], extra["version"]) == (7, "b7")
    assert extra["link"] == f"{settings['prefix']}/slow" and pathlib.Path(extra["bin_dir"], "llama-bench").exists()


@needs_cmake
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cmake_options": {"BREAK_CONFIGURATION": True}}, "the option BREAK_CONFIGURATION is on"),
        ({"targets": ["does_not_compile"]}, "missing_name"),
        ({"targets": ["fails"]}, "fails was built but does not run: version: 0 (none)."),
        ({"targets": ["tiny"]}, "the target tiny made no program tiny; correct llama_cpp_targets."),
        ({"targets": ["no_such_target"]}, "no_such_target"),
        ({"required_flags": {"llama-bench": ["-fa"]}}, "is too old for this collection: its llama-bench has no -fa"),
    ],
)
def test_a_failure_is_one_sentence_and_switches_nothing(run, settings, change, sentence):
    assert sentence in failure(run("present", settings | change))
    assert not pathlib.Path(settings["prefix"], "current").is_symlink()
    # and goes on after the correction
    assert run("present", settings)["changed"]


@needs_cmake
def test_another_sha256_stops_it_and_leaves_nothing_in_the_cache(run, settings):
    sentence = failure(run("present", settings | {"archive_sha256": "f" * 64}))
    assert "so nothing was replaced; correct llama_cpp_archive_sha256" in sentence
    assert settings["archive_sha256"] in sentence
    assert list(pathlib.Path(settings["download_dir"]).glob("*")) == []


@needs_cmake
def test_the_server_has_its_page_and_no_build_without_one_finds_it(run, settings, monkeypatch):
    """How a page is made is in test_web_ui_build."""
    placed = []

    def place(tree, download_dir, _shell, _open):
        placed.append(download_dir)
        (tree / "tools/ui/dist").mkdir(parents=True)
        (tree / "tools/ui/dist/index.html").write_text("<html>")

    monkeypatch.setattr(llama_cpp_build.build_job.web_ui_build, "place", place)
    monkeypatch.setattr(llama_cpp_build.build_job, "check_resources", lambda _settings: None)
    with_page = settings | {"web_ui": True, "targets": ["llama-server"]}
    # a run that fails leaves its source, with the page
    assert "was built but does not run" in failure(run("present", with_page | {"targets": ["llama-server", "fails"]}))
    without = settings | {"targets": ["llama-server"]}
    assert run("present", without)["changed"] and placed == [pathlib.Path(settings["download_dir"])]
    assert "it has a page" not in subprocess.check_output([in_use(settings) / "bin/llama-server"], text=True)
    assert json.loads((in_use(settings) / "build.json").read_text())["web_ui_node"] == ""
    assert run("present", with_page)["changed"] and len(placed) == 2
    assert "it has a page" in subprocess.check_output([in_use(settings) / "bin/llama-server"], text=True)
    assert json.loads((in_use(settings) / "build.json").read_text())["web_ui_node"]
    assert not run("planned", with_page)["changed"]


def test_a_damaged_download_in_the_cache_is_fetched_again(run, settings):
    cached = pathlib.Path(settings["download_dir"]) / f"llama.cpp-{settings['archive_sha256'][:12]}.tar"
    cached.parent.mkdir()
    cached.write_text("half")
    sentence = failure(run("present", settings | {"archive_url": settings["archive_url"] + ".missing"}))
    assert "cannot be downloaded: HTTP Error 404" in sentence and "check the address and the network" in sentence
    log = pathlib.Path(settings["prefix"]) / ".work/build.log"
    assert "downloading again" in log.read_text()


def test_an_archive_of_something_else_is_refused(run, settings, site, tmp_path):
    directory, address = site
    (tmp_path / "note").write_text("no source\n")
    with tarfile.open(directory / "other.tar", "w") as archive:
        archive.add(tmp_path / "note", "other/note")
    sha256 = hashlib.sha256((directory / "other.tar").read_bytes()).hexdigest()
    other = settings | {"archive_url": f"{address}/other.tar", "archive_sha256": sha256}
    assert "holds no source tree of llama.cpp" in failure(run("present", other))


@needs_cmake
def test_builds_from_a_shallow_git_checkout(run, settings, tmp_path):
    tree = tmp_path / "unpacked/llama.cpp-b7"
    git = ["git", "-C", str(tree), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "one"], ["tag", "b8"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    settings = settings | {"source": "git", "git_url": f"file://{tree}", "git_version": "b8"}
    assert run("present", settings)["changed"]
    record = json.loads((in_use(settings) / "build.json").read_text())
    assert (record["version"], record["build"], record["commit"]) == ("b8", 8, commit[:9])
    assert run("verified", settings)["installed"]["commit"] == commit[:9]
    assert "fetching b9 from file://" in failure(run("present", settings | {"git_version": "b9"}))


@pytest.fixture
def repository(settings, tmp_path):
    """Settings of a repository, and the name of its one commit."""
    tree = tmp_path / "unpacked/llama.cpp-b7"
    git = ["git", "-C", str(tree), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "--quiet", "-b", "topic"], ["add", "."], ["commit", "--quiet", "-m", "one"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    return settings | {"source": "git", "git_url": f"file://{tree}", "git_version": commit}, git, commit


def test_a_source_is_asked_for_before_anything_is_done_for_it(run, repository):
    settings, git, commit = repository
    subprocess.run([*git, "tag", "b8"], check=True, capture_output=True)
    for version in (commit, "b8"):
        assert not run("offered", settings | {"git_version": version}).get("failed")
    for version in ("b9", "topic", "0" * 40):
        sentence = failure(run("offered", settings | {"git_version": version}))
        assert sentence.startswith(f"{version} cannot be had from file://") and "a branch moves" in sentence
    assert not pathlib.Path(settings["prefix"], "current").is_symlink()


def test_a_branch_is_refused_because_it_moves(run, repository):
    settings, _git, _commit = repository
    sentence = failure(run("present", settings | {"git_version": "topic"}))
    assert "set llama_cpp_git_version to a full commit or a tag (a branch moves)" in sentence
    assert not pathlib.Path(settings["prefix"], "current").is_symlink()


def test_what_came_is_compared_with_the_commit(run, repository, bin_dir):
    """A stand-in for git asks for a branch whatever it is told, as a server that lies would answer."""
    settings, git, commit = repository
    other = "0" * 40
    real = shutil.which("git", path=os.environ["PATH"])
    swap = f'for a; do shift; [ "$a" = {other} ] && a=topic; set -- "$@" "$a"; done'
    program(bin_dir / "git", f'{swap}; exec {real} "$@"')
    sentence = failure(run("present", settings | {"git_version": other}))
    assert f"answered with {commit} and not with the commit {other}; correct llama_cpp_git_url" in sentence


HOSTILE = """\
import pathlib
pathlib.Path({marker!r}).write_text("a build back end ran")
def get_requires_for_build_wheel(config_settings=None): return []
def prepare_metadata_for_build_wheel(directory, config_settings=None): raise SystemExit
def build_wheel(*args, **kwargs): raise SystemExit
"""
PROJECT = """\
[build-system]
requires = ["hostile-backend"]
build-backend = "hostile"
backend-path = ["."]
"""


@pytest.fixture
def index(settings, site, tmp_path, monkeypatch):
    """Settings of a source distribution in a package index whose build back end, beside it too, leaves a mark."""
    directory, address = site
    marker = tmp_path / "ran"
    tree = make_tree(tmp_path / "sdist/llama_cpp_python-0.3.36/vendor/llama.cpp").parents[1]
    (tree / "pyproject.toml").write_text(PROJECT)
    for name in ("hostile.py", "setup.py"):
        (tree / name).write_text(HOSTILE.format(marker=str(marker)))
    files = directory / "files"
    files.mkdir()
    sdist = files / "llama_cpp_python-0.3.36.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(tree, tree.name)
    with zipfile.ZipFile(files / "hostile_backend-99.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("hostile.py", HOSTILE.format(marker=str(marker)))
        wheel.writestr("hostile_backend-99.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: hostile-backend\n")
    for name in ("llama-cpp-python", "hostile-backend"):
        page = directory / "simple" / name / "index.html"
        page.parent.mkdir(parents=True)
        page.write_text("".join(f'<a href="../../files/{f.name}#sha256=0">{f.name}</a>' for f in files.iterdir()))
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
    return settings | {
        "source": "sdist", "sdist_version": "0.3.36", "sdist_build_number": 9, "sdist_build_commit": "def",
        "sdist_sha256": hashlib.sha256(sdist.read_bytes()).hexdigest(),
    }, marker  # fmt: skip


@needs_cmake
def test_the_source_distribution_is_fetched_and_nothing_of_the_index_is_run(run, index, bin_dir):
    settings, marker = index
    program(bin_dir / "pip", f"echo pip >{marker}")
    assert run("present", settings)["changed"]
    assert json.loads((in_use(settings) / "build.json").read_text())["version"] == "b9"
    assert not marker.exists()
    kept = [path.name for path in pathlib.Path(settings["download_dir"]).iterdir()]
    assert kept == ["llama_cpp_python-0.3.36.tar.gz"]
    assert not run("present", settings)["changed"]


@needs_cmake
@pytest.mark.parametrize("place", ["configuration", "extra-index-url", "find-links", "json"])
def test_pips_configuration_says_where_the_source_is(run, index, site, tmp_path, monkeypatch, place):
    (settings, _marker), (directory, address) = index, site
    text = f"[global]\nindex-url = {address}/simple\n"
    if place == "extra-index-url":
        text = f"[global]\nindex-url = {address}/empty\n[download]\nextra-index-url =\n  {address}/simple\n"
    if place == "find-links":
        text = f"[global]\nno-index = true\nfind-links = {directory}/files\n"
    if place == "json":
        file = {"filename": "llama_cpp_python-0.3.36.tar.gz", "url": "/files/llama_cpp_python-0.3.36.tar.gz"}
        page = directory / "simple/llama-cpp-python/index.html"
        page.write_text(json.dumps({"meta": {"api-version": "1.1"}, "files": [file]}))
    (tmp_path / "pip.conf").write_text(text)
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert run("present", settings)["changed"]


def test_a_source_distribution_with_another_hash_is_not_kept(run, index):
    settings, _marker = index
    sentence = failure(run("present", settings | {"sdist_sha256": "f" * 64}))
    assert settings["sdist_sha256"] in sentence
    assert "so nothing was replaced; correct llama_cpp_sdist_sha256" in sentence
    assert list(pathlib.Path(settings["download_dir"]).glob("*")) == []


def test_a_version_that_the_index_does_not_have_is_one_sentence_without_a_password(run, index, monkeypatch):
    settings, _marker = index
    monkeypatch.setenv("PIP_INDEX_URL", os.environ["PIP_INDEX_URL"].replace("//", "//somebody:needle@"))
    assert not run("offered", settings).get("failed")
    assert "0.0.1.tar.gz was not found" in failure(run("offered", settings | {"sdist_version": "0.0.1"}))
    sentence = failure(run("present", settings | {"sdist_version": "0.0.1"}))
    assert "does not have that file" in sentence and "correct llama_cpp_sdist_version, pip's index-url" in sentence
    log = pathlib.Path(settings["prefix"], ".work/build.log").read_text()
    assert "needle" not in sentence + log and "simple/llama-cpp-python" in log


def test_an_index_that_cannot_be_reached_is_one_sentence(run, index, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert "127.0.0.1:9/simple/llama-cpp-python/ cannot be downloaded" in failure(run("present", index[0]))


def test_a_download_that_does_not_end_is_bounded(run, settings, monkeypatch):
    """The server names no size; the bound is made small here."""
    monkeypatch.setattr(llama_cpp_build.build_fetch, "_ARCHIVE_MIB", 1)

    class Endless:
        headers: dict[str, str] = {}

        def geturl(self):
            return "http://example.com/endless"

        def read(self, size):
            return bytes(size)

    monkeypatch.setattr(llama_cpp_build.urls, "open_url", lambda *_args, **_more: Endless())
    assert "is larger than 1 MiB, more than builds fetch" in failure(run("present", settings))
    assert not list(pathlib.Path(settings["prefix"], ".work").glob("download-*"))


def test_a_download_that_breaks_off_is_told_from_a_wrong_one(run, settings, monkeypatch):
    class Short:
        headers = {"Content-Length": "100"}

        def __init__(self):
            self.chunks = [b"half", b""]

        def geturl(self):
            return "http://example.com/short"

        def read(self, _size):
            return self.chunks.pop(0)

    monkeypatch.setattr(llama_cpp_build.urls, "open_url", lambda *_args, **_more: Short())
    assert "broke off after 4 of 100 bytes" in failure(run("present", settings))


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (
            "free_mib",
            "has 9 MiB free and a build of llama.cpp needs 3072 MiB; free 3063 MiB there, or set llama_cpp_prefix",
        ),
        ("available_memory_mib", "9 MiB of memory are available and compiling llama.cpp needs 1500 MiB"),
    ],
)
def test_refuses_to_begin_without_disk_and_memory(run, settings, bin_dir, monkeypatch, function, sentence):
    monkeypatch.setattr(llama_cpp_build.job, function, lambda *_: 9)
    assert sentence in failure(run("present", settings))
    # before packages are installed for nothing, too
    program(bin_dir / "dpkg-query", "echo dpkg installed 1-1")
    assert sentence in failure(run("planned", settings))


def test_missing_packages_are_named_and_the_rest_is_unknown(run, settings, bin_dir):
    program(bin_dir / "dpkg-query", "echo dpkg installed 1-1; echo cmake deinstall 3; exit 1")
    program(bin_dir / "cc", "exit 1")
    pathlib.Path(settings["prefix"]).mkdir()
    pathlib.Path(settings["prefix"], "current").symlink_to("b6-of-another-host")
    planned = run("planned", settings)
    assert planned["planned"]["present"]["builds"] == {"main": "b6-of-another-host"}
    assert planned["changed"] and {"build-essential", "cmake"} <= set(planned["missing_packages"])
    assert "the key is unknown until build-essential, " in planned["actions"][1]
    assert planned["planned"]["wanted"] == {"version": "", "builds": {}} and planned["planned"]["record"] == {}
    assert "are missing; run the whole role llama_cpp" in failure(run("present", settings))


def test_a_tool_that_does_not_run_is_an_error_with_a_cure(run, settings):
    cuda = settings | {"backends": ["cuda"], "cuda_architectures": [86]}
    sentence = failure(run("planned", cuda))
    assert sentence.startswith("/nonexistent/bin/nvcc does not run (No such file or directory); the backend cuda needs")
    foreseen = run("planned", cuda, _ansible_check_mode=True)
    assert "the key is unknown until /nonexistent/bin/nvcc can be used" in foreseen["actions"][0]


def test_architectures_are_those_of_the_cards(run, settings, bin_dir, monkeypatch):
    program(bin_dir / "nvcc", "echo Build cuda_13.0")
    cuda = settings | {"backends": ["cuda"], "cuda_root": str(bin_dir.parent)}
    monkeypatch.setattr(cards, "read", lambda _python: {"available": False, "reason": "No NVIDIA driver"})
    assert "cards is unknown (No NVIDIA driver); correct that, or set" in failure(run("planned", cuda))
    assert "until the NVIDIA driver can be used" in run("planned", cuda, _ansible_check_mode=True)["actions"][0]
    found = {"available": True, "reason": None, "gpus": [{"compute_capability": "8.9"}, {"compute_capability": "8.6"}]}
    monkeypatch.setattr(cards, "read", lambda _python: found)
    automatic = run("planned", cuda)["planned"]["wanted"]["builds"]
    given = run("planned", cuda | {"cuda_architectures": [86, 89]})["planned"]["wanted"]["builds"]
    assert automatic == given and given != run("planned", settings)["planned"]["wanted"]["builds"]


def test_a_build_is_for_the_cards_of_hosts_that_copy_it_too(run, settings, bin_dir, monkeypatch):
    nvcc = "Cuda compilation tools, release 12.8, V12.8.93"
    program(bin_dir / "nvcc", f"echo {nvcc}")
    cuda = settings | {"backends": ["cuda"], "cuda_root": str(bin_dir.parent)}
    card = {"available": True, "reason": None, "gpus": [{"compute_capability": "8.9"}]}
    monkeypatch.setattr(cards, "read", lambda _python: card)
    lender = build_copy.described(cuda, build_copy.Machine(*compile_host.system(), nvcc, ["75"]))
    found = run("planned", cuda | {"offer_to": [lender]})["planned"]["wanted"]["builds"]
    assert found == run("planned", cuda | {"cuda_architectures": [89, 75]})["planned"]["wanted"]["builds"]
    lender["settings"]["copy"] = False
    alone = run("planned", cuda | {"offer_to": [lender]})["planned"]["wanted"]["builds"]
    assert alone == run("planned", cuda)["planned"]["wanted"]["builds"] != found


def test_architectures_are_known_from_the_bus_where_no_driver_answers(run, settings, bin_dir, monkeypatch):
    program(bin_dir / "nvcc", "echo Cuda compilation tools, release 12.8, V12.8.93")
    cuda = settings | {"backends": ["cuda"], "cuda_root": str(bin_dir.parent)}
    monkeypatch.setattr(cards, "read", lambda _python: {"available": False, "reason": "Reboot.", "gpus": []})
    devices = [{"address": f"0000:0{place}:00.0", "device_id": number} for place, number in enumerate(("0x1b38",
               "0x2204"))]
    monkeypatch.setattr(host_hardware, "nvidia_devices", lambda: devices)
    found = run("planned", cuda)["planned"]["wanted"]["builds"]
    assert found == run("planned", cuda | {"cuda_architectures": [61, 86]})["planned"]["wanted"]["builds"]
    program(bin_dir / "nvcc", "echo Cuda compilation tools, release 13.0, V13.0.88")
    assert "CUDA 13.0 has no target for compute capability 6.1" in failure(run("planned", cuda))
    without = cuda | {"slots_left_out": ["00:00.0"]}
    assert run("planned", without)["planned"]["wanted"]["builds"] == (
        run("planned", cuda | {"cuda_architectures": [86]})["planned"]["wanted"]["builds"]
    )
    devices.append({"address": "0000:09:00.0", "device_id": "0x3fff"})
    assert "cards is unknown (Reboot.)" in failure(run("planned", cuda))


@pytest.fixture
def packages(settings, bin_dir):
    """Settings for programs that are there already, with those programs in the PATH."""
    program(bin_dir / "llama-bench", "echo 'version: 5 (f00)'\nwhile [ -e ${HOLD:-/nonexistent} ]; do sleep 0.1; done")
    return settings | {"source": "package"}


def test_packages_are_linked_and_asked_for_their_version(run, packages):
    assert run("present", packages)["changed"]
    record = json.loads((in_use(packages) / "build.json").read_text())
    assert (record["build"], record["commit"]) == (5, "f00")
    assert record["source"]["version"] == "llama.cpp-tools 1-1"
    assert (in_use(packages) / "bin/llama-bench").is_symlink()
    assert run("verified", packages)["installed"]["build"] == 5
    missing = run("present", packages | {"targets": ["llama-none"]})
    assert "no installed package has the program llama-none" in failure(missing)


def start(settings, hold):
    """Start a build that goes on while the file C(hold) exists; return it once it has the lock and wrote to its log."""
    hold.touch()
    code = (
        "import json, sys\n"
        "from ansible.module_utils.testing import patch_module_args\n"
        "from ansible_collections.homelab.mixed_gpu.plugins.modules import llama_cpp_build\n"
        "with patch_module_args(json.loads(sys.argv[1])):\n"
        "    llama_cpp_build.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(arguments("present", settings))],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOLD": str(hold)},
    )
    log = pathlib.Path(settings["prefix"]) / ".work/build.log"
    while process.poll() is None and not (log.exists() and "llama-bench is" in log.read_text()):
        time.sleep(0.01)
    return process


def test_another_build_meanwhile_is_refused(run, packages, bin_dir, tmp_path):
    program(bin_dir / "llama-server", "")
    first = start(packages, tmp_path / "hold")
    other = packages | {"targets": ["llama-server"]}
    assert "another build of llama.cpp is under way on this host (package-" in failure(run("present", other))
    (tmp_path / "hold").unlink()
    assert json.loads(first.communicate()[0])["changed"]
    assert run("present", other)["changed"]


def test_the_same_build_meanwhile_is_waited_for(run, packages, tmp_path):
    first = start(packages, tmp_path / "hold")
    threading.Timer(1, (tmp_path / "hold").unlink).start()
    assert not run("present", packages)["changed"]
    assert json.loads(first.communicate()[0])["changed"]


def test_a_killed_build_is_taken_over(run, packages, tmp_path):
    first = start(packages, tmp_path / "hold")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    (tmp_path / "hold").unlink()
    assert not pathlib.Path(packages["prefix"], "current").is_symlink()
    assert run("present", packages)["changed"]


def test_a_damaged_build_is_replaced(run, packages):
    run("present", packages)
    final = in_use(packages)
    (final / "build.json").unlink()
    (final / "bin/rubbish").write_text("x")
    assert run("planned", packages)["actions"] == [f"Build {final.name} (main: llama-bench)."]
    assert run("present", packages)["changed"]
    assert [path.name for path in (final / "bin").iterdir()] == ["llama-bench"]
    assert list(final.parent.glob(".old-*")) == []


def test_going_back_switches_and_keeps_both(run, packages, bin_dir):
    program(bin_dir / "llama-server", "")
    run("present", packages)
    first = in_use(packages)
    run("present", packages | {"targets": ["llama-server"]})
    second = in_use(packages)
    use = {"main": first.name}
    foreseen = run("switched", packages, use=use, _ansible_check_mode=True)
    assert foreseen["changed"] and in_use(packages) == second
    assert run("switched", packages, use=use)["changed"] and in_use(packages) == first
    assert not run("switched", packages, use=use)["changed"]
    gone = failure(run("switched", packages, use={"main": second.name, "slow": "b1-000000000000"}))
    assert "b1-000000000000 does not exist any more, so llama.cpp (slow) cannot be switched" in gone
    assert in_use(packages) == first


def test_a_build_beside_the_one_in_use_is_switched_to_later_and_old_ones_are_removed_last(run, packages, bin_dir):
    program(bin_dir / "llama-server", "")
    run("present", packages)
    first = in_use(packages)
    other = packages | {"targets": ["llama-server"], "keep_builds": 1}
    assert run("built", other, _ansible_check_mode=True)["changed"]
    assert run("built", other)["changed"] and in_use(packages) == first
    assert not run("built", other)["changed"] and not run("built", other, _ansible_check_mode=True)["changed"]
    use = run("planned", other)["planned"]["wanted"]["builds"]
    assert run("switched", other, use=use)["changed"] and first.is_dir()
    second = in_use(packages)
    assert second.name == use["main"]
    kept = run("pruned", other | {"keep_builds": 2}, use={"main": first.name})
    assert not kept["changed"] and first.is_dir()
    assert run("pruned", other, use={"main": first.name})["removed"] == [first.name]
    assert in_use(packages) == second and not first.exists()


@needs_cmake
def test_verify_refuses_another_source_and_a_host_without_a_build(run, settings):
    assert "holds no build of llama.cpp named main; run the role llama_cpp" in failure(run("verified", settings))
    run("present", settings)
    other = settings | {"archive_sha256": "f" * 64}
    assert "from the source archive, which is not what the variables" in failure(run("verified", other))
    assert run("verified", other, _ansible_check_mode=True)["installed"]["present"]


def test_settings_that_are_not_complete_are_an_error(run, settings):
    assert failure(run("planned", {key: value for key, value in settings.items() if key != "targets"})) == (
        "The settings lack 'targets': pass all variables of the role llama_cpp."
    )


@needs_cmake
def test_quick_compile_lowers_the_optimisation_of_all_but_ggml(run, settings, tmp_path):
    """The tiny project has a subproject ggml; what CMake was told shows in its compile commands."""
    tree = tmp_path / "unpacked/llama.cpp-b7"
    lists = CMAKE_LISTS.replace("project(tiny C)", "project(tiny CXX)\nset(CMAKE_EXPORT_COMPILE_COMMANDS ON)")
    (tree / "CMakeLists.txt").write_text(lists.replace(".c)", ".cpp)") + "add_subdirectory(ggml)\n")
    (tree / "ggml/CMakeLists.txt").write_text("project(ggml CXX)\nadd_library(ggml STATIC ggml.cpp)\n")
    (tree / "ggml/ggml.cpp").write_text("int ggml() { return 0; }\n")
    for path in tree.glob("*.c"):
        path.rename(path.with_suffix(".cpp"))
    archive = tmp_path / "site/quick.tar"
    with tarfile.open(archive, "w") as file:
        file.add(tree, "llama.cpp-b7")
    quick = settings | {
        "archive_url": settings["archive_url"].replace("source.tar.gz", "quick.tar"),
        "archive_sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "quick_compile": True,
        "targets": ["does_not_compile"],
    }
    run("present", quick)  # leaves CMake's files behind
    commands = json.loads(
        next(pathlib.Path(settings["prefix"]).glob(".work/tree-*/build-*/compile_commands.json")).read_text()
    )
    levels = {pathlib.Path(entry["file"]).name: re.findall(r"-O\d", entry["command"]) for entry in commands}
    assert levels["ggml.cpp"] == ["-O3"] and levels["tiny.cpp"] == ["-O0"]
