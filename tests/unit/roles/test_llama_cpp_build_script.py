from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time

import pytest

SCRIPT = pathlib.Path(__file__).parents[3] / "roles/llama_cpp/files/llama_cpp_build.py"
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
int main(void) { printf("version: %d (%s)\\n", NUMBER, TEXT(COMMIT)); return STATUS + tiny(); }
"""


def make_tree(root):
    for directory in ("ggml", "tools"):
        (root / directory).mkdir(parents=True)
        (root / directory / "README").write_text("here\n")
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
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(directory)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield directory, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def job(tmp_path, site):
    """A job that builds a tiny program from an archive."""
    directory, address = site
    tree = make_tree(tmp_path / "unpacked" / "llama.cpp-b7")
    with tarfile.open(directory / "source.tar.gz", "w:gz") as archive:
        archive.add(tree, "llama.cpp-b7")
    sha256 = hashlib.sha256((directory / "source.tar.gz").read_bytes()).hexdigest()
    return {
        "prefix": str(tmp_path / "prefix"),
        "work": str(tmp_path / "prefix/.work"),
        "download_dir": str(tmp_path / "downloads"),
        "ccache_dir": str(tmp_path / "ccache"),
        "archive_url": f"{address}/source.tar.gz",
        "jobs": 1,
        "keep_builds": 2,
        "previous": [],
        "upgrade_record": str(tmp_path / "upgrade.json"),
        "disk_mib": 1,
        "download_mib": 1,
        "memory_mib": 1,
        "memory_per_job_mib": 1,
        "log": str(tmp_path / "prefix/.work/main.log"),
        "directory": "b7-000000000001",
        "record": {
            "schema": 1,
            "name": "main",
            "key": "0" * 64,
            "version": "b7",
            "build": 7,
            "commit": "abc",
            "source": {"kind": "archive", "sha256": sha256, "build": 7, "commit": "abc"},
            "cmake_arguments": ["-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN"],
            "targets": ["llama-bench"],
            "toolchain": {},
        },
    }


def changed(job, **record):
    return {**job, "record": {**job["record"], **record}}


def run(action, job, **environment):
    return subprocess.run(
        [sys.executable, str(SCRIPT), action],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def failure(action, job, **environment):
    """Run what must fail, and return its one sentence."""
    done = run(action, job, **environment)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@needs_cmake
def test_builds_publishes_and_then_has_nothing_to_do(job):
    prefix = pathlib.Path(job["prefix"])
    done = run("build", job)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"changed": True}
    final = prefix / job["directory"]
    record = json.loads((final / "build.json").read_text())
    assert record.pop("built_at").endswith("Z")
    assert record == job["record"]
    assert "publishing" in (final / "build.log").read_text()
    # the programs find their library wherever they are
    final.rename(prefix / "elsewhere")
    said = subprocess.run([prefix / "elsewhere/bin/llama-bench"], capture_output=True, text=True, check=True)
    assert said.stdout == "version: 7 (abc)\n"
    (prefix / "elsewhere").rename(final)
    assert not list((prefix / ".work").glob("stage-*"))

    assert json.loads(run("build", job).stdout) == {"changed": False}
    assert [path.name for path in pathlib.Path(job["download_dir"]).iterdir()] == [
        f"llama.cpp-{job['record']['source']['sha256'][:12]}.tar"
    ]


@needs_cmake
@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"cmake_arguments": ["-DBREAK_CONFIGURATION=ON"]}, "the option BREAK_CONFIGURATION is on"),
        ({"targets": ["does_not_compile"]}, "missing_name"),
        ({"targets": ["fails"]}, "fails was built but does not run: version: 0 (none)."),
        ({"targets": ["tiny"]}, "the target tiny made no program tiny; correct llama_cpp_targets."),
        ({"targets": ["no_such_target"]}, "no_such_target"),
    ],
)
def test_says_in_one_sentence_what_failed_and_publishes_nothing(job, record, sentence):
    assert sentence in failure("build", changed(job, **record))
    assert [path.name for path in pathlib.Path(job["prefix"]).iterdir()] == [".work"]
    # and goes on after the correction
    assert run("build", job).returncode == 0


@needs_cmake
def test_another_sha256_stops_it_and_leaves_nothing_in_the_cache(job):
    source = {**job["record"]["source"], "sha256": "f" * 64}
    sentence = failure("build", changed(job, source=source))
    assert "so nothing was replaced; correct llama_cpp_archive_sha256" in sentence
    assert job["record"]["source"]["sha256"] in sentence
    assert list(pathlib.Path(job["download_dir"]).glob("*")) == []


def test_a_damaged_download_in_the_cache_is_fetched_again(job):
    cached = pathlib.Path(job["download_dir"]) / f"llama.cpp-{job['record']['source']['sha256'][:12]}.tar"
    cached.parent.mkdir()
    cached.write_text("half")
    sentence = failure("build", {**job, "archive_url": job["archive_url"] + ".missing"})
    assert "cannot be downloaded: " in sentence
    assert "404" in sentence
    assert "getting it again" in pathlib.Path(job["log"]).read_text()


def test_an_archive_of_something_else_is_refused(job, site, tmp_path):
    directory, address = site
    (tmp_path / "note").write_text("no source\n")
    with tarfile.open(directory / "other.tar", "w") as archive:
        archive.add(tmp_path / "note", "other/note")
    sha256 = hashlib.sha256((directory / "other.tar").read_bytes()).hexdigest()
    wanted = changed({**job, "archive_url": f"{address}/other.tar"}, source={"kind": "archive", "sha256": sha256})
    assert "holds no source tree of llama.cpp" in failure("build", wanted)


@needs_cmake
def test_builds_from_a_shallow_git_checkout(job, tmp_path):
    tree = tmp_path / "unpacked/llama.cpp-b7"
    git = ["git", "-C", str(tree), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "one"], ["tag", "b8"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    source = {"kind": "git", "url": f"file://{tree}", "version": "b8"}
    done = run("build", changed(job, source=source, commit=None, build=8))
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads((pathlib.Path(job["prefix"]) / job["directory"] / "build.json").read_text())
    assert record["commit"] == commit[:9]
    wrong = {**changed(job, source={**source, "version": "b9"}, commit=None), "directory": "b9-000000000002"}
    assert "getting b9 from file://" in failure("build", wrong)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"disk_mib": 1 << 40}, "MiB free and a build of llama.cpp needs 1099511627776 MiB; free "),
        ({"memory_mib": 1 << 40}, "MiB of memory are available and compiling llama.cpp needs"),
    ],
)
@pytest.mark.parametrize("action", ["check", "build"])
def test_refuses_to_begin_without_disk_and_memory(job, action, change, sentence):
    assert sentence in failure(action, {**job, **change})


@pytest.fixture
def packages(job, tmp_path):
    """A job for programs that are there already, with those programs in the PATH."""
    programs = tmp_path / "programs"
    programs.mkdir()
    program = programs / "llama-bench"
    program.write_text("#!/bin/sh\necho 'version: 5 (f00)'\nsleep ${LINGER:-0}\n")
    program.chmod(0o755)
    wanted = changed(job, source={"kind": "package", "version": "1"}, build=0, commit=None)
    return wanted, {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def test_packages_are_linked_and_asked_for_their_version(packages):
    job, environment = packages
    assert run("build", job, **environment).returncode == 0
    final = pathlib.Path(job["prefix"]) / job["directory"]
    record = json.loads((final / "build.json").read_text())
    assert (record["build"], record["commit"]) == (5, "f00")
    assert (final / "bin/llama-bench").is_symlink()
    missing = {**changed(job, targets=["llama-none"]), "directory": "package-00000000000a"}
    assert "no installed package brought the program llama-none" in failure("build", missing, **environment)


def start(job, environment):
    """Start a build that takes some seconds, and return it once it holds the lock and has written to its log."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "build"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment, "LINGER": "3"},
    )
    process.stdin.write(json.dumps(job))
    process.stdin.close()
    process.stdin = None
    log = pathlib.Path(job["log"])
    while process.poll() is None and not (log.exists() and "llama-bench is" in log.read_text()):
        time.sleep(0.01)
    return process


def test_another_build_meanwhile_is_refused_and_pruning_gives_way(packages):
    job, environment = packages
    first = start(job, environment)
    other = {**job, "directory": "package-00000000000b", "log": job["log"] + "2"}
    sentence = failure("build", other, **environment)
    assert f"another build of llama.cpp is under way on this host ({job['directory']}, process " in sentence
    done = run("prune", {**job, "log": job["log"] + "3"})
    assert (done.returncode, json.loads(done.stdout)) == (0, {"changed": False, "removed": []})
    assert json.loads(first.communicate()[0]) == {"changed": True}
    assert run("build", other, **environment).returncode == 0


def test_the_same_build_meanwhile_is_waited_for(packages):
    job, environment = packages
    first = start(job, environment)
    second = run("build", job, **environment)
    assert json.loads(first.communicate()[0]) == {"changed": True}
    assert (second.returncode, json.loads(second.stdout)) == (0, {"changed": False})


def test_a_killed_build_is_taken_over(packages):
    job, environment = packages
    first = start(job, environment)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (pathlib.Path(job["prefix"]) / job["directory"]).exists()
    assert json.loads(run("build", job, **environment).stdout) == {"changed": True}


def test_a_damaged_build_is_replaced(packages):
    job, environment = packages
    final = pathlib.Path(job["prefix"]) / job["directory"]
    (final / "bin").mkdir(parents=True)
    (final / "bin/rubbish").write_text("x")
    assert json.loads(run("build", job, **environment).stdout) == {"changed": True}
    assert [path.name for path in (final / "bin").iterdir()] == ["llama-bench"]
    assert list(final.parent.glob(".broken-*")) == []


@pytest.mark.parametrize(
    ("previous", "keep_builds", "removed"),
    [([], 2, [2]), (["b7-000000000002"], 2, [3]), (["b7-000000000002"], 3, []), ([], 1, [2, 3]), ([], 0, [2, 3])],
)
def test_prune_keeps_the_linked_and_the_previous_or_newest_other_of_each_name(job, previous, keep_builds, removed):
    prefix = pathlib.Path(job["prefix"])
    for name, number, linked in [("main", 1, "current"), ("main", 2, ""), ("main", 3, ""), ("slow", 4, "slow")]:
        path = prefix / f"b7-{number:012x}"
        path.mkdir(parents=True)
        (path / "build.json").write_text(json.dumps({"name": name, "built_at": f"2026-01-0{number}T00:00:00Z"}))
        if linked:
            (prefix / linked).symlink_to(path.name)
    for stranger in ("b7-00000000dead", "notes", ".work/tree-1", ".work/stage-x"):
        (prefix / stranger).mkdir(parents=True)
    job = {**job, "previous": previous, "keep_builds": keep_builds}
    before = {path.name for path in prefix.iterdir()}
    done = run("prune", job)
    gone = [f"b7-{number:012x}" for number in removed]
    answer = json.loads(done.stdout)
    assert answer["changed"] is bool(removed)
    assert sorted(answer["removed"]) == gone
    assert {path.name for path in prefix.iterdir()} == before - set(gone)
    assert not (prefix / ".work/tree-1").exists()
    assert json.loads(run("prune", job).stdout) == {"changed": False, "removed": []}


def test_prune_keeps_what_an_upgrade_leads_from_and_to(job):
    prefix, record = pathlib.Path(job["prefix"]), pathlib.Path(job["upgrade_record"])
    builds = [f"b7-{number:012x}" for number in range(1, 5)]
    for number, name in enumerate(builds, 1):
        (prefix / name).mkdir(parents=True)
        (prefix / name / "build.json").write_text(json.dumps({"name": "main", "built_at": f"2026-01-0{number}"}))
    (prefix / "current").symlink_to(builds[3])
    (prefix / ".work").mkdir()
    job = {**job, "keep_builds": 1}
    ends = {"from": {"builds": {"main": builds[0]}}, "to": {"builds": {"main": builds[1]}}}
    record.write_text(json.dumps({"under_way": ends}))
    assert json.loads(run("prune", job).stdout)["removed"] == [builds[2]]
    record.write_text("{")
    damaged = run("prune", job)
    assert damaged.returncode == 1 and f"{record} is damaged" in damaged.stderr and f"mv {record}" in damaged.stderr
    assert (prefix / builds[0]).exists()
    record.write_text(json.dumps({"under_way": None}))
    assert sorted(json.loads(run("prune", job).stdout)["removed"]) == builds[:2]
