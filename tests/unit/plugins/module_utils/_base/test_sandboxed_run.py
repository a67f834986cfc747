# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Running a program: directly where systemd is not there, as a transient service where it is.

molecule/default/tests/test_sandbox.py runs the service on a real systemd; here stand-ins answer as systemd does.
"""

from __future__ import annotations

import os
import pathlib
import signal
import stat
import subprocess
import sys
import tempfile
import time

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file, sandboxed_run, unit_sandbox
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError

BOX = sandboxed_run.Sandbox()
# does what systemd-run and the service's ExecStopPost= do together
SYSTEMD_RUN = """#!{python}
import os, re, subprocess, sys
words = sys.argv[1:]
at = words.index("--")
open({log!r}, "w").write("\\n".join(words))
after = next(word for word in words if word.startswith("ExecStopPost="))
answer = os.environ["ANSWER"]
if answer == "none":
    sys.exit("Failed to start transient service unit: Interactive authentication required.")
done = subprocess.run([word.replace("$$", "$") for word in words[at + 1 :]])
open(re.search(r"> (\\S+)'", after)[1], "w").write(answer + "\\n")
sys.exit(done.returncode)
"""


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """A host where systemd runs; returns a function that tells the stand-in how the next service ends."""
    (tmp_path / "booted").mkdir()
    program, log = tmp_path / "bin" / "systemd-run", tmp_path / "words"
    program.parent.mkdir()
    program.write_text(SYSTEMD_RUN.format(python=sys.executable, log=str(log)))
    program.chmod(0o755)
    monkeypatch.setattr(sandboxed_run, "BOOTED", str(tmp_path / "booted"))
    monkeypatch.setattr(sandboxed_run, "_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    def run(answer, *argv, box=BOX, environment=None, limit=20, lock=None):
        monkeypatch.setenv("ANSWER", answer)
        ended = sandboxed_run.run(argv or ["true"], box, environment or {}, limit, lock)
        assert list((tmp_path / "results").iterdir()) == []
        return ended, log.read_text().splitlines()

    return run


@pytest.mark.parametrize(
    ("answer", "rc", "timed_out", "words"),
    [
        ("success exited 0", 0, False, ""),
        ("exit-code exited 42", 42, False, ""),
        ("signal killed KILL", -signal.SIGKILL, False, ""),
        ("core-dump dumped ILL", -signal.SIGILL, False, ""),
        ("timeout killed KILL", -signal.SIGKILL, True, ""),
        ("oom-kill killed KILL", -signal.SIGKILL, False, "the memory of the host was used up"),
        ("exit-code exited 226", 226, False, "systemd could not prepare the sandbox"),
        ("none", 1, False, "Interactive authentication required"),
    ],
)
def test_what_systemd_says_is_told_as_subprocess_tells_it(systemd, answer, rc, timed_out, words):
    ended, _words = systemd(answer)
    assert (ended.rc, ended.timed_out) == (rc, timed_out)
    assert words in ended.stderr and bool(ended.stderr) == bool(words)


def test_the_service_has_the_sandbox_of_the_units_that_serve(systemd):
    box = sandboxed_run.Sandbox(
        device_nodes=["char-nvidia*"], endpoints=["127.0.0.1:50052", "192.0.2.7:50052", "[2001:db8::7]:1"],
        lease="mixed-gpu-lease.service", lock_memory=True, nccl=True,
    )  # fmt: skip
    environment = {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2", "N": 1}
    program = ("printenv", "CUDA_VISIBLE_DEVICES", "$HOME")
    ended, words = systemd("exit-code exited 1", *program, box=box, environment=environment)
    networks = ["localhost", "192.0.2.7", "2001:db8::7"]
    assert set(unit_sandbox.lines("llama_cpp", ["char-nvidia*"], networks, nccl=True)) <= set(words)
    assert {
        "--pipe", "--wait", "--collect", "--quiet", "BindsTo=mixed-gpu-lease.service", "After=mixed-gpu-lease.service",
        "LimitMEMLOCK=infinity", "RuntimeMaxSec=20", "KillSignal=SIGKILL", "User=mixed-gpu-run",
        "--setenv=CUDA_VISIBLE_DEVICES", "--setenv=N", "CacheDirectory=mixed-gpu-run", "--setenv=CUDA_CACHE_PATH",
    } <= set(words)  # fmt: skip
    assert words[-3:] == ["printenv", "CUDA_VISIBLE_DEVICES", "$$HOME"]
    # from systemd-run's own variables, since keys are among them
    assert ended.stdout == "GPU-1,GPU-2\n" and "GPU-1" not in "\n".join(words)
    assert f"--unit={sandboxed_run.PREFIX}-{os.getsid(0)}-{os.getpid()}-" in "\n".join(words)


def test_what_builds_has_a_home_that_it_can_write_to(systemd):
    box = sandboxed_run.Build(("/opt/build", "/var/cache/ccache"))
    ended, words = systemd("success exited 0", "printenv", "HOME", "A", box=box, environment={"A": "a"})
    assert ended.stdout == "/opt/build\na\n"
    assert {"User=mixed-gpu-build", "PrivateNetwork=yes", "--setenv=HOME", "--setenv=A"} <= set(words)
    box = sandboxed_run.Build(("/opt/web-ui",), network=True)
    ended, words = systemd("success exited 0", "printenv", "HOME", box=box)
    assert "PrivateNetwork=yes" not in words and "User=mixed-gpu-build" in words


def test_the_service_keeps_the_lock_as_its_standard_input(systemd, tmp_path):
    lock = json_file.take_lock(str(tmp_path / "lock"), 0)
    ended, _words = systemd("success exited 0", "readlink", "/proc/self/fd/0", lock=lock)
    assert ended.stdout.strip() == str(tmp_path / "lock")
    # and it can neither write to it nor open it again for that
    assert os.get_blocking(lock) and not stat.S_IMODE(os.stat(tmp_path / "lock").st_mode) & 0o077
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(lock, b"x")
    json_file.release_lock(lock)


@pytest.fixture
def open_folder():
    """A folder that everybody may enter; those of tmp_path are closed."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        os.chmod(name, 0o755)
        yield pathlib.Path(name)


def test_files_that_what_serves_cannot_read_are_named(systemd, open_folder, monkeypatch):
    with pytest.raises(UserError, match=r"/home/x/m.gguf is below /home, which is hidden"):
        systemd("success exited 0", box=sandboxed_run.Sandbox(files=["/home/x/m.gguf"]))
    monkeypatch.setattr(sandboxed_run, "_HIDDEN", ())
    model = open_folder / "m.gguf"
    model.write_bytes(b"GGUF")
    model.chmod(0o600)
    with pytest.raises(UserError, match=f"{model} is closed to others.*chmod o.r {model}"):
        systemd("success exited 0", box=sandboxed_run.Sandbox(files=[str(model)]))
    model.chmod(0o640)
    os.chown(model, -1, 4242)
    _ended, words = systemd("success exited 0", box=sandboxed_run.Sandbox(files=[str(model)]))
    assert "SupplementaryGroups=4242" in words


def test_without_systemd_it_runs_directly(tmp_path):
    lock = json_file.take_lock(str(tmp_path / "lock"), 0)
    ended = sandboxed_run.run(["sh", "-c", "echo $A; echo b >&2; exit 3"], BOX, {"A": "a"}, 20, lock)
    assert ended == sandboxed_run.Ended(3, "a\n", "b\n", False)
    json_file.release_lock(lock)
    assert sandboxed_run.run(["sh", "-c", "kill -ILL $$"], BOX, {}, 20).rc == -signal.SIGILL
    with pytest.raises(UserError, match="/nonexistent/program cannot be run"):
        sandboxed_run.run(["/nonexistent/program"], BOX, {}, 20)


def test_a_direct_run_ends_at_its_limit_with_all_that_it_started():
    ended = sandboxed_run.run(["sh", "-c", "setsid sh -c 'trap \"\" TERM; sleep 600' & echo $!; sleep 600"], BOX, {}, 1)
    assert (ended.rc, ended.timed_out) == (-signal.SIGKILL, True)
    assert not pathlib.Path(f"/proc/{ended.stdout.strip()}/exe").exists()


PARENT = """
import sys
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import sandboxed_run
sandboxed_run.BOOTED = "/nonexistent"
sandboxed_run.run(["sh", "-c", "echo $$ > $0; sleep 600", sys.argv[1]], sandboxed_run.Sandbox(), {}, 600)
"""


def test_a_module_that_is_ended_ends_its_program(tmp_path):
    told = tmp_path / "pid"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", PARENT, str(told)], env=environment) as parent:
        while not (told.exists() and told.read_text().strip()):
            assert parent.poll() is None
            time.sleep(0.05)
        parent.terminate()
        assert parent.wait(120) == 128 + signal.SIGTERM
    assert not pathlib.Path(f"/proc/{told.read_text().strip()}/exe").exists()


def test_only_one_file_starts_programs_of_an_engine():
    """What reads a model or talks to a device goes through the sandbox."""
    plugins = pathlib.Path(__file__).parents[5] / "plugins"
    asking = ("llama_devices_info", "llama_fit_params_info", "exllama_devices_info")
    for name in (*asking, "split_benchmark", "split_mode_trial"):
        text = (plugins / "modules" / f"{name}.py").read_text(encoding="utf-8")
        assert "run_command" not in text and "import subprocess" not in text, name
    for name in ("_measuring/run.py", "_llama_cpp/trial_server.py"):
        text = (plugins / "module_utils" / name).read_text(encoding="utf-8")
        assert "run_command" not in text and "Popen" not in text, name
