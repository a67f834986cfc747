"""The controller's side of the tests: run the site playbook on the test host, as the scenario does."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab


@pytest.fixture(scope="session")
def controller() -> lab.Controller:
    """Return the controller."""
    return lab.Controller("default", "homelab.mixed_gpu.site")


@pytest.fixture(scope="session")
def eventually() -> t.Callable[..., None]:
    """Return a function that waits until a condition holds, at most so many seconds."""
    return lab.eventually


@pytest.fixture
def revalidate(controller, tmp_path):
    """Run the revalidation and return (exit code, the host's result or None, output)."""

    def run(*options):
        file = tmp_path / "revalidation.json"
        file.unlink(missing_ok=True)
        done = controller.play(
            f"--extra-vars=revalidate_report={file}", *options, playbook="homelab.mixed_gpu.revalidate"
        )
        report = json.loads(file.read_text()) if file.exists() else None
        assert report is None or report["accepted"] == (done.returncode == 0)
        return done.returncode, report and report["hosts"]["sandbox"], done.stdout

    return run
