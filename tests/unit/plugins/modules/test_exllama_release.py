# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Making a release of ExLlama: real git over HTTP, a real environment. `make exllamav2-build-test` compiles."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import release_job
from ansible_collections.homelab.mixed_gpu.plugins.modules import exllama_release
from ansible_collections.homelab.mixed_gpu.tests import local_server

PROJECT = pathlib.Path(__file__).resolve().parents[4]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stand_in = load(PROJECT / "molecule/exllamav2/stand_in.py")
CARDS = {
    "available": True, "reason": None, "driver_version": "580.95.05",
    "gpus": [{"id": "GPU-a", "compute_capability": "8.9"}],
}  # fmt: skip
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


class GitOverHttp(local_server.Handler):
    """git's own http-backend, which is a CGI program."""

    def answer(self):
        path, _sep, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        env = os.environ | {
            "GIT_PROJECT_ROOT": self.server.root, "GIT_HTTP_EXPORT_ALL": "1", "REQUEST_METHOD": self.command,
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


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with two commits behind http-backend: (url, commits)."""
    root = tmp_path_factory.mktemp("git")
    commits = stand_in.repository(root / "work", root / "tabbyapi.git")
    with local_server.serving(GitOverHttp, root=str(root)) as server:
        yield f"{server.url}/tabbyapi.git", commits


@pytest.fixture
def settings(tmp_path, repository):
    """Settings of a release out of one small wheel, on a host with two cards."""
    wheel = stand_in.wheel("exllamav2", "")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / stand_in.wheel_name("exllamav2")).write_bytes(wheel)
    pinned = f"--no-index\n--find-links {tmp_path}/wheels\nexllamav2=={stand_in.VERSIONS['exllamav2']} "
    pinned += f"--hash=sha256:{hashlib.sha256(wheel).hexdigest()}\n"
    return {
        "engine": "v2", "prefix": str(tmp_path / "v2"), "requirements": pinned, "build_extension": False,
        "cuda_root": "/nonexistent", "cuda_architectures": [], "gpus": [], "python": sys.executable,
        "server_git_url": repository[0], "server_commit": repository[1][0], "keep_releases": 2, "jobs": 1,
        "ccache_dir": str(tmp_path / "ccache"), "pip_cache_dir": str(tmp_path / "pip"), "pip_cache_mib": 6144,
    }  # fmt: skip


@pytest.fixture
def run(call_module):
    """Call the module in this process; return its result."""

    def _run(state, settings, **more):
        return call_module(exllama_release, {"state": state, "settings": settings, "cards": CARDS, **more})

    return _run


def release(settings):
    return pathlib.Path(settings["prefix"], "current").resolve()


def unfinished(settings):
    """Return the one directory of a release, finished or not."""
    return next(path for path in pathlib.Path(settings["prefix"]).iterdir() if path.name.startswith("0.3.2"))


def test_a_release_is_made_once_and_holds_exactly_the_commit(run, settings, repository):
    planned = run("planned", settings)
    assert planned["changed"] and planned["packages"] == ["ca-certificates", "git", "python3-venv"]
    done = run("present", settings)
    assert done["changed"], done
    tree = release(settings) / "tabbyapi"
    head = subprocess.run(
        ["git", "-C", str(tree), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert head == repository[1][0] and "commit 1." in (tree / "main.py").read_text(encoding="utf-8")
    record = json.loads((release(settings) / "build.json").read_text(encoding="utf-8"))
    assert str(release(settings)) == planned["path"]
    assert record["found"]["module"].startswith(str(release(settings) / "venv"))
    before = (release(settings) / "build.json").stat().st_mtime_ns
    assert not run("present", settings)["changed"] and not run("planned", settings)["changed"]
    assert run("planned", settings)["packages"] == []
    assert (release(settings) / "build.json").stat().st_mtime_ns == before
    installed = run("verified", settings)["installed"]
    assert installed["path"] == str(release(settings)) and installed["server_commit"] == repository[1][0]
    assert subprocess.run([installed["python"], "-c", "import exllamav2"], check=True).returncode == 0


def test_check_mode_says_what_would_be_done_and_does_nothing(run, settings):
    foreseen = run("planned", settings, _ansible_check_mode=True)
    assert foreseen["changed"] and foreseen["actions"][0].startswith("Install exllamav2 0.3.2+stand.in with PyTorch")
    assert f"Switch {settings['prefix']}/current to " in foreseen["actions"][1]
    assert run("present", settings, _ansible_check_mode=True)["changed"]
    assert not pathlib.Path(settings["prefix"]).exists()


def test_what_stops_a_release_is_a_failure_and_in_check_mode_an_action(run, settings):
    compiled = settings | {"build_extension": True}
    assert "there is no nvcc; run the role cuda_toolkit" in run("planned", compiled)["msg"]
    foreseen = run("planned", compiled, _ansible_check_mode=True)
    assert any(text.startswith("Unless an earlier role changes that: exllamav2 is") for text in foreseen["actions"])
    assert "ExLlama needs Python 3.11" in run("planned", settings | {"python": "/nonexistent/python"})["msg"]


def test_a_full_disk_is_said_before_anything_is_fetched(run, settings, monkeypatch):
    monkeypatch.setattr(release_job.job, "free_mib", lambda _path: 9)
    assert "has 9 MiB free, and making a release of ExLlama with PyTorch needs 9216" in run("planned", settings)["msg"]


def test_a_server_that_hands_out_branches_only_is_asked_for_them(run, settings, monkeypatch):
    """Without protocol 2 http-backend refuses a commit that no branch ends with; the first one is such a commit."""
    old = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "protocol.version", "GIT_CONFIG_VALUE_0": "0"}
    for name, value in old.items():
        monkeypatch.setenv(name, value)
    assert run("present", settings)["changed"]
    assert "does not hand out a single commit" in pathlib.Path(settings["prefix"], "release.log").read_text()


def test_what_was_finished_is_not_done_again_after_a_failure(run, settings, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(release_job, "_TRY", "import there_is_no_such_extension")
        failed = run("present", settings)["msg"]
    assert "cannot be imported (ModuleNotFoundError" in failed and "exllamav2_build_extension to true" in failed
    assert len(failed.splitlines()) == 1
    assert not (unfinished(settings) / "build.json").exists()
    # somebody else's words do not count, and the environment is complete: pip is not asked again
    (unfinished(settings) / "tabbyapi/main.py").write_text("somebody else's", encoding="utf-8")
    shutil.rmtree(tmp_path / "wheels")
    assert run("present", settings)["changed"]
    assert "commit 1." in (release(settings) / "tabbyapi/main.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        ({"server_commit": "0" * 40}, "correct exllamav2_server_git_url or exllamav2_server_commit"),
        ({"server_git_url": "http://127.0.0.1:9/x.git"}, "fetching commit"),
        ({"requirements": "exllamav2==0.3.2\n"}, "installing the pinned packages"),
    ],
)
def test_a_failure_is_one_sentence_and_leaves_no_release(run, settings, break_it, words):
    failed = run("present", settings | break_it)
    assert failed["failed"] and words in failed["msg"] and len(failed["msg"].splitlines()) == 1
    assert not (unfinished(settings) / "build.json").exists()
    assert not pathlib.Path(settings["prefix"], "current").is_symlink()


def test_a_package_with_another_hash_is_refused(run, settings):
    wrong = (
        settings["requirements"].rstrip()[:-1] + ("0" if settings["requirements"].rstrip()[-1] != "0" else "1") + "\n"
    )
    assert "installing the pinned packages" in run("present", settings | {"requirements": wrong})["msg"]


def test_what_a_killed_run_left_running_is_waited_for(run, settings, tmp_path):
    """The next run fails at once, but not before the first one's program has ended."""
    slow, said = tmp_path / "python", tmp_path / "said"
    slow.write_text(
        f"#!/bin/sh\n[ $1 = -c ] && {{ echo 3.12; exit; }}\necho begins >> {said}\nsleep 3\necho ends >> {said}\n",
        encoding="utf-8",
    )
    slow.chmod(0o755)
    slowly = settings | {"python": str(slow)}
    code = (
        "import json, sys\n"
        "from ansible.module_utils.testing import patch_module_args\n"
        "from ansible_collections.homelab.mixed_gpu.plugins.modules import exllama_release\n"
        "with patch_module_args(json.loads(sys.argv[1])):\n"
        "    exllama_release.main()\n"
    )
    command = [sys.executable, "-c", code, json.dumps({"state": "present", "settings": slowly, "cards": CARDS})]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env) as first:
        while not said.exists():
            assert first.poll() is None
            time.sleep(0.05)
        first.kill()
    assert run("present", slowly)["failed"]
    assert "ends" in said.read_text(encoding="utf-8")


def test_what_a_switch_removes_is_told_before(run, settings):
    settings = settings | {"pip_cache_mib": 2, "keep_releases": 1}
    cache, old = pathlib.Path(settings["pip_cache_dir"]), f"0.3.1-{'a' * 12}"
    (cache / "http-v2").mkdir(parents=True)
    for age in range(4):
        (cache / "http-v2" / str(age)).write_bytes(os.urandom(1 << 20))
        os.utime(cache / "http-v2" / str(age), (2e9 - age, 2e9 - age))
    make_releases(pathlib.Path(settings["prefix"]), old)
    told = run("planned", settings, _ansible_check_mode=True)["actions"]
    assert told[-2:] == [
        f"Remove {settings['prefix']}/{old} (exllamav2_keep_releases).",
        f"Remove the oldest 2 MiB from {cache} (exllamav2_pip_cache_mib).",
    ]
    assert run("present", settings)["removed"] == [old]
    assert {path.name for path in (cache / "http-v2").iterdir()} == {"0", "1"}


def test_without_a_release_verify_fails_with_the_cure(run, settings):
    assert "holds no release of ExLlama that is in use; run the role exllamav2" in run("verified", settings)["msg"]
    broken = pathlib.Path(settings["prefix"], "0.3.2-x")
    broken.mkdir(parents=True)
    (broken / "build.json").write_text("{")
    (broken.parent / "current").symlink_to(broken.name)
    assert f"{broken}/build.json cannot be used: it holds no JSON" in run("verified", settings)["msg"]


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
    release_job.prune(tmp_path, keep, name.get(previous, ""))
    assert {path.name for path in tmp_path.iterdir()} == {name[letter] for letter in left} | {"other", "current"}


@pytest.mark.parametrize(
    ("keep", "previous", "left"), [(1, "", {"a", "c"}), (2, "a", {"a", "c"}), (2, "", {"a", "b", "c"})]
)
def test_a_release_that_a_server_still_runs_from_stays(tmp_path, keep, previous, left):
    name = {letter: f"0.3.2-{letter * 12}" for letter in "abc"}
    make_releases(tmp_path, *name.values())
    (tmp_path / "current").symlink_to(name["c"])
    old = name["a"]
    (tmp_path / old / "server.py").write_text("print('up', flush=True); input()", encoding="utf-8")
    arguments = (tmp_path, keep, name.get(previous, ""))
    command = [sys.executable, str(tmp_path / old / "server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        server.stdout.readline()
        release_job.prune(*arguments)
        assert {letter for letter in name if (tmp_path / name[letter]).exists()} == left
        server.communicate("\n")
    # what was spared for the server alone goes when the server has ended
    goes = previous != "a" and "a" in left
    assert release_job.prune(*arguments) == ([old] if goes else [])
    assert (tmp_path / old).exists() != goes
