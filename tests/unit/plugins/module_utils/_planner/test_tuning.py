# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The planner of a whole tuning, as the action plugin campaign asks it; a simulated host answers."""

from __future__ import annotations

import copy
import json
import pathlib
import typing as t

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import steps
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import (
    planning_settings,
    tuning,
    tuning_experts,
    tuning_settings,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    deployment,
    expert_placement,
    fact_record,
    memory_plan,
)
from ansible_collections.homelab.mixed_gpu.tests.fixtures.experts import machine

Json = dict[str, t.Any]

ROOT = pathlib.Path(tuning.__file__).parents[3]
BLOCKS = 32
MODEL = {
    "path": "/srv/m.gguf", "name": "m", "file_type": "Q8_0", "architecture": "llama", "size_bytes": 400 * 2**20,
    "block_count": BLOCKS, "block_bytes": [12 * 2**20] * BLOCKS, "block_read_bytes": [12 * 2**20] * BLOCKS,
    "block_weights": [12 * 2**20] * BLOCKS, "output_bytes": 2**20, "embedding_length": 1024, "vocabulary_size": 512,
    "feed_forward_length": 2816, "expert_feed_forward_length": 0, "expert_count": 0, "expert_used_count": 0,
    "head_count": 8, "head_count_kv": 8, "key_length": 128,
    "kv_k_elements_per_token": [512] * BLOCKS, "kv_v_elements_per_token": [512] * BLOCKS, "notes": [],
}  # fmt: skip
PROBE_MODEL = {**MODEL, "block_count": 2, "block_bytes": [2**20] * 2, "size_bytes": 3 * 2**20}
GPUS = [
    {"id": f"GPU-{index}", "name": "NVIDIA GeForce RTX 3090", "pci_bus_id": f"0{index}:00", "power_limit_watts": 300,
     "memory_total_mib": 24576, "memory_bandwidth_gb_per_s": 936.0}
    for index in (1, 2)
]  # fmt: skip
FREE_MIB = 420
BOTH_MODES = ["layer", "tensor"]


def variables(**changes: t.Any) -> Json:
    """The variables of the role with its defaults; derived ones are given."""
    defaults = yaml.safe_load((ROOT / "roles/split_tuning/defaults/main.yml").read_text())
    own = {
        "model_id": "m", "model_path": "/srv/m.gguf", "model_sha256": "a" * 64, "deployment": "m-c2048",
        "probe_model_path": "/state/probe.gguf", "state_dir": "/state", "context_size": 2048, "reserve_mib": 0,
        "objective": "decode", "speculation": "none", **changes,
    }  # fmt: skip
    return {**defaults, **{f"split_tuning_{name}": value for name, value in own.items()}}


class Host:
    """A simulated host: what its modules return, and every step that was run."""

    def __init__(self, gpus: t.Sequence[Json] = GPUS) -> None:
        self.gpus = list(gpus)
        self.record = fact_record.empty()
        self.missing: list[str] = []
        self.fate: dict[str, str] = {}
        #: Time of a token in split mode tensor, and why llama.cpp has not got it.
        self.tensor_ms = 99.0
        self.no_tensor = ""
        self.done: list[steps.Done] = []

    def run(self, step: steps.Step) -> Json:
        return t.cast(Json, getattr(self, step.module)(step))

    def split_tuning_info(self, step: steps.Step) -> Json:
        return {
            "missing": self.missing, "build": "b1", "nccl": False, "versions": {}, "flash_attention": False,
            "cpu": {"physical_cores": 8, "threads": 16}, "memory_total_mib": 65536,
            "record": self.record, "record_problem": None,
            "gpus": {"available": True, "driver_version": "580.1", "gpus": copy.deepcopy(self.gpus)},
        }  # fmt: skip

    def gguf_info(self, step: steps.Step) -> Json:
        return {"available": True, "reason": None, "model": PROBE_MODEL if "probe" in step.args["path"] else MODEL}

    def random_gguf(self, _step: steps.Step) -> Json:
        return {"changed": True, "sha256": "b" * 64}

    def llama_devices_info(self, step: steps.Step) -> Json:
        devices = [
            {"device": f"CUDA{i}", "id": uuid, "backend": "CUDA", "description": "card", "total_mib": 24576,
             "free_mib": FREE_MIB, "budget_mib": None}
            for i, uuid in enumerate(step.args["cuda_ids"])
        ]  # fmt: skip
        cards = {"CUDA_VISIBLE_DEVICES": ",".join(step.args["cuda_ids"])}
        return {"devices": devices, "environment": {**cards, **step.args["environment"]}}

    def split_benchmark(self, step: steps.Step) -> Json:
        load = step.args["load"]
        status = self.fate.get(load["label"], "ok")
        cost = sum(ms * count for ms, count in zip((0.5, 0.9, 0.7), load["layers"], strict=False))
        if load["split_mode"] == "tensor":
            cost = self.tensor_ms
        results = [{**test, "samples_ms": [cost * (test["n_prompt"] / 10 + test["n_gen"])] * 3}
                   for test in load["tests"]]  # fmt: skip
        return {"changed": True, "load": {
            **load, "status": status, "reason": None if status == "ok" else f"it was {status}",
            "results": results if status == "ok" else [], "fingerprint": step.args["fingerprint"],
            "campaign": step.args["campaign"], "wall_ms": 4000, "reused": False,
        }}  # fmt: skip

    def split_mode_trial(self, step: steps.Step) -> Json:
        results = [{"kind": "trial", "allreduce": {"asked": "internal", "ran": "internal", "transport": None,
                    "fallback": None}}]  # fmt: skip
        return {"changed": True, "load": {**step.args["trial"], "status": "ok", "reason": None, "results": results}}

    def llama_fit_params_info(self, step: steps.Step) -> Json:
        if step.args.get("split_mode") == "tensor":
            said = f"{self.no_tensor}." if self.no_tensor else "one sum for all devices."
            return {"available": False, "refused": bool(self.no_tensor), "reason": said, "dry_run": None}
        return {"available": True, "reason": None, "dry_run": {"mib": [200, 200], "difference_mib": [1, 2]}}

    def host_info(self, _step: steps.Step) -> Json:
        return {"host": {"kernel": "6.8", "firmware": None}}

    def tune(self, predict: bool = False, **changes: t.Any) -> steps.Plan:
        """Run a campaign to its end, as the action plugin does."""
        planner = tuning.planner(variables(**changes))
        self.done = []
        while True:
            plan = planner.predict(self.done) if predict else planner.plan(self.done)
            if plan.result is not None or plan.failure is not None:
                return plan
            step = plan.steps[0]
            assert step.name not in [item.step.name for item in self.done]
            self.done.append(steps.Done(step, self.run(step), "2026-11-24T04:33:09Z"))
            planner.line(self.done[-1])

    @property
    def modules(self) -> list[str]:
        return [item.step.module for item in self.done]

    def keep(self, plan: steps.Plan) -> None:
        """Record a result as split_record does."""
        assert plan.result is not None
        entry = {**recorded(plan), "recorded_at": "2026-11-24T04:33:09Z"}
        self.record = fact_record.with_entry(self.record, "m-c2048", entry, True, "now")


class NewcomerHost(Host):
    """A host with a model whose memory is an estimate: its cache is three times what its header lets expect."""

    refused = False

    def gguf_info(self, step: steps.Step) -> Json:
        result = super().gguf_info(step)
        return result if "probe" in step.args["path"] else {**result, "model": {**MODEL, "estimated": True}}

    def llama_fit_params_info(self, step: steps.Step) -> Json:
        if step.name == "dry run" or "split_mode" in step.args and step.args["split_mode"] == "tensor":
            return super().llama_fit_params_info(step)
        if self.refused:
            said = "llama.cpp refuses it (unknown type)."
            return {"available": False, "refused": True, "reason": said, "devices": []}
        real = memory_plan.MemoryPlan(MODEL, step.args["serving"])
        held = [real.device(step.args["layers"], device) for device in range(len(step.args["devices"]))]
        parts = [(memory.weights >> 20, 3 * memory.kv >> 20, memory.compute >> 20) for memory in held]
        names = ("model_mib", "kv_mib", "compute_mib")
        devices = [dict(zip(names, each, strict=True)) for each in parts]
        return {"available": True, "reason": None, "devices": devices, "dry_run": None}


def recorded(plan: steps.Plan) -> Json:
    """Return the entry that split_record makes of a result."""
    assert plan.result is not None, plan.failure
    return t.cast(Json, json.loads(json.dumps(fact_record.check_entry(deployment.build(plan.result["tuning"])))))


@pytest.fixture
def host() -> Host:
    return Host()


def test_a_tuning_ends_with_all_that_is_recorded(host: Host) -> None:
    plan = host.tune(modes=["layer"])
    assert plan.result is not None and plan.result["needed"]
    entry = recorded(plan)
    assert entry["decision"]["verdict"] == "faster" and entry["campaign"] == "after nothing"
    assert entry["device_probe"]["model_path"] == "/state/probe.gguf" and entry["dry_run"]["mib"] == [200, 200]
    assert entry["serving"]["gpu_layers"] == 99 and entry["serving"]["micro_batch_size"] == 512
    assert plan.result["baseline"]["build"] == "b1" and len(plan.result["baseline"]["loads"]) >= 3
    assert plan.result["lines"][-1] == entry["decision"]["why"]
    # nothing touches a device before the lease is named, and everything after it does so under the lease
    names = [item.step.name for item in host.done]
    assert names[:4] == ["look", "weigh", "probe model", "probe sizes"] and names[4] == "devices"
    assert host.modules.count("split_benchmark") == 2 + entry["decision"]["loads_used"] + 1
    assert entry["decision"]["tensor"] is None


def test_split_mode_tensor_is_tried_last(host: Host) -> None:
    host.tensor_ms = 5.0
    plan = host.tune()  # both modes are the default
    entry = recorded(plan)
    assert (entry["split_mode"], entry["environment"]["GGML_CUDA_ALLREDUCE"]) == ("tensor", "internal")
    assert entry["decision"]["tensor"]["allreduce"]["ran"] == "internal"
    trial = next(item.step for item in host.done if item.step.module == "split_mode_trial")
    # the known hang comes after 40 seconds without a request
    assert trial.args["idle_gaps"] >= 1 and trial.args["idle_seconds"] > 40
    assert trial.limit_seconds > trial.args["idle_gaps"] * trial.args["idle_seconds"]
    loads = [item.step.args["load"] for item in host.done if item.step.module == "split_benchmark"]
    tensor = [load["split_mode"] for load in loads].index("tensor")
    assert all(load.get("purpose") in ("tensor", "against_tensor", "baseline") for load in loads[tensor:])
    # llama.cpp is asked before it loads
    asked = [item.step.name for item in host.done].index("question of split mode tensor")
    assert host.done[asked + 1].step.args["load"]["split_mode"] == "tensor"


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda host: setattr(host, "no_tensor", "not implemented for architecture 'olmo2'"),
         "tensor mode was not tried: llama.cpp refuses it: not implemented for architecture 'olmo2'"),
    ],
)  # fmt: skip
def test_split_mode_tensor_that_cannot_be_had_costs_no_load(
    host: Host, prepare: t.Callable[[Host], t.Any], words: str
) -> None:
    prepare(host)
    entry = recorded(host.tune(modes=BOTH_MODES))
    assert entry["split_mode"] == "layer" and entry["decision"]["tensor"]["verdict"] == "not_tried"
    assert words in entry["decision"]["tensor"]["why"]
    loads = [item.step.args["load"] for item in host.done if item.step.module == "split_benchmark"]
    assert not [load for load in loads if load["split_mode"] == "tensor"]


def test_only_an_all_reduce_that_these_devices_have_is_an_arm() -> None:
    two, three = Host(), Host([*GPUS, {**GPUS[0], "id": "GPU-3"}])
    ways = []
    for host in (two, three):
        plan = host.tune()
        assert plan.result is not None, plan.failure
        ways.append(plan.result["tuning"]["problem"]["tensor"]["allreduce"])
    # the internal one is for two cards
    assert ways == [["internal"], ["none"]]


def test_the_lease_is_named_from_the_devices_on(host: Host) -> None:
    host.tune()
    planner = tuning.planner(variables())
    plans = [planner.plan(host.done[:count]) for count in range(len(host.done))]
    leased = [plan.lease is not None for plan in plans]
    assert leased == [False] * 4 + [True] * (len(plans) - 4)
    assert plans[4].store == steps.Store("/state/measurements", ("after nothing",))
    assert [plan.steps[0].name for plan in plans] == [item.step.name for item in host.done]
    assert plans[-1].measurements >= host.modules.count("split_benchmark")


def test_an_unchanged_host_needs_one_look(host: Host) -> None:
    host.keep(host.tune())
    plan = host.tune()
    assert host.modules == ["split_tuning_info"]
    assert plan.result is not None and (plan.result["needed"], plan.result["activate"]) == (False, False)
    host.record["active"] = "another"
    plan = host.tune()
    assert plan.result is not None and plan.result["activate"]
    plan = host.tune(active=False)
    assert plan.result is not None and not plan.result["activate"]


@pytest.mark.parametrize(
    "change",
    [{"context_size": 1024}, {"model_sha256": "c" * 64}, {"environment": {"A": "1"}}, {"fingerprint_extra": {"x": 1}},
     {"retune": True}, {"device_budget_mib": {"CUDA0": 400}}],
)  # fmt: skip
def test_a_change_measures_again_under_another_campaign(host: Host, change: Json) -> None:
    host.keep(host.tune())
    plan = host.tune(**change)
    assert plan.result is not None and plan.result["needed"]
    assert plan.result["tuning"]["campaign"] == "after 2026-11-24T04:33:09Z"


def test_a_probe_of_the_same_devices_stands_unless_a_retune_is_asked_for(host: Host) -> None:
    host.keep(host.tune())

    def probes() -> set[t.Any]:
        return {i.step.args["campaign"] for i in host.done if i.step.name.startswith("probe of ")}

    host.tune(model_sha256="c" * 64)
    assert probes() == {"after nothing"}
    host.tune(retune=True)
    assert probes() == {"after 2026-11-24T04:33:09Z"}


def test_another_power_limit_or_driver_measures_again(host: Host) -> None:
    host.keep(host.tune())
    host.gpus[0]["power_limit_watts"] = 280
    assert (host.tune().result or {})["needed"]


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda host: host.missing.append("/srv/m.gguf"), "/srv/m.gguf does not exist. Run the llama_cpp"),
        (lambda host: host.fate.update({"CUDA1 (GPU-2) alone": "crashed"}), "failed alone with the small probe model"),
        (lambda host: host.fate.update({"9/24 load 1": "device_lost"}), "a device was lost"),
    ],
)
def test_what_ends_a_campaign_is_one_sentence(host: Host, prepare: t.Callable[[Host], t.Any], words: str) -> None:
    prepare(host)
    plan = host.tune()
    assert plan.failure is not None and words in plan.failure and plan.failure.endswith(".")


@pytest.mark.parametrize("predict", [False, True])
def test_a_budget_of_a_card_that_is_not_there_is_refused_before_anything_is_stopped(host: Host, predict: bool) -> None:
    words = r"names GPU-3, h:1, which are none of the devices here: CUDA0 \(GPU-1\), CUDA1 \(GPU-2\)$"
    with pytest.raises(UserError, match=words):
        host.tune(predict=predict, device_budget_mib={"GPU-1": 900, "GPU-3": 900, "h:1": 900})
    assert host.modules == ["split_tuning_info"]


@pytest.mark.parametrize("name", ["RPC0", "10.0.0.2:50052", "10.0.0.2:50052#1"])
def test_a_prediction_leaves_budgets_of_lenders_that_were_not_asked_to_the_tuning(host: Host, name: str) -> None:
    asked = {"rpc_endpoints": ["10.0.0.2:50052"], "device_budget_mib": {"CUDA0": 4000, name: 900}}
    plan = host.tune(predict=True, **asked)
    assert plan.result is not None and "prediction" in plan.result


@pytest.mark.parametrize("asked", [{"predict_only": True}, {}])
def test_the_name_of_a_budget_that_is_a_number_is_no_device(host: Host, asked: dict[str, t.Any]) -> None:
    with pytest.raises(UserError, match="names 0, which is none of the devices here"):
        host.tune(predict=True, device_budget_mib={0: 900}, **asked)


def test_a_prediction_leaves_the_budget_of_a_card_that_came_after_the_record_to_the_tuning(host: Host) -> None:
    host.keep(host.tune())
    host.gpus.append({**host.gpus[0], "id": "GPU-3"})
    plan = host.tune(predict=True, device_budget_mib={"CUDA2": 900})
    assert plan.result is not None and "prediction" in plan.result


def test_a_failed_baseline_ends_with_what_there_is(host: Host) -> None:
    first = host.tune()
    assert first.result is not None
    layers = "/".join(str(n) for n in first.result["tuning"]["plan"]["decision"]["layers"])
    host.fate = {f"{layers} load 3 (baseline)": "out_of_memory"}
    plan = host.tune()
    assert plan.result is not None and "fails when it is measured once more" in plan.result["lines"][0]


def test_a_fresh_host_in_check_mode_says_what_is_missing(host: Host) -> None:
    host.missing = ["/srv/m.gguf"]
    plan = host.tune(predict=True)
    assert plan.result is not None and plan.result["lines"] == [
        "The split is unknown until /srv/m.gguf exists: a real run installs it first."
    ]
    assert host.modules == ["split_tuning_info"]


def test_check_mode_predicts_and_measures_nothing(host: Host) -> None:
    plan = host.tune(predict=True)
    assert host.modules == ["split_tuning_info", "gguf_info"]
    assert plan.result is not None
    assert plan.result["lines"][0] == "Would measure splits of m now: nothing is recorded for m-c2048."
    assert "PREDICTION, nothing was measured" in plan.result["lines"][1] and plan.result["prediction"]["rows"]


def test_a_plan_for_a_host_without_cards_says_so() -> None:
    plan = Host([]).tune(predict=True, predict_only=True)
    assert plan.failure == tuning.NO_CARD and "mixed_gpu_profile" in plan.failure


def test_a_profile_and_a_shape_need_no_host(host: Host) -> None:
    plan = host.tune(
        predict=True, profile="rtx4090_rtx3090", shape="llama_3_3_70b_q4_k_m", context_size="8192", objective="request",
        reserve_mib=512,
    )
    assert plan.result is not None and host.modules == []
    assert "43/38 is predicted to be the fastest" in plan.result["why"]


# --- ExLlama ---------------------------------------------------------------------------------------------------------


class ExllamaHost(Host):
    """ExLlama's headers come first, and its loads say how they were placed."""

    def exl_model_info(self, _step: steps.Step) -> Json:
        model = {**MODEL, "path": "/srv/m", "file_type": "F16", "block_attention_bytes": [4 * 2**20] * BLOCKS,
                 "window_tokens": [0] * BLOCKS, "intermediate_size": 2816}  # fmt: skip
        return {"available": True, "reason": None, "model": model, "headers_sha256": "d" * 64}

    def exllama_devices_info(self, step: steps.Step) -> Json:
        listed = self.llama_devices_info(step)
        return {**listed, "devices": [{**device, "free_mib": 4000} for device in listed["devices"]]}

    generation = "v2"
    #: Nats per token that split mode tensor finds a text unlikely by; in layer mode it is 1.25.
    tensor_nats = 1.25

    def split_benchmark(self, step: steps.Step) -> Json:
        assert step.args["exllama"]["python"] == f"/opt/exllama/{self.generation}/venv/bin/python"
        result = super().split_benchmark(step)
        load = result["load"]
        nats, shared = 1.25, load["split_mode"] == "tensor"
        if shared:
            way = load["environment"]["MIXED_GPU_EXLLAMA_ALLREDUCE"]
            # NCCL is a little slower here
            for test in load["results"]:
                test["samples_ms"] = [ms * (1.1 if way == "nccl" else 1) for ms in test["samples_ms"]]
            load["allreduce"] = {"asked": way, "ran": way, "transport": None, "fallback": None}
            nats = self.tensor_nats
        load.update(
            gpu_split_gb=[3.0, 2.0] if shared else [1.0, 2.0], loaded=[{"id": "GPU-1"}],
            answers={"text": "t", "judged_tokens": 95, "nats_per_token": nats, "tokens": [1]},
        )  # fmt: skip
        return result


def test_an_exllama_is_tuned_by_the_same_planner() -> None:
    host = ExllamaHost()
    given: Json = {"engine": "exllamav2", "model_path": "/srv/m", "exllama_gpus": ["GPU-2", "GPU-1"]}
    plan = host.tune(**given)
    entry = recorded(plan)
    assert plan.result is not None
    assert entry["serving"]["engine"] == "exllamav2" and entry["gpu_split_gb"] == [1.0, 2.0]
    assert [device["id"] for device in entry["devices"]] == ["GPU-2", "GPU-1"]
    assert entry["fingerprint_parts"]["model_headers_sha256"] == "d" * 64
    assert "llama_cpp" not in entry["fingerprint_parts"] and entry["fingerprint_parts"]["engine_build"] == "b1"
    assert entry["dry_run"] is None and entry["device_probe"] is None
    # as llama.cpp's: loads of the chosen split, and what it was measured with
    baseline = plan.result["baseline"]
    assert (baseline["build"], baseline["reason"]) == ("b1", "tuned") and len(baseline["loads"]) >= 3
    chosen = [place["layers"] for place in entry["placement"]]
    assert all(load["layers"] == chosen for load in baseline["loads"])
    bench = next(item.step.args for item in host.done if item.step.module == "split_benchmark")
    assert bench["environment"]["CUDA_VISIBLE_DEVICES"] == "GPU-2,GPU-1"
    assert bench["environment"]["EXLLAMA_NO_FLASH_ATTN"] == "1"
    with pytest.raises(ValueError, match="names GPU-9, and this host has GPU-1, GPU-2"):
        host.tune(**{**given, "exllama_gpus": ["GPU-9"]})


class SharingHost(ExllamaHost):
    """The same with ExLlamaV3, which can share layers."""

    generation = "v3"

    def tune(self, predict: bool = False, **changes: t.Any) -> steps.Plan:
        return super().tune(predict, engine="exllamav3", model_path="/srv/m", exllama_modes=BOTH_MODES, **changes)


def test_layers_are_shared_where_exllama_is_faster_so() -> None:
    host = SharingHost()
    host.tensor_ms = 5.0
    plan = host.tune()
    entry = recorded(plan)
    assert plan.result is not None
    assert (entry["split_mode"], entry["tensor_parallel"], entry["gpu_split_gb"]) == ("tensor", "native", [3.0, 2.0])
    assert entry["environment"]["MIXED_GPU_EXLLAMA_ALLREDUCE"] == "native"
    found = entry["decision"]["tensor"]
    assert found["allreduce"]["ran"] == "native" and found["attention_units"] == 8
    assert {row["allreduce"] for row in found["table"]} == {None, "native", "nccl"}
    # nothing of llama.cpp is asked, and the trial is a load of the same module that works and rests
    assert not {"llama_fit_params_info", "split_mode_trial"} & set(host.modules)
    (trial,) = [item.step for item in host.done if item.step.args.get("load", {}).get("purpose") == "tensor_trial"]
    soak = trial.args["load"]["soak"]
    assert soak["idle_gaps"] >= 1 and soak["idle_seconds"] > 40
    assert trial.args["timeout_seconds"] > soak["seconds"] + soak["idle_gaps"] * soak["idle_seconds"]
    assert trial.limit_seconds > trial.args["timeout_seconds"]
    baseline = plan.result["baseline"]["loads"]
    assert len(baseline) >= 3 and {load["split_mode"] for load in baseline} == {"tensor"}
    assert "soak" not in baseline[-1]


@pytest.mark.parametrize("nats", [1.3, None])
def test_shared_layers_that_answer_otherwise_are_not_trusted(nats: float | None) -> None:
    host = SharingHost()
    host.tensor_ms, host.tensor_nats = 5.0, nats  # type: ignore[assignment]
    entry = recorded(host.tune())
    assert (entry["split_mode"], entry["tensor_parallel"], entry["gpu_split_gb"]) == ("layer", "", [1.0, 2.0])
    assert entry["decision"]["tensor"]["verdict"] == "rejected"
    assert "but is not trusted: trial of tensor" in entry["decision"]["tensor"]["why"]


def test_a_model_that_exllama_does_not_share_stays_as_it_is_in_one_sentence() -> None:
    host = SharingHost()
    refused = "ExLlamaV3 refuses it: Tensor-parallel is not currently implemented for Olmo3ForCausalLM"

    def refuse(step: steps.Step) -> Json:
        result = ExllamaHost.split_benchmark(host, step)
        if step.args["load"]["split_mode"] == "tensor":
            result["load"].update(status="crashed", reason=refused, results=[])
        return result

    host.split_benchmark = refuse  # type: ignore[method-assign]
    entry = recorded(host.tune())
    found = entry["decision"]["tensor"]
    assert (entry["split_mode"], found["verdict"]) == ("layer", "not_usable")
    assert found["why"] == f"tensor mode is not usable here: {refused}"


def test_an_exllama_that_cannot_share_layers_measures_by_layer_alone() -> None:
    host = ExllamaHost()
    entry = recorded(host.tune(engine="exllamav2", model_path="/srv/m", exllama_modes=BOTH_MODES))
    assert entry["split_mode"] == "layer"
    why = "tensor mode was not tried: ExLlamaV2 is measured by layer alone"
    assert entry["decision"]["tensor"] == {"verdict": "not_tried", "why": why}


def test_an_exllama_shares_layers_only_where_that_was_asked_for() -> None:
    entry = recorded(ExllamaHost().tune(engine="exllamav2", model_path="/srv/m", modes=BOTH_MODES))
    assert (entry["split_mode"], entry["decision"].get("tensor")) == ("layer", None)


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_are_the_documented_variables() -> None:
    documented = yaml.safe_load((ROOT / "roles/split_tuning/meta/argument_specs.yml").read_text())
    read = (tuning_settings.Settings, planning_settings.Question)
    names = {f"split_tuning_{name}" for settings in read for name in settings.__annotations__}
    of_tasks = {"split_tuning_keep_campaigns"}                 # which the planner has no use for
    assert names | of_tasks == set(documented["argument_specs"]["main"]["options"])


def test_text_of_the_command_line_is_read_as_what_it_is() -> None:
    settings = tuning_settings.read(variables(context_size="4096", retune="yes", indifference="0.02", other=1))
    assert (settings.context_size, settings.retune, settings.indifference) == (4096, True, 0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_loads": "many"}, "split_tuning_max_loads is 'many': it must be a whole number"),
        ({"max_loads": 2.5}, "it must be a whole number"),
        ({"max_loads": True}, "it must be a whole number"),
        ({"indifference": True}, "it must be a number"),
        ({"retune": "perhaps"}, "it must be true or false"),
        ({"modes": "layer"}, "it must be a list of words"),
        ({"modes": ["row"]}, "split_tuning_modes names 'row'"),
        ({"exllama_modes": ["row"]}, "split_tuning_exllama_modes names 'row'"),
        ({"environment": []}, "it must be a dict"),
        ({"model_id": None}, "it must be text"),
        ({"engine": "vllm"}, "it must be llama_cpp, exllamav2 or exllamav3"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value(change: Json, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tuning_settings.read(variables(**change))


def test_a_missing_variable_is_named() -> None:
    given = variables()
    del given["split_tuning_poll"]
    with pytest.raises(ValueError, match="split_tuning_poll is missing"):
        tuning_settings.read(given)


def test_a_model_that_is_not_modelled_is_planned_for_by_the_dry_run() -> None:
    known, newcomer = Host(), NewcomerHost()
    plans = [host.tune(context_size=1024) for host in (known, newcomer)]
    asked = [item.step for item in newcomer.done if item.step.name.startswith("dry run of")]
    assert [step.args["layers"][0] for step in asked][0] == BLOCKS + 1 and len(asked) > 2
    assert all(step.args["serving"]["context_size"] == 1024 for step in asked)
    first = [item.step.module for item in newcomer.done].index("split_benchmark")
    assert all(newcomer.done.index(item) < first for item in newcomer.done if item.step in asked)
    caches = []
    for plan in plans:
        assert plan.result is not None, plan.failure
        problem = plan.result["tuning"]["problem"]
        caches.append(sum(memory_plan.MemoryPlan(problem["model"], problem["serving"]).cache_bytes))
    assert caches[1] == pytest.approx(3 * caches[0], rel=0.05)
    assert not [item for item in known.done if item.step.name.startswith("dry run of")]
    too_large = NewcomerHost()
    plan = too_large.tune(context_size=8192)
    assert plan.failure is not None and "does not fit" in plan.failure
    assert not [item for item in too_large.done if item.step.args.get("load", {}).get("label", "").endswith("load 1")]


# --- contexts --------------------------------------------------------------------------------------------------------


class RoomyHost(Host):
    """A host whose dry run counts as the plan does, plus C(more) MiB on each device."""

    more = 0

    def llama_fit_params_info(self, step: steps.Step) -> Json:
        if step.name == "dry run":
            return super().llama_fit_params_info(step)
        mib = memory_plan.MemoryPlan(MODEL, step.args["serving"]).mib(step.args["layers"])
        devices = [{"device": f"CUDA{i}", "mib": need + self.more} for i, need in enumerate(mib)]
        return {"available": True, "reason": None, "refused": False, "devices": devices, "dry_run": None}


def contexts_asked(host: Host) -> list[int]:
    return [i.step.args["serving"]["context_size"] for i in host.done if i.step.name.startswith("dry run of a context")]


def test_the_largest_context_is_found_before_anything_is_measured_and_recorded() -> None:
    host = RoomyHost()
    plan = host.tune(context_size="max")
    entry = recorded(plan)
    largest = entry["serving"]["context_size"]
    assert contexts_asked(host) == [largest, largest + 1024]
    names = [item.step.name for item in host.done]
    asked = [names.index(name) for name in names if name.startswith("dry run of a context")]
    assert max(asked) < host.modules.index("split_benchmark")
    assert all(
        item.step.args["serving"]["context_size"] == largest
        for item in host.done
        if item.step.module == "split_benchmark" and not item.step.name.startswith("probe of ")
    )
    # what is asked for, not what was found, decides whether a tuning is due: the record stands
    assert entry["fingerprint_parts"]["serving"]["context_size"] == "max"
    host.keep(plan)
    host.tune(context_size="max")
    assert host.modules == ["split_tuning_info"]


def test_the_dry_run_lowers_the_largest_context() -> None:
    plain, strict = RoomyHost(), RoomyHost()
    strict.more = 40
    sizes = [recorded(host.tune(context_size="max"))["serving"]["context_size"] for host in (plain, strict)]
    assert sizes[1] < sizes[0] and contexts_asked(strict)[0] == sizes[0] and contexts_asked(strict)[-1] == sizes[1]


def test_a_host_without_room_for_any_context_says_so() -> None:
    host = RoomyHost()
    with pytest.raises(ValueError, match="not even a context of 1024 tokens fits: .* MiB are missing"):
        host.tune(context_size="max", reserve_mib=300)
    assert "split_benchmark" not in host.modules
    with pytest.raises(ValueError, match="split_tuning_context_size must be at least 1, not 0"):
        tuning_settings.read(variables(context_size=0))
    with pytest.raises(ValueError, match="the engine is exllamav3: give a number of tokens"):
        tuning_settings.read(variables(context_size="max", engine="exllamav3"))


def test_the_largest_context_of_a_model_that_is_not_modelled() -> None:
    class Newcomer(NewcomerHost):
        def llama_fit_params_info(self, step: steps.Step) -> Json:
            found = super().llama_fit_params_info(step)
            parts = ("model_mib", "kv_mib", "compute_mib")
            devices = [{**d, "mib": sum(d[part] for part in parts)} for d in found.get("devices", [])]
            return {**found, "devices": devices}

    host = Newcomer()
    largest = recorded(host.tune(context_size="max"))["serving"]["context_size"]
    assert largest % 1024 == 0 and contexts_asked(host)
    assert largest < recorded(RoomyHost().tune(context_size="max"))["serving"]["context_size"]


def test_a_tuning_records_what_other_contexts_would_cost(host: Host) -> None:
    entry = recorded(host.tune())
    assert entry["decision"]["effort"]["loads"] >= entry["decision"]["loads_used"]
    contexts = entry["decision"]["contexts"]
    assert {row["cache_type_k"] for row in contexts["rows"]} == {"f16", "q8_0", "q4_0"}
    (asked,) = [row for row in contexts["rows"] if row["asked"]]
    assert asked["context_size"] == 2048 and "m-c2048 measured" in contexts["source"]
    true_ms = 0.5 * asked["layers"][0] + 0.9 * asked["layers"][1]
    assert asked["decode_empty"]["low"] < 1000 / true_ms < asked["decode_empty"]["high"]


def test_a_plan_on_a_tuned_host_uses_what_was_measured(host: Host) -> None:
    # what a role says of the builds behind RPC servers is not known to a plan
    host.keep(host.tune(fingerprint_extra={"rpc_builds": ["slow"]}))
    for gpu in host.gpus:
        del gpu["memory_bandwidth_gb_per_s"]
    plan = host.tune(predict=True, predict_only=True, context_size=1024, cache_type_k="q8_0", cache_type_v="q8_0",
                     model_sha256="", deployment="m-c1024-q8")  # fmt: skip
    assert plan.result is not None
    assert plan.result["lines"][0] == "PREDICTION from what m-c2048 measured: m Q8_0"
    best = plan.result["prediction"]["best"]
    true_rate = 1000 / (0.5 * best["layers"][0] + 0.9 * best["layers"][1])
    assert best["decode_interval"][0] < true_rate < best["decode_interval"][1]
    assert any(line.startswith("How much context") for line in plan.result["lines"])


@pytest.mark.parametrize("objective", ["decode", "request"])
def test_another_profile_of_a_tuned_model_needs_two_loads_for_its_split(host: Host, objective: str) -> None:
    def of_the_split(plan: steps.Plan) -> list[str]:
        assert plan.result is not None
        loads = plan.result["tuning"]["loads"]
        return [load["label"] for load in loads if load["purpose"] in ("anchor", "confirm")]

    first = host.tune(objective=objective)
    host.keep(first)
    other = {"context_size": 1024, "cache_type_k": "q8_0", "cache_type_v": "q8_0", "deployment": "m-c1024-q8"}
    second = host.tune(objective=objective, **other)
    assert len(of_the_split(second)) == 2 < len(of_the_split(first))
    assert recorded(second)["decision"]["verdict"] == "faster"
    # asked for anew, nothing is taken over
    third = host.tune(objective=objective, retune=True, **other)
    assert len(of_the_split(third)) == len(of_the_split(first))


def test_a_fine_tune_of_a_tuned_model_starts_from_its_costs(host: Host) -> None:
    host.keep(host.tune())
    other = {"model_id": "tuned", "model_path": "/srv/tuned.gguf", "model_sha256": "c" * 64, "deployment": "t-c2048"}
    plan = host.tune(predict=True, predict_only=True, **other)
    assert plan.result is not None and plan.result["prediction"]["measured_by"] == "m-c2048"
    plan = host.tune(**other)
    assert plan.result is not None
    assert plan.result["tuning"]["problem"]["known_costs"]["deployment"] == "m-c2048"
    assert sum(load["purpose"] in ("anchor", "confirm") for load in plan.result["tuning"]["loads"]) == 2


def test_a_model_with_other_blocks_starts_from_nothing(host: Host) -> None:
    host.keep(host.tune())
    (entry,) = host.record["models"].values()
    entry["model"]["blocks_fingerprint"] = "of another quant"
    plan = host.tune(model_sha256="c" * 64, deployment="other-c2048")
    assert plan.result is not None and plan.result["tuning"]["problem"]["known_costs"] is None


def test_a_model_that_llama_cpp_refuses_costs_no_load() -> None:
    host = NewcomerHost()
    host.refused = True
    plan = host.tune()
    assert plan.failure == "/srv/m.gguf cannot be planned for: llama.cpp refuses it (unknown type)."
    assert "split_benchmark" not in host.modules


# --- experts in RAM ---------------------------------------------------------------------------------------------------


class MoeHost(Host):
    """A host whose model of experts does not fit its cards; what it measures follows from a simulated machine."""

    fitted: Json | None = None
    refused_by_fit = False

    def __init__(self, gpus: t.Sequence[Json] = GPUS) -> None:
        super().__init__(gpus)
        self.model = machine.make_model()
        self.simulated = machine.Machine(machine.make_problem())

    def gguf_info(self, step: steps.Step) -> Json:
        result = super().gguf_info(step)
        return result if "probe" in step.args["path"] else {**result, "model": self.model}

    def llama_devices_info(self, step: steps.Step) -> Json:
        listed = super().llama_devices_info(step)
        return {**listed, "devices": [{**device, "free_mib": 850} for device in listed["devices"]]}

    def split_benchmark(self, step: steps.Step) -> Json:
        result = super().split_benchmark(step)
        if step.name.startswith("probe of "):
            return result
        measured = self.simulated.measure(step.args["load"])
        return {**result, "load": {**result["load"], "results": measured["results"]}}

    def llama_fit_params_info(self, step: steps.Step) -> Json:
        if step.args.get("fit"):
            return {"available": self.fitted is not None, "refused": self.refused_by_fit, "reason": "no.",
                    "fitted": self.fitted, "dry_run": None}  # fmt: skip
        return super().llama_fit_params_info(step)


def test_a_model_of_experts_is_tuned_with_some_of_them_in_ram() -> None:
    host = MoeHost()
    plan = host.tune(objective="request")
    entry = recorded(plan)
    assert plan.result is not None and entry["experts_in_ram"]["blocks"]
    # llama.cpp is asked once, before the first load
    asked = [index for index, item in enumerate(host.done) if item.step.args.get("fit")]
    of_model = [item.step.args.get("model_path") == "/srv/m.gguf" for item in host.done]
    loads = [index for index, item in enumerate(host.done) if of_model[index] and "load" in item.step.args]
    assert len(asked) == 1 and asked[0] < loads[0]
    first = host.done[loads[0]].step.args["load"]
    assert {test["threads"] for test in first["tests"]} == {2, 4, 6, 8, 12, 16}
    dry = next(item.step for item in host.done if item.step.name == "dry run")
    assert dry.args["experts_in_ram"] == plan.result["tuning"]["plan"]["decision"]["experts_in_ram"]
    assert dry.args["serving"]["micro_batch_size"] == entry["serving"]["micro_batch_size"]
    # the baseline is of what is served
    base = plan.result["baseline"]["loads"]
    assert len(base) >= 3 and all(load["experts_in_ram"] == dry.args["experts_in_ram"] for load in base)
    host.keep(plan)
    again = host.tune(objective="request")
    assert host.modules == ["split_tuning_info"] and again.result is not None and not again.result["needed"]
    changed = host.tune(objective="request", expert_threads=[4])
    assert changed.result is not None and changed.result["needed"]
    assert recorded(changed)["experts_in_ram"]["threads"] == 4


def test_llama_cpps_own_placement_is_a_rival() -> None:
    host = MoeHost()
    host.fitted = {
        "layers": [12, 13], "context_size": 2048,
        "experts_in_ram": {"kind": "experts", "blocks": list(range(9, 24)), "partial": None, "threads": 0,
                           "no_host": False, "override": "blk[.](9|10)[.]ffn_(up)_(ch|)exps=CPU"},
    }  # fmt: skip
    plan = host.tune(objective="request")
    assert plan.result is not None
    assert plan.result["tuning"]["plan"]["decision"]["default_layers"] == [12, 13]
    assert [12, 13] in [load["layers"] for load in plan.result["tuning"]["loads"]]


def test_the_card_with_the_widest_link_is_the_first_where_experts_are_in_ram() -> None:
    gpus = [{**gpu, "pcie_width": width, "pcie_generation_max": 4, "memory_total_mib": 900}
            for gpu, width in zip(GPUS, (4, 16), strict=True)]  # fmt: skip
    host = MoeHost(gpus)
    plan = host.tune(objective="request")
    assert plan.result is not None
    problem = plan.result["tuning"]["problem"]
    assert [device["id"] for device in problem["devices"]] == ["GPU-2", "GPU-1"]
    assert problem["experts_in_ram"]["links_gb_per_s"] == pytest.approx([16 * 1.969, 4 * 1.969])
    # a dense model keeps the order
    dense = Host([{**gpu, "memory_total_mib": 24576} for gpu in gpus])
    listed = (dense.tune().result or {})["tuning"]["problem"]["devices"]
    assert [device["id"] for device in listed] == ["GPU-1", "GPU-2"]


@pytest.mark.parametrize(
    ("memory_mib", "reserve_mib", "context", "ids"),
    [
        # smaller than both cards together, and too large with what is kept free
        (1300, 256, 2048, ["GPU-2", "GPU-1"]),
        (1300, 0, 2048, ["GPU-1", "GPU-2"]),
        (1300, 256, "max", ["GPU-1", "GPU-2"]),
    ],
)
def test_cards_are_ordered_by_the_rule_that_puts_experts_into_ram(
    memory_mib: int, reserve_mib: int, context: t.Any, ids: list[str]
) -> None:
    gpus = [{**gpu, "pcie_width": width, "pcie_generation_max": 4, "memory_total_mib": memory_mib}
            for gpu, width in zip(GPUS, (4, 16), strict=True)]  # fmt: skip
    settings = tuning_settings.read(variables(reserve_mib=reserve_mib))
    serving = {**machine.make_problem()["serving"], "context_size": context}
    assert tuning_experts.card_ids(settings, gpus, machine.make_model(), serving) == ids


def test_a_model_that_may_not_use_ram_fails_with_the_cure() -> None:
    plan = MoeHost().tune(objective="request", experts_in_ram="never")
    assert plan.failure is not None and "some of its experts in RAM (split_tuning_experts_in_ram: auto" in plan.failure


def test_a_number_of_blocks_comes_as_text_too() -> None:
    plan = MoeHost().tune(objective="request", experts_in_ram="15")
    assert len(recorded(plan)["experts_in_ram"]["blocks"]) == 15
    with pytest.raises(ValueError, match="split_tuning_experts_in_ram is 'few': it must be auto, never or a number"):
        tuning_settings.read(variables(experts_in_ram="few"))


def test_a_prediction_knows_the_hosts_ram_and_links() -> None:
    gpus = [{**gpu, "pcie_width": 16, "pcie_generation_max": 3, "memory_total_mib": 900} for gpu in GPUS]
    plan = MoeHost(gpus).tune(predict=True, objective="request")
    assert plan.result is not None
    prediction = plan.result["prediction"]
    assert prediction["experts_in_ram"] and prediction["best"]["ram_mib"] <= 65536 - 3072
    assert prediction["link_gb_per_s"] == pytest.approx(0.8 * 16 * 0.985)
    assert any("with experts in RAM" in line for line in plan.result["lines"])


def test_a_plan_on_a_host_tuned_with_experts_in_ram_uses_what_was_measured() -> None:
    host = MoeHost()
    host.model = {**host.model, "path": "/srv/m.gguf"}
    tuned = host.tune(objective="request")
    host.keep(tuned)
    plan = host.tune(predict=True, predict_only=True, objective="request", context_size=4096, cache_type_k="q8_0",
                     cache_type_v="q8_0", model_sha256="", deployment="m-c4096-q8")  # fmt: skip
    assert plan.result is not None
    prediction = plan.result["prediction"]
    assert prediction["measured_by"] == "m-c2048" and prediction["best"]["decode_interval"] is not None
    assert plan.result["lines"][0].startswith("PREDICTION from what m-c2048 measured: ")
    low, high = prediction["best"]["decode_interval"]
    threads = recorded(tuned)["experts_in_ram"]["threads"]
    placed = expert_placement.from_json(
        prediction["best"]["layers"], {**prediction["best"]["experts_in_ram"], "threads": threads}
    )
    assert placed is not None and low < 1000 / host.simulated.decode_ms(placed) < high
