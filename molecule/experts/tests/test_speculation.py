"""A model with experts in RAM, for which a draft and n-gram kinds are on offer: what was measured is what serves."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import known_next_token
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import expert_placement
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

VOCABULARY, BLOCKS_IN_RAM = 512, 12
TEXTS = dict(zip(("edit", "prose"), known_next_token.target(VOCABULARY, 2, 0).texts, strict=True))
#: "edit" goes on with what the prompt has already; "prose" repeats nothing within an answer.
PROMPTS = {"edit": [1, *TEXTS["edit"], *TEXTS["edit"][:32]], "prose": [1, TEXTS["prose"][0]]}
COMMON = {"type": "q8_0", "vocabulary_size": VOCABULARY}
EXPERTS = {"blocks": 16, "embedding_length": 512, "feed_forward_length": 512, "expert_count": 8, "expert_used_count": 2}
DRAFT = {"blocks": 1, "embedding_length": 256, "feed_forward_length": 256, "agreement": [0.95, 0.7], "seed": 4}
FLAGS = ("--spec-type", "--spec-draft-n-max", "-md", "-devd")
#: So many blocks in RAM that a device has room for the draft, whatever was measured.
CHOSEN = {
    "llm_models": [
        {"id": "experts", "generate": {**COMMON, **EXPERTS, "agreement": [1, 1]}},
        {"id": "draft", "draft_for": "experts", "generate": {**COMMON, **DRAFT}},
    ],
    "split_tuning_model_id": "experts", "split_tuning_experts_in_ram": str(BLOCKS_IN_RAM),
    "split_tuning_expert_threads": [1], "split_tuning_baseline_max_loads": 1,
    "split_tuning_speculation": ["draft-simple", "ngram-mod"], "split_tuning_speculation_tokens": 65,
    "split_tuning_texts": [{"name": name, "prompt": prompt} for name, prompt in PROMPTS.items()],
}  # fmt: skip


@pytest.fixture(scope="module")
def entry(host, controller):
    """Tune and serve the model, which becomes the active deployment; return its record."""
    run = controller.play("-e", json.dumps(CHOSEN))
    assert run.returncode == 0, run.stdout
    fact = json.loads(host.file("/etc/ansible/facts.d/mixed_gpu.fact").content_string)
    return fact["models"][fact["active"]]


def _layers(entry):
    return [place["layers"] for place in entry["placement"]]


def _kept(entry):
    """Whether drafts are served: how fast this machine was decides it."""
    return entry["decision"]["speculation"]["verdict"] == "faster"


def test_speculation_was_measured_beside_experts_in_ram(host, entry):
    found, in_ram = entry["decision"]["speculation"], entry["experts_in_ram"]
    assert entry["model"]["id"] == "experts" and in_ram["kind"] == "experts" and len(in_ram["blocks"]) == BLOCKS_IN_RAM
    assert found["verdict"] in ("faster", "inconclusive", "slower") and found["refused"] == [], found["why"]
    rows = found["table"]
    assert rows[0]["kind"] == "none" and {row["kind"] for row in rows[1:]} <= {"draft-simple", "ngram-mod"}
    assert len(rows) > 1 and {row["status"] for row in rows} == {"ok"}
    assert sum(row["loads"] for row in rows) == found["loads"]
    files = host.run("ls /var/lib/mixed_gpu/measurements/*.json").stdout.split()
    stored = [json.loads(host.file(path).content_string)["load"] for path in files]
    loads = [load for load in stored if load.get("purpose") == "speculation" and load["campaign"] == entry["campaign"]]
    assert len(loads) == found["loads"]
    for load in loads:
        assert load["layers"] == _layers(entry) and {**in_ram, **load["experts_in_ram"]} == in_ram


def test_the_command_line_of_the_server_is_what_is_recorded(host, entry):
    process = host.check_output("systemctl show -P MainPID llama-server")
    words = host.check_output(f"tr '\\0' '\\n' < /proc/{process}/cmdline").splitlines()
    told = dict(zip(words, words[1:], strict=False))
    placement = expert_placement.from_json(_layers(entry), entry["experts_in_ram"])
    # the experts of the target alone: a draft has a flag of its own
    assert told["-ot"] == expert_placement.render(placement, "llama_server") and "-otd" not in words
    kept, speculation = entry["decision"]["speculation"]["served"], entry.get("speculation")
    assert _kept(entry) == (kept is not None) == (speculation is not None)
    expected = {}
    if kept:
        assert all(kept[name] == speculation[name] for name in ("kind", "draft", "device", "n_max"))
        assert entry["decision"]["mib"] == kept["mib"]
        expected["--spec-type"] = kept["kind"]
        if kept["n_max"]:
            expected["--spec-draft-n-max"] = str(kept["n_max"])
        if kept["draft"]:
            names = {device["id"]: device["device"] for device in entry["devices"]}
            expected |= {"-md": speculation["path"], "-devd": names[kept["device"]]}
            assert speculation["path"].startswith("/srv/models/draft/")
        own = [bool(mib) for mib in kept["own_mib"]]
        assert own == [device["id"] == kept["device"] for device in entry["devices"]]
    assert {flag: told[flag] for flag in FLAGS if flag in told} == expected


@pytest.mark.parametrize("name", TEXTS)
def test_answers_are_the_text_whether_drafted_or_not(host, entry, name):
    body = {"prompt": PROMPTS[name], "n_predict": 64, "temperature": 0, "ignore_eos": True, "return_tokens": True,
            "cache_prompt": False}  # fmt: skip
    answer = json.loads(host.check_output(f"{lab.CURL} http://127.0.0.1:8080/completion -d %s", json.dumps(body)))
    text, after = TEXTS[name], PROMPTS[name][-1]
    begin = text.index(after) + 1
    assert answer["tokens"] == text[begin : begin + 64]
    if name == "edit":  # n-gram kinds draft nothing of the other
        assert bool(answer["timings"].get("draft_n")) == _kept(entry)


def test_verifying_finds_what_is_recorded(controller, entry):
    run = controller.play("-e", json.dumps(CHOSEN), "--tags=llama_server_verify")
    assert run.returncode == 0, run.stdout
    assert "verify_server | Assert that layers and memory are as planned, none on the CPU" in run.stdout
