"""The controller's side of the tests: run the models playbook on the test host, and tell its hub what to do."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab


@pytest.fixture(scope="session")
def controller() -> lab.Controller:
    """Return the controller."""
    return lab.Controller("models", "homelab.mixed_gpu.models")


@pytest.fixture(scope="session")
def eventually() -> t.Callable[..., None]:
    """Return a function that waits until a condition holds, at most so many seconds."""
    return lab.eventually


@pytest.fixture
def faults(host: t.Any) -> t.Iterator[t.Callable[..., None]]:
    """Return a function that tells the hub what to do with the next requests for content."""

    def tell(*queue: dict[str, t.Any]) -> None:
        assert host.run("curl -sS -f --retry 9 --retry-connrefused -d %s http://127.0.0.1:8099/_faults",
                        json.dumps(queue)).rc == 0  # fmt: skip

    yield tell
    tell()
