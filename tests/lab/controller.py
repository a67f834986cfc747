# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's side of the tests of a Molecule scenario: run plays on the test host, and reboot it."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import time
import typing as t

PROJECT = pathlib.Path(__file__).resolve().parents[2]


class Controller:
    """Starts playbooks with the sandbox's inventory and a scenario's variables, and reboots the host."""

    host_name = os.environ.get("LAB_HOST", "")
    engine = os.environ.get("LAB_ENGINE", "podman")
    project = PROJECT

    def __init__(self, scenario: str, playbook: str) -> None:
        # where Molecule runs Ansible: what a play writes goes below the folder that it was started in
        self.directory = PROJECT / "molecule" / scenario
        self.playbook = playbook

    def command(self, *options: str, playbook: str = "") -> list[str]:
        """Return the command line of a playbook run."""
        return [
            "ansible-playbook", f"--inventory={PROJECT}/inventories/sandbox",
            f"--extra-vars=@{self.directory}/variables.yml", playbook or self.playbook, *options,
        ]  # fmt: skip

    def start(self, *options: str, playbook: str = "") -> subprocess.Popen[str]:
        """Start a playbook in a process group of its own and return at once."""
        return subprocess.Popen(
            self.command(*options, playbook=playbook), cwd=self.directory, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def play(self, *options: str, playbook: str = "") -> subprocess.CompletedProcess[str]:
        """Run a playbook to its end and return what happened, output included."""
        process = self.start(*options, playbook=playbook)
        try:
            output = process.communicate(timeout=1200)[0]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def reboot(self) -> None:
        """Stop the host, start it again and wait for systemd."""
        subprocess.run([self.engine, "stop", "-t", "20", self.host_name], check=True, capture_output=True)
        lab = PROJECT / "tests" / "lab" / "lab.sh"
        subprocess.run([str(lab), "create", self.host_name], check=True, capture_output=True)


def eventually(condition: t.Callable[[], bool], seconds: float = 60) -> None:
    """Wait until a condition holds, at most so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.5)
