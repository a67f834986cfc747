from __future__ import annotations

import os
import subprocess
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import job, sandboxed_run
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError


@pytest.fixture
def shell(tmp_path):
    lock = job.Lock(tmp_path / "lock", "b1", "llama.cpp")
    yield job.Shell(job.Log(tmp_path / "work/build.log"), lock)
    lock.release()


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (["[1/2 50%] Building http_error.c", "FAILED: error.o", "a.c:1: error: no x", "b.c:2: error: no y"],
         "a.c:1: error: no x"),
        (["CMake Error at CMakeLists.txt:7 (message):", "  the option X is on", "", "Call Stack (most recent)"],
         "CMake Error at CMakeLists.txt:7 (message): the option X is on"),
        (["[1/9] nvcc -c fatal.cu", "nvcc fatal : cannot write"], "nvcc fatal : cannot write"),
        (["some words", "write: No space left on device", "the end"], "write: No space left on device"),
        (["first", "last", ""], "last"),
        ([], "nothing was printed"),
    ],
)  # fmt: skip
def test_the_line_that_names_the_cause(lines, cause):
    assert job.first_error(lines) == cause


def test_what_a_program_prints_is_in_the_log_and_returned(shell):
    lines = shell.run(
        ["sh", "-c", "echo $A; echo two >&2"], "counting", env={"A": "one"}, show=lambda line: f"> {line}"
    )
    assert lines == ["one", "two"]
    written = shell.log.path.read_text().splitlines()
    assert written[1:] == ["counting", "> one", "> two"] and written[0].startswith("$ sh -c")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["sh", "-c", "echo error: no disk; exit 3"],
            "counting failed (error: no disk): buy one (the whole log is {log}).",
        ),
        (["false"], "counting failed (exit status 1): buy one (the whole log is {log})."),
        (["/nonexistent/x"], "counting failed (/nonexistent/x: No such file or directory): buy one."),
    ],
)
def test_a_failure_has_cause_and_cure(shell, argv, message):
    with pytest.raises(UserError) as raised:
        shell.run(argv, "counting", "buy one")
    assert str(raised.value) == message.format(log=shell.log.path)


def test_a_part_of_the_log_is_copied(shell, tmp_path):
    shell.log.write("before\n")
    mark = shell.log.size_bytes()
    shell.log.write("after")
    shell.log.copy_from(mark, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "after\n"


HOLDER = """
import pathlib, sys
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import job, sandboxed_run
lock = job.Lock(pathlib.Path(sys.argv[1]), "b1 b2", "llama.cpp")
print("held", flush=True)
sys.stdin.readline()
"""


def hold(path):
    """Start a process that takes the lock and says so."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


def test_another_job_is_refused_and_the_same_one_waits(tmp_path):
    with hold(tmp_path / "lock") as holder:
        holder.stdout.readline()
        with pytest.raises(UserError, match=f"another build of llama.cpp is under way .*b1 b2, process {holder.pid}"):
            job.Lock(tmp_path / "lock", "b1", "llama.cpp")
        with hold(tmp_path / "lock") as waiting:
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(0.5)
            holder.communicate("\n")
            assert waiting.stdout.readline() == "held\n"
            waiting.communicate("\n")
    job.Lock(tmp_path / "lock", "b1", "llama.cpp").release()


def test_a_program_that_outlives_the_job_keeps_the_lock(tmp_path):
    lock = job.Lock(tmp_path / "lock", "b1", "llama.cpp")
    with subprocess.Popen(["sleep", "60"], pass_fds=[lock.fileno()]) as child:
        lock.release()
        with pytest.raises(UserError, match="under way"):
            job.Lock(tmp_path / "lock", "b2", "llama.cpp")
        child.kill()
    job.Lock(tmp_path / "lock", "b2", "llama.cpp").release()


def test_compilers_are_as_many_as_asked_or_as_memory_carries(monkeypatch):
    monkeypatch.setattr(job.os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(job, "available_memory_mib", lambda: 6000)
    assert [job.compilers(3, 2000), job.compilers(0, 2000), job.compilers(0, 500), job.compilers(0, 9000)] == [
        3,
        3,
        8,
        1,
    ]


def test_a_program_in_a_box_is_told_as_any_other(shell, tmp_path):
    box = sandboxed_run.Build((str(tmp_path),))
    assert shell.run(["sh", "-c", "echo $A; echo b >&2"], "trying", env={"A": "a"}, box=box) == ["a", "b"]
    with pytest.raises(UserError, match=r"trying failed \(a.c:1: error: no x\): look \(the whole log is"):
        shell.run(["sh", "-c", "echo a.c:1: error: no x; exit 1"], "trying", "look", box=box)
    with pytest.raises(UserError, match=r"trying failed \(/nonexistent cannot be run"):
        shell.run(["/nonexistent"], "trying", box=box)


def test_what_was_built_is_copied_as_files_and_links_beside_them(tmp_path):
    made, copy = tmp_path / "made", tmp_path / "stage" / "bin"
    (made / "CMakeFiles").mkdir(parents=True)
    (made / "tool").write_text("x")
    (made / "tool").chmod(0o4711)
    (made / "lib.so.1").write_text("y")
    (made / "lib.so").symlink_to("lib.so.1")
    job.copy_programs(made, copy)
    assert {path.name: path.stat().st_mode & 0o7777 for path in copy.iterdir() if not path.is_symlink()} == {
        "tool": 0o755, "lib.so.1": 0o644,
    }  # fmt: skip
    assert os.readlink(copy / "lib.so") == "lib.so.1"


@pytest.mark.parametrize("to", ["/etc/shadow", "../secret", "missing", ".."])
def test_a_link_that_leads_away_is_refused(tmp_path, to):
    (tmp_path / "secret").write_text("x")
    made = tmp_path / "made"
    made.mkdir()
    (made / "tool").symlink_to(to)
    with pytest.raises(UserError, match="which is no file beside it: do not trust this source"):
        job.copy_programs(made, tmp_path / "copy")


def test_a_fifo_is_refused(tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    os.mkfifo(made / "tool")
    with pytest.raises(UserError, match="is neither a file nor a link"):
        job.copy_programs(made, tmp_path / "copy")


def test_the_build_of_a_program_is_found_through_its_link(tmp_path):
    (tmp_path / "b7-0/bin").mkdir(parents=True)
    (tmp_path / "b7-0/bin/llama-server").touch()
    (tmp_path / "current").symlink_to("b7-0")
    program = tmp_path / "current/bin/llama-server"
    assert job.build_file(str(program)) == str(tmp_path / "b7-0/build.json")
