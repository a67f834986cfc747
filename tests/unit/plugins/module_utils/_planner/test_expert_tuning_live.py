# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whole campaigns with experts, or FFN weights, in RAM and the real programs: two RPC devices and the CPU here."""

from __future__ import annotations

import pathlib
import subprocess
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import (
    llama_server,
    server_check,
    server_log,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import random_model
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import expert_stage
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment
from ansible_collections.homelab.mixed_gpu.tests.fixtures.real_host import RealHost

pytestmark = pytest.mark.live

Json = dict[str, t.Any]
BUDGET_MIB = 40


SETTINGS = {
    "model_id": "moe", "model_sha256": "a" * 64, "deployment": "moe", "context_size": 512, "micro_batch_size": 64,
    "batch_size": 512, "micro_batches": [128], "objective": "request", "prompt_tokens": 128, "generated_tokens": 16,
    "bench_prompt_tokens": 128, "bench_generated_tokens": 4, "bench_repetitions": 1, "baseline_max_loads": 1,
    "reserve_mib": 4, "speculation": "none", "load_timeout_seconds": 300,
}  # fmt: skip


#: What the models differ in, by what is in RAM of them.
SHAPES = {
    "experts": {"blocks": 16, "feed_forward_length": 512, "expert_count": 8, "expert_used_count": 2},
    "ffn": {"blocks": 16, "feed_forward_length": 4096},
}


@pytest.fixture(scope="module", params=SHAPES)
def tuned(
    request: pytest.FixtureRequest, llama_bin: pathlib.Path, rpc_endpoints: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[RealHost, Json]:  # fmt: skip
    folder = tmp_path_factory.mktemp("moe")
    options = random_model.checked_options({"embedding_length": 512, "type": "q8_0", **SHAPES[request.param]})
    random_model.write_model(str(folder / "moe.gguf"), options, "0" * 64)
    endpoints = rpc_endpoints[:2]
    own = {"model_path": f"{folder}/moe.gguf", "device_budget_mib": dict.fromkeys(endpoints, BUDGET_MIB)}
    host = RealHost(folder, llama_bin, endpoints, {**SETTINGS, **own})
    return host, host.tune()


def test_the_campaign_ends_with_a_placement_that_fits(tuned: tuple[RealHost, Json]) -> None:
    host, result = tuned
    decision = result["tuning"]["plan"]["decision"]
    assert decision["experts_in_ram"] is not None and sum(decision["layers"]) == 17
    # by llama.cpp's own count, too
    assert all(mib <= BUDGET_MIB for mib in result["tuning"]["dry_run"]["mib"])
    loads = [load for load in result["tuning"]["loads"] if load["purpose"] != "baseline"]
    before = [load for load in loads if load["purpose"] != "confirm"]
    assert loads[0]["purpose"] == "anchor" and len(before) <= expert_stage.MOST_BEFORE
    # of a dense model llama.cpp leaves whole layers in RAM, which is not asked
    experts = decision["experts_in_ram"]["kind"] == "experts"
    assert [item.step.args["fit"] for item in host.done if "fit" in item.step.args] == [True] * experts
    assert (decision["default_layers"] is not None) == experts, decision["why"]


def test_the_server_holds_exactly_the_decided_experts_in_ram(
    tuned: tuple[RealHost, Json], llama_bin: pathlib.Path
) -> None:
    _host, result = tuned
    entry = deployment.build(result["tuning"])
    settings = {
        "host": "127.0.0.1", "port": 0, "alias": "moe", "cache_ram_mib": 0, "cors_origins": "localhost",
        "log_verbosity": 5, "extra_arguments": [], "allowed_networks": [], "load_timeout_seconds": 300,
    }  # fmt: skip
    words = llama_server.command(entry, settings)["arguments"]
    text = ""
    with subprocess.Popen(
        [str(llama_bin / "llama-server"), *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
    ) as server:  # fmt: skip
        assert server.stdout is not None
        for line in server.stdout:
            text += line
            if server_log.is_loaded(line):
                break
        server.kill()
    load = server_log.parse_load(text)
    assert load["complete"] and server_check.deviations(entry, load) == []
    assert load["host_layers"] == 0 and load["overridden"]
