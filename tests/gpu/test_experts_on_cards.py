# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Experts, or FFN weights, in RAM on real cards: what they cost, the planner's choice, and the memory that it counts.

Two CUDA devices are two cards, or one that llama.cpp shows twice (GGML_CUDA_DEVICES=2).
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import expert_plane
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import expert_placement
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split.split_problem import read_problem
from ansible_collections.homelab.mixed_gpu.tests.fixtures.dry_run import record
from ansible_collections.homelab.mixed_gpu.tests.gpu.conftest import module, tune

SERVING = {**record.BASE, "context_size": 4096}
#: Models of experts, and dense ones.
LARGE = sorted(
    {*model_shapes.SHAPES} - {*model_shapes.PUBLISHED_GB} | {"llama_3_3_70b_q4_k_m", "qwen2_5_coder_32b_q4_k_m"}
)
BLOCKS = 24
THREADS = [count for count in (4, 8, 16, 32) if count <= (os.cpu_count() or 1)] or [1]
PREFILL = {"kind": "prefill", "n_prompt": 2048, "n_gen": 0, "n_depth": 0, "repetitions": 1, "threads": THREADS[-1]}
DECODE = {"kind": "decode", "n_prompt": 0, "n_gen": 32, "n_depth": 0, "repetitions": 3}
TESTS = [
    *({**PREFILL, "micro_batch_size": size} for size in (512, 2048)),
    *({**DECODE, "threads": count} for count in THREADS),
]


#: A model with 320 MB of experts per block, as in the published measurement, and one with 144 MB of FFN weights.
SHAPES = {
    "experts": {"blocks": BLOCKS, "embedding_length": 2048, "feed_forward_length": 768, "head_count": 16,
                "head_count_kv": 4, "expert_count": 64, "expert_used_count": 8},
    "ffn": {"blocks": 16, "embedding_length": 4096, "feed_forward_length": 11008, "head_count": 32, "head_count_kv": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def model_of(llama_bin, tmp_path_factory):
    """Write each of SHAPES once, and tell what its header says."""
    folder = tmp_path_factory.mktemp("models")

    @functools.cache
    def written(kind):
        path = str(folder / f"{kind}.gguf")
        module("random_gguf", path=path, type="q8_0", host_python=sys.executable, manifest_dir=str(folder),
               **SHAPES[kind])  # fmt: skip
        return module("gguf_info", path=path, cache_dir=str(folder / "cache"))["model"]

    return written


@pytest.fixture(scope="module")
def moe(model_of):
    """The model of experts."""
    return model_of("experts")


def measured(llama_bin, moe, environment, tmp_path, layers, count, no_host=False):
    """Return one load with the experts of so many blocks in RAM, all on the first device."""
    placed = expert_placement.as_json(expert_placement.on_first_device(moe, tuple(layers), count))
    experts = {"experts_in_ram": {**placed, "no_host": no_host}} if placed else {}
    load = {"label": f"{layers} with {count}", "split_mode": "layer", "layers": layers, "load": 1, "tests": TESTS}
    return module(
        "split_benchmark", llama_bench=f"{llama_bin}/llama-bench", model_path=moe["path"], load={**load, **experts},
        devices=["CUDA0", "CUDA1"], serving=SERVING, environment=environment, campaign="experts", fingerprint="2" * 64,
        state_dir=str(tmp_path), lease_unit="", timeout_seconds=500,
    )["load"]  # fmt: skip


def test_what_experts_in_ram_cost(llama_bin, moe, pair, tmp_path):
    """The table of blocks, splits, threads and micro-batches; each load has every test, with the threads asked for."""
    rows = [([13, 12], count, False) for count in (0, 6, 12)] + [([19, 6], 18, False), ([19, 6], 12, False)]
    for layers, count, no_host in [*rows, ([13, 12], 12, True)]:
        load = measured(llama_bin, moe, pair, tmp_path, layers, count, no_host)
        assert (load["status"], load["reason"]) == ("ok", None)
        assert [(found["kind"], found["threads"]) for found in load["results"]] == [
            (test["kind"], test["threads"]) for test in TESTS
        ]
        decode = {
            found["threads"]: round(statistics.median(found["samples_ms"]) / DECODE["n_gen"], 2)
            for found in load["results"][2:]
        }
        prefill = {
            found["micro_batch_size"]: round(2048e3 / statistics.median(found["samples_ms"]))
            for found in load["results"][:2]
        }
        print(json.dumps({
            "blocks": count, "layers": layers, "no_host": no_host, "decode_ms_by_threads": decode,
            "prefill_tokens_per_second_by_micro_batch": prefill,
        }), flush=True)  # fmt: skip


#: MiB that each device may hold: unevenly, and too little for the model.
BUDGETS = {"experts": (3200, 2200), "ffn": (1900, 1300)}
OBJECTIVE = {"name": "request", "prompt_tokens": 2048, "generated_tokens": 256, "depth_tokens": 0}


def objective_ms(load):
    """Return {(micro-batch, threads): ms of a request} of a load."""
    prompts = {row["micro_batch_size"]: row["samples_ms"] for row in load["results"] if row["kind"] == "prefill"}
    tokens = {row["threads"]: row["samples_ms"] for row in load["results"] if row["kind"] == "decode"}
    return {
        (size, threads): statistics.median(prompt) + statistics.median(token) / DECODE["n_gen"] * 256
        for size, prompt in prompts.items() for threads, token in tokens.items()
    }  # fmt: skip


@pytest.mark.parametrize("kind", SHAPES)
def test_the_choice_beside_the_measured_plane(llama_bin, model_of, pair, tmp_path, kind):
    """The planner's choice beside every split that fits, with every micro-batch and many threads."""
    model, budgets = model_of(kind), BUDGETS[kind]
    devices = [
        {"device": f"CUDA{number}", "id": f"card-{number}", "backend": "CUDA", "description": "card",
         "total_mib": 30000, "free_mib": 30000, "budget_mib": mib}
        for number, mib in enumerate(budgets)
    ]  # fmt: skip
    problem = {
        "schema": 1, "devices": devices, "model": model, "serving": {**SERVING, "threads": THREADS[-1]},
        "reserve_mib": 64, "split_modes": ["layer"], "indifference": 0.01, "max_loads": 7, "micro_batches": [],
        "objective": OBJECTIVE, "tests": [
            {"kind": "prefill", "n_prompt": 2048, "n_gen": 0, "n_depth": 0, "repetitions": 2}, DECODE,
        ],
        "experts_in_ram": {
            "mode": "auto", "threads": THREADS, "default_threads": THREADS[-1], "no_host": True, "ram_mib": None,
            "links_gb_per_s": None, "own": None,
        },
    }  # fmt: skip
    plan, loads = tune(llama_bin, problem, model["path"], tmp_path / "loads", environment=pair)
    decision = plan["decision"]
    assert decision is not None, plan["why"]
    checked = read_problem(problem)

    def measured(layers, experts, tests, number):
        label = f"{'/'.join(map(str, layers))}, {len(experts['blocks'])} blocks in RAM"
        load = module(
            "split_benchmark", llama_bench=f"{llama_bin}/llama-bench", model_path=model["path"], timeout_seconds=300,
            load={"label": label, "split_mode": "layer", "layers": list(layers), "load": number, "tests": tests,
                  "experts_in_ram": experts},
            devices=["CUDA0", "CUDA1"], serving=SERVING, environment=pair, campaign="plane", fingerprint="5" * 64,
            state_dir=str(tmp_path / "plane"), lease_unit="",
        )["load"]  # fmt: skip
        assert (load["status"], load["reason"]) == ("ok", None)
        return objective_ms(load)

    plane, table = expert_plane.Plane(checked, checked.budgets), {}
    for size in expert_plane.micro_batches(checked):
        tests = [{**PREFILL, "micro_batch_size": size}, *TESTS[-2:]]
        for layers in sorted(plane.splits(size)):
            placement = plane.least(layers, size)
            if placement is None:
                continue
            experts = expert_placement.as_json(placement)
            for (_size, threads), ms in measured(layers, experts, tests, 1).items():
                table[ms] = (layers, {**experts, "threads": threads}, size)
                print(f"{kind} | {layers} | {len(placement.blocks)} | {size} | {threads} | {ms:.0f} |", flush=True)
    # one load of each ranks neighbours by chance: the chosen and the best of the plane again, in turns
    chosen = tuple(decision["layers"]), decision["experts_in_ram"], decision["micro_batch_size"]
    arms, turns = {"chosen": chosen, "best": table[min(table)]}, {"chosen": [], "best": []}
    for number in range(2, 5):
        for name, (layers, experts, size) in arms.items():
            own = {"threads": experts["threads"]}
            tests = [{**PREFILL, **own, "micro_batch_size": size}, {**DECODE, **own}]
            turns[name] += measured(layers, experts, tests, number).values()
    ms = {name: statistics.fmean(found) for name, found in turns.items()}
    print(json.dumps({
        "kind": kind, "loads": len(loads), "decision": decision, "best_of_one_load": table[min(table)],
        "turns_ms": turns, "regret_percent": round(100 * (ms["chosen"] / ms["best"] - 1), 1),
        "is_the_best": chosen == table[min(table)],
    }), flush=True)  # fmt: skip
    assert decision["experts_in_ram"] and all(
        mib <= budget for mib, budget in zip(decision["mib"], budgets, strict=True)
    )


@pytest.mark.parametrize("name", LARGE)
def test_the_plan_has_room_for_what_the_cards_hold(llama_bin, pair, tmp_path, name):
    """Weights and cache as they are, on the first card room for the experts that it copies, and the rest in RAM."""
    path, model = tmp_path / "m.gguf", model_shapes.model(name)
    record.header_only(path, name)
    layers = [(model["block_count"] + 1) * 2 // 3, (model["block_count"] + 1) - (model["block_count"] + 1) * 2 // 3]
    placement = expert_placement.on_first_device(model, tuple(layers), 12)
    largest = max(max(sizes) for sizes in model["block_ffn_bytes"].values()) >> 20
    for size in (512, 2048):
        answer = module(
            "llama_fit_params_info", program=f"{llama_bin}/llama-fit-params", model_path=str(path),
            devices=["CUDA0", "CUDA1"], layers=layers, experts_in_ram=expert_placement.as_json(placement),
            serving={**SERVING, "micro_batch_size": size}, environment=pair, model=model,
        )  # fmt: skip
        assert answer["available"], answer["reason"]
        print(json.dumps({"name": name, "micro_batch": size, **answer["dry_run"], "host_mib": answer["host_mib"]}))
        for more, mib in zip(answer["dry_run"]["difference_mib"], answer["dry_run"]["mib"], strict=True):
            assert -max(64, 0.01 * mib) <= more <= 0.02 * mib + largest
        # pinned host memory is not repacked, so all of it is counted; a card's own alignment of each tensor comes to it
        assert 0 <= answer["host_mib"] - expert_placement.ram_bytes(model, placement) // expert_placement.MIB <= 64
