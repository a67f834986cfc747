# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module against programs that misbehave, and, where the mark live is asked for, on the real llama.cpp."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import lost_words
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import random_model
from ansible_collections.homelab.mixed_gpu.plugins.modules import split_mode_trial

PROJECT = pathlib.Path(__file__).parents[4]
FAKE = PROJECT / "tests" / "unit" / "fixtures_bench" / "fake_llama_server.py"
DEVICES = [
    {"device": f"RPC{i}", "id": f"127.0.0.1:{50052 + i}", "backend": "RPC", "description": f"127.0.0.1:{50052 + i}",
     "total_mib": 500, "free_mib": 500, "budget_mib": None}
    for i in range(2)
]  # fmt: skip
SERVING = {
    "context_size": 512, "parallel_slots": 1, "kv_unified": True, "batch_size": 512, "micro_batch_size": 64,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16", "threads": 1, "poll": 0,
    "load_mode": "auto", "gpu_layers": 99,
}  # fmt: skip
TRIAL = {
    "label": "trial of tensor 1/3", "split_mode": "tensor", "layers": [1, 3], "load": 1, "purpose": "tensor_trial",
    "environment": {"GGML_CUDA_ALLREDUCE": "nccl"}, "micro_batch_size": 32,
    "reference": {"split_mode": "layer", "layers": [10, 7]},
}  # fmt: skip


class Trial:
    """Runs the module with fake programs; C(starts) are their command lines."""

    def __init__(self, tmp_path, call_module):
        self.call_module = call_module
        program = tmp_path / "llama-server"
        program.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
        program.chmod(0o755)
        self.model = tmp_path / "m.gguf"
        self.model.write_bytes(b"GGUF")
        self.here, self.log = tmp_path, tmp_path / "log"

    def __call__(self, mode="ok", check=False, environment=None, **changes):
        arguments = {
            "llama_server": str(self.here / "llama-server"),
            "model_path": str(self.model), "trial": TRIAL, "devices": DEVICES,
            "rpc_endpoints": [device["id"] for device in DEVICES], "serving": SERVING, "campaign": "c",
            "fingerprint": "f", "state_dir": str(self.here / "measurements"), "lock_wait_seconds": 0,
            "lease_unit": "", "text_tokens": 64, "generated_tokens": 8,
            "soak_seconds": 1, "idle_gaps": 1, "idle_seconds": 1, "load_timeout_seconds": 60,
            "request_timeout_seconds": 60,
            "environment": {"FAKE_MODE": mode, "FAKE_LOG": str(self.log), **(environment or {})},
            **changes, "_ansible_check_mode": check,
        }  # fmt: skip
        return self.call_module(split_mode_trial, arguments)

    @property
    def starts(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def left_over(self):
        command = ["pgrep", "-f", f"{self.here}/llama-server"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()


@pytest.fixture
def trial(tmp_path, call_module, monkeypatch):
    monkeypatch.setattr(AnsibleModule, "warn", lambda self, warning: None)
    return Trial(tmp_path, call_module)


def test_a_mode_that_passes(trial):
    result = trial()
    load = result["load"]
    assert (load["status"], load["reason"], result["changed"]) == ("ok", None, True)
    found = load["results"][0]
    assert 0 < found["answers"]["difference_percent"] < 3 and 0.9 < found["answers"]["share"] <= 1
    assert found["allreduce"] is None
    assert found["soak"]["requests"] >= 2
    assert found["soak"]["idle_gaps"] == 1 and found["soak"]["seconds"] >= 2
    assert found["soak"]["decode_tokens_per_second"]["min"] >= 20
    starts = trial.starts
    assert len(starts) == 2 and all("-ub 32" in line for line in starts)
    assert "-sm layer -ts 10,7" in starts[0] and "-sm tensor -ts 1,3" in starts[1]
    assert [line.split()[1] for line in starts] == ["-", "nccl"]
    assert trial.left_over == []


def test_a_finished_trial_is_not_repeated(trial):
    first = trial()
    again = trial()
    assert (again["changed"], again["load"]["reused"], again["load"]["results"]) == (
        False, True, first["load"]["results"]
    )  # fmt: skip
    assert len(trial.starts) == 2


@pytest.mark.parametrize(
    ("mode", "status", "words"),
    [
        ("refuse", "refused", "not implemented for architecture 'mamba'"),
        ("out_of_memory", "out_of_memory", "812 MiB more were wanted on CUDA device 1"),
        ("hang_answer", "hung", "did not answer within 5 s"),
        ("die_answer", "crashed", "SIGABRT"),
        ("short", "unstable", "7 tokens instead of 8"),
        ("other_soak", "unstable", "the same prompt got another answer from token 1 on"),
        ("other", "different", "times as likely as the first choice (15 % are tolerated)"),
        ("idle_hang", "hung", "did not answer within 5 s"),
        ("nan", "different", "it gives probabilities that are no numbers (NaN)"),
    ],
)
def test_a_mode_that_fails_is_a_result(trial, mode, status, words):
    # the soak lasts until the fault comes, however few requests a second there are; an idle gap is in its middle
    hangs = mode in ("hang_answer", "idle_hang")
    times = {"soak_seconds": 1 if mode == "idle_hang" else 600, "request_timeout_seconds": 5 if hangs else 60}
    result = trial(mode, **times)
    assert result["load"]["status"] == status
    assert words in result["load"]["reason"]
    assert trial.left_over == []
    assert trial(mode, **times)["load"]["reused"]


@pytest.mark.parametrize("environment", [{}, {"FAKE_PORT": "1"}])
def test_a_program_whose_last_words_are_lost_is_started_again(trial, environment):
    result = trial(environment={"FAKE_MUTE": str(lost_words.STARTS - 1), **environment})
    assert (result["load"]["status"], result["load"]["reason"]) == ("ok", None)
    ports = [line.split("--port ")[1].split()[0] for line in trial.starts if "--port" in line and "-sm tensor" in line]
    assert len(ports) == lost_words.STARTS
    assert trial.left_over == []


def test_lost_words_between_others_are_asked_for_as_well(trial):
    result = trial("refuse", environment={"FAKE_MUTE": "1"})
    assert result["load"]["status"] == "refused" and "mamba" in result["load"]["reason"]


def test_a_program_that_never_says_why_it_fails_is_left(trial):
    result = trial(environment={"FAKE_MUTE": "99"})
    assert result["load"]["reason"] == "llama.cpp ended with exit status 1 (it printed nothing)"
    assert len([line for line in trial.starts if "-sm tensor" in line]) == lost_words.STARTS


def test_cards_say_how_they_add_up(trial):
    cards = [{**device, "backend": "CUDA", "device": f"CUDA{i}"} for i, device in enumerate(DEVICES)]
    said = (
        "box:1:2 [0] NCCL INFO ncclCommInitAll comm 0x5 rank 0 nranks 2 - Init COMPLETE\n"
        "box:1:3 [0] NCCL INFO Channel 00 : 0[0] -> 1[1] via SHM/direct/direct"
    )
    found = trial(devices=cards, rpc_endpoints=[], environment={"FAKE_SAYS": said})["load"]["results"][0]
    assert found["allreduce"] == {"asked": "nccl", "ran": "nccl", "transport": "SHM", "fallback": None}
    # what is served must be what was measured
    said = "W NCCL init failed (invalid usage); falling back to internal AllReduce\nI x: initialized AllReduce pipeline"
    load = trial(devices=cards, rpc_endpoints=[], environment={"FAKE_SAYS": said}, campaign="another")["load"]
    assert load["status"] == "different" and load["results"][0]["allreduce"]["ran"] == "internal"
    assert load["reason"] == (
        "it was measured with NCCL, and llama-server used llama.cpp's internal all-reduce: NCCL init failed (invalid"
        " usage)"
    )


def test_a_hang_is_killed_at_its_limit(trial):
    result = trial("hang_load", load_timeout_seconds=6)
    assert result["load"]["status"] == "hung"
    assert "after 6 seconds and was ended" in result["load"]["reason"]
    assert trial.left_over == []


def test_a_reference_that_fails_is_told_apart(trial):
    result = trial("refuse", environment={"FAKE_REFERENCE": "1"})
    assert result["load"]["reason"].startswith("layer mode, the reference, failed: ")


def test_check_mode_starts_nothing(trial):
    result = trial(check=True)
    assert (result["changed"], result["load"], trial.starts) == (True, None, [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trial": {"label": "x"}}, "trial.split_mode is missing"),
        ({"text_tokens": 0}, "text_tokens is 0"),
        ({"idle_gaps": -1}, "idle_gaps is -1"),
        ({"llama_server": "/nowhere/llama-server"}, "llama_cpp_targets"),
    ],
)
def test_misuse_is_one_sentence(trial, changes, words):
    result = trial(**changes)
    assert result["failed"] and words in result["msg"] and not trial.starts


@pytest.mark.live
def test_tensor_mode_of_the_real_llama_cpp(trial, tmp_path, llama_bin, rpc_endpoints):
    model = tmp_path / "real.gguf"
    shape = {"blocks": 4, "embedding_length": 256, "feed_forward_length": 512, "head_count": 8, "head_count_kv": 4}
    random_model.write_model(
        str(model),
        random_model.checked_options({
            **shape, "vocabulary_size": 512, "context_length": 1024, "type": "q8_0", "seed": 1, "distinct_blocks": True,
        }),  # fmt: skip
        "real",
    )
    endpoints = rpc_endpoints[:2]
    devices = [{**device, "id": at, "description": at} for device, at in zip(DEVICES, endpoints, strict=True)]
    arguments = {
        "llama_server": f"{llama_bin}/llama-server",
        "model_path": str(model), "devices": devices, "rpc_endpoints": endpoints, "soak_seconds": 5,
        "load_timeout_seconds": 600, "request_timeout_seconds": 300,
    }  # fmt: skip
    split = {**TRIAL, "environment": {}, "layers": [1, 3], "reference": {"split_mode": "layer", "layers": [3, 2]}}
    load = trial(**arguments, trial=split)["load"]
    assert (load["status"], load["reason"]) == ("ok", None)
    found = load["results"][0]
    # one CPU computes both modes: 0 was measured, and 15 % are tolerated
    assert found["answers"]["difference_percent"] < 3
    assert found["soak"]["requests"] >= 1
    # what the real program refuses
    refused = trial(**arguments, trial={**split, "load": 2}, serving={**SERVING, "flash_attention": "off"})["load"]
    assert refused["status"] in ("refused", "crashed")
    assert "flash_attn" in refused["reason"]
