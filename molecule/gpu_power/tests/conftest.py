"""The controller's side of the tests: run plays on the test host, as the scenario does, and reboot it."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import time
import typing as t

import pytest

PROJECT = pathlib.Path(__file__).resolve().parents[3]
SCENARIO = PROJECT / "molecule" / "gpu_power"
FAST, SLOW = "GPU-11111111-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa"
# index 0 is the RTX 3090, in the first slot
IN_FORCE = {
    "0.persistence_mode": "1", "0.power_limit_milliwatts": "280000", "0.locked_clocks_mhz": "210,1700",
    "1.persistence_mode": "1", "1.power_limit_milliwatts": "315000",
}  # fmt: skip
UNIT = "mixed-gpu-power.service"


def changed(output: str) -> int:
    """Return how many tasks of a play changed something."""
    return int(re.search(r"changed=(\d+)", output).group(1))


def words(output: str) -> str:
    """Return the output of a play without its line breaks: Ansible breaks long lines."""
    return " ".join(output.split())


class Controller:
    """Runs playbooks and reboots the host."""

    host_name = os.environ["LAB_HOST"]
    engine = os.environ.get("LAB_ENGINE", "podman")

    def start(self, *options: str, playbook: str) -> subprocess.Popen[str]:
        """Start a playbook in a process group of its own and return at once."""
        command = [
            "ansible-playbook", f"--inventory={PROJECT}/inventories/sandbox", f"--extra-vars=@{SCENARIO}/variables.yml",
            playbook, *options,
        ]  # fmt: skip
        return subprocess.Popen(
            command, cwd=SCENARIO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def play(self, *options: str, playbook: str = str(SCENARIO / "power.yml")) -> subprocess.CompletedProcess[str]:
        """Run a playbook to its end and return what happened, output included."""
        process = self.start(*options, playbook=playbook)
        try:
            output = process.communicate(timeout=600)[0]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def reboot(self) -> None:
        """Stop the host, start it again and wait for systemd."""
        subprocess.run([self.engine, "stop", "-t", "20", self.host_name], check=True, capture_output=True)
        lab = PROJECT / "tests" / "lab" / "lab.sh"
        subprocess.run([str(lab), "create", self.host_name], check=True, capture_output=True)


@pytest.fixture(scope="session")
def controller() -> Controller:
    """Return the controller."""
    return Controller()


@pytest.fixture
def kept(host: t.Any) -> t.Callable[[], dict[str, str]]:
    """Return a function that tells what the driver keeps now."""

    def read() -> dict[str, str]:
        file = host.file("/run/fake_nvml")
        return dict(line.split("=") for line in file.content_string.splitlines()) if file.exists else {}

    return read


@pytest.fixture(scope="session")
def eventually() -> t.Callable[..., None]:
    """Return a function that waits until a condition holds, at most so many seconds."""

    def wait(condition: t.Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s"
            time.sleep(0.5)

    return wait
