"""The controller's side of the tests: run playbooks on the test host, as the scenario does."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab


@pytest.fixture(scope="session")
def controller() -> lab.Controller:
    """Return the controller."""
    return lab.Controller("experts", "homelab.mixed_gpu.site")
