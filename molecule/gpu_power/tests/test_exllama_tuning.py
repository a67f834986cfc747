"""The role split_tuning with ExLlama's stand-ins: what it records, once, and what others make of it."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.molecule.gpu_power.tests.conftest import FAST, SLOW, changed, words

FACT = "/etc/ansible/facts.d/mixed_gpu.fact"
DEPLOYMENT = "stand-in-exl2-exllamav2-c1024-Q8"


@pytest.fixture(scope="module")
def tuned(host, controller):
    """Tune with the play, and take the result out of the record again."""
    done = controller.play(playbook="exllama.yml")
    assert done.returncode == 0, done.stdout[-4000:]
    yield done
    assert controller.play(playbook="restore_fact.yml").returncode == 0
    assert list(json.loads(host.file(FACT).content_string)["models"]) == ["m-c512"]


def test_the_split_is_recorded_with_the_numbers_that_make_it(host, tuned, eventually):
    record = json.loads(host.file(FACT).content_string)
    entry = record["models"][DEPLOYMENT]
    assert record["active"] == DEPLOYMENT and entry["serving"]["engine"] == "exllamav2"
    assert [device["id"] for device in entry["devices"]] == [SLOW, FAST]
    layers = [place["layers"] for place in entry["placement"]]
    assert sum(layers) == 13 and layers == [card["layers"] for card in entry["loaded"]]
    assert [share > 0 for share in entry["gpu_split_gb"]] == [count > 0 for count in layers]
    assert entry["serving"]["cache_mode"] == "Q8" and entry["device_probe"] is None and entry["dry_run"] is None
    # the llama.cpp deployment of before is still there
    assert len(record["models"]) > 1
    eventually(lambda: host.service("llama-server").is_running)
    assert not host.service("mixed-gpu-lease").is_running


def test_a_second_run_measures_nothing(tuned, controller):
    again = controller.play(playbook="exllama.yml")
    assert again.returncode == 0 and changed(again.stdout) == 0, again.stdout[-4000:]
    checked = controller.play("--check", "--extra-vars={split_tuning_retune: true}", playbook="exllama.yml")
    assert checked.returncode == 0, checked.stdout[-4000:]
    assert "Would measure splits of stand-in-exl2 now: a retune was asked for" in words(checked.stdout)


def test_both_engines_stand_in_one_table(tuned, controller):
    done = controller.play(playbook="homelab.mixed_gpu.engines")
    assert done.returncode == 0 and changed(done.stdout) == 0, done.stdout[-3000:]
    assert "ExLlamaV2" in done.stdout and "llama.cpp" in done.stdout and "Files differ in size" in words(done.stdout)


def test_the_sweep_of_power_limits_says_that_it_knows_llama_cpp_only(tuned, controller):
    done = controller.play(playbook="homelab.mixed_gpu.power_sweep")
    assert done.returncode != 0
    refusal = f"the deployment {DEPLOYMENT} was tuned with ExLlamaV2, and a deployment of llama.cpp is needed"
    assert refusal in words(done.stdout)
