# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Making a release of ExLlama: real git over HTTP, a real environment; what is compiled comes with `make "
"exllamav2-build-test`."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import threading
import time

import pytest

PROJECT = pathlib.Path(__file__).resolve().parents[3]
FILES = PROJECT / "roles/exllamav2/files"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


exllama_server = load(FILES / "exllama_server.py")
stand_in = load(PROJECT / "molecule/exllamav2/stand_in.py")
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


class GitOverHttp(http.server.BaseHTTPRequestHandler):
    """git's own http-backend, which is a CGI program."""

    root = ""

    def answer(self):
        path, _sep, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        env = os.environ | {
            "GIT_PROJECT_ROOT": self.root, "GIT_HTTP_EXPORT_ALL": "1", "REQUEST_METHOD": self.command,
            "PATH_INFO": path, "QUERY_STRING": query, "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": self.headers.get("Content-Type") or "",
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
        }  # fmt: skip
        said = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=False).stdout
        head, _sep, rest = said.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.send_response(int(fields.pop("Status", "200 OK").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(rest)

    do_GET = do_POST = answer

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with two commits behind http-backend: (url, commits)."""
    root = tmp_path_factory.mktemp("git")
    commits = stand_in.repository(root / "work", root / "tabbyapi.git")
    handler = type("Handler", (GitOverHttp,), {"root": str(root)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/tabbyapi.git", commits
        server.shutdown()


@pytest.fixture
def job(tmp_path, repository):
    wheel = stand_in.wheel("exllamav2", "")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / stand_in.wheel_name("exllamav2")).write_bytes(wheel)
    pinned = f"--no-index\n--find-links {tmp_path}/wheels\nexllamav2=={stand_in.VERSIONS['exllamav2']} "
    pinned += f"--hash=sha256:{hashlib.sha256(wheel).hexdigest()}\n"
    prefix = tmp_path / "v2"
    prefix.mkdir()
    record = {
        "package": "exllamav2", "module": "exllamav2_ext", "version": "0.3.2", "torch": "", "arch_list": "", "nvcc": "",
        "build_extension": False, "server": {"url": repository[0], "commit": repository[1][0]},
    }  # fmt: skip
    return {
        "prefix": str(prefix), "directory": f"0.3.2-{'1' * 12}", "record": record, "requirements": pinned, "jobs": 1,
        "interpreter": sys.executable, "cuda_root": "/nonexistent", "ccache_dir": str(tmp_path / "ccache"),
        "pip_cache_dir": str(tmp_path / "pip"), "log": str(prefix / "release.log"), "extension_script": "",
    }  # fmt: skip


def run(action, job, **env):
    return subprocess.run(
        [sys.executable, str(FILES / "exllama_release.py"), action], input=json.dumps(job), capture_output=True,
        text=True, env=os.environ | env, check=False,
    )  # fmt: skip


def release(job):
    return pathlib.Path(job["prefix"]) / job["directory"]


def test_a_release_is_made_once_and_holds_exactly_the_commit(job, repository):
    done = run("make", job)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"changed": True}), done.stderr
    tree = release(job) / "tabbyapi"
    head = subprocess.run(
        ["git", "-C", str(tree), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert head == repository[1][0] and "commit 1." in (tree / "main.py").read_text(encoding="utf-8")
    record = json.loads((release(job) / "build.json").read_text(encoding="utf-8"))
    assert record["found"]["module"].startswith(str(release(job) / "venv"))
    before = (release(job) / "build.json").stat().st_mtime_ns
    assert json.loads(run("make", job).stdout) == {"changed": False}
    assert (release(job) / "build.json").stat().st_mtime_ns == before


def test_a_server_that_hands_out_branches_only_is_asked_for_them(job, repository):
    """Without protocol 2 http-backend refuses a commit that no branch ends with; the first one is such a commit."""
    old = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "protocol.version", "GIT_CONFIG_VALUE_0": "0"}
    done = run("make", job, **old)
    assert done.returncode == 0, done.stderr
    assert "does not hand out a single commit" in pathlib.Path(job["log"]).read_text(encoding="utf-8")


def test_what_was_finished_is_not_done_again_after_a_failure(job, tmp_path):
    good = job["record"]["module"]
    job["record"]["module"] = "there_is_no_such_extension"
    done = run("make", job)
    assert done.returncode == 1 and "cannot be imported (ModuleNotFoundError" in done.stderr
    assert "exllamav2_build_extension to true" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (release(job) / "build.json").exists()
    job["record"]["module"] = good
    shutil.rmtree(tmp_path / "wheels")  # the environment is complete: pip is not asked again
    assert run("make", job).returncode == 0


def test_changed_files_of_the_checkout_are_put_right_before_it_counts(job):
    job["record"]["module"] = "there_is_no_such_extension"
    run("make", job)
    (release(job) / "tabbyapi/main.py").write_text("somebody else's", encoding="utf-8")
    job["record"]["module"] = "exllamav2_ext"
    assert run("make", job).returncode == 0
    assert "commit 1." in (release(job) / "tabbyapi/main.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (
            lambda job: job["record"]["server"].update(commit="0" * 40),
            "correct exllamav2_server_git_url or exllamav2_server_commit",
        ),
        (lambda job: job["record"]["server"].update(url="http://127.0.0.1:9/x.git"), "getting commit"),
        (lambda job: job.update(requirements=job["requirements"][:-2] + "0\n"), "installing the pinned packages"),
        (lambda job: job.update(requirements="exllamav2==0.3.2\n"), "installing the pinned packages"),
        (lambda job: job.update(interpreter="/nonexistent/python"), "install python3-venv"),
    ],
)
def test_a_failure_is_one_sentence_and_leaves_no_release(job, break_it, words):
    break_it(job)
    done = run("make", job)
    assert done.returncode == 1 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (release(job) / "build.json").exists() and done.stdout == ""


def test_what_a_killed_run_left_running_is_waited_for(job, tmp_path):
    """The next run fails at once, but not before the first one's program has ended."""
    slow, said = tmp_path / "python", tmp_path / "said"
    slow.write_text(f"#!/bin/sh\necho begins >> {said}\nsleep 3\necho ends >> {said}\n", encoding="utf-8")
    slow.chmod(0o755)
    command = [sys.executable, str(FILES / "exllama_release.py"), "make"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as first:
        first.stdin.write(json.dumps(job | {"interpreter": str(slow)}))
        first.stdin.close()
        while not said.exists():
            assert first.poll() is None
            time.sleep(0.05)
        first.kill()
    assert run("make", job | {"interpreter": "/nonexistent/python"}).returncode == 1
    assert "ends" in said.read_text(encoding="utf-8")


def make_releases(prefix, *names, unfinished=()):
    for age, name in enumerate(names):
        (prefix / name).mkdir(parents=True)
        (prefix / name / "build.json").write_text("{}", encoding="utf-8")
        os.utime(prefix / name / "build.json", (1000 + age, 1000 + age))
    for name in unfinished:
        (prefix / name).mkdir(parents=True)


@pytest.mark.parametrize(
    ("keep", "previous", "left"),
    [(1, "", "d"), (2, "", "cd"), (2, "a", "ad"), (3, "a", "acd"), (9, "", "abcd")],
)
def test_old_releases_go_but_not_the_one_before(tmp_path, keep, previous, left):
    name = {letter: f"0.3.2-{letter * 12}" for letter in "abcde"}
    make_releases(tmp_path, *(name[letter] for letter in "abcd"), unfinished=[name["e"]])
    (tmp_path / "other").mkdir()
    (tmp_path / "current").symlink_to(name["d"])
    done = run("prune", {"prefix": str(tmp_path), "keep_releases": keep, "previous": name.get(previous, "")})
    assert done.returncode == 0, done.stderr
    found = {path.name for path in tmp_path.iterdir() if path.name != ".lock"}
    assert found == {name[letter] for letter in left} | {"other", "current"}


@pytest.mark.parametrize(
    ("keep", "previous", "left"), [(1, "", {"a", "c"}), (2, "a", {"a", "c"}), (2, "", {"a", "b", "c"})]
)
def test_a_release_that_a_server_still_runs_from_stays(tmp_path, keep, previous, left):
    name = {letter: f"0.3.2-{letter * 12}" for letter in "abc"}
    make_releases(tmp_path, *name.values())
    (tmp_path / "current").symlink_to(name["c"])
    old = name["a"]
    (tmp_path / old / "server.py").write_text("print('up', flush=True); input()", encoding="utf-8")
    job = {"prefix": str(tmp_path), "keep_releases": keep, "previous": name.get(previous, "")}
    command = [sys.executable, str(tmp_path / old / "server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        server.stdout.readline()
        assert run("prune", job).returncode == 0
        assert {letter for letter in name if (tmp_path / name[letter]).exists()} == left
        server.communicate("\n")
    # what was spared for the server alone goes when it is over
    expected = {"changed": previous != "a" and "a" in left}
    assert json.loads(run("prune", job).stdout) == expected
    assert (tmp_path / old).exists() != expected["changed"]


def test_the_starter_gives_the_server_its_files_and_nobody_else_the_keys(tmp_path):
    for name in ("checkout", "credentials", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "credentials/config.yml").write_text("{}", encoding="utf-8")
    (tmp_path / "credentials/api_key").write_text('ke"y: #1\n', encoding="utf-8")
    for _start in range(2):
        keys = exllama_server.prepare(tmp_path / "checkout", tmp_path / "credentials", tmp_path / "run")
    tokens = tmp_path / "run/api_tokens.yml"
    written = json.loads(tokens.read_text(encoding="utf-8"))
    assert written["api_key"] == 'ke"y: #1' and keys == list(written.values()) and len(written["admin_key"]) == 64
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o600
    assert (tmp_path / "run/config.yml").read_text(encoding="utf-8") == "{}"
    assert (tmp_path / "run/templates").readlink() == tmp_path / "checkout/templates"


def test_without_a_key_no_key_is_made_up(tmp_path):
    for name in ("credentials", "run"):
        (tmp_path / name).mkdir()
    assert exllama_server.prepare(tmp_path, tmp_path / "credentials", tmp_path / "run") == []
    assert not (tmp_path / "run/api_tokens.yml").exists()
