# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Speculation on real cards: the planner's choice beside every length on every device, with drafts of known acceptance.

Two CUDA devices are two cards, or one that llama.cpp shows twice (GGML_CUDA_DEVICES=2).
"""

from __future__ import annotations

import json
import os
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import known_next_token
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import speculation_stage, speculation_table
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner.speculation_offers import Draft
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import expert_placement, memory_plan, speculation
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split.split_problem import read_problem
from ansible_collections.homelab.mixed_gpu.tests.fixtures import eagle3_model, mtp_model
from ansible_collections.homelab.mixed_gpu.tests.fixtures.dry_run import record
from ansible_collections.homelab.mixed_gpu.tests.gpu.conftest import module

VOCABULARY, AGREEMENT, SEED = 4096, [0.9, 0.6], 4
TARGET = known_next_token.target(VOCABULARY, len(AGREEMENT), 0)
TEXTS = dict(zip(("easy", "hard"), TARGET.texts, strict=True))
WRONG = dict(zip(TEXTS, known_next_token.draft(TARGET, AGREEMENT, SEED)[1], strict=True))
LAYERS = [9, 8]
THREADS = os.cpu_count() or 1
SERVING = {**record.BASE, "context_size": 4096, "threads": 4}
DECODE = {"kind": "decode", "n_prompt": 0, "n_gen": 128, "n_depth": 0, "repetitions": 3}


@pytest.fixture(scope="module")
def models(llama_bin, tmp_path_factory):
    """A target of 3.4 GB and a draft of 60 MB, each with what its header says."""
    folder = tmp_path_factory.mktemp("drafts")
    shared = {"vocabulary_size": VOCABULARY, "type": "q8_0", "host_python": sys.executable, "manifest_dir": str(folder)}
    shapes = {
        "target": {"blocks": 16, "embedding_length": 4096, "feed_forward_length": 11008, "head_count": 32,
                   "head_count_kv": 8, "agreement": [1.0, 1.0]},
        "draft": {"blocks": 4, "embedding_length": 1024, "feed_forward_length": 2816, "head_count": 16,
                  "head_count_kv": 4, "agreement": AGREEMENT, "seed": SEED},
    }  # fmt: skip
    found = {}
    for name, shape in shapes.items():
        module("random_gguf", path=str(folder / f"{name}.gguf"), **shape, **shared)
        path, cache = str(folder / f"{name}.gguf"), str(folder / "c")
        found[name] = module("gguf_info", path=path, cache_dir=cache)["model"]
    return found


@pytest.fixture(scope="module")
def pair(box, llama_bin):
    """The devices, as llama.cpp lists them, and the environment in which there are two."""
    uuids = [gpu["id"] for gpu in box["gpus"]][:2]
    own = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(uuids)}
    own |= {} if len(uuids) == 2 else {"GGML_CUDA_DEVICES": "2"}
    devices = [
        {"device": f"CUDA{number}", "id": f"card-{number}", "backend": "CUDA", "description": "card",
         "total_mib": 30000, "free_mib": 30000, "budget_mib": None}
        for number in range(2)
    ]  # fmt: skip
    return devices, own


@pytest.fixture
def measure(llama_bin, models, pair, tmp_path):
    """Measure a load of the stage with the real server."""
    devices, environment = pair
    shared = {
        "model_path": models["target"]["path"], "serving": SERVING, "environment": environment,
        "campaign": "speculation", "fingerprint": "3" * 64, "state_dir": str(tmp_path), "lease_unit": "",
    }  # fmt: skip

    def run(load):
        if "tests" in load:
            names = [device["device"] for device in devices]
            bench = f"{llama_bin}/llama-bench"
            return module("split_benchmark", llama_bench=bench, devices=names, load=load, timeout_seconds=300, **shared)
        texts = [{"name": name, "prompt": [1, text[0]]} for name, text in TEXTS.items()]
        return module(
            "speculation_benchmark", llama_server=f"{llama_bin}/llama-server", devices=devices, texts=texts, load=load,
            generated_tokens=257, prompt_tokens=2048, load_timeout_seconds=300, **shared,
        )  # fmt: skip

    return lambda load: run(load)["load"]


@pytest.mark.parametrize(("split_mode", "in_ram"), [("layer", 0), ("tensor", 0), ("layer", 5)])
def test_the_choice_beside_every_length_on_every_device(models, pair, measure, split_mode, in_ram):
    """Beside FFN weights of so many blocks in RAM, drafts from the text are on offer as well."""
    layers = LAYERS if split_mode == "layer" else [4, 4]
    shared = {"split_mode": split_mode, "layers": layers}
    kinds = ("draft-simple", "ngram-simple") if in_ram else ("draft-simple",)
    if in_ram:
        placed = expert_placement.on_first_device(models["target"], tuple(LAYERS), in_ram)
        shared["experts_in_ram"] = {**expert_placement.as_json(placed), "threads": THREADS}
    if split_mode == "tensor":  # one card that is shown twice has no NCCL between its halves
        shared["environment"] = {"GGML_CUDA_ALLREDUCE": "internal"}
    decoding = {**DECODE, "threads": THREADS} if in_ram else DECODE
    bench = measure({"label": "bench", "load": 1, "tests": [decoding], **shared})
    assert (bench["status"], bench["reason"]) == ("ok", None)
    speed = 1000 * DECODE["n_gen"] / min(bench["results"][0]["samples_ms"])
    problem = read_problem({
        "schema": 1, "devices": pair[0], "model": models["target"], "serving": SERVING, "reserve_mib": 512,
        "split_modes": ["layer", "tensor"], "tests": [DECODE], "indifference": 0.01, "max_loads": 7,
        "micro_batches": [],
        "objective": {"name": "decode", "prompt_tokens": 0, "generated_tokens": 256, "depth_tokens": 0},
    })  # fmt: skip
    mib = memory_plan.MemoryPlan(models["target"], SERVING).mib(LAYERS)
    decision = {
        "environment": {}, **shared, "micro_batch_size": SERVING["micro_batch_size"],
        "decode_tokens_per_second": speed, "mib": mib, "headroom_mib": [20000, 20000], "fit": None,
    }  # fmt: skip
    draft = Draft("draft", models["draft"]["path"], models["draft"], None)
    question = speculation_stage.Question(problem, decision, [], [draft], kinds, dict.fromkeys(TEXTS, 0.5))
    loads = []
    while (wanted := speculation_stage.Stage(question, loads).next_load) is not None:
        loads.append(measure(wanted))
        assert (loads[-1]["status"], loads[-1]["reason"]) == ("ok", None)
    outcome = speculation_stage.Stage(question, loads).outcome
    print(json.dumps({
        "split_mode": split_mode, "in_ram": in_ram, "bench_tokens_per_second": round(speed, 1), **outcome,
    }), flush=True)  # fmt: skip
    assert len(loads) <= 5
    # every length on every device, and none: one load each
    stage = speculation_stage.Stage(question, loads)
    sweep, rounds = {}, {}
    for arm in (arm for offer in stage.found.offers for arm in offer.arms()):
        load = measure({**stage.load(arm), "load": 9})
        found = speculation_table.served(load)
        sweep[arm], rounds[arm] = stage.search.mix_ms(found), found
        row = {text["text"]: text["accepted"] for text in load["results"] if text["kind"] == "text"}
        for name, text in TEXTS.items() if arm.kind == "draft-simple" else ():
            accepted = accepted_of(text, WRONG[name], arm.n_max, 256)
            assert abs(row[name] - accepted) <= arm.n_max, (arm, name)
        print(json.dumps({"mode": split_mode, "arm": arm.name(), "ms_per_token": round(sweep[arm], 4)}), flush=True)
    print(json.dumps({"mode": split_mode, "in_ram": in_ram, "rounds": short_rounds(rounds)}), flush=True)
    none = stage.search.mix_ms(speculation_table.served(loads[0]))
    best = min([*sweep.values(), none])
    served = outcome["served"]
    own = none if served is None else sweep[speculation.from_json(served)]
    print(json.dumps({
        "mode": split_mode, "in_ram": in_ram, "none_ms": round(none, 4), "best_ms": round(best, 4),
        "chosen_ms": round(own, 4), "regret_percent": round(100 * (own / best - 1), 2),
    }), flush=True)  # fmt: skip
    assert served is None or own < none


@pytest.mark.parametrize("split_mode", ["layer", "tensor"])
@pytest.mark.parametrize("kind", ["draft-mtp", "draft-eagle3"])
def test_what_only_drafts_beside_its_model_keeps_the_text(llama_bin, pair, tmp_path, kind, split_mode):
    """The model's own blocks beside recurrent ones, and an EAGLE-3 head with random weights."""
    devices, environment = pair
    target, head = tmp_path / "target.gguf", tmp_path / "head.gguf"
    mtp_model.write(str(target), [0.9, 0.5], 5, mtp_model.Shape(blocks=8))
    eagle3_model.write(str(head), 1024, 2, [1, 3, 5])
    known = known_next_token.target(1024, 2, 0)
    arm = {"kind": kind, "draft": "", "n_max": 3, "path": "", "device": devices[1]["id"],
           "cache_type_k": "f16", "cache_type_v": "f16"}  # fmt: skip
    arm |= {"path": str(head)} if kind == "draft-eagle3" else {}
    result = module(
        "speculation_benchmark", model_path=str(target), serving=SERVING, campaign="heads", fingerprint="4" * 64,
        environment={**environment, "GGML_CUDA_ALLREDUCE": "internal"}, state_dir=str(tmp_path), lease_unit="",
        llama_server=f"{llama_bin}/llama-server", devices=devices, generated_tokens=65, load_timeout_seconds=300,
        texts=[{"name": f"text {place}", "prompt": [1, text[0]]} for place, text in enumerate(known.texts)],
        load={"label": kind, "split_mode": split_mode, "layers": [5, 5] if split_mode == "layer" else [1, 1], "load": 1,
              "speculation": arm},
    )  # fmt: skip
    load = result["load"]
    print(json.dumps({"mode": split_mode, "kind": kind, "results": load["results"]}), flush=True)
    assert (load["status"], load["reason"]) == ("ok", None)
    *rows, greedy = load["results"]
    assert all(row["drafted"] > 0 for row in rows) and greedy["tokens"] == known.texts[0][1:65]


def short_rounds(sweep):
    """Return, per device, what the short answers of the longest drafts tell of a round by its drafted tokens (ms).

    Beside it stands what rounds of texts took in the load of drafts of that length.
    """
    table = {}
    for arm, load in sweep.items():
        longest = max(other.n_max for other in sweep if other.family == arm.family)
        if arm.kind != "draft-simple" or arm.n_max != longest:
            continue
        text = {other.n_max: served.round_ms for other, served in sweep.items() if other.family == arm.family}
        table[arm.device] = [
            {"drafted": round(short.drafted / short.rounds, 2), "drafts": round(short.drafts / short.rounds, 2),
             "short_ms": round(short.decode_ms / short.rounds, 3),
             "text_ms": round(text.get(round(short.drafted / max(1, short.drafts)), 0.0), 3)}
            for short in load.short
        ]  # fmt: skip
    return table


def accepted_of(text, wrong, n_max, tokens):
    """Return how many drafted tokens an answer of so many accepts."""
    place, rounds, accepted = 1, 0, 0
    while accepted + rounds < tokens:
        reached = 0
        while reached < n_max and text[(place + reached) % len(text)] not in wrong:
            reached += 1
        place, rounds, accepted = place + reached + 1, rounds + 1, accepted + reached
    return accepted
