# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whole campaigns through the real ansible-playbook on this machine, with stand-ins for llama-bench and systemd."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import typing as t

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.action import campaign
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import steps
from ansible_collections.homelab.mixed_gpu.tests.fixtures.dry_run import record
from ansible_collections.homelab.mixed_gpu.tests.unit.fixtures_bench import fake_systemd

ROOT = pathlib.Path(campaign.__file__).parents[2]
COLLECTIONS = pathlib.Path(campaign.__file__).parents[5]
FAKE = ROOT / "tests/unit/fixtures_bench/fake_llama_bench.py"
DEVICES = (
    "Available devices:\n  RPC0: 127.0.0.1:1 (4000 MiB, 3600 MiB free)\n  RPC1: 127.0.0.1:2 (4000 MiB, 3400 MiB free)"
)
SERVER = "llama-server.service"


class Box:
    """This machine with stand-ins, and plays that run a campaign on it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.environment = fake_systemd.install(folder)
        self.units = folder / "units"
        (self.units / SERVER).touch()
        (folder / "llama.cpp/bin").mkdir(parents=True)
        bench = folder / "llama.cpp/bin/llama-bench"
        bench.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
        bench.chmod(0o755)
        (folder / "llama.cpp/build.json").write_text(json.dumps({"key": "b1"}))
        record.header_only(folder / "m.gguf", "llama_3_1_8b_q4_k_m")
        self.started: list[subprocess.Popen[str]] = []

    def settings(self, **changes: t.Any) -> dict[str, t.Any]:
        """The variables of the role, for this box."""
        defaults = yaml.safe_load((ROOT / "roles/split_tuning/defaults/main.yml").read_text())
        own = {
            "model_id": "m", "model_path": str(self.folder / "m.gguf"), "deployment": "m-c8192",
            "llama_cpp": str(self.folder / "llama.cpp"), "state_dir": str(self.folder / "state"),
            "host_python": sys.executable, "rpc_endpoints": ["127.0.0.1:1", "127.0.0.1:2"], "probe": False,
            "lease_file": str(self.folder / "lease.json"), "lease_wait_seconds": 30, "baseline_max_loads": 2,
            "micro_batches": [], "modes": ["layer"], "context_size": 2048, "load_timeout_seconds": 60,
            "speculation": "none",
            "environment": {"FAKE_LOG": str(self.folder / "log"), "FAKE_DEVICES": DEVICES, **changes.pop("env", {})},
        }  # fmt: skip
        return {**defaults, **{f"split_tuning_{name}": value for name, value in {**own, **changes}.items()}}

    def start(
        self, *options: str, task: dict[str, t.Any] | None = None, seconds: float = 0, **changes: t.Any
    ) -> subprocess.Popen[str]:
        """Start ansible-playbook; its output goes to a file, the result of the campaign to another.

        C(seconds) is how long each load takes.
        """
        role = yaml.safe_load((ROOT / "roles/split_tuning/vars/main.yml").read_text())
        expression = yaml.safe_load((ROOT / "roles/split_tuning/tasks/main.yml").read_text())[1]
        play = {
            "hosts": "box", "gather_facts": False, "vars": {**self.settings(**changes), **role}, "tasks": [
                {
                    "name": "Tune",
                    "homelab.mixed_gpu.campaign": {
                        "planner": "tuning", "label": "tuning of m",
                        "settings": expression["homelab.mixed_gpu.campaign"]["settings"],
                    },
                    "register": "result", **(task or {}),
                },
                {
                    "name": "Keep the result", "check_mode": False, "ansible.builtin.copy": {
                        "content": "{{ result | to_json }}", "dest": str(self.folder / "result.json"), "mode": "0600",
                    },
                },
            ],
        }  # fmt: skip
        (self.folder / "play.json").write_text(json.dumps([play]))
        inventory = {"all": {"hosts": {"box": {
            "ansible_connection": "local", "ansible_python_interpreter": sys.executable,
            "ansible_async_dir": str(self.folder / "async"),
        }}}}  # fmt: skip
        (self.folder / "hosts.json").write_text(json.dumps(inventory))
        output = open(self.folder / "output", "w", encoding="utf-8")  # noqa: SIM115
        self.started.append(
            subprocess.Popen(
                [sys.executable, "-m", "ansible", "playbook", "-i", self.folder / "hosts.json",
                 self.folder / "play.json", *options],
                env={
                    **os.environ, **self.environment, "FAKE_SECONDS": str(seconds), "HOME": str(self.folder),
                    "ANSIBLE_CONFIG": "", "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
                    "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_NOCOLOR": "true",
                    "LC_ALL": "C.UTF-8",
                },
                stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True, cwd=self.folder,
            )
        )  # fmt: skip
        return self.started[-1]

    def tune(self, *options: str, **changes: t.Any) -> tuple[int, str]:
        """Run a whole play; return its exit status and what it printed."""
        status = self.start(*options, **changes).wait(timeout=300)
        return status, self.output

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text(encoding="utf-8")

    @property
    def result(self) -> dict[str, t.Any]:
        return json.loads((self.folder / "result.json").read_text())

    @property
    def measured(self) -> list[str]:
        """The splits that were measured, one per process of llama-bench."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.split("-ts ")[1].split()[0] for line in lines if "-ts " in line]

    @property
    def served(self) -> bool:
        return (self.units / SERVER).exists()

    def wait_for(self, what: t.Callable[[], object], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        fake_systemd.end(self.units)


@pytest.fixture
def box(tmp_path: pathlib.Path) -> t.Iterator[Box]:
    result = Box(tmp_path)
    yield result
    result.close()


def test_it_measures_shows_and_decides_under_one_lease(box: Box) -> None:
    status, output = box.tune()
    assert status == 0, output
    result = box.result
    assert result["needed"] and result["changed"] and result["tuning"]["plan"]["decision"]["loads_used"] == 4
    assert result["tuning"]["model"]["id"] == "m" and result["baseline"]["reason"] == "tuned"
    again = [split for split in box.measured if box.measured.count(split) > 1]
    # the baseline is the only repetition; beside other work its load is made again, at most twice
    assert set(again) == {"19/14"} and 2 <= len(again) <= 4
    assert "box | tuning of m: 1 of about" in output
    assert "22/11 load 1: prefill 1000.0 tokens/s, decode 100.0 tokens/s" in output
    assert box.served and not (box.folder / "lease.json").exists()


def worker_of(process: subprocess.Popen[str]) -> int | None:
    """Return the process of ansible-playbook that runs the task."""
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if int(parent) == process.pid:
                return int(entry.name)
    return None


def gone(pid: int) -> bool:
    """Return whether a process has ended, collected or not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_campaign_lets_the_server_come_back_and_goes_on(box: Box, way: signal.Signals) -> None:
    process = box.start(seconds=8, lease_idle_seconds=20)
    box.wait_for(lambda: len(box.measured) == 2)
    worker = worker_of(process)
    assert worker is not None and not box.served
    # Ctrl-C reaches the whole foreground group; a worker of ansible-playbook is in a session of its own
    os.kill(process.pid, way) if way is signal.SIGKILL else os.killpg(process.pid, way)
    process.wait(timeout=300)
    box.wait_for(lambda: gone(worker))
    box.wait_for(lambda: box.served)
    # the second load is short and no job of the host: a signal to all processes of a local connection may end it
    stored = len(list((box.folder / "state/measurements").glob("*.json")))
    assert stored == 2 or (stored == 1 and way is signal.SIGINT)
    status, output = box.tune(lease_idle_seconds=20)
    assert status == 0, output
    assert output.count("measured before") == stored
    # a load of the baseline beside other work is made again, at most twice
    assert 2 + 5 - stored <= len(box.measured) <= 2 + 5 - stored + 2
    assert box.result["tuning"]["plan"]["decision"]["loads_used"] == 4 and box.served


def test_a_stopped_controller_acquires_the_lease_again(box: Box) -> None:
    process = box.start(seconds=3, lease_idle_seconds=10)
    box.wait_for(lambda: len(box.measured) == 1)
    worker = worker_of(process)
    assert worker is not None
    for pid in (process.pid, worker):
        os.kill(pid, signal.SIGSTOP)
    box.wait_for(lambda: box.served)
    for pid in (worker, process.pid):
        os.kill(pid, signal.SIGCONT)
    assert process.wait(timeout=240) == 0, box.output
    assert box.result["tuning"]["plan"]["decision"]["loads_used"] == 4 and box.served


def test_a_task_with_a_timeout_stops_its_job_and_releases_the_lease(box: Box) -> None:
    status, output = box.tune(seconds=300, task={"timeout": 45, "ignore_errors": False})
    assert status == 2 and "imed out" in output
    assert len(box.measured) == 1 and box.served
    line = str(box.folder / "llama.cpp/bin/llama-bench").encode()
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert line not in entry.read_bytes()
        except OSError:
            continue


def test_a_failure_is_one_sentence_and_the_server_comes_back(box: Box) -> None:
    status, output = box.tune(env={"FAKE_MODE": "old"})
    assert status == 2
    (line,) = [line for line in output.splitlines() if line.startswith("[ERROR]: ")]
    assert "tuning of m, 22/11 load 1: 22/11 load 1 cannot be measured: llama-bench does not accept -lm" in line
    assert box.served


def test_check_mode_measures_nothing(box: Box) -> None:
    status, output = box.tune("--check")
    assert status == 0, output
    assert "box | Would measure splits of m now: nothing is recorded for m-c8192." in output
    assert not box.measured and box.served and not box.result["changed"]
    (box.folder / "m.gguf").unlink()
    status, output = box.tune("--check", host_python="/nowhere/python")
    assert status == 0 and f"The split is unknown until {box.folder}/m.gguf exists" in output


def test_a_real_run_without_a_model_says_what_to_do(box: Box) -> None:
    (box.folder / "m.gguf").unlink()
    status, output = box.tune()
    assert status == 2 and "m.gguf does not exist. Run the llama_cpp and llm_models roles first" in output


def test_a_wrong_variable_is_named(box: Box) -> None:
    status, output = box.tune(max_loads="many")
    assert status == 2 and "split_tuning_max_loads is 'many': it must be a whole number" in output


def test_only_modules_of_the_list_are_run() -> None:
    action = object.__new__(campaign.ActionModule)
    action._label = "test"
    step = steps.Step("x", "command", {"cmd": "id"}, "x")
    with pytest.raises(campaign.AnsibleActionFail, match="the module command is not one that a campaign may run"):
        action._run(step, "")
    assert all((ROOT / f"plugins/modules/{name}.py").is_file() for name in campaign.MODULES)


def test_a_short_step_that_takes_long_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "_LINE_SECONDS", 0.1)
    shown: list[int] = []
    two = threading.Event()
    with campaign._SignsOfLife(lambda number: (shown.append(number), len(shown) < 2 or two.set())):
        assert two.wait(60)
    count = len(shown)
    time.sleep(0.3)
    assert len(shown) == count
