"""The whole way with the other engine: site fetches a model, tunes it on unequal cards, serves it as it was tuned."""

from __future__ import annotations

import json
import re

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

FAST, SLOW = "GPU-11111111-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa"
FACT = "/etc/ansible/facts.d/mixed_gpu.fact"
SITE = {
    "mixed_gpu_engine": "exllamav2",
    "nvidia_driver_manage": False,
    "cuda_toolkit_manage": False,
    "host_preflight_disk_mib": {},
    "llm_models_hub_endpoint": "http://127.0.0.1:8099",
    "llm_models": [{"id": "tiny", "repo": "owner/Tiny-exl2", "revision": "main"}],
    "exllamav2_model_id": "tiny",
    "exllamav2_context_size": 2048,
    "split_tuning_bench_prompt_tokens": 1024,
    "split_tuning_bench_generated_tokens": 16,
    # neither card holds it alone
    "split_tuning_device_budget_mib": {FAST: 140, SLOW: 140},
    "split_tuning_reserve_mib": 16,
    "split_tuning_fingerprint_extra": {},
    # what a block takes on each of them
    "split_tuning_environment": {
        "FAKE_UUIDS": f"{FAST},{SLOW}", "FAKE_BLOCK_MS": "0.5,1.5", "FAKE_BLOCK_GB": "0.0014028",
        "FAKE_OVERHEAD_GB": "0.087", "FAKE_HEAD_GB": "0.0007",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def site(host, tmp_path_factory):
    variables = tmp_path_factory.mktemp("site") / "site.json"
    variables.write_text(json.dumps(SITE), encoding="utf-8")
    controller = lab.Controller("exllamav2", "homelab.mixed_gpu.site")
    # what the role's own tests read: a fact written by hand, whose deployment is not active
    assert host.run(f"mv {FACT} {FACT}.of-the-role").rc == 0
    yield lambda *options: controller.play(f"--extra-vars=@{variables}", *options)
    host.run(f"mv {FACT}.of-the-role {FACT}")


def test_site_serves_the_split_that_it_measured(host, site):
    done = site()
    assert done.returncode == 0, done.stdout[-6000:]
    fact = json.loads(host.file(FACT).content_string)
    tuned = fact["models"][fact["active"]]
    assert (tuned["serving"]["engine"], tuned["model"]["id"]) == ("exllamav2", "tiny")
    fast, slow = (place["layers"] for place in tuned["placement"])
    # three times as fast, and without room for all of it
    assert fast > slow > 0
    assert len(tuned["gpu_split_gb"]) == 2
    settings = json.loads(host.file("/etc/mixed_gpu/exllama-server.yml").content_string)["model"]
    assert (settings["gpu_split"], settings["gpu_split_auto"]) == (tuned["gpu_split_gb"], False)
    assert (settings["model_name"], settings["max_seq_len"]) == ("tiny", 2048)
    unit = host.run("systemctl show -p Environment,ActiveState exllama-server").stdout
    assert f"CUDA_VISIBLE_DEVICES={FAST},{SLOW}" in unit and "ActiveState=active" in unit
    said = (lab.PROJECT / "molecule/exllamav2/reports/sandbox.txt").read_text(encoding="utf-8")
    assert f"tiny: {fast} of 13 layers on CUDA0 and {slow} on CUDA1" in said and "ExLlamaV2's own speed test" in said


def test_a_second_run_of_site_changes_nothing(site):
    done = site()
    assert done.returncode == 0 and re.search(r"changed=0 ", done.stdout), done.stdout[-6000:]


def test_the_cards_of_the_inventory_are_tuned_and_served_in_their_order(host, site):
    environment = SITE["split_tuning_environment"] | {"FAKE_UUIDS": f"{SLOW},{FAST}", "FAKE_BLOCK_MS": "1.5,0.5"}
    swapped = {"exllamav2_gpus": [SLOW, FAST], "split_tuning_environment": environment}
    done = site(f"--extra-vars={json.dumps(swapped)}")
    assert done.returncode == 0, done.stdout[-6000:]
    fact = json.loads(host.file(FACT).content_string)
    tuned = fact["models"][fact["active"]]
    assert [device["id"] for device in tuned["devices"]] == [SLOW, FAST]
    assert tuned["placement"][0]["layers"] < tuned["placement"][1]["layers"]
    unit = host.run("systemctl show -p Environment exllama-server").stdout
    assert f"CUDA_VISIBLE_DEVICES={SLOW},{FAST}" in unit


def test_a_card_that_is_not_there_is_refused(site):
    refused = site('--extra-vars={"exllamav2_gpus": ["GPU-0"]}')
    said = " ".join(refused.stdout.split())
    assert refused.returncode == 2 and "GPU-0" in said and FAST in said, refused.stdout[-4000:]


def test_a_split_in_the_inventory_is_refused_rather_than_ignored(site):
    refused = site('--extra-vars={"exllamav2_gpu_split_gb": [18, 20]}')
    assert refused.returncode == 2
    assert "site measures splits and serves the best" in " ".join(refused.stdout.split())
