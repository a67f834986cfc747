"""Nothing to upgrade changes nothing. What happens when there is something is tested in molecule/upgrade."""

from __future__ import annotations

import re

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import upgrades as lab


@pytest.fixture
def upgrades(host, controller):
    return lab.Upgrades(host, controller)


@pytest.fixture
def fleet(tmp_path):
    return lab.fleet(tmp_path)


def test_nothing_to_upgrade_changes_nothing_and_the_next_host_has_its_turn(host, upgrades, fleet):
    before = host.run(lab.FOLDERS).stdout
    done = upgrades.run(fleet)
    assert "Nothing to upgrade: b11312 is what is asked for" in lab.said(done), done.stdout[-4000:]
    assert re.search(r"sandbox : ok=\d+ changed=0 unreachable=0 failed=0", lab.recap(done)), lab.recap(done)
    # it was its turn, and it cannot be reached
    assert done.returncode == 4, lab.recap(done)
    assert re.search(r"second : ok=\d+ changed=0 unreachable=1", lab.recap(done)), lab.recap(done)
    assert host.run(lab.FOLDERS).stdout == before
