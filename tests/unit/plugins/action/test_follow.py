from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.action import follow
from ansible_collections.homelab.mixed_gpu.plugins.plugin_utils import job

COLLECTIONS = pathlib.Path(follow.__file__).parents[5]

PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: {python}
    ansible_async_dir: {home}/async
  tasks:
    - name: Start
      ansible.builtin.shell: |
{script}
      async: 60
      poll: 0
      register: job
    - name: Wait
      homelab.mixed_gpu.follow:
        jid: "{{{{ job.ansible_job_id }}}}"
        log: {home}/log
        label: counting
        poll_seconds: 0.2
        heartbeat_seconds: {heartbeat}
        timeout_seconds: {timeout}
      register: result
      ignore_errors: true
      no_log: {no_log}
    - name: Keep
      ansible.builtin.copy:
        content: "{{{{ result }}}}"
        dest: {home}/result.json
        mode: "0600"
      check_mode: false
      no_log: {no_log}
"""


@pytest.fixture
def play(tmp_path):
    def run(script, *options, heartbeat=15, timeout=60, no_log=False, text=None):
        (tmp_path / "play.yml").write_text(
            text
            or PLAY.format(
                python=sys.executable,
                home=tmp_path,
                script="\n".join(f"        {line}" for line in script.format(log=tmp_path / "log").splitlines()),
                heartbeat=heartbeat,
                timeout=timeout,
                no_log=no_log,
            )
        )
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", str(tmp_path / "play.yml"), *options],
            env={
                **os.environ,
                "HOME": str(tmp_path),
                "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
                "ANSIBLE_LOCALHOST_WARNING": "false",
                "ANSIBLE_NOCOLOR": "true",
                "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
                "LC_ALL": "C.UTF-8",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        kept = tmp_path / "result.json"
        return done, json.loads(kept.read_text()) if kept.exists() else None

    return run


def test_shows_lines_while_the_job_runs_and_returns_its_own_result(play, tmp_path):
    done, result = play("printf 'one\\rtwo of 2\\r' > {log}; sleep 10; echo out; echo err >&2", timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "  localhost | counting: two of 2\n" in done.stdout
    assert result["rc"] == 0
    assert result["changed"] is True
    assert result["failed"] is False
    assert (result["stdout"], result["stderr"]) == ("out", "err")
    assert "ansible_job_id" not in result
    assert list((tmp_path / "async").iterdir()) == []


def test_a_failing_job_fails_with_its_own_return_code(play):
    done, result = play("echo broken > {log}; exit 3")
    assert "...ignoring" in done.stdout
    assert result["failed"] is True
    assert result["rc"] == 3


def test_a_command_that_failed_says_why_in_its_last_line(play):
    _done, result = play("echo warning >&2; echo 'fetching failed: check the network.' >&2; exit 1")
    assert result["msg"] == "counting: fetching failed: check the network."


def test_gives_a_sign_of_life_and_ignores_a_log_the_job_did_not_touch(play, tmp_path):
    (tmp_path / "log").write_text("from yesterday\n")
    done, _result = play("sleep 10", heartbeat=1)
    assert "counting: still running, " in done.stdout
    assert "yesterday" not in done.stdout


def test_stops_a_job_that_runs_too_long_with_its_children(play, tmp_path):
    done, result = play("echo $$ > {log}; sleep 300; true", timeout=10)
    assert result["failed"] is True
    assert result["msg"].startswith(
        "counting: not finished after 10 s; the job and its processes were stopped. Its last line was: "
    )
    shell = pathlib.Path("/proc") / (tmp_path / "log").read_text().strip()
    assert not shell.exists() or "State:\tZ" in (shell / "status").read_text()
    assert list((tmp_path / "async").iterdir()) == []


def test_says_so_when_the_job_was_killed(play):
    # The job kills what runs it: the wrapper (its grandparent) and the wrapper's supervisor.
    done, result = play(
        """parent() { sed 's/.*) //' /proc/$1/stat | cut -d' ' -f2; }
wrapper=$(parent $PPID)
supervisor=$(parent $wrapper)
for p in $supervisor $wrapper; do grep -aq async_wrapper /proc/$p/cmdline && kill -9 $p; done
""".replace("{", "{{").replace("}", "}}")
    )
    assert result["failed"] is True
    assert "the job ended without a result" in result["msg"]


def test_shows_no_line_of_a_secret_job(play):
    done, result = play("echo hunter2 > {log}; sleep 10; exit 1", heartbeat=1, no_log=True)
    assert "counting: still running" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


def test_check_mode_goes_through(play):
    done, result = play("echo must not run > {log}", "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert result["skipped"] is True


@pytest.mark.parametrize(("options", "code"), [(["--check"], 0), ([], 2)])
def test_without_a_job_it_is_skipped_in_check_mode_and_refused_otherwise(play, options, code):
    text = "- hosts: localhost\n  connection: local\n  gather_facts: false\n  tasks:\n"
    text += "    - homelab.mixed_gpu.follow: {jid: '', label: nothing}\n"
    done, _result = play("", *options, text=text)
    assert done.returncode == code
    assert ("nothing: no job to follow" in done.stdout + done.stderr) is (code == 2)


def test_the_pattern_does_not_match_itself():
    assert job.wrapper_pattern("j123.456") == "[j]123"
