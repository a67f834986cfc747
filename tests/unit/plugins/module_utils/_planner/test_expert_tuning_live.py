# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A whole campaign with experts in RAM and the real programs: two RPC devices and the CPU of this machine."""

from __future__ import annotations

import pathlib
import subprocess
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import steps
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import (
    fit_params,
    llama_bench,
    llama_server,
    server_check,
    server_log,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import gguf_model, random_model
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import expert_stage
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment, expert_placement
from ansible_collections.homelab.mixed_gpu.tests.fixtures.dry_run import record

from . import test_tuning

pytestmark = pytest.mark.live

Json = dict[str, t.Any]
BUDGET_MIB = 40


class RealHost(test_tuning.Host):
    """A host whose programs are real; the first look and the lease are not needed."""

    def __init__(self, programs: pathlib.Path, path: pathlib.Path, endpoints: list[str]) -> None:
        super().__init__([])
        self.programs, self.path, self.endpoints = programs, path, endpoints
        self.model = gguf_model.read(gguf_model.files_of(str(path)))

    def split_tuning_info(self, step: steps.Step) -> Json:
        return {**super().split_tuning_info(step), "cpu": {"physical_cores": 2, "threads": 2}}

    def gguf_info(self, _step: steps.Step) -> Json:
        return {"available": True, "reason": None, "model": self.model}

    def llama_devices_info(self, _step: steps.Step) -> Json:
        words = llama_bench.list_devices_command(str(self.programs / "llama-bench"), self.endpoints)
        listed = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
        devices = [
            {**device, "id": endpoint, "budget_mib": BUDGET_MIB}
            for device, endpoint in zip(llama_bench.parse_devices(listed.stdout), self.endpoints, strict=True)
        ]
        return {"devices": devices, "environment": {}}

    def split_benchmark(self, step: steps.Step) -> Json:
        order = llama_bench.make_order(step.args["load"], step.args["devices"], step.args["serving"])
        words = llama_bench.bench_command(
            str(self.programs / "llama-bench"), str(self.path), order, step.args["rpc_endpoints"]
        )
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
        verdict = llama_bench.judge(done.returncode, done.stdout, done.stderr, None, order)
        assert verdict.status == "ok", (verdict.reason, done.stderr[-1000:], words)
        load = {**step.args["load"], "status": "ok", "reason": None, "results": verdict.results, "wall_ms": 1000,
                "fingerprint": step.args["fingerprint"], "campaign": step.args["campaign"]}  # fmt: skip
        return {"changed": True, "load": load}

    def llama_fit_params_info(self, step: steps.Step) -> Json:
        args, program = step.args, str(self.programs / "llama-fit-params")
        devices, endpoints = args["devices"], args["rpc_endpoints"]
        if args.get("fit"):
            words = fit_params.fit_command(
                program, str(self.path), devices, args["serving"], endpoints, args["margins_mib"]
            )
            done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
            context, placed = fit_params.parse_fit(done.stdout, devices, self.model["block_count"])
            fitted = {"layers": list(placed.layers), "experts_in_ram": expert_placement.as_json(placed)}
            return {"available": True, "refused": False, "reason": None, "dry_run": None,
                    "fitted": {**fitted, "context_size": context}}  # fmt: skip
        experts = expert_placement.from_json(args["layers"], args["experts_in_ram"])
        words = fit_params.command(
            program, str(self.path), devices, args["layers"], args["serving"], endpoints, "layer", experts
        )
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
        mib = [device["mib"] for device in fit_params.parse(done.stdout, devices)]
        difference = fit_params.compare(mib, self.model, args["serving"], args["layers"], experts, copied=False)
        return {"available": True, "reason": None, "refused": False,
                "dry_run": {"mib": mib, "difference_mib": difference}}  # fmt: skip


@pytest.fixture(scope="module")
def tuned(llama_bin: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[tuple[RealHost, Json]]:
    path = tmp_path_factory.mktemp("moe") / "moe.gguf"
    options = random_model.checked_options({
        "blocks": 16, "embedding_length": 512, "feed_forward_length": 512, "type": "q8_0", "expert_count": 8,
        "expert_used_count": 2,
    })  # fmt: skip
    random_model.write_model(str(path), options, "0" * 64)
    with record.rpc_servers(llama_bin, 2) as endpoints:
        host = RealHost(llama_bin, path, endpoints)
        plan = host.tune(
            model_path=str(path), rpc_endpoints=endpoints, probe=False, context_size=512, micro_batch_size=64,
            batch_size=512, micro_batches=[128], objective="request", prompt_tokens=128, generated_tokens=16,
            bench_prompt_tokens=128, bench_generated_tokens=4, bench_repetitions=1, baseline_max_loads=1,
            reserve_mib=4, modes=["layer"],
        )  # fmt: skip
        assert plan.result is not None, plan.failure
        yield host, plan.result


def test_the_campaign_ends_with_a_placement_that_fits(tuned: tuple[RealHost, Json]) -> None:
    host, result = tuned
    decision = result["tuning"]["plan"]["decision"]
    assert decision["experts_in_ram"] is not None and sum(decision["layers"]) == 17
    # by llama.cpp's own count, too
    assert all(mib <= BUDGET_MIB for mib in result["tuning"]["dry_run"]["mib"])
    loads = [load for load in result["tuning"]["loads"] if load["purpose"] != "baseline"]
    before = [load for load in loads if load["purpose"] != "confirm"]
    assert loads[0]["purpose"] == "anchor" and len(before) <= expert_stage.MOST_BEFORE
    assert [item.step.args["fit"] for item in host.done if "fit" in item.step.args] == [True]
    assert decision["default_layers"] is not None, decision["why"]


def test_the_server_holds_exactly_the_decided_experts_in_ram(tuned: tuple[RealHost, Json]) -> None:
    host, result = tuned
    entry = deployment.build(result["tuning"])
    settings = {
        "host": "127.0.0.1", "port": 0, "alias": "moe", "cache_ram_mib": 0, "cors_origins": "localhost",
        "log_verbosity": 5, "extra_arguments": [], "allowed_networks": [], "load_timeout_seconds": 300,
    }  # fmt: skip
    words = llama_server.command(entry, settings)["arguments"]
    text = ""
    with subprocess.Popen(
        [str(host.programs / "llama-server"), *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
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
