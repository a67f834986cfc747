"""Speculation on the sandbox: what was measured, what is recorded, and what is served fit together."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import known_next_token
from ansible_collections.homelab.mixed_gpu.tests.fixtures import known_rounds
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

VOCABULARY, KINDS = 2048, 2
#: As in variables.yml.
AGREEMENT, SEED = [0.95, 0.7], 4
TARGET = known_next_token.target(VOCABULARY, KINDS, 0)
TEXTS = dict(zip(("easy", "hard"), TARGET.texts, strict=True))
WRONG = dict(zip(TEXTS, known_next_token.draft(TARGET, AGREEMENT, SEED)[1], strict=True))


@pytest.fixture(scope="module")
def entry(host):
    record = json.loads(host.check_output("cat /etc/ansible/facts.d/mixed_gpu.fact"))
    return record["models"][record["active"]]


@pytest.fixture(scope="module")
def found(entry):
    return entry["decision"]["speculation"]


def test_few_loads_were_served_the_first_of_them_without_speculation(found):
    rows = found["table"]
    assert rows[0]["kind"] == "none" and 1 < found["loads"] <= 5
    assert sum(row["loads"] for row in rows) == found["loads"]
    assert all(row["draft"] == "draft" for row in rows[1:])
    assert all(set(row["tokens_per_second"]) == {"easy", "hard"} for row in rows if row["status"] == "ok")
    assert found["weights"] == {"easy": pytest.approx(2 / 3, abs=1e-3), "hard": pytest.approx(1 / 3, abs=1e-3)}


def test_what_was_accepted_is_what_was_computed(found):
    drafted = [row for row in found["table"][1:] if row["status"] == "ok"]
    assert drafted
    for row in drafted:
        for name, text in TEXTS.items():
            rounds, accepted, _positions = known_rounds.of_answer(text, WRONG[name], row["n_max"], 64)
            # the last round may be cut off by the length of the answer
            assert abs(row["tokens_per_round"][name] - (accepted + rounds) / rounds) < 0.2 + 8 / rounds


def test_a_draft_of_another_vocabulary_was_refused_by_its_header(found):
    assert found["refused"] == [
        "stranger cannot draft for this model: its vocabulary has 512 tokens, and that of the target 2048"
    ]
    assert found["refused"][0] in found["why"]


def test_the_unit_says_what_the_record_says(host, entry, found):
    unit = host.file("/etc/systemd/system/llama-server.service").content_string
    kept = found["verdict"] == "faster"
    assert kept == ("speculation" in entry) == ("--spec-type draft-simple" in unit) == ("-md /srv/models/draft" in unit)
    if kept:
        assert f"--spec-draft-n-max {entry['speculation']['n_max']} " in unit
        place = [device["id"] for device in entry["devices"]].index(entry["speculation"]["device"])
        assert entry["decision"]["speculation"]["served"]["own_mib"][place] > 0
        assert entry["decision"]["mib"] == entry["decision"]["speculation"]["served"]["mib"]


def test_answers_are_the_text_whether_drafted_or_not(host, entry):
    body = {"prompt": [1, TEXTS["hard"][0]], "n_predict": 40, "temperature": 0, "ignore_eos": True,
            "return_tokens": True, "cache_prompt": False}  # fmt: skip
    answer = json.loads(host.check_output(
        f"{lab.CURL} http://127.0.0.1:8080/completion -d %s", json.dumps(body)
    ))  # fmt: skip
    assert answer["tokens"] == TEXTS["hard"][1:41]
    assert bool(answer["timings"].get("draft_n")) == ("speculation" in entry)


def test_the_report_tells_of_speculation(found):
    text = (lab.PROJECT / "molecule/speculation/reports").glob("*.txt")
    summary = " ".join(next(text).read_text().split())
    assert "Speculation: " in summary
    for row in found["table"]:
        assert row["name"].split(" on ")[0] in summary


def test_the_baseline_has_what_is_accepted_of_a_server_that_drafts(host, entry):
    active = json.loads(host.check_output("cat /etc/ansible/facts.d/mixed_gpu.fact"))["active"]
    baseline = json.loads(host.check_output(f"cat /var/lib/mixed_gpu/baselines/{active}.json"))
    assert (baseline["acceptance"] is not None) == ("speculation" in entry)
    if baseline["acceptance"]:
        rows = {row["text"]: row for row in baseline["acceptance"]["rows"]}
        assert set(rows) == {"easy", "hard"}
        for name, text in TEXTS.items():
            rounds, accepted, _positions = known_rounds.of_answer(text, WRONG[name], entry["speculation"]["n_max"], 64)
            assert abs(rows[name]["accepted"] - accepted) <= entry["speculation"]["n_max"]
            assert abs(rows[name]["drafts"] - rounds) <= 1


def test_retune_measures_again_with_the_drafts_of_the_inventory(host, entry, tmp_path):
    """Last, since all of the above is measured anew."""
    report = tmp_path / "revalidation.json"
    controller = lab.Controller("speculation", "homelab.mixed_gpu.revalidate")
    done = controller.play("--extra-vars=retune=true", f"--extra-vars=revalidate_report={report}")
    assert done.returncode == 0, done.stdout[-6000:]
    (result,) = json.loads(report.read_text(encoding="utf-8"))["hosts"].values()
    assert result["accepted"] and "tuned again after" in result["summary"], result
    record = json.loads(host.check_output("cat /etc/ansible/facts.d/mixed_gpu.fact"))
    again = record["models"][record["active"]]
    assert again["recorded_at"] > entry["recorded_at"]
    speculation = again["decision"]["speculation"]
    assert {row["draft"] for row in speculation["table"]} == {"", "draft"} and len(speculation["refused"]) == 1
    unit = host.file("/etc/systemd/system/llama-server.service").content_string
    assert (speculation["verdict"] == "faster") == ("-md /srv/models/draft" in unit)
    assert host.service("llama-server").is_running
