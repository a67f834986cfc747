"""An upgrade of the driver on a served host, with stand-in packages in two versions and a device that gets slower.

No card is there, so nothing is said about loading the driver; that the host got slower is real, and so is everything
that follows from it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab_controller
from ansible_collections.homelab.mixed_gpu.tests.lab import upgrades as lab

DROP_IN = "/run/systemd/system/ggml-rpc-server-slow.service.d"


def named(number):
    return f"--extra-vars=version={number.split('-')[0]}"


def slow_down(host, slower):
    """Let the slow device run the slower build, whatever its unit says."""
    program = f"/opt/llama.cpp/{slower}/bin/ggml-rpc-server --host 127.0.0.1 --port 50053 --threads 1"
    drop_in = f"[Service]\\nExecStart=\\nExecStart={program}\\n"
    lab.ran(host, f"mkdir -p {DROP_IN} && printf '{drop_in}' > {DROP_IN}/slow.conf")
    lab.ran(host, "systemctl daemon-reload && systemctl restart ggml-rpc-server-slow")


def restore(host):
    lab.ran(host, f"rm -rf {DROP_IN} && systemctl daemon-reload && systemctl restart ggml-rpc-server-slow")


@pytest.fixture(scope="module")
def driver(host):
    """Install the first version of the stand-in driver, and let apt have the second."""
    lab.archive_driver(host, lab_controller.Controller.host_name)
    controller = lab_controller.Controller("default", str(lab.DRIVER_SCENARIO / "converge.yml"))
    done = controller.play(lab.STAND_IN)
    assert done.returncode == 0, done.stdout[-6000:]
    lab.ran(host, "bash /var/tmp/archive.sh second")
    yield
    lab.ran(host, "cp /var/tmp/os-release.image /etc/os-release")


@pytest.fixture(scope="module")
def slower(host):
    """The directory of a build of the slow device that is slower, which an upgrade to it leaves behind."""
    upgrades = lab.Upgrades(host, lab_controller.Controller("default", lab.PLAYBOOK))
    done = upgrades.run(lab.SLOWER)
    last = upgrades.last()
    assert (last["component"], last["outcome"]) == ("llama_cpp", "rolled_back"), done.stdout[-6000:]
    return last["to"]["builds"]["slow"]


def test_an_upgrade_that_changes_no_speed_is_kept_also_when_it_was_killed(host, upgrades, driver):
    upgrades.kill_at("installing", lab.STAND_IN, named(lab.SECOND), component="driver")
    refused = upgrades.run(lab.STAND_IN)
    assert refused.returncode == 2
    assert "It comes before llama.cpp: finish that first, with -e component=driver -e version=580.105.08" in lab.said(
        refused
    )
    # without a version, what it was begun with
    done = upgrades.run(lab.STAND_IN, component="driver")
    assert done.returncode == 0, done.stdout[-6000:]
    assert lab.driver_version(host) == lab.SECOND
    assert (upgrades.last()["component"], upgrades.last()["outcome"]) == ("driver", "kept")
    assert "nvidia-headless-580-server-open" in lab.ran(host, "apt-mark showhold")
    assert f'nvidia_driver_version: "{lab.SECOND}"' in lab.said(done).replace("\\", "")


def driver_upgrade_with(host, upgrades, slower, ends):
    """Upgrade to the first version, let the host get slower meanwhile, and end that when the record is at a stage."""
    options = ("--extra-vars=component=driver", lab.WIDE, lab.STAND_IN, named(lab.FIRST))
    play = upgrades.controller.start(*options, playbook=lab.PLAYBOOK)
    try:
        lab_controller.eventually(lambda: upgrades.stage() == "installing" or play.poll() is not None, 600)
        slow_down(host, slower)
        lab_controller.eventually(lambda: upgrades.stage() == ends or play.poll() is not None, 1200)
        if play.poll() is None:
            restore(host)
        output = play.finish(1200)
    finally:
        if play.poll() is None:
            os.killpg(play.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(play.args, play.returncode, output)


def test_a_host_that_got_slower_gets_its_driver_back(host, upgrades, driver, slower):
    done = driver_upgrade_with(host, upgrades, slower, "rolling_back")
    assert done.returncode == 2, done.stdout[-6000:]
    assert upgrades.last()["outcome"] == "rolled_back", json.dumps(upgrades.last())
    assert "was not accepted (regressed " in lab.said(done)
    assert lab.driver_version(host) == lab.SECOND


def test_a_host_that_stays_slower_is_said_not_to_be_as_before(host, upgrades, driver, slower):
    done = driver_upgrade_with(host, upgrades, slower, "never")
    assert done.returncode == 2
    assert upgrades.last()["outcome"] == "broken", json.dumps(upgrades.last())
    assert "NOT proved to be as before" in lab.said(done)
    assert lab.driver_version(host) == lab.SECOND
    # nor is it upgraded like that
    refused = upgrades.run(lab.STAND_IN, named(lab.FIRST), component="driver")
    assert refused.returncode == 2 and "is not as its baseline says" in lab.said(refused), refused.stdout[-4000:]
    restore(host)
