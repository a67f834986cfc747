"""The controller's side of the tests: run the site playbook on the test host, as the scenario does."""

from __future__ import annotations

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
