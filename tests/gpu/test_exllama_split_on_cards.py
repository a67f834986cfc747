# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""ExLlama on two real cards: the layers that gpu_split was computed for, their memory, a whole campaign, and failure.

The model is float16 with random weights, which both engines load. run_exllama.sh installs what is needed and runs this;
MIXED_GPU_EXLLAMA_PYTHON is a Python that imports torch and the engines.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import exllama_bench
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import stages
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    allreduce,
    exl_tensor,
    memory_plan,
    text_likelihood,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split.exl_split import serving_profile
from ansible_collections.homelab.mixed_gpu.tests.exl_models import write_model
from ansible_collections.homelab.mixed_gpu.tests.gpu.conftest import module

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = ROOT / "roles" / "split_tuning" / "files" / "exllama_worker.py"
PYTHON = os.environ.get("MIXED_GPU_EXLLAMA_PYTHON", sys.executable)
BLOCKS = 12
CONTEXT = 4096
RESERVE_MIB = 512
TESTS = [
    {"kind": "prefill", "n_prompt": 2048, "n_gen": 0, "n_depth": 0, "repetitions": 2},
    {"kind": "decode", "n_prompt": 0, "n_gen": 64, "n_depth": 0, "repetitions": 3},
]
#: Holds all but so many MiB of the first visible card until it is ended.
HOLD = """
import sys, torch
free = torch.cuda.mem_get_info(0)[0]
kept = torch.empty(free - int(sys.argv[1]) * 2**20, dtype=torch.uint8, device="cuda:0")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module", params=["exllamav2", "exllamav3"])
def engine(request, box):
    if len(box["gpus"]) < 2:
        pytest.skip("two cards are needed")
    tried = subprocess.run([PYTHON, "-c", f"import {request.param}"], capture_output=True, text=True, check=False)
    if tried.returncode:
        last = (tried.stderr.strip().splitlines() or ["no words"])[-1]
        pytest.skip(f"{PYTHON} does not import {request.param}: {last}")
    return request.param


@pytest.fixture(scope="module")
def cards(box):
    return [gpu["id"] for gpu in box["gpus"][:2]]


@pytest.fixture(scope="module")
def variables(cards):
    found = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(cards), "EXLLAMA_NO_SDPA": "1"}
    flash = subprocess.run([PYTHON, "-c", "import flash_attn"], capture_output=True, check=False).returncode == 0
    return found if flash else {**found, "EXLLAMA_NO_FLASH_ATTN": "1"}


@pytest.fixture(scope="module")
def devices(cards, variables, engine):
    listed = module(
        "exllama_devices_info", python=PYTHON, worker=str(WORKER), cuda_ids=cards, environment=variables
    )["devices"]
    print(json.dumps(listed, indent=1))
    assert [device["id"] for device in listed] == cards
    return listed


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, "f16", BLOCKS, hidden=4096, forward=11008, heads=32, kv_heads=8, vocabulary=32000)
    return module("exl_model_info", path=str(folder))["model"]


@pytest.fixture(scope="module", params=["FP16", "Q8"])
def serving(request, engine, variables):
    return serving_profile(engine, CONTEXT, request.param, flash_attention="EXLLAMA_NO_FLASH_ATTN" not in variables)


@pytest.fixture
def measure(model, serving, devices, variables, tmp_path):
    """Measure one load through the module; what it says is printed beside what was planned."""

    def _measure(load, using=devices, **changes):
        measured = module(
            "split_benchmark", model_path=model["path"], load=load, devices=[device["device"] for device in using],
            serving=serving, environment=variables, campaign="gpu-test", fingerprint="0" * 64,
            state_dir=str(tmp_path / "state"), lease_unit="", timeout_seconds=300,
            exllama={
                "python": PYTHON, "worker": str(WORKER), "model": model, "devices": using, "reserve_mib": RESERVE_MIB,
            }, **changes,
        )["load"]  # fmt: skip
        planned = memory_plan.MemoryPlan(model, serving).mib(load["layers"])
        told = {key: measured.get(key) for key in ("status", "reason", "gpu_split_gb", "tries", "load_ms", "wall_ms")}
        print(f"{load['label']} {serving['engine']} {serving['cache_mode']}: {json.dumps(told)}", flush=True)
        for card, mib in zip(measured.get("loaded", []), planned, strict=False):
            print(f"  {card['layers']} layers: planned {mib} MiB, used {card['used_mib']}, peak {card['peak_mib']}")
        for result in measured["results"]:
            print(f"  {result['kind']}: {[round(value, 2) for value in result['samples_ms']]} ms", flush=True)
        return measured

    return _measure


def load_of(layers, number=1):
    name = "/".join(map(str, layers))
    return {
        "label": f"{name} load {number}", "split_mode": "layer", "layers": list(layers), "load": number,
        "purpose": "anchor", "tests": TESTS,
    }  # fmt: skip


@pytest.mark.parametrize("layers", [(1, 12), (5, 8), (9, 4), (12, 1), (13, 0), (0, 13)])
def test_the_layers_lie_where_they_were_meant(measure, model, serving, engine, layers):
    measured = measure(load_of(layers))
    assert measured["status"] == "ok", measured["reason"]
    assert [card["layers"] for card in measured["loaded"]] == list(layers)
    # exllamav2 decides on paper, so the number must be right at once; exllamav3 may be corrected
    assert measured["tries"] == 1 or engine == "exllamav3"
    planned = memory_plan.MemoryPlan(model, serving).mib(layers)
    for card, mib, count in zip(measured["loaded"], planned, layers, strict=True):
        assert not count or card["used_mib"] <= mib + RESERVE_MIB, "the plan counts less than the engine takes"
    decode, prefill = (result["samples_ms"] for result in reversed(measured["results"]))
    assert min(decode) > 0 and min(prefill) > 0 and max(decode) / min(decode) < 3


def test_a_campaign_decides_and_its_numbers_place_the_same_layers_again(measure, model, serving, devices, variables):
    """Neither card may hold everything; then the recorded gpu_split goes to a fresh process, as to a server."""
    whole = sum(memory_plan.MemoryPlan(model, serving).mib((BLOCKS, 1)))
    small = [{**device, "budget_mib": RESERVE_MIB + whole * 3 // 4} for device in devices]
    problem = {
        "schema": 1, "devices": small, "model": model, "serving": serving, "reserve_mib": RESERVE_MIB,
        "split_modes": ["layer"], "micro_batches": [], "tests": TESTS, "indifference": 0.01, "max_loads": 7,
        "objective": {"name": "request", "prompt_tokens": 2048, "generated_tokens": 64},
    }  # fmt: skip
    loads = []
    plan = stages.plan(problem, loads)
    while not plan["done"]:
        print(f"{plan['stage']}: {plan['why']}", flush=True)
        loads += [measure(load, small) for load in plan["loads"]]
        plan = stages.plan(problem, loads)
    print(f"{plan['stage']}: {plan['why']}", flush=True)
    decision = plan["decision"]
    assert decision and sum(decision["layers"]) == BLOCKS + 1 and 0 < decision["layers"][0] <= BLOCKS
    recorded = next(x for x in reversed(loads) if x["status"] == "ok" and x["layers"] == decision["layers"])
    order = exllama_bench.measure_order(load_of(decision["layers"]), small, serving, model, RESERVE_MIB)
    order |= {"gpu_split_gb": recorded["gpu_split_gb"], "tries": 1, "tests": []}
    again = subprocess.run(
        [PYTHON, str(WORKER), json.dumps(order)], capture_output=True, text=True, check=False,
        env=os.environ | variables,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr[-3000:]
    answer = json.loads(again.stdout)
    assert answer["status"] == "ok", answer
    assert (answer["layers"], answer["tries"]) == (decision["layers"], 1)


# --- tensor parallelism of ExLlamaV3 ---------------------------------------------------------------------------------


def shared(shares, way, number=1, **more):
    name = "/".join(map(str, shares))
    return {
        "label": f"tensor {name} {way} load {number}", "split_mode": "tensor", "layers": list(shares), "load": number,
        "purpose": "tensor", "tests": TESTS, "environment": allreduce.environment(way, "exllama"), **more,
    }  # fmt: skip


@pytest.fixture
def sharing(engine, model):
    if engine != "exllamav3":
        pytest.skip("ExLlamaV3 alone shares layers")
    return exl_tensor.attention_units(model)


@pytest.mark.parametrize("way", allreduce.OF_EXLLAMA)
@pytest.mark.parametrize("more", [0, 1])
def test_both_cards_share_each_layer_and_answer_as_in_turns(measure, sharing, way, more):
    shares = (sharing // 2 + more, sharing // 2 - more)
    turns = measure(load_of((5, 8)))
    measured = measure(shared(shares, way))
    assert measured["status"] == "ok", measured["reason"]
    assert [card["layers"] for card in measured["loaded"]] == list(shares)
    assert measured["allreduce"]["ran"] == way
    print(f"  transport: {measured['allreduce']['transport']}")
    first, second = (card["used_mib"] for card in measured["loaded"])
    assert first > 0 and second > 0 and (not more or first > second)
    assert text_likelihood.difference([turns], [measured]) == ""


def test_shared_layers_last_over_idle_gaps(measure, sharing):
    soak = {"seconds": 20, "idle_gaps": 1, "idle_seconds": 45}
    trial = shared((sharing // 2, sharing // 2), "native", purpose="tensor_trial", soak=soak)
    measured = measure({**trial, "micro_batch_size": 2048, "reference": {"split_mode": "layer", "layers": [5, 8]}})
    assert measured["status"] == "ok", measured["reason"]
    assert text_likelihood.difference([measure(load_of((5, 8)))], [measured]) == ""


def test_a_campaign_over_both_modes_decides(measure, sharing, model, serving, devices):
    problem = {
        "schema": 1, "devices": devices, "model": model, "serving": serving, "reserve_mib": RESERVE_MIB,
        "split_modes": ["layer", "tensor"], "micro_batches": [], "tests": TESTS, "indifference": 0.01, "max_loads": 7,
        "objective": {"name": "decode", "prompt_tokens": 2048, "generated_tokens": 64},
        "tensor": {"allreduce": list(allreduce.OF_EXLLAMA), "max_loads": 8, "refused": None},
    }  # fmt: skip
    soak = {"seconds": 5, "idle_gaps": 1, "idle_seconds": 1}
    loads = []
    plan = stages.plan(problem, loads)
    while not plan["done"]:
        print(f"{plan['stage']}: {plan['why']}", flush=True)
        loads += [measure(load) for load in plan["loads"]]
        loads += [measure({**trial, "tests": TESTS, "soak": soak}) for trial in plan["trials"]]
        plan = stages.plan(problem, loads)
    found = plan["decision"]["tensor"]
    print(f"{plan['why']}\n{json.dumps(found, indent=1)}", flush=True)
    assert found["verdict"] in ("faster", "slower", "inconclusive")
    assert {row["allreduce"] for row in found["table"] if row["status"] == "ok"} >= {None, "native"}


def test_a_card_without_room_is_out_of_memory(measure, cards, variables):
    holder = subprocess.Popen(
        [PYTHON, "-c", HOLD, "1500"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | variables,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        measured = measure(load_of((13, 0)))
    finally:
        holder.stdin.close()
        holder.wait(60)
    assert measured["status"] == "out_of_memory" and measured["reason"], measured
