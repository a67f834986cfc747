"""The controller's side of the tests."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab
from ansible_collections.homelab.mixed_gpu.tests.lab import upgrades as lab_upgrades


@pytest.fixture
def upgrades(host) -> lab_upgrades.Upgrades:
    """Return the upgrades of the test host."""
    return lab_upgrades.Upgrades(host, lab.Controller("default", lab_upgrades.PLAYBOOK))
