# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Jobs that are followed by a real play, in which each job has a host of its own: this machine."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.action import follow
from ansible_collections.homelab.mixed_gpu.plugins.plugin_utils import job

COLLECTIONS = pathlib.Path(follow.__file__).parents[5]

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Start
      ansible.builtin.shell:
        cmd: "{{ script }}"
        chdir: "{{ own }}"
      async: 60
      poll: 0
      register: job
    - name: Wait
      homelab.mixed_gpu.follow:
        jid: "{{ job.ansible_job_id }}"
        log: "{{ own }}/log"
        label: counting
        poll_seconds: 0.2
        heartbeat_seconds: "{{ heartbeat }}"
        timeout_seconds: "{{ timeout }}"
      register: result
      ignore_errors: true
      no_log: "{{ secret }}"
    - name: Keep
      ansible.builtin.copy:
        content: "{{ result }}"
        dest: "{{ own }}/result.json"
        mode: "0600"
      check_mode: false
      no_log: "{{ secret }}"
"""
#: What the play takes where a job does not say.
USUAL: t.Final = {"heartbeat": 15, "timeout": 60, "secret": False}
#: The job kills what runs it: the wrapper (its grandparent) and the wrapper's supervisor.
KILLS: t.Final = """parent() { sed 's/.*) //' /proc/$1/stat | cut -d' ' -f2; }
wrapper=$(parent $PPID)
supervisor=$(parent $wrapper)
for p in $supervisor $wrapper; do grep -aq async_wrapper /proc/$p/cmdline && kill -9 $p; done
"""
#: Host -> its job, and what of the play is different for it.
JOBS: t.Final[dict[str, dict[str, t.Any]]] = {
    "lines": {"script": r"printf 'one\rtwo of 2\r' > log; sleep 10; echo out; echo err >&2"},
    "fails": {"script": "echo broken > log; exit 3"},
    "says": {"script": "echo warning >&2; echo 'fetching failed: check the network.' >&2; exit 1"},
    "quiet": {"script": "sleep 10", "heartbeat": 1},
    "long": {"script": "echo $$ > log; sleep 300; true", "timeout": 10},
    "killed": {"script": KILLS},
    "secret": {"script": "echo hunter2 > log; sleep 10; exit 1", "heartbeat": 1, "secret": True},
}


class Played(t.NamedTuple):
    """A play that has ended; each host has a folder of its name."""

    folder: pathlib.Path
    returncode: int
    stdout: str
    stderr: str

    def result(self, host):
        """Return what following the job of a host returned."""
        return json.loads((self.folder / host / "result.json").read_text())


def play(folder, jobs, *options, text=PLAY):
    """Run the play over the hosts of some jobs."""
    python = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    hosts = {}
    for name, own in jobs.items():
        (folder / name).mkdir()
        hosts[name] = {
            **USUAL,
            **python,
            "own": f"{folder}/{name}",
            "ansible_async_dir": f"{folder}/{name}/async",
            **own,
        }
        (folder / name / "log").write_text("from yesterday\n")
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    (folder / "play.yml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", str(folder / "hosts.json"), str(folder / "play.yml"),
         f"--forks={len(jobs)}", *options],
        env={
            **os.environ,
            "HOME": str(folder),
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_NOCOLOR": "true",
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
            "LC_ALL": "C.UTF-8",
        },
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    return Played(folder, done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """Follow all jobs at the same time."""
    return play(tmp_path_factory.mktemp("followed"), JOBS)


def test_shows_lines_while_the_job_runs_and_returns_its_own_result(followed):
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "  lines | counting: two of 2\n" in followed.stdout
    result = followed.result("lines")
    assert result["rc"] == 0
    assert result["changed"] is True
    assert result["failed"] is False
    assert (result["stdout"], result["stderr"]) == ("out", "err")
    assert "ansible_job_id" not in result
    assert list((followed.folder / "lines/async").iterdir()) == []


def test_a_failing_job_fails_with_its_own_return_code(followed):
    assert re.search(r"^fails .* ignored=1 ", followed.stdout, re.MULTILINE), followed.stdout
    result = followed.result("fails")
    assert result["failed"] is True
    assert result["rc"] == 3


def test_a_command_that_failed_says_why_in_its_last_line(followed):
    assert followed.result("says")["msg"] == "counting: fetching failed: check the network."


def test_gives_a_sign_of_life_and_ignores_a_log_the_job_did_not_touch(followed):
    assert "  quiet | counting: still running, " in followed.stdout
    assert "yesterday" not in followed.stdout


def test_stops_a_job_that_runs_too_long_with_its_children(followed):
    result = followed.result("long")
    assert result["failed"] is True
    assert result["msg"].startswith(
        "counting: not finished after 10 s; the job and its processes were stopped. Its last line was: "
    )
    shell = pathlib.Path("/proc") / (followed.folder / "long/log").read_text().strip()
    assert not shell.exists() or "State:\tZ" in (shell / "status").read_text()
    assert list((followed.folder / "long/async").iterdir()) == []


def test_says_so_when_the_job_was_killed(followed):
    result = followed.result("killed")
    assert result["failed"] is True
    assert "the job ended without a result" in result["msg"]


def test_shows_no_line_of_a_secret_job(followed):
    assert "  secret | counting: still running" in followed.stdout
    assert "hunter2" not in followed.stdout + followed.stderr


def test_check_mode_goes_through(tmp_path):
    done = play(tmp_path, {"box": {"script": "echo must not run > log"}}, "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.result("box")["skipped"] is True


@pytest.mark.parametrize(("options", "code"), [(["--check"], 0), ([], 2)])
def test_without_a_job_it_is_skipped_in_check_mode_and_refused_otherwise(tmp_path, options, code):
    text = "- hosts: all\n  gather_facts: false\n  tasks:\n"
    text += "    - homelab.mixed_gpu.follow: {jid: '', label: nothing}\n"
    done = play(tmp_path, {"box": {}}, *options, text=text)
    assert done.returncode == code
    assert ("nothing: no job to follow" in done.stdout + done.stderr) is (code == 2)


def test_the_pattern_does_not_match_itself():
    assert job.wrapper_pattern("j123.456") == "[j]123"
