"""The controller's side of the tests: plays on the stand-in host, and the host's archive."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import pytest

PROJECT = pathlib.Path(__file__).resolve().parents[3]
HERE = PROJECT / "molecule" / "nvidia_driver"


class Controller:
    """Starts playbooks."""

    def play(self, playbook: str = "", **variables: object) -> subprocess.CompletedProcess[str]:
        """Run the scenario's playbook, or one of the collection, and return what happened, output included."""
        command = [
            "ansible-playbook", f"--inventory={HERE}/inventory/hosts.yml",
            f"--extra-vars={json.dumps({'__nvidia_driver_stand_in': True, **variables})}",
            playbook or str(HERE / "converge.yml"),
        ]  # fmt: skip
        return subprocess.run(
            command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1200, check=False,
            env=os.environ | {"COLUMNS": "4000"},
        )  # fmt: skip

    def ask(self, module: str) -> str:
        """Run a module on the host and return what it answered."""
        command = ["ansible", "all", f"--inventory={HERE}/inventory/hosts.yml", "--become", f"--module-name={module}"]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def controller() -> Controller:
    """Return the controller."""
    return Controller()
