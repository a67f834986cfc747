"""The three hosts, and the controller's side of the tests."""

from __future__ import annotations

import os

import pytest
import testinfra
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

NAME = os.environ.get("LAB_HOST", "")


def _host(name):
    return testinfra.get_host(f"{lab.Controller.engine}://{NAME}-{name}")


@pytest.fixture(scope="session")
def lender():
    """Return the host that lends."""
    return _host("lender")


@pytest.fixture(scope="session")
def stranger():
    """Return a host of the same network that has nothing to do with it."""
    return _host("stranger")


@pytest.fixture(scope="session")
def controller() -> lab.Controller:
    """Return the controller."""
    return lab.Controller("lenders", "homelab.mixed_gpu.site")
