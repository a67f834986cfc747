"""The whole way with the other engine: site fetches a model, tunes it on unequal cards, serves it as it was tuned.

Then the playbook revalidate says whether it is as it was. The clock is that of the stand-ins, so all that is measured
follows from FAKE_BLOCK_MS.
"""

from __future__ import annotations

import json
import os
import pathlib
import re

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

FAST, SLOW = "GPU-11111111-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa"
BASELINES = "/var/lib/mixed_gpu/baselines"
OTHERWISE = "/srv/models/stand_in.json"
FACT = "/etc/ansible/facts.d/mixed_gpu.fact"
#: Where a test keeps a file that it changes.
KEPT = "/var/lib/kept_file"
SITE = {
    "mixed_gpu_engine": "exllamav2",
    "nvidia_driver_manage": False,
    "cuda_toolkit_manage": False,
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
        "FAKE_OVERHEAD_GB": "0.087", "FAKE_HEAD_GB": "0.0007", "FAKE_CLOCK": "1", "FAKE_OVERRIDES": OTHERWISE,
    },
    # other programs of this machine are no matter of these tests
    "revalidate_ignore_contention": True,
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


# --- revalidate ------------------------------------------------------------------------------------------------------


@pytest.fixture
def revalidate(host, site, tmp_path):
    """Return how a revalidation ended, its verdict, and its checks by name."""
    (tmp_path / "site.json").write_text(json.dumps(SITE), encoding="utf-8")
    controller = lab.Controller("exllamav2", "homelab.mixed_gpu.revalidate")

    def _revalidate(*options):
        report = tmp_path / "revalidation.json"
        report.unlink(missing_ok=True)
        wanted = (f"--extra-vars=@{tmp_path}/site.json", "--extra-vars=revalidate_measure=true")
        done = controller.play(*wanted, f"--extra-vars=revalidate_report={report}", *options)
        (result,) = json.loads(report.read_text(encoding="utf-8"))["hosts"].values()
        return done, result, {check["name"]: check for check in result["checks"]}

    yield _revalidate
    host.run(f"rm -f {OTHERWISE}")


def otherwise(host, **variables):
    """Let the stand-ins behave otherwise than they did."""
    assert host.run(f"echo '{json.dumps(variables)}' > {OTHERWISE}").rc == 0


def recorded(host):
    """Return the served deployment, its entry, and its baseline."""
    fact = json.loads(host.file(FACT).content_string)
    name = fact["active"]
    return name, fact["models"][name], json.loads(host.file(f"{BASELINES}/{name}.json").content_string)


def test_the_tuning_has_left_a_baseline(host, site):
    _name, entry, baseline = recorded(host)
    assert len(baseline["loads"]) >= 3 and baseline["reason"] == "tuned"
    assert {load["status"] for load in baseline["loads"]} == {"ok"}
    said = {json.dumps(load["answers"], sort_keys=True) for load in baseline["loads"]}
    assert len(said) == 1 and json.loads(said.pop())["nats_per_token"] > 0
    assert [row["id"] for row in baseline["memory"]] == [FAST, SLOW]
    configuration = baseline["configuration"]
    assert configuration["pytorch"] == "2.11.0+cu130.stand.in" and len(configuration["tabbyapi"]) == 40
    assert configuration["gpu_split_gb"] == entry["gpu_split_gb"]


def test_a_host_that_is_as_it_was_is_ok(host, revalidate):
    done, result, checks = revalidate()
    assert done.returncode == 0, done.stdout[-6000:]
    assert (result["verdict"], result["measured"], result["changes"]) == ("ok", True, [])
    assert {"cards", "server", "placement", "model", "memory", "answers", "decode", "prefill"} <= set(checks)
    assert "as likely as in the baseline" in checks["answers"]["detail"]
    lab.eventually(lambda: host.run("systemctl is-active exllama-server").stdout.strip() == "active")
    assert host.run("systemctl is-active mixed-gpu-lease").stdout.strip() != "active"


def test_a_file_of_the_model_that_was_replaced_is_broken(host, revalidate):
    weights = f"{recorded(host)[1]['model']['path']}/model.safetensors"
    assert host.run(f"cp -a {weights} {KEPT} && printf x | dd of={weights} bs=1 seek=20000 conv=notrunc").rc == 0
    try:
        done, result, checks = revalidate()
        assert done.returncode == 2 and "was replaced" in checks["model"]["detail"]
        assert (result["verdict"], result["measured"]) == ("broken", False)
    finally:
        host.run(f"cp -a {KEPT} {weights} && rm {KEPT}")


def test_slower_cards_have_regressed_by_what_they_are_slower(host, revalidate):
    _name, entry, _baseline = recorded(host)
    fast, slow = (place["layers"] for place in entry["placement"])
    otherwise(host, FAKE_BLOCK_MS="0.5,3.0")
    done, result, checks = revalidate()
    assert done.returncode == 2 and result["verdict"] == checks["decode"]["verdict"] == "regressed"
    # the output layer is on the last card and takes no time there
    percent = 100 * ((0.5 * fast + 3.0 * (slow - 1)) / (0.5 * fast + 1.5 * (slow - 1)) - 1)
    assert checks["decode"]["change_percent"] == pytest.approx(percent, abs=1)
    assert checks["answers"]["verdict"] == "ok"


def test_wrong_answers_are_broken_and_become_no_baseline(host, revalidate):
    before = recorded(host)[2]
    otherwise(host, FAKE_MODE="wrong")
    done, result, checks = revalidate("--extra-vars=accept=true")
    assert done.returncode == 2 and result["verdict"] == "broken", done.stdout[-6000:]
    assert checks["answers"]["verdict"] == "broken" and "wrong results" in checks["answers"]["detail"]
    assert recorded(host)[2] == before


def test_another_build_is_named_and_accepted(host, site, revalidate):
    """As after an update that changed neither speed nor answers: site then measures nothing."""
    build = host.run("readlink -f /opt/exllama/v2/current/build.json").stdout.strip()
    assert host.run(f"cp -a {build} {KEPT} && sed -i s/2.11.0/2.12.0/ {build}").rc == 0
    try:
        done, result, _checks = revalidate("--extra-vars=accept=true")
        assert done.returncode == 0, done.stdout[-6000:]
        assert [change["part"] for change in result["changes"]] == ["pytorch"]
        baseline = recorded(host)[2]
        assert baseline["reason"] == "accepted" and baseline["configuration"]["pytorch"].startswith("2.12.0")
    finally:
        host.run(f"cp -a {KEPT} {build} && rm {KEPT}")


def test_retune_measures_and_serves_another_split_where_the_cards_have_changed(host, site, revalidate):
    """Each card takes what the other one took: the old split is now the slowest that fits."""
    # records the file of the model that an earlier test put back
    assert site().returncode == 0
    _name, before, _baseline = recorded(host)
    otherwise(host, FAKE_BLOCK_MS="1.5,0.5", ANSWER="four")
    done, result, checks = revalidate("--extra-vars=retune=true")
    assert done.returncode == 0, done.stdout[-6000:]
    name, after, baseline = recorded(host)
    first, second = (place["layers"] for place in after["placement"])
    assert first < second and before["placement"] != after["placement"]
    assert baseline["reason"] == "tuned" and baseline["configuration"]["gpu_split_gb"] == after["gpu_split_gb"]
    # what the old split was found to be, and what was done about it
    assert (result["deployment"], result["verdict"], result["accepted"]) == (name, "regressed", True)
    assert "tuned again after" in result["summary"] and checks["placement"]["verdict"] == "ok"
    settings = json.loads(host.file("/etc/mixed_gpu/exllama-server.yml").content_string)["model"]
    assert settings["gpu_split"] == after["gpu_split_gb"]
    lab.eventually(lambda: host.run("systemctl is-active exllama-server").stdout.strip() == "active")


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


# --- drafts, which TabbyAPI loads before the model --------------------------------------------------------------------

DRAFTING = {
    "llm_models": [
        *SITE["llm_models"],
        {"id": "draft", "repo": "owner/Draft-exl2", "revision": "main", "draft_for": "tiny"},
        {"id": "stranger", "repo": "owner/Stranger-exl2", "revision": "main", "draft_for": "tiny"},
    ],
    # the sandbox asks for n-gram drafts, and has texts of token ids: both are for llama.cpp
    "split_tuning_speculation": "auto",
    "split_tuning_texts": [],
    # room for a draft beside the model
    "split_tuning_device_budget_mib": {FAST: 400, SLOW: 400},
    # what a token takes without and with a draft, as the stand-in of the server says
    "split_tuning_environment": SITE["split_tuning_environment"] | {"FAKE_ANSWER_MS": "20,12"},
}  # fmt: skip


def test_a_draft_is_measured_and_served_and_one_of_another_vocabulary_is_not_loaded(host, site, revalidate):
    done = site(f"--extra-vars={json.dumps(DRAFTING)}")
    assert done.returncode == 0, done.stdout[-6000:]
    _name, tuned, _baseline = recorded(host)
    found = tuned["decision"]["speculation"]
    assert found["served"] is not None, found
    served = tuned["speculation"]
    assert (served["kind"], served["draft"]) == ("draft-model", "draft") and served["device"] in (FAST, SLOW)
    assert found["verdict"] == "faster" and {row["draft"] for row in found["table"]} == {"", "draft"}
    assert any("stranger cannot draft for this model: its vocabulary has 2000" in why for why in found["refused"])
    drafting = json.loads(host.file("/etc/mixed_gpu/exllama-server.yml").content_string)["draft_model"]
    cards = [device["id"] for device in tuned["devices"]]
    assert drafting == {
        "draft_model_dir": str(pathlib.PurePath(served["path"]).parent),
        "draft_model_name": pathlib.PurePath(served["path"]).name,
        "draft_cache_mode": "FP16",
        "draft_gpu_split": [served["memory_gb"] if card == served["device"] else 0.0 for card in cards],
    }
    start = host.run("systemctl show -p InvocationID --value exllama-server").stdout.strip()
    assert "Loading draft model" in host.run(f"journalctl --no-pager _SYSTEMD_INVOCATION_ID={start}").stdout
    said = (lab.PROJECT / "molecule/exllamav2/reports/sandbox.txt").read_text(encoding="utf-8")
    assert "draft-model draft on CUDA" in said and "no speculation" in said
    again = site(f"--extra-vars={json.dumps(DRAFTING)}")
    assert again.returncode == 0 and re.search(r"changed=0 ", again.stdout), again.stdout[-6000:]
    done, result, checks = revalidate(f"--extra-vars={json.dumps(DRAFTING)}")
    assert done.returncode == 0 and result["verdict"] == "ok", done.stdout[-6000:]
    assert checks["placement"]["verdict"] == "ok"


# --- ExLlamaV3, whose cards can share each layer ---------------------------------------------------------------------


def test_layers_are_shared_between_cards_where_that_is_faster(host, site):
    stand_in = pathlib.Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "stand_in"
    third = {
        "exllamav2_engine": "v3",
        "exllamav2_requirements_file": str(stand_in / "requirements_v3.txt"),
        "exllamav2_model_id": "tiny3",
        "llm_models": [{"id": "tiny3", "repo": "owner/Tiny-exl3", "revision": "main"}],
        "split_tuning_exllama_modes": ["layer", "tensor"],
        "split_tuning_device_budget_mib": {},
        "split_tuning_tensor_soak_seconds": 1,
        "split_tuning_tensor_idle_gaps": 1,
        "split_tuning_tensor_idle_seconds": 1,
        # what a block of this model weighs, what adding up takes, and how many parts its attention has
        "split_tuning_environment": SITE["split_tuning_environment"] | {
            "FAKE_BLOCK_GB": "0.0054219", "FAKE_OVERHEAD_GB": "0.034", "FAKE_HEAD_GB": "0.00037", "FAKE_BLOCKS": "12",
            "FAKE_CHUNK": "2048", "FAKE_HEADS": "4", "FAKE_SYNC_MS": "native:0.02,nccl:0.2",
        },
    }  # fmt: skip
    done = site(f"--extra-vars={json.dumps(third)}")
    assert done.returncode == 0, done.stdout[-6000:]
    fact = json.loads(host.file(FACT).content_string)
    tuned = fact["models"][fact["active"]]
    assert (tuned["serving"]["engine"], tuned["split_mode"]) == ("exllamav3", "tensor")
    # three times as fast
    assert [place["layers"] for place in tuned["placement"]] == [3, 1]
    settings = json.loads(host.file("/etc/mixed_gpu/exllama-server.yml").content_string)["model"]
    assert (settings["tensor_parallel"], settings["tensor_parallel_backend"]) == (True, "native")
    assert settings["gpu_split"] == tuned["gpu_split_gb"]
    first, second = tuned["gpu_split_gb"]
    assert first / second == pytest.approx(3, rel=0.01)
    # NCCL lists interfaces, wherever cards add up
    assert "AF_NETLINK" in host.run("systemctl show -p RestrictAddressFamilies exllama-server").stdout
    said = (lab.PROJECT / "molecule/exllamav2/reports/sandbox.txt").read_text(encoding="utf-8")
    shown = {" ".join(line.split()[:4]) for line in said.splitlines() if line.strip().startswith("tensor ")}
    assert any(line.startswith("tensor 3,1 native") for line in shown), said
    assert any(line.startswith("tensor 3,1 NCCL") for line in shown), said
