"""An upgrade of llama.cpp is judged by a measurement, and rolled back when it is slower. More in molecule/upgrade."""

from __future__ import annotations

import re

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import upgrades as lab


@pytest.fixture
def upgrades(host, controller):
    return lab.Upgrades(host, controller)


@pytest.fixture
def fleet(tmp_path):
    """Options that put a second host behind the first. Whoever touches it finds that it cannot be reached."""
    inventory = tmp_path / "fleet.yml"
    inventory.write_text(
        "mixed_gpu: {hosts: {second: {ansible_connection: ssh, ansible_host: 127.0.0.1, ansible_port: 9}}}\n"
    )
    return f"--inventory={inventory}"


def recap(done):
    return " ".join(done.stdout.rsplit("PLAY RECAP", 1)[-1].split())


def test_nothing_to_upgrade_changes_nothing_and_the_next_host_has_its_turn(host, upgrades, fleet):
    state = "ls -l --time-style=full-iso /var/lib/mixed_gpu /opt/llama.cpp"
    before = host.run(state).stdout
    done = upgrades.run(fleet)
    assert "Nothing to upgrade: b11312 is what is asked for" in lab.said(done), done.stdout[-4000:]
    assert re.search(r"sandbox : ok=\d+ changed=0 unreachable=0 failed=0", recap(done)), recap(done)
    # the next test would notice, then, if the second host were touched
    assert done.returncode == 4 and re.search(r"second : ok=\d+ changed=0 unreachable=1", recap(done)), recap(done)
    assert host.run(state).stdout == before


def test_a_slower_build_is_rolled_back_and_the_next_host_is_not_touched(host, upgrades, fleet):
    before = upgrades.links()
    done = upgrades.run(lab.SLOWER, fleet)
    assert done.returncode == 2, done.stdout[-6000:]
    ended = upgrades.last()
    slower = ended["to"]["builds"]["slow"]
    assert (ended["outcome"], ended["verdicts"]["after"]["verdict"]) == ("rolled_back", "regressed"), ended
    assert ended["verdicts"]["back"]["accepted"], ended
    assert slower != before["slow"] and host.file(f"/opt/llama.cpp/{slower}/build.json").exists
    # both verdicts in one sentence
    assert re.search(r"was not accepted \(regressed .*\), and .* is in use again, as before \(", lab.said(done))
    assert "sandbox" in recap(done) and "second" not in recap(done), recap(done)
    assert upgrades.serves(before)
