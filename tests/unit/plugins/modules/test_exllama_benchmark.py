# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""split_benchmark and exllama_devices_info with ExLlama: the real worker in a process, on packages that stand in.

What is tested is the conversation (orders, answers, corrections, ways to fail). That ExLlama itself does what the
worker asks is tested on cards, in tests/gpu.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import exllama_bench, fixed_text
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import stages
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import exl_split, text_likelihood
from ansible_collections.homelab.mixed_gpu.plugins.modules import exl_model_info, exllama_devices_info, split_benchmark
from ansible_collections.homelab.mixed_gpu.tests.exl_models import write_model

ROOT = pathlib.Path(__file__).parents[4]
WORKER = ROOT / "roles" / "split_tuning" / "files" / "exllama_worker.py"
STAND_INS = ROOT / "tests" / "unit" / "fixtures_bench" / "exllama"
BLOCKS = 12
TESTS = [
    {"kind": "prefill", "n_prompt": 1536, "n_gen": 0, "n_depth": 0, "repetitions": 2},
    {"kind": "decode", "n_prompt": 0, "n_gen": 16, "n_depth": 256, "repetitions": 3},
]
LOAD = {
    "label": "8/5 load 1",
    "split_mode": "layer",
    "layers": [8, 5],
    "load": 1,
    "purpose": "anchor",
    "tests": TESTS,
}
DEVICES = [
    {"device": f"CUDA{card}", "id": f"GPU-{card + 1}", "free_mib": 22000, "budget_mib": None} for card in range(2)
]


@pytest.fixture
def environment(tmp_path):
    """The stand-ins as an environment with versions; the size of a block is what the model's really is."""
    packages = tmp_path / "packages"
    shutil.copytree(STAND_INS, packages)
    for name, version in (("torch", "2.9.0+cu128"), ("exllamav2", "0.3.2"), ("exllamav3", "1.6.5")):
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return {"PYTHONPATH": str(packages), "FAKE_BLOCKS": str(BLOCKS)}


@pytest.fixture
def run(tmp_path, call_module, environment):
    write_model(tmp_path / "m", "exl2", blocks=BLOCKS, hidden=1024, forward=2816, heads=8, kv_heads=8)
    model = call_module(exl_model_info, {"path": str(tmp_path / "m")})["model"]

    def _run(engine="exllamav2", mode="ok", overhead_blocks=0.0, check=False, cache_mode="Q8", **changes):
        serving = exl_split.serving_profile(engine, 2048, cache_mode, 1024)
        # the stand-ins count blocks alone, so what is planned beyond is their overhead, and that much more
        planned = exllama_bench.measure_order(LOAD, DEVICES, serving, model, 512)
        own = {**environment, **changes.pop("environment", {})}
        block = planned["block_gb"]
        overhead = planned["gpu_split_gb"][0] - (LOAD["layers"][0] + 0.25) * block
        return call_module(
            split_benchmark,
            {
                "model_path": str(tmp_path / "m"),
                "load": LOAD,
                "devices": ["CUDA0", "CUDA1"],
                "serving": serving,
                "campaign": "c",
                "fingerprint": "f",
                "state_dir": str(tmp_path / "state"),
                "lease_unit": "",
                "timeout_seconds": 30,
                "environment": {
                    **own,
                    "FAKE_MODE": mode,
                    "FAKE_BLOCK_GB": str(block),
                    "FAKE_OVERHEAD_GB": str(overhead + overhead_blocks * block),
                },
                "exllama": {
                    "python": sys.executable,
                    "worker": str(WORKER),
                    "model": model,
                    "devices": DEVICES,
                    "reserve_mib": 512,
                },
                "_ansible_check_mode": check,
                **changes,
            },
        )

    return _run


@pytest.mark.parametrize("engine", ["exllamav2", "exllamav3"])
def test_one_process_measures_all_tests_with_the_layers_where_they_were_wanted(run, engine):
    result = run(engine)
    load = result["load"]
    assert (load["status"], load["reason"], load["tries"]) == ("ok", None, 1)
    assert [device["layers"] for device in load["loaded"]] == [8, 5]
    assert [len(test["samples_ms"]) for test in load["results"]] == [2, 3]
    assert {key: load["results"][1][key] for key in ("kind", "n_prompt", "n_gen", "n_depth")} == {
        "kind": "decode",
        "n_prompt": 0,
        "n_gen": 16,
        "n_depth": 256,
    }
    build = json.loads(pathlib.Path(result["path"]).read_text())["llama_cpp_build"]
    assert build.startswith(engine) and "torch 2.9.0+cu128" in build
    again = run(engine)
    assert again["load"]["reused"] and again["load"]["gpu_split_gb"] == load["gpu_split_gb"] and not again["changed"]


@pytest.mark.parametrize("engine", ["exllamav2", "exllamav3"])
@pytest.mark.parametrize("blocks", [1.0, -2.0])
def test_a_split_that_missed_is_moved_until_it_hits(run, engine, blocks):
    load = run(engine, overhead_blocks=blocks)["load"]
    assert load["status"] == "ok" and load["tries"] == 2
    assert [device["layers"] for device in load["loaded"]] == [8, 5]


def test_an_output_layer_far_smaller_than_a_block_is_found_between_two_blocks(run, environment):
    environment["FAKE_HEAD_GB"] = "0.002"
    load = run("exllamav3", overhead_blocks=-0.7, load={**LOAD, "layers": [12, 1]})["load"]
    assert load["status"] == "ok", load["reason"]
    # a step of a block leaps from 13/0 to 11/2 and back
    assert load["tries"] > 2
    assert [device["layers"] for device in load["loaded"]] == [12, 1]


def test_what_the_model_makes_of_a_text_is_told(run):
    """The stand-in finds the number after each most likely, and the text has others."""
    told = run()["load"]["answers"]
    last = ord(fixed_text.TEXT[fixed_text.TEXT_TOKENS // 2]) % 64
    assert told["tokens"] == [(last + 1 + place) % 64 for place in range(fixed_text.ANSWER_TOKENS)]
    assert told["judged_tokens"] == fixed_text.TEXT_TOKENS // 2 - 1 and 4 < told["nats_per_token"] < 6


def test_a_model_without_a_tokenizer_is_judged_by_numbers(run):
    told = run("exllamav3")["load"]["answers"]
    assert len(told["tokens"]) == fixed_text.ANSWER_TOKENS and told["judged_tokens"] == 95


@pytest.mark.parametrize("mode", ["wrong", "nan"])
def test_wrong_answers_are_other_numbers(run, mode):
    told = run(mode=mode)["load"]["answers"]
    assert told["text"] == run(mode=mode)["load"]["answers"]["text"]
    if mode == "nan":
        assert told["nats_per_token"] is None
    else:
        assert told["tokens"][1] == (told["tokens"][0] - 1) % 64


def test_memory_of_each_card_is_told(run):
    loaded = run()["load"]["loaded"]
    assert [device["id"] for device in loaded] == ["GPU-1", "GPU-2"]
    assert loaded[0]["used_mib"] > loaded[1]["used_mib"] > 0 and loaded[0]["peak_mib"] == loaded[0]["allocated_mib"] + 1


@pytest.mark.parametrize(
    ("mode", "status", "words"),
    [
        ("oom", "out_of_memory", "out of memory: CUDA out of memory. Tried to allocate 1.00 GiB"),
        (
            "crash", "crashed", "ExLlamaV2 was ended by SIGABRT: CUDA says device-side assert triggered; this is no "
            "matter of memory: look for Xid errors of the driver in the kernel log",
        ),
    ],
)  # fmt: skip
def test_what_fails_is_a_result_with_its_reason(run, mode, status, words):
    load = run(mode=mode)["load"]
    assert (load["status"], load["reason"], load["results"]) == (status, words, [])
    assert run(mode="ok")["load"]["reused"]


def test_a_hanging_load_is_ended(run):
    load = run(mode="hang", timeout_seconds=3)["load"]
    assert load["status"] == "timed_out" and "not done after 3 seconds" in load["reason"]


def test_a_card_that_is_not_there_is_told(run, environment):
    environment["FAKE_UUIDS"] = "GPU-1"
    load = run()["load"]
    assert load["status"] == "crashed" and "CUDA shows 1 cards where 2 were named" in load["reason"]


# --- tensor parallelism of ExLlamaV3 ---------------------------------------------------------------------------------


SOAK = {"seconds": 0.1, "idle_gaps": 1, "idle_seconds": 0.1}
SHARED = {**LOAD, "label": "tensor 5/3 native load 1", "split_mode": "tensor", "layers": [5, 3], "purpose": "tensor"}


def way(name):
    return {"environment": {"MIXED_GPU_EXLLAMA_ALLREDUCE": name}}


@pytest.mark.parametrize("name", ["native", "nccl"])
def test_cards_share_each_layer_as_they_were_meant_to(run, name):
    load = run("exllamav3", load={**SHARED, **way(name)})["load"]
    assert (load["status"], load["reason"], load["tries"]) == ("ok", None, 1)
    assert [device["layers"] for device in load["loaded"]] == [5, 3]
    first, second = load["gpu_split_gb"]
    assert first / second == pytest.approx(5 / 3, rel=1e-4) and max(first, second) <= 22000 / 1024
    assert load["allreduce"] == {"asked": name, "ran": name, "transport": None, "fallback": None}
    assert load["loaded"][0]["used_mib"] > load["loaded"][1]["used_mib"] > 0
    assert load["answers"]["tokens"] == run("exllamav3")["load"]["answers"]["tokens"]


def test_numbers_that_miss_the_shares_grow_until_they_hit(run):
    load = run("exllamav3", load={**SHARED, "layers": [6, 2]}, environment={"FAKE_ALONE_GB": "4"})["load"]
    assert (load["status"], load["reason"]) == ("ok", None)
    assert load["tries"] > 1 and [device["layers"] for device in load["loaded"]] == [6, 2]
    recorded = {**SHARED, "layers": [6, 2], "load": 2, "gpu_split_gb": load["gpu_split_gb"]}
    again = run("exllamav3", load=recorded, environment={"FAKE_ALONE_GB": "4"})["load"]
    assert (again["status"], again["tries"], again["gpu_split_gb"]) == ("ok", 1, load["gpu_split_gb"])


def test_numbers_that_never_share_so_are_told(run):
    load = run("exllamav3", load=SHARED, environment={"FAKE_HEADS": "1"})["load"]
    assert load["status"] == "crashed" and "makes shares" in load["reason"] and "[5, 3] was wanted" in load["reason"]


@pytest.mark.parametrize(
    ("mode", "name", "status", "words"),
    [
        ("refuses", "native", "crashed", "ExLlamaV3 refuses it: Tensor-parallel is not currently implemented for"),
        ("no nccl", "nccl", "crashed", "ExLlamaV3 refuses it: this PyTorch has no NCCL"),
        ("oom in tensor", "native", "out_of_memory", "out of memory: CUDA out of memory. Tried to allocate 1.00 GiB"),
    ],
)
def test_a_refusal_is_a_result_with_its_reason(run, mode, name, status, words):
    load = run("exllamav3", mode=mode, load={**SHARED, **way(name)})["load"]
    assert load["status"] == status and words in load["reason"]


def test_a_trial_works_and_rests_before_it_answers(run):
    soak = {"seconds": 0.2, "idle_gaps": 2, "idle_seconds": 0.5}
    trial = {**SHARED, "purpose": "tensor_trial", "soak": soak, "micro_batch_size": 1024, **way("native")}
    trial["reference"] = {"split_mode": "layer", "layers": [8, 5]}
    load = run("exllamav3", load=trial)["load"]
    assert (load["status"], load["purpose"]) == ("ok", "tensor_trial")
    # both rests were taken
    assert load["wall_ms"] >= 1000
    wrong = run("exllamav3", mode="wrong in tensor", load={**trial, "load": 2})["load"]
    assert text_likelihood.difference([run("exllamav3")["load"]], [load]) == ""
    assert "more than rounding explains" in text_likelihood.difference([load], [wrong])


@pytest.mark.parametrize(
    ("sync_ms", "mode", "verdict"),
    [("native:0.05,nccl:0.5", "ok", "faster"), ("native:0.05,nccl:0.5", "wrong in tensor", "rejected"),
     ("native:2,nccl:3", "ok", "slower"), ("native:0,nccl:0", "refuses", "not_usable")],
)  # fmt: skip
def test_a_whole_campaign_decides_between_both_modes(run, tmp_path, call_module, sync_ms, mode, verdict):
    """All loads by the real worker, on cards of which one is three times as fast, with a clock of their own."""
    serving = exl_split.serving_profile("exllamav3", 2048, "Q8", 1024)
    model = call_module(exl_model_info, {"path": str(tmp_path / "m")})["model"]
    devices = [{**device, "backend": "CUDA", "description": "", "total_mib": 24000} for device in DEVICES]
    problem = {
        "schema": 1, "devices": devices, "model": model, "serving": serving, "reserve_mib": 512,
        "split_modes": ["layer", "tensor"], "micro_batches": [], "tests": TESTS, "indifference": 0.01, "max_loads": 7,
        "objective": {"name": "decode", "prompt_tokens": 1536, "generated_tokens": 16},
        "tensor": {"allreduce": ["native", "nccl"], "max_loads": 10, "refused": None},
    }  # fmt: skip
    clock = {"FAKE_CLOCK": "1", "FAKE_BLOCK_MS": "0.5,1.5", "FAKE_SYNC_MS": sync_ms}
    loads, plan = [], stages.plan(problem, [])
    while not plan["done"]:
        wanted = [*plan["loads"], *({**trial, "tests": TESTS, "soak": SOAK} for trial in plan["trials"])]
        loads += [run("exllamav3", mode=mode, load=load, environment=clock)["load"] for load in wanted]
        plan = stages.plan(problem, loads)
    decision = plan["decision"]
    assert decision["tensor"]["verdict"] == verdict, decision["why"]
    assert decision["split_mode"] == ("tensor" if verdict == "faster" else "layer")
    if verdict == "faster":
        # three times as fast, of eight heads
        assert decision["layers"] == [6, 2]
        assert decision["environment"] == {"MIXED_GPU_EXLLAMA_ALLREDUCE": "native"}
    if verdict == "rejected":
        assert "more than rounding explains" in decision["tensor"]["why"]
    if verdict == "not_usable":
        assert "refuses it: Tensor-parallel is not currently implemented for Stand-in" in decision["tensor"]["why"]


def test_check_mode_starts_nothing(run):
    result = run(check=True)
    assert result["changed"] and result["load"] is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exllama": None}, "serving.engine is exllamav2, which requires the option exllama"),
        ({"load": {**LOAD, "split_mode": "tensor"}}, "split_mode of 8/5 load 1 is 'tensor': ExLlamaV2 has layer"),
        (
            {"engine": "exllamav3", "load": {**LOAD, "split_mode": "tensor", "layers": [8, 0]}},
            "each card needs a share",
        ),
        ({"load": {**LOAD, "layers": [8, 4]}}, "8/4 is no split of 13 slots over 2 cards"),
        ({"load": {**LOAD, "layers": [8, 4, 1]}}, "one number for each of 2 devices"),
        ({"load": {**LOAD, "tests": []}}, "it must be a list with at least one test"),
    ],
)
def test_what_makes_no_sense_fails_in_one_sentence(run, changes, words):
    assert words in run(**changes)["msg"]


def test_the_cards_come_in_the_form_that_the_planner_reads(call_module, environment):
    given = {
        "python": sys.executable,
        "worker": str(WORKER),
        "cuda_ids": ["GPU-1", "GPU-2"],
        "environment": {**environment, "FAKE_BLOCK_GB": "1"},
        "budgets_mib": {"GPU-2": 20000},
    }
    devices = call_module(exllama_devices_info, given)["devices"]
    assert devices[1] == {
        "device": "CUDA1",
        "backend": "CUDA",
        "description": "Card 1",
        "total_mib": 24576,
        "free_mib": 23552,
        "id": "GPU-2",
        "budget_mib": 20000,
    }
    swapped = call_module(exllama_devices_info, {**given, "cuda_ids": ["GPU-2", "GPU-1"]})
    assert "PyTorch sees GPU-1, GPU-2 where GPU-2, GPU-1 was expected" in swapped["msg"]
    nothing = call_module(exllama_devices_info, {**given, "python": "/nowhere/python"})
    assert "There is no Python /nowhere/python: install ExLlama" in nothing["msg"]
    broken = {**given, "environment": {"PYTHONPATH": "/nowhere"}}
    assert "No module named 'torch'" in call_module(exllama_devices_info, broken)["msg"]
