"""The controller's side of the tests: run the site playbook on the test host, as the scenario does."""

from __future__ import annotations

import os
import pathlib
import subprocess
import time
import typing as t

import pytest

PROJECT = pathlib.Path(__file__).resolve().parents[3]
# where Molecule runs Ansible: the report of a play goes below the folder that it was started in
HERE = PROJECT / "molecule" / "default"
LAB = PROJECT / "tests" / "lab" / "lab.sh"


class Controller:
    """Starts playbooks and reboots the host."""

    host_name = os.environ["LAB_HOST"]
    engine = os.environ.get("LAB_ENGINE", "podman")
    project = PROJECT

    def command(self, *options: str, playbook: str = "homelab.mixed_gpu.site") -> list[str]:
        """Return the command line of a playbook run with the scenario's inventory and variables."""
        return [
            "ansible-playbook", f"--inventory={PROJECT}/inventories/sandbox",
            f"--extra-vars=@{PROJECT}/molecule/default/variables.yml", playbook, *options,
        ]  # fmt: skip

    def play(self, *options: str, playbook: str = "homelab.mixed_gpu.site") -> subprocess.CompletedProcess[str]:
        """Run a playbook to its end and return what happened, output included."""
        command = self.command(*options, playbook=playbook)
        return subprocess.run(
            command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1200, check=False
        )

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Start the site playbook in a process group of its own and return at once."""
        return subprocess.Popen(
            self.command(*options),
            cwd=HERE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def reboot(self) -> None:
        """Stop the host, start it again and wait for systemd."""
        subprocess.run([self.engine, "stop", "-t", "20", self.host_name], check=True, capture_output=True)
        subprocess.run([str(LAB), "create", self.host_name], check=True, capture_output=True)


@pytest.fixture(scope="session")
def controller() -> Controller:
    """Return the controller."""
    return Controller()


@pytest.fixture(scope="session")
def eventually() -> t.Callable[..., None]:
    """Return a function that waits until a condition holds, at most so many seconds."""

    def wait(condition: t.Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s"
            time.sleep(0.5)

    return wait
