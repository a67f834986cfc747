# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A whole tuning with speculation on the real llama.cpp: the planner asks, the real modules measure, the unit's words
start a real server."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import sandboxed_run
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import server_check, server_log
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.trial_server import Server
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import known_next_token, random_model
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import speculation_offers
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment, fact_record, split_problem
from ansible_collections.homelab.mixed_gpu.tests.fixtures import eagle3_model, mtp_model, real_host

AGREEMENT = [0.95, 0.7]
TEXTS = known_next_token.target(1024, 2, 0).texts
SETTINGS = {
    "model_id": "target", "model_sha256": "a" * 64, "deployment": "target", "micro_batches": [],
    "objective": "decode", "context_size": 512, "micro_batch_size": 64, "batch_size": 256,
    "reserve_mib": 0, "bench_prompt_tokens": 64, "bench_generated_tokens": 8, "bench_repetitions": 2,
    "prompt_tokens": 100, "generated_tokens": 50, "baseline_max_loads": 2, "max_loads": 3, "indifference": 0.01,
    "speculation": ["draft-simple", "ngram-simple"], "speculation_tokens": 65, "load_timeout_seconds": 300,
    "texts": [{"name": f"text {kind}", "prompt": [1, text[0]]} for kind, text in enumerate(TEXTS)],
}  # fmt: skip


def write(path, agreement, **more):
    shape = {"blocks": 4, "embedding_length": 512, "feed_forward_length": 512, "head_count": 8, "head_count_kv": 4}
    options = {**shape, "vocabulary_size": 1024, "type": "q8_0", "agreement": agreement, **more}
    random_model.write_model(str(path), random_model.checked_options(options), "0" * 64)


@pytest.mark.live
def test_a_tuning_on_the_real_llama_cpp_serves_what_it_recorded(tmp_path, llama_bin, rpc_endpoints, capfd):
    write(tmp_path / "target.gguf", [1.0, 1.0])
    write(tmp_path / "draft.gguf", AGREEMENT, blocks=1, embedding_length=256, seed=4)
    write(tmp_path / "stranger.gguf", [], vocabulary_size=512, blocks=1)
    drafts = {
        name: {"path": f"{tmp_path}/{name}.gguf", "sha256": digit * 64, "draft_for": "target"}
        for name, digit in (("draft", "d"), ("stranger", "e"))
    }
    own = {**SETTINGS, "model_path": f"{tmp_path}/target.gguf", "drafts": drafts}
    host = real_host.RealHost(tmp_path, llama_bin, rpc_endpoints[:2], own)
    result = host.tune()
    entry = fact_record.check_entry(deployment.build(result["tuning"]))
    found = entry["decision"]["speculation"]
    assert found["refused"] == [
        "stranger cannot draft for this model: its vocabulary has 512 tokens, and that of the target 1024"
    ]
    loads = [item.result["load"] for item in host.done if item.step.module == "speculation_benchmark"]
    assert [load["status"] for load in loads] == ["ok"] * len(loads)
    assert 2 <= len(loads) <= 5 and loads[0]["speculation"]["kind"] == "none"
    # whatever was fast on this machine: what is served was measured, itself or within longer drafts, and was faster
    if found["served"] is not None:
        kind, n_max = found["served"]["kind"], found["served"]["n_max"]
        measured = [load["speculation"]["n_max"] for load in loads if load["speculation"]["kind"] == kind]
        rows = {(row["kind"], row["n_max"]): row for row in found["table"]}
        assert n_max <= max(measured) and rows[kind, n_max]["loads"] == measured.count(n_max)
        assert rows[kind, n_max]["ms_per_token"] <= rows["none", 0]["ms_per_token"]
    assert (found["verdict"] == "faster") == (found["served"] is not None) == ("speculation" in entry)
    # whatever won on this machine: the draft's way of serving has to work
    tried = next(load for load in loads if load["speculation"]["kind"] == "draft-simple")
    served = {**entry, "speculation": tried["speculation"]}
    box = sandboxed_run.Sandbox(endpoints=rpc_endpoints[:2], files=[str(tmp_path)])
    with Server(f"{llama_bin}/llama-server", served, box, {}, 0, 300, 300) as server:
        answers = [server.answer([1, text[0]], 40) for text in TEXTS]
        load = server_log.parse_load(server.text())
    assert [answer["tokens"] for answer in answers] == [text[1:41] for text in TEXTS]
    assert all(answer["timings"]["draft_n"] > 0 for answer in answers)
    # the log says of it what the record says, and of the model what it always said
    assert server_check.deviations(served, load) == []
    said = server_check.deviations({**entry, "speculation": None}, load)
    assert len(said) == 1 and said[0].startswith("The server drafts with draft-simple; the facts say nothing: ")
    with capfd.disabled():
        print(f"\n{found['why']}\n", json.dumps(found["table"]))


@pytest.mark.live
def test_a_tuning_measures_an_eagle3_head(tmp_path, llama_bin, rpc_endpoints):
    write(tmp_path / "target.gguf", [1.0, 1.0])
    eagle3_model.write(f"{tmp_path}/head.gguf", 1024, 2, [1, 2, 3])
    drafts = {"head": {"path": f"{tmp_path}/head.gguf", "sha256": "d" * 64, "draft_for": "target"}}
    own = {**SETTINGS, "model_path": f"{tmp_path}/target.gguf", "drafts": drafts, "speculation": ["draft-eagle3"]}
    host = real_host.RealHost(tmp_path, llama_bin, rpc_endpoints[:2], own)
    found = host.tune()["tuning"]["plan"]["decision"]["speculation"]
    assert found["refused"] == [] and {row["kind"] for row in found["table"]} == {"none", "draft-eagle3"}
    loads = [item.result["load"] for item in host.done if item.step.module == "speculation_benchmark"]
    assert [load["status"] for load in loads] == ["ok"] * len(loads)
    for load in loads:
        drafted = [row["drafted"] > 0 for row in load["results"] if row["kind"] == "text"]
        assert drafted == [load["speculation"]["kind"] == "draft-eagle3"] * len(TEXTS)


@pytest.mark.live
@pytest.mark.parametrize("layers", [[6, 4], [9, 1], [2, 8]])
def test_blocks_for_drafting_lie_where_the_plan_has_them(tmp_path, llama_bin, rpc_endpoints, capfd, layers):
    """A model with recurrent blocks and MTP: device, memory and text of what is served."""
    mtp_model.write(str(tmp_path / "target.gguf"), AGREEMENT, 4, mtp_model.Shape(blocks=8))
    own = {**SETTINGS, "model_path": f"{tmp_path}/target.gguf", "speculation": ["draft-mtp"], "max_loads": 1}
    host = real_host.RealHost(tmp_path, llama_bin, rpc_endpoints[:2], own)
    tuning = host.tune()["tuning"]
    found = tuning["plan"]["decision"]["speculation"]
    assert found["verdict"] != "not_tried" and {row["kind"] for row in found["table"]} == {"none", "draft-mtp"}
    problem, decision = split_problem.read_problem(tuning["problem"]), {**tuning["plan"]["decision"], "layers": layers}
    room = [400, 400]
    offers = speculation_offers.Offers(problem, {**decision, "headroom_mib": room}, [], [], ["draft-mtp"]).find()
    (offer,) = offers.offers
    entry = deployment.expand(fact_record.check_entry(deployment.build(tuning)))
    places = [{**place, "layers": count} for place, count in zip(entry["placement"], layers, strict=True)]
    plain = {**entry, "placement": places, "speculation": None, "decision": decision}
    arm = {"kind": "draft-mtp", "draft": "", "device": offer.device, "n_max": offer.most_drafted, "path": ""}
    box = sandboxed_run.Sandbox(endpoints=rpc_endpoints[:2], files=[str(tmp_path)])
    held = []
    for served in (plain, {**plain, "speculation": arm}):
        with Server(f"{llama_bin}/llama-server", served, box, {}, 0, 300, 300) as server:
            answers = [server.answer([1, text[0]], 40) for text in TEXTS]
            load = server_log.parse_load(server.text())
        assert [answer["tokens"] for answer in answers] == [text[1:41] for text in TEXTS]
        assert server_check.deviations(served, load) == []
        held.append([device["total_mib"] for device in load["devices"]])
    assert all(answer["timings"]["draft_n"] > 0 for answer in answers)
    more = [drafting - without for without, drafting in zip(*held, strict=True)]
    planned = offers.mib[offer.family]
    with capfd.disabled():
        print(f"\n{layers}: planned {planned} MiB, {more} more are held")
    assert max(more) == more[[str(device["id"]) for device in entry["devices"]].index(offer.device)]
    # the buffers of the model itself grow by some KiB, for it verifies several tokens
    assert all(taken <= kept + 0.1 for taken, kept in zip(more, planned, strict=True))


@pytest.mark.live
def test_a_tuning_with_ffn_weights_in_ram_drafts_beside_them(tmp_path, llama_bin, rpc_endpoints, capfd):
    write(tmp_path / "target.gguf", [1.0, 1.0], blocks=6)
    # its blocks have the numbers of those whose weights are in RAM
    write(tmp_path / "draft.gguf", AGREEMENT, blocks=3, embedding_length=256, seed=4)
    drafts = {"draft": {"path": f"{tmp_path}/draft.gguf", "sha256": "d" * 64, "draft_for": "target"}}
    own = {
        **SETTINGS, "model_path": f"{tmp_path}/target.gguf", "drafts": drafts, "experts_in_ram": "2",
        "expert_threads": [1], "max_loads": 1, "baseline_max_loads": 1,
    }  # fmt: skip
    host = real_host.RealHost(tmp_path, llama_bin, rpc_endpoints[:2], own)
    entry = fact_record.check_entry(deployment.build(host.tune()["tuning"]))
    found, in_ram = entry["decision"]["speculation"], entry["experts_in_ram"]
    assert (in_ram["kind"], in_ram["blocks"]) == ("ffn", [0, 1]) and found["refused"] == []
    loads = [item.result["load"] for item in host.done if item.step.module == "speculation_benchmark"]
    kinds = [load["speculation"]["kind"] for load in loads]
    assert [load["status"] for load in loads] == ["ok"] * len(loads)
    assert kinds[0] == "none" and {"draft-simple", "ngram-simple"} & set(kinds)
    # each was measured as it would be served
    assert all({**in_ram, **load["experts_in_ram"]} == in_ram for load in loads)
    device = max(entry["placement"], key=lambda place: place["layers"])["id"]
    draft = {
        "kind": "draft-simple", "draft": "draft", "device": device, "n_max": 3, "path": f"{tmp_path}/draft.gguf",
        "cache_type_k": "f16", "cache_type_v": "f16",
    }  # fmt: skip
    box = sandboxed_run.Sandbox(endpoints=rpc_endpoints[:2], files=[str(tmp_path)])
    held = []
    for arm in ({"kind": "ngram-simple", "draft": "", "device": "", "n_max": 0}, draft):
        served = {**entry, "speculation": arm}
        # so talkative that each tensor is named that is moved
        with Server(f"{llama_bin}/llama-server", served, box, {}, 0, 300, 300, ["-lv", "5"]) as server:
            answers = [server.answer([1, text[0]], 40) for text in TEXTS]
            log = server.text()
        load = server_log.parse_load(log)
        assert [answer["tokens"] for answer in answers] == [text[1:41] for text in TEXTS]
        assert server_check.deviations(served, load) == []
        # -ot is the target's alone: nothing of the draft is moved
        assert log.count("buffer type overridden to") == len(load["overridden"]) == 3 * len(in_ram["blocks"])
        held.append({device["id"]: device["total_mib"] for device in load["devices"]})
    assert all(answer["timings"]["draft_n"] > 0 for answer in answers)
    more = {name: held[1][name] - held[0][name] for name in held[0]}
    said = {item.step.name: item.result for item in host.done}
    model, asked = said["sizes of draft draft"]["model"], said["dry run of draft draft"]["dry_run"]["mib"][0]
    planned = speculation_offers.draft_mib(speculation_offers.Draft("draft", "", model, asked), entry["serving"])
    with capfd.disabled():
        print(f"\n{found['why']}\n{more} more are held, {planned} MiB planned\n", json.dumps(found["table"]))
    # the buffers of the model itself grow by some KiB, for it verifies several tokens
    assert 0 < more.pop(device) <= planned + 0.1 and all(others < 0.1 for others in more.values())
