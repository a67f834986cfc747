"""An upgrade of the driver of a box and its lender together, with stand-in packages: no card is there."""

from __future__ import annotations

import os
import signal

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab
from ansible_collections.homelab.mixed_gpu.tests.lab import upgrades as lab_upgrades

FIRST, SECOND = lab_upgrades.FIRST, lab_upgrades.SECOND
INSTALL = "- hosts: all\n  gather_facts: false\n  become: true\n  roles: [homelab.mixed_gpu.nvidia_driver]\n"


@pytest.fixture(scope="module")
def drivers(host, lender, tmp_path_factory):
    """Install the first version of the stand-in driver on both hosts, and let apt have the second."""
    name = lab.Controller.host_name
    both = {name: host, f"{name}-lender": lender}
    for one, reached in both.items():
        lab_upgrades.archive_driver(reached, one)
    play = tmp_path_factory.mktemp("play") / "driver.yml"
    play.write_text(INSTALL)
    controller = lab.Controller("lenders", str(play))
    done = controller.play(f"--inventory={controller.directory}/inventory", lab_upgrades.STAND_IN)
    assert done.returncode == 0, done.stdout[-6000:]
    for reached in both.values():
        lab_upgrades.ran(reached, "bash /var/tmp/archive.sh second")
    yield lambda: [lab_upgrades.driver_version(reached) for reached in both.values()]
    for reached in both.values():
        lab_upgrades.ran(reached, "cp /var/tmp/os-release.image /etc/os-release")


def to(version):
    """Return the options of an upgrade to a version."""
    return [lab_upgrades.STAND_IN, f"--extra-vars=version={version.split('-')[0]}"]


def test_the_drivers_of_both_are_upgraded_and_kept(group, drivers):
    assert drivers() == [FIRST, FIRST]
    done = group.run(*to(SECOND), component="driver")
    assert done.returncode == 0, done.stdout[-6000:]
    ended = group.last()
    assert (group.stage(), ended["component"], ended["outcome"]) == ("", "driver", "kept"), ended
    assert ended["lenders"]["lender"]["to"]["version"] == SECOND
    assert drivers() == [SECOND, SECOND] and group.both_serve(group.builds())


def test_where_the_box_cannot_be_measured_both_get_their_drivers_back(group, drivers, unmeasurable):
    before = drivers()
    options = (*group.options, "--extra-vars=component=driver", *to(FIRST))
    play = group.controller.start(*options, playbook=lab_upgrades.PLAYBOOK)
    try:
        lab.eventually(lambda: group.stage() == "installing" or play.poll() is not None, 1200)
        with unmeasurable(group.builds()[0]):
            lab.eventually(lambda: group.stage() == "rolling_back" or play.poll() is not None, 1200)
        output = play.finish(1200)
    finally:
        if play.poll() is None:
            os.killpg(play.pid, signal.SIGKILL)
    assert play.returncode == 2, output[-6000:]
    ended = group.last()
    assert (ended["component"], ended["outcome"]) == ("driver", "rolled_back"), ended
    assert ended["verdicts"]["after"]["verdict"] == "broken", ended
    assert drivers() == before and group.both_serve(group.builds())
