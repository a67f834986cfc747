# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's side of the tests of a Molecule scenario: run plays on the test host, and reboot it."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import typing as t

PROJECT = pathlib.Path(__file__).resolve().parents[2]
KEY_FILE: t.Final = "/etc/mixed_gpu/llama-server.key"
#: curl on a test host with the key of llama-server, which stands in no list of processes.
CURL: t.Final = f"sed 's/^/Authorization: Bearer /' {KEY_FILE} | curl -sS -H @-"


class Play(subprocess.Popen[str]):
    """A playbook in a process group of its own. Its output goes to a file: a pipe that nobody reads would stop it."""

    def __init__(self, command: t.Sequence[str], directory: pathlib.Path) -> None:
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the play)
        super().__init__(
            command, cwd=directory, stdout=self.output, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def said(self) -> str:
        """Return what it has said until now."""
        # without moving the offset, which is the play's as well
        return os.pread(self.output.fileno(), os.fstat(self.output.fileno()).st_size, 0).decode()

    def shows(self, pattern: str, seconds: float = 600) -> None:
        """Wait until it has said something that matches, or has ended."""
        eventually(lambda: self.poll() is not None or re.search(pattern, self.said()) is not None, seconds)

    def finish(self, seconds: float | None = None) -> str:
        """Wait for its end, and return what it said."""
        self.wait(seconds)
        return self.said()


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

    def start(self, *options: str, playbook: str = "") -> Play:
        """Start a playbook and return at once."""
        return Play(self.command(*options, playbook=playbook), self.directory)

    def play(self, *options: str, playbook: str = "") -> subprocess.CompletedProcess[str]:
        """Run a playbook to its end and return what happened, output included."""
        process = self.start(*options, playbook=playbook)
        try:
            output = process.finish(1200)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def forward(self, host_port: int) -> int:
        """Return a port of 127.0.0.1 that reaches a port inside the host, until the host is removed."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        lab = PROJECT / "tests" / "lab" / "lab.sh"
        subprocess.run([str(lab), "forward", self.host_name, str(port), str(host_port)], check=True)
        return port

    def reboot(self) -> None:
        """Stop the host, start it again and wait for systemd."""
        subprocess.run([self.engine, "stop", "-t", "20", self.host_name], check=True, capture_output=True)
        lab = PROJECT / "tests" / "lab" / "lab.sh"
        subprocess.run([str(lab), "create", self.host_name], check=True, capture_output=True)


def eventually(condition: t.Callable[[], bool], seconds: float = 300) -> None:
    """Wait until a condition holds, at most so many seconds.

    The limit ends a test that would wait for ever; it claims nothing about speed, since the machine may do much else.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.5)
