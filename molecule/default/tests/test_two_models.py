"""Two models tuned in one play: each is measured, decided and recorded for itself, and the served one stays."""

from __future__ import annotations

import json
import re

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

FACT = "/etc/ansible/facts.d/mixed_gpu.fact"
BLOCKS = {"two-a": 12, "two-b": 14}


def _record(host):
    return json.loads(host.file(FACT).content_string)


def _play(controller):
    """Run the play with its own variables: the scenario's would win over those of the loop."""
    inventory = f"--inventory={controller.project}/inventories/sandbox"
    play = lab.Play(["ansible-playbook", inventory, "two_models.yml"], controller.directory)
    output = play.finish(1800)
    assert play.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope="module")
def tuned(host, controller, eventually):
    """The record before, the record after, and what the play said; the host is as it was afterwards."""
    before = _record(host)
    assert host.run(f"cp -a {FACT} {FACT}.kept").rc == 0
    try:
        output = _play(controller)
        yield before, _record(host), output
    finally:
        host.run(f"mv {FACT}.kept {FACT}")
        host.run("rm -rf /srv/models/two-? /var/lib/mixed_gpu/models/two-* /var/lib/mixed_gpu/baselines/two-*")
        # the lease gave the server back
        eventually(lambda: host.run("curl -s -f http://127.0.0.1:8080/health").rc == 0)


def test_each_has_its_own_entry_and_the_served_one_stays(tuned):
    before, after, _output = tuned
    assert after["active"] == before["active"]
    new = {name: entry for name, entry in after["models"].items() if name not in before["models"]}
    assert {name: entry for name, entry in after["models"].items() if name in before["models"]} == before["models"]
    assert sorted(new) == ["two-a-c512-np1-f16-f16", "two-b-c512-np1-f16-f16"]
    for name, entry in new.items():
        model = name[: len("two-a")]
        assert f"/{model}/" in entry["model"]["path"]
        assert sum(place["layers"] for place in entry["placement"]) == BLOCKS[model] + 1
    assert len({entry["fingerprint"] for entry in new.values()}) == 2
    assert len({entry["model"]["sha256"] for entry in new.values()}) == 2


def test_each_has_its_own_measurements_and_baseline(host, tuned):
    _before, after, output = tuned
    for model, blocks in BLOCKS.items():
        entry = after["models"][f"{model}-c512-np1-f16-f16"]
        baseline = json.loads(host.file(f"/var/lib/mixed_gpu/baselines/{model}-c512-np1-f16-f16.json").content_string)
        assert {sum(load["layers"]) for load in baseline["loads"]} == {blocks + 1}
        assert {load["fingerprint"] for load in baseline["loads"]} == {entry["fingerprint"]}
        assert re.search(rf"tuning of {model}\b", output)


def test_a_second_play_finds_nothing_to_do(host, controller, tuned):
    _before, after, _output = tuned
    recap = _play(controller).rpartition("PLAY RECAP")[2]
    assert re.search(r"changed=0\b", recap), recap
    assert _record(host) == after
