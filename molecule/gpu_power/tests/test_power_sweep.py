"""The sweep of power limits, through its playbook: what it measures and recommends, and that the limits come back."""

from __future__ import annotations

import json
import os
import signal

import pytest
from ansible_collections.homelab.mixed_gpu.molecule.gpu_power.tests.conftest import FAST, IN_FORCE, SLOW, words

PLAYBOOK = "homelab.mixed_gpu.power_sweep"
STORE = "/var/lib/mixed_gpu/measurements"


def test_check_mode_says_what_would_be_measured(host, kept, controller):
    done = controller.play("--check", playbook=PLAYBOOK)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "350 + 450 W, 245 + 450 W, 350 + 315 W" in words(done.stdout)
    assert kept() == IN_FORCE and host.service("llama-server").is_running


def test_a_sweep_that_is_killed_leaves_the_limits_as_they_were(host, kept, controller, eventually):
    play = controller.start(playbook=PLAYBOOK)
    try:
        eventually(lambda: "245000" in str(kept()) or play.poll() is not None, 900)
    finally:
        if play.poll() is None:
            os.killpg(play.pid, signal.SIGKILL)
        output = play.finish()
    # still those of the sweep, whichever of its limits it has come to
    assert kept().keys() == IN_FORCE.keys() and kept() != IN_FORCE, output[-3000:]
    # what happens by itself when the lease expires
    eventually(lambda: host.run("flock -n %s/.lock true", STORE).rc == 0)
    assert host.run("systemctl stop mixed-gpu-lease").rc == 0
    assert kept() == IN_FORCE
    eventually(lambda: host.service("llama-server").is_running)


def test_a_sweep_recommends_and_leaves_everything_as_it_was(host, kept, controller, eventually):
    before = host.run("ls %s", STORE).stdout
    done = controller.play(playbook=PLAYBOOK)
    assert done.returncode == 0, done.stdout[-4000:]
    assert kept() == IN_FORCE
    eventually(lambda: host.service("llama-server").is_running)
    document = json.loads((controller.directory / "reports" / "sandbox-power.json").read_text())
    result = document["result"]
    # 315 W leave the RTX 4090 its 250 W; 245 W make the RTX 3090 five times slower
    assert result["limits_watts"][SLOW] == 350 and result["measured"]
    rows = {row["label"]: row for row in result["rows"]}
    assert list(rows)[:3] == ["350 + 450 W", "245 + 450 W", "350 + 315 W"] and rows["350 + 450 W"]["loads"] == 2
    base, low = rows["350 + 450 W"]["decode"], rows["245 + 450 W"]["decode"]
    assert base["watts"] == pytest.approx({SLOW: 340, FAST: 250}, rel=0.02) and base["source"] == "counter"
    assert low["watts"] == pytest.approx({SLOW: 245, FAST: 250}, rel=0.02)
    assert base["joules_per_token"] == pytest.approx(590 * base["ms_per_token"] / 1000, rel=0.02)
    assert low["ms_per_token"] > base["ms_per_token"]
    assert "keep" in done.stdout or "less energy" in done.stdout
    # what the killed sweep had measured was not measured again
    assert set(before.split()) <= set(host.run("ls %s", STORE).stdout.split())
    assert document["deployment"] == "m-c512" and [card["id"] for card in document["cards"]] == [SLOW, FAST]
