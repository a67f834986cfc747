# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A deployment of ExLlama is revalidated by the same campaign: what is asked, and what follows from the answers."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.action import campaign
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.described_exllama import (
    EXLLAMA_ENTRY,
    MODEL,
    SPLIT_GB,
    VERSIONS,
    ExllamaHost,
    exllama_baseline,
    exllama_server,
)
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.described_pair import (
    FAST,
    GPUS,
    SLOW,
)
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.test_campaign import (
    AGAIN,
    LOOK,
    Host,
    play,
)


def judged(host, **variables):
    result = play(host, **variables).result
    return result["revalidation"], {check["name"]: check for check in result["revalidation"]["checks"]}


def test_an_unchanged_host_is_looked_at_and_not_measured():
    host = ExllamaHost()
    verdict, checks = judged(host)
    assert host.asked == LOOK and (verdict["verdict"], verdict["measured"]) == ("ok", False)
    assert "gpu_split and cards as recorded (21.5/19.25 GB" in checks["placement"]["detail"]
    assert checks["served answer"]["verdict"] == checks["decode (generation)"]["verdict"] == "ok"
    server, served = host.steps[1], host.steps[3]
    assert (server.args["unit"], server.args["url"]) == ("exllama-server.service", "http://127.0.0.1:5000")
    assert (served.module, served.args["api_key_file"]) == ("exllama_server_benchmark", "/exllama.key")


def test_the_recorded_load_is_repeated_with_the_recorded_numbers():
    host = ExllamaHost()
    verdict, checks = judged(host, measure="true")
    assert host.asked == [*LOOK, "devices", "weigh", "load 1", "load 2", *AGAIN]
    assert (verdict["verdict"], verdict["measured"]) == ("ok", True)
    assert {"decode", "prefill", "answers", "memory", "placement"} <= set(checks)
    devices = host.steps[4].args
    assert (devices["cuda_ids"], devices["budgets_mib"]) == ([FAST, SLOW], {SLOW: 20000})
    load = host.steps[6].args
    assert load["load"]["gpu_split_gb"] == SPLIT_GB and load["serving"]["engine"] == "exllamav2"
    assert load["exllama"]["python"] == "/opt/exllama/v2/venv/bin/python" and load["exllama"]["reserve_mib"] == 256
    assert load["exllama"]["model"]["path"] == MODEL["path"] and load["devices"] == ["CUDA0", "CUDA1"]
    # as exllama-server.service has it, and what the inventory added when it was tuned
    assert load["environment"]["EXLLAMA_NO_SDPA"] == load["environment"]["EXLLAMA_NO_FLASH_ATTN"] == "1"
    assert load["environment"]["FAKE"] == "1" and load["environment"]["CUDA_VISIBLE_DEVICES"] == f"{FAST},{SLOW}"
    assert not any("device was measured alone" in advice for advice in verdict["advice"])


def test_shared_layers_are_measured_as_they_are_served():
    host, way = ExllamaHost(), {"MIXED_GPU_EXLLAMA_ALLREDUCE": "native"}
    shares = [{"id": FAST, "layers": 5}, {"id": SLOW, "layers": 3}]
    serving = {**EXLLAMA_ENTRY["serving"], "engine": "exllamav3"}
    host.entry = {
        **EXLLAMA_ENTRY, "serving": serving, "split_mode": "tensor", "placement": shares, "tensor_parallel": "native",
        "environment": {**EXLLAMA_ENTRY["environment"], **way},
    }  # fmt: skip
    judged(host, measure="true")
    (first, *_more) = [step.args for step in host.steps if step.module == "split_benchmark"]
    assert (first["load"]["split_mode"], first["load"]["layers"]) == ("tensor", [5, 3])
    assert first["load"]["gpu_split_gb"] == SPLIT_GB and first["environment"] | way == first["environment"]
    assert first["exllama"]["python"] == "/opt/exllama/v3/venv/bin/python"


def test_every_module_that_is_asked_for_is_one_that_a_campaign_may_run():
    for host in (ExllamaHost(), Host()):
        asked = []
        run = host.run
        host.run = lambda step, run=run, asked=asked: asked.append(step.module) or run(step)
        play(host, measure="true")
        assert len(asked) > 5 and set(asked) <= campaign.MODULES


def test_a_slower_host_has_regressed():
    verdict, checks = judged(ExllamaHost(decode=1.2), measure="true")
    assert verdict["verdict"] == "regressed" and round(checks["decode"]["change_percent"]) == 20
    # the playbook diagnose asks llama-server
    assert verdict["explanation"]["cause"] == "unknown" and verdict["explanation"]["next"] == []


def test_wrong_answers_are_broken_and_no_baseline():
    host = ExllamaHost(nats=6.0)
    result = play(host, replace_baseline="true").result
    checks = {check["name"]: check for check in result["revalidation"]["checks"]}
    assert checks["answers"]["verdict"] == result["revalidation"]["verdict"] == "broken"
    assert "less likely than in the baseline (1.250 -> 6.000 nats" in checks["answers"]["detail"]
    assert "Repair that first" in result["accepted"]["obstacle"]
    # one load is enough for that
    assert [name for name in host.asked if name.startswith("load")] == ["load 1"]


def test_a_server_that_answers_otherwise_is_measured_and_told():
    host = ExllamaHost(said=" the the the")
    verdict, checks = judged(host)
    assert "load 2" in host.asked and "answers a fixed question otherwise" in host.whys[4]
    assert checks["answers"]["verdict"] == "ok"
    assert checks["served answer"]["verdict"] == verdict["verdict"] == "broken"
    verdict, checks = judged(ExllamaHost(said=" the the the"), measure="false")
    assert checks["served answer"]["verdict"] == verdict["verdict"] == "inconclusive"


def test_a_server_that_answers_rightly_after_its_restart_is_ok():
    again = {"completion again": {"tests": [], "answer": " 21, 22"}}
    verdict, checks = judged(ExllamaHost(said=" the the the", **again))
    assert verdict["verdict"] == checks["served answer"]["verdict"] == "ok"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"exists": False}, "is not there"),
        ({"sha256": "b" * 64}, "was replaced: its sha256 is bbbbbbbbbbbb..."),
        ({"headers_sha256": "f" * 64}, "was replaced: it has other tensors"),
    ],
)
def test_a_replaced_model_is_broken_and_not_measured(model, words):
    host = ExllamaHost()
    seen = host._revalidation_info(None)
    host = ExllamaHost(revalidation_info={**seen, "model": {**seen["model"], **model}})
    verdict, checks = judged(host, measure="true")
    assert verdict["verdict"] == checks["model"]["verdict"] == "broken" and words in checks["model"]["detail"]
    assert not verdict["measured"]


def test_what_changed_is_named_by_version():
    host = ExllamaHost()
    seen = host._revalidation_info(None)
    newer = {**VERSIONS, "pytorch": "2.12.0", "tabbyapi": "e632af4"}
    host = ExllamaHost(revalidation_info={**seen, "build": "k2", "versions": newer}, decode=1.2)
    verdict, _checks = judged(host, measure="true")
    assert [change["part"] for change in verdict["changes"]] == ["engine_build", "pytorch", "tabbyapi"]
    assert "pytorch 2.11.0 -> 2.12.0" in verdict["explanation"]["detail"]
    assert any("exllamav2_requirements_file" in command for command in verdict["explanation"]["next"])


def test_a_server_with_another_split_is_broken():
    wrong = exllama_server(deviations=["exllama-server is to serve with gpu_split [1, 2]."])
    verdict, checks = judged(ExllamaHost(llama_server_info=wrong), measure="false")
    assert verdict["verdict"] == checks["placement"]["verdict"] == "broken"


def test_without_a_build_nothing_is_measured():
    seen = ExllamaHost()._revalidation_info(None)
    result = play(ExllamaHost(revalidation_info={**seen, "build": None}), measure="true").result
    assert "there is no ExLlamaV2 to measure with" in result["lines"][0]


def test_a_model_that_cannot_be_read_under_the_lease_is_a_finding():
    host = ExllamaHost(weigh={"failed": True, "msg": "the folder holds no safetensors file"})
    verdict, _checks = judged(host, measure="true")
    assert verdict["verdict"] == "broken" and "holds no safetensors file" in verdict["summary"]


def test_what_was_measured_becomes_the_baseline_where_that_is_asked_for():
    seen = ExllamaHost()._revalidation_info(None)
    new = {**GPUS, "driver_version": "590.1"}
    host = ExllamaHost(revalidation_info={**seen, "gpus": new, "build": "k2"})
    accepted = play(host, replace_baseline="true").result["accepted"]
    assert accepted["obstacle"] is None and accepted["versions"] == VERSIONS
    assert accepted["completions"]["answer"] == " 21, 22"
    parts = deployment.renew(EXLLAMA_ENTRY, accepted["renewal"])["fingerprint_parts"]
    assert (parts["engine_build"], parts["driver_version"]) == ("k2", "590.1") and "llama_cpp" not in parts
    assert [gpu["id"] for gpu in parts["gpus"]] == [FAST, SLOW]


def test_a_retune_is_told_engine_cards_and_model():
    retuned = play(ExllamaHost(), measure="true").result["retuned"]
    assert (retuned["family"], retuned["engine"], retuned["cards"]) == ("exllama", "exllamav2", [FAST, SLOW])
    assert retuned["model"]["sha256"] == "a" * 64 and retuned["serving"]["cache_mode"] == "Q8"


def test_the_baseline_has_what_each_card_held_in_a_load():
    rows = exllama_baseline()["memory"]
    assert [(row["id"], row["loaded_mib"], row["free_mib"]) for row in rows] == [
        (FAST, 22000, 24000), (SLOW, 19000, 24000),
    ]  # fmt: skip
