# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Experts, or FFN weights, in RAM with the real programs: two RPC devices and the CPU of this machine."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import time
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import (
    fit_params,
    llama_bench,
    llama_server,
    server_check,
    server_log,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import gguf_model, random_model
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment, expert_placement
from ansible_collections.homelab.mixed_gpu.tests.fixtures.dry_run import record

pytestmark = pytest.mark.live

SERVING = {**record.BASE, "context_size": 512, "micro_batch_size": 64, "batch_size": 512, "threads": 1}
LAYERS = [8, 5]
TESTS = [
    {"kind": kind, "n_prompt": n_prompt, "n_gen": n_gen, "n_depth": 0, "repetitions": 1, **more}
    for kind, n_prompt, n_gen in (("prefill", 128, 0), ("decode", 0, 4))
    for more in ({"threads": 1}, {"threads": 2})
]


#: What the models differ in, by what is in RAM of them.
SHAPES = {
    "experts": {"feed_forward_length": 256, "expert_count": 8, "expert_used_count": 2},
    "ffn": {"feed_forward_length": 1024},
}


class Moe(t.NamedTuple):
    path: pathlib.Path
    model: t.Any
    endpoints: list[str]
    experts: expert_placement.ExpertPlacement


@pytest.fixture(scope="module", params=SHAPES)
def moe(
    request: pytest.FixtureRequest, llama_bin: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> t.Iterator[Moe]:
    path = tmp_path_factory.mktemp("moe") / "moe.gguf"
    options = random_model.checked_options({"blocks": 12, "type": "q8_0", **SHAPES[request.param]})
    random_model.write_model(str(path), options, "0" * 64)
    model = gguf_model.read(gguf_model.files_of(str(path)))
    experts = expert_placement.place(model, tuple(LAYERS), [3, 1], (0, ("up", "gate")))
    assert experts.kind == request.param
    with record.rpc_servers(llama_bin, 2) as endpoints:
        yield Moe(path, model, endpoints, dataclasses.replace(experts, threads=2))


def test_llama_bench_measures_several_threads_in_one_load(llama_bin: pathlib.Path, moe: Moe) -> None:
    load = {
        "label": "x", "split_mode": "layer", "layers": LAYERS, "load": 1,
        "tests": [*TESTS, {**TESTS[0], "micro_batch_size": 1024}],  # larger than the batch without experts in RAM
        "experts_in_ram": expert_placement.as_json(moe.experts),
    }  # fmt: skip
    order = llama_bench.make_order(load, ["RPC0", "RPC1"], SERVING)
    command = llama_bench.bench_command(str(llama_bin / "llama-bench"), str(moe.path), order, moe.endpoints)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    verdict = llama_bench.judge(done.returncode, done.stdout, done.stderr, None, order)
    assert (verdict.status, verdict.reason) == ("ok", None)
    assert [(found["kind"], found["threads"]) for found in verdict.results] == [
        ("prefill", 1), ("prefill", 2), ("decode", 1), ("decode", 2), ("prefill", 1),
    ]  # fmt: skip
    assert verdict.results[-1]["micro_batch_size"] == 1024
    other = dataclasses.replace(order, experts=dataclasses.replace(moe.experts, blocks=(0,)))
    assert "overrides" in str(llama_bench.judge(0, done.stdout, "", None, other).reason)


def served(moe: Moe, llama_bin: pathlib.Path, verbosity: int, extra: list[str]) -> tuple[t.Any, t.Any]:
    """Return the deployment, and what a real server says of its load."""
    tuning: t.Any = {
        "model": {"id": "moe", "path": str(moe.path), "sha256": "5a"},
        "problem": {
            "devices": [
                {"id": endpoint, "device": f"RPC{index}", "backend": "RPC", "description": endpoint}
                for index, endpoint in enumerate(moe.endpoints)
            ],
            "model": moe.model,
            "serving": SERVING,
        },
        "plan": {
            "decision": {
                "layers": LAYERS, "split_mode": "layer", "micro_batch_size": 64,
                "experts_in_ram": expert_placement.as_json(moe.experts),
            },
            "feasible": [],
        },
        "loads": [], "rpc_endpoints": moe.endpoints, "dry_run": None, "device_probe": None, "probe_settings": None,
        "fingerprint_parts": {}, "campaign": "c",
    }  # fmt: skip
    entry = deployment.build(tuning)
    settings = {
        "host": "127.0.0.1", "port": 0, "alias": "moe", "cache_ram_mib": 0, "cors_origins": "localhost",
        "log_verbosity": verbosity, "extra_arguments": extra, "allowed_networks": [], "load_timeout_seconds": 300,
    }  # fmt: skip
    words = llama_server.command(entry, settings)["arguments"]
    text = ""
    with subprocess.Popen(
        [str(llama_bin / "llama-server"), *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        until = time.monotonic() + 300
        assert server.stdout is not None
        for line in server.stdout:
            text += line
            if server_log.is_loaded(line) or time.monotonic() > until:
                break
        server.kill()
    return entry, server_log.parse_load(text)


@pytest.mark.parametrize("verbosity", [4, 5])
def test_the_server_holds_exactly_the_planned_experts_in_ram(
    llama_bin: pathlib.Path, moe: Moe, verbosity: int
) -> None:
    entry, load = served(moe, llama_bin, verbosity, [])
    assert load["complete"] and server_check.deviations(entry, load) == []
    assert load["host"]["model_mib"] == pytest.approx(entry["experts_in_ram"]["ram_bytes"] / 2**20, abs=0.02)
    assert load["threads"] == [2, 2] and not load["pipeline_parallel"] and load["host_layers"] == 0
    # 4 whole blocks of 3 parts, and 2 parts of one more; logged from 5 on
    assert len(load["overridden"]) == (14 if verbosity == 5 else 0)


@pytest.mark.parametrize(
    ("verbosity", "words"), [(4, "weights are in RAM; the facts say"), (5, "3 tensors are not where the facts say")]
)
def test_more_experts_in_ram_than_planned_are_noticed(
    llama_bin: pathlib.Path, moe: Moe, verbosity: int, words: str
) -> None:
    extra = ["-ot", "blk[.]11[.]ffn_(up|gate|down)(_exps|)[.]=CPU"]
    entry, load = served(moe, llama_bin, verbosity, extra)
    found = server_check.deviations(entry, load)
    assert any(words in sentence for sentence in found), found


def test_the_dry_run_counts_what_the_server_holds(llama_bin: pathlib.Path, moe: Moe) -> None:
    mib, host = record.ask(llama_bin, moe.path, LAYERS, SERVING, moe.endpoints, moe.experts)
    assert host == expert_placement.ram_bytes(moe.model, moe.experts) // 2**20
    assert [parts[0] for parts in mib] == [
        memory.weights // 2**20
        for memory in fit_params.memory_plan.MemoryPlan(moe.model, SERVING, experts=moe.experts).devices(LAYERS)
    ]
