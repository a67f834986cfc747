# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the done steps of a tuning say: host, fingerprint, problem, decision. Private to this collection. Pure."""

from __future__ import annotations

import functools
import typing as t

from .._base import fingerprints
from .._base.steps import Done, result_of
from .._base.types import Json, Mapping
from .._split import context_room, engines, memory_plan, network_links, split_problem, tuning_key, workload
from .._split.types import Model, Serving
from . import (
    baseline_stage,
    context_stage,
    context_table,
    estimate_stage,
    expected_speeds,
    known_costs,
    probe_stage,
    speculation_stage,
    stages,
    tuning_engines,
    tuning_experts,
    tuning_speculation,
)
from .tuning_settings import Settings

#: First words of the names of the steps that measure a device alone.
PROBE: t.Final = "probe of "
#: Name of the step that asks llama.cpp's dry run about split mode tensor.
TENSOR_QUESTION: t.Final = "question of split mode tensor"
#: Name of the step that asks llama.cpp where it would place a model whose experts have to be in RAM.
OWN_PLACEMENT: t.Final = "llama.cpp's own placement"


class State:
    """One moment of a tuning. Each property needs the steps that it is made of."""

    def __init__(self, settings: Settings, done: t.Sequence[Done]) -> None:
        self.settings = settings
        self.done = done
        self.family = tuning_engines.of(settings)
        self.engine = engines.named(settings.engine)

    def result(self, name: str) -> Mapping | None:
        """Return what a step returned, or None while it was not done."""
        return result_of(self.done, name)

    def needed(self, name: str) -> Mapping:
        """Return what a step returned that was done."""
        result = self.result(name)
        if result is None:
            raise ValueError(f"the step {name!r} was not done")
        return result

    # --- the host ----------------------------------------------------------------------------------------------------

    @property
    def build_file(self) -> str:
        """The build.json of the engine."""
        return f"{self.family.root()}/{self.engine.build_file}"

    @property
    def modes(self) -> list[str]:
        """Split modes to consider; no watchdog reads an ExLlama, so its own have to be asked for."""
        return self.settings.modes if self.settings.engine == "llama_cpp" else self.settings.exllama_modes

    @property
    def micro_batches(self) -> list[int]:
        """Micro-batches to consider."""
        return self.settings.micro_batches if "micro_batch" in self.engine.stages else []

    @property
    def probing(self) -> bool:
        """Whether each device is measured alone."""
        return self.settings.probe and "probe" in self.engine.stages

    @property
    def look(self) -> Mapping:
        """What the host depends on, of split_tuning_info."""
        return self.needed("look")

    @property
    def missing(self) -> list[str]:
        """Files without which nothing can be measured."""
        return list(self.look["missing"])

    @functools.cached_property
    def gpus(self) -> list[Json]:
        """The cards to use."""
        return self.family.gpus(self.look)

    @property
    def environment(self) -> Json:
        """What engine and inventory add to the environment of everything that measures."""
        return {**self.family.environment(self.look), **self.settings.environment}

    @functools.cached_property
    def asked_serving(self) -> Json:
        """The serving profile as it is asked for; its context may be C(max)."""
        return self.family.serving(self.look)

    @functools.cached_property
    def serving(self) -> Json:
        """The serving profile, with the largest context where that is asked for."""
        if not context_stage.asked(self.asked_serving):
            return self.asked_serving
        return {**self.asked_serving, "context_size": self.context.context}

    @functools.cached_property
    def context(self) -> context_stage.Settled:
        """How far the search for the largest context is."""
        model, reserve = t.cast(Model, self.model), self.settings.reserve_mib
        first = context_stage.planned(model, self.asked_serving, self.devices, reserve)["context_size"]
        budgets = memory_plan.budgets_mib(self.devices, reserve)

        def answer(context: int) -> Mapping | None:
            return self.result(context_stage.question(context, self.placed(context)))

        return context_stage.settle(model, first, budgets, answer)

    def placed(self, context: int) -> tuple[int, ...]:
        """Return the split by which a context is judged."""
        serving = context_room.with_context(self.asked_serving, context)
        return context_stage.placed(t.cast(Model, self.model), serving, self.devices, self.settings.reserve_mib)

    @functools.cached_property
    def workload(self) -> Json:
        """What is to be fast and what measures it: C({objective, tests})."""
        serving = self.asked_serving
        if context_stage.asked(serving):
            # whether it fits the context is checked when that is known (split_problem.read_problem)
            serving = {**serving, "context_size": workload.MOST_TOKENS}
        return workload.plan(self.settings.asked, self.settings.bench, serving)

    @functools.cached_property
    def recorded(self) -> Mapping:
        """The recorded entry of this deployment; empty when there is none."""
        return self.look["record"]["models"].get(self.settings.deployment) or {}

    @property
    def campaign(self) -> str:
        """The name of the campaign: it lasts until its record is written, so that a retune measures anew."""
        return f"after {self.recorded['recorded_at'] if self.recorded else 'nothing'}"

    @functools.cached_property
    def parts(self) -> Json:
        """Everything that can change the result and is read without touching a device."""
        settings = self.settings
        return tuning_key.parts({
            "engine": settings.engine,
            "build": self.look["build"],
            "model_sha256": settings.model_sha256,
            "model_headers_sha256": (self.result("weigh") or {}).get("headers_sha256", ""),
            "driver_version": self.look["gpus"].get("driver_version"),
            "gpus": self.gpus,
            "rpc_endpoints": settings.rpc_endpoints,
            "serving": self.asked_serving,
            "split_modes": self.modes,
            "micro_batches": self.micro_batches,
            "tensor_allreduce": settings.tensor_allreduce,
            "objective": self.workload["objective"],
            "tests": self.workload["tests"],
            "budgets_mib": settings.device_budget_mib,
            "reserve_mib": settings.reserve_mib,
            "environment": settings.environment,
            "speculation": self.speculation.key,
            "extra": settings.fingerprint_extra,
            "experts_in_ram": tuning_experts.fingerprint_part(settings),
        })  # fmt: skip

    @functools.cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the parts."""
        return fingerprints.fingerprint(self.parts)

    @functools.cached_property
    def due(self) -> str | None:
        """Why the deployment has to be tuned, or None while the recorded split still holds."""
        return tuning_key.due(self.recorded, self.settings.deployment, self.parts, self.settings.retune)

    # --- measurements ------------------------------------------------------------------------------------------------

    @functools.cached_property
    def devices(self) -> list[Json]:
        """The devices as the engine lists them under the lease, in the order in which least crosses the network."""
        listed, model = list(self.needed("devices")["devices"]), (self.result("weigh") or {}).get("model", {})
        in_ram = bool(self.links) and tuning_experts.in_ram(self.settings, model, self.asked_serving, listed)
        return network_links.ordered(listed, self.links, model, self.workload["objective"], in_ram)

    @property
    def links(self) -> Mapping:
        """The network to devices of other hosts, by their endpoints."""
        return t.cast(Mapping, (self.result("links") or {"links": {}})["links"])

    @functools.cached_property
    def model(self) -> Mapping:
        """The model, of gguf_info or exl_model_info, with what the dry run said of one that is not modelled."""
        model = t.cast(Mapping, self.needed("weigh")["model"])
        answers = [self.result(estimate_stage.question(layers)) for layers in self.estimates]
        known = [answer for answer in answers if answer is not None]
        return estimate_stage.corrected(t.cast(Model, model), self.estimated_serving, known) if known else model

    @property
    def estimated_serving(self) -> Serving:
        """The serving profile that the dry run of a model that is not modelled is asked about."""
        if not context_stage.asked(self.asked_serving):
            return t.cast(Serving, self.asked_serving)
        return context_room.with_context(self.asked_serving, context_room.usual(self.needed("weigh")["model"]))

    @property
    def estimates(self) -> list[list[int]]:
        """The splits that the dry run is asked about before anything is planned; none for a model that is modelled."""
        model, listed = self.needed("weigh")["model"], self.result("devices")
        if not (self.engine.dry_run and model.get("estimated") and listed and listed["devices"]):
            return []
        return estimate_stage.splits(model["block_count"], len(listed["devices"]))

    @property
    def loads(self) -> list[Json]:
        """The measurements of the model itself, in their order; those that speculate are apart."""
        return [load for load in self.all_loads if load.get("purpose") != speculation_stage.PURPOSE]

    @property
    def all_loads(self) -> list[Json]:
        """The measurements of the model itself, with those that speculate."""
        own = [item for item in self.done if not item.step.name.startswith(PROBE)]
        return [dict(item.result["load"]) for item in own if "load" in item.result]

    @functools.cached_property
    def problem(self) -> Json:
        """The problem of docs/data_formats.md."""
        settings, devices = self.settings, self.devices
        raw: Json = {
            "schema": 1,
            "devices": devices,
            "model": self.model,
            "serving": self.serving,
            "reserve_mib": settings.reserve_mib,
            "split_modes": self.modes,
            "micro_batches": self.micro_batches,
            "tensor": {
                "allreduce": self.family.ways(self.look, devices),
                "max_loads": settings.tensor_max_loads, "refused": self.tensor_refused,
            },
            **self.workload,
            "indifference": settings.indifference,
            "max_loads": settings.max_loads,
            "repeat_disturbed": settings.repeat_disturbed,
            "device_probe": self.probed if self.probing else None,
            "known_costs": None,
            "experts_in_ram": tuning_experts.wanted(
                settings, self.look, devices, self.gpus, (self.result(OWN_PLACEMENT) or {}).get("fitted")
            ),
        }
        known = known_costs.find(*self.comparable, [device["id"] for device in devices], t.cast(Model, self.model))
        if known is None or settings.retune:
            return raw
        layer = split_problem.read_problem(raw).average_layer
        return {**raw, "known_costs": known_costs.of_problem(known, layer)}

    @property
    def expected_experts_in_ram(self) -> Json:
        """What is wanted of experts in RAM before the devices were listed, or without a host."""
        look = None if self.settings.profile else self.result("look")
        return tuning_experts.expected(self.settings, look, [] if look is None else self.gpus)

    @property
    def tensor_refused(self) -> str | None:
        """Why split mode tensor cannot be tried, as far as that is known; None where nothing speaks against it."""
        asked = self.result(TENSOR_QUESTION) or {}
        return f"llama.cpp refuses it: {str(asked['reason']).rstrip('.')}" if asked.get("refused") else None

    @property
    def comparable(self) -> tuple[Mapping, Json]:
        """The recorded entries, and what an entry must have in common with this tuning to tell its costs.

        A prediction knows no role that starts RPC servers: it is about those that were tuned with.
        """
        parts = self.parts
        if self.settings.predict_only and self.reference:
            before = self.reference["fingerprint_parts"]
            parts = {**parts, **{name: before[name] for name in ("rpc_endpoints", "extra")}}
        return self.look["record"]["models"], parts

    @property
    def reference(self) -> Mapping:
        """The entry of this deployment, else of the one that is served; empty when there is none."""
        record = self.look["record"]
        return self.recorded or record["models"].get(record.get("active")) or {}

    @functools.cached_property
    def plan(self) -> Json:
        """The plan of the stages for the measurements so far."""
        loads = [load for load in self.loads if load.get("purpose") != baseline_stage.PURPOSE]
        return stages.plan(self.problem, loads)

    @functools.cached_property
    def decision(self) -> Json:
        """The decision of a plan that has one, with what became of speculation once that is known."""
        return self.speculation.settled(t.cast(Json, self.plan["decision"]))

    @functools.cached_property
    def speculation(self) -> tuning_speculation.Speculation:
        """How far speculation is."""
        return tuning_speculation.Speculation(self)

    @property
    def served(self) -> Json:
        """The serving profile with the micro-batch that was found to be the best."""
        return tuning_experts.served(self.serving, self.plan["decision"])

    @property
    def contexts(self) -> Json | None:
        """What other contexts and types of KV cache would cost, by what was measured; None where it is not modelled."""
        fit, settings = self.decision.get("fit"), self.settings
        modelled = self.engine.dry_run and self.decision["split_mode"] == "layer"
        if not fit or not modelled or self.decision.get("experts_in_ram"):  # whose advice tells of a smaller context
            return None
        model, ids, own = t.cast(Model, self.model), [device["id"] for device in self.devices], self.speculation.own_mib
        others = known_costs.fits_of(self.look["record"]["models"], self.parts, ids, model)
        rates = expected_speeds.measured(known_costs.of_fit(settings.deployment, fit, others))
        objective = workload.read_objective("objective", self.workload["objective"])
        question = context_table.Question(
            model, t.cast(Serving, self.served), context_table.beside(self.devices, own), settings.reserve_mib,
            objective, rates,
        )  # fmt: skip
        return {"rows": context_table.rows(question), "source": context_table.source(rates, own)}

    @functools.cached_property
    def baseline(self) -> Json | None:
        """How the baseline of the decision goes on; None for an engine without one."""
        if "baseline" not in self.engine.stages:
            return None
        settings = self.settings
        return baseline_stage.step(
            self.problem, self.decision, self.loads, settings.baseline_max_loads, settings.baseline_tolerance_percent
        )

    # --- the device probe --------------------------------------------------------------------------------------------

    @property
    def probe_serving(self) -> Json:
        """The probe's own serving profile: it says something of the devices, whatever model is tuned."""
        settings = self.settings
        return {
            "batch_size": 2048,
            "micro_batch_size": 512,
            "flash_attention": settings.flash_attention,
            "cache_type_k": "f16",
            "cache_type_v": "f16",
            "threads": settings.threads,
            "poll": settings.poll,
            "load_mode": settings.load_mode,
            "gpu_layers": tuning_engines.GPU_LAYERS,
        }

    @property
    def probe_tests(self) -> list[Json]:
        """What a load of the probe model measures."""
        settings, repetitions = self.settings, {"repetitions": self.settings.probe_repetitions}
        return [
            {"kind": "prefill", "n_prompt": settings.probe_prompt_tokens, "n_gen": 0, "n_depth": 0, **repetitions},
            {"kind": "decode", "n_prompt": 0, "n_gen": settings.probe_generated_tokens, "n_depth": 0, **repetitions},
        ]

    @property
    def probe_model(self) -> Mapping:
        """The probe model, of gguf_info."""
        return t.cast(Mapping, self.needed("probe sizes")["model"])

    @functools.cached_property
    def probe_key(self) -> tuple[str, str]:
        """Fingerprint and campaign of the probe; the last one stands while nothing about the devices changed."""
        ids = [device["id"] for device in self.devices]
        parts = tuning_key.probe_parts(
            self.parts, self.needed("probe model")["sha256"], ids, self.probe_serving, self.probe_tests
        )
        fingerprint = fingerprints.fingerprint(parts)
        recorded = self.recorded.get("device_probe") or {}
        stands = not self.settings.retune and recorded.get("fingerprint") == fingerprint
        return fingerprint, recorded["campaign"] if stands else self.campaign

    @property
    def probe_loads(self) -> list[Json]:
        """One load per device that has room for the probe model."""
        return probe_stage.loads(self.devices, self.probe_model, self.probe_tests, self.settings.reserve_mib)

    @functools.cached_property
    def probed(self) -> Json:
        """The devices, ranked by the probe."""
        measured = [item.result["load"] for item in self.done if item.step.name.startswith(PROBE)]
        model, settings, batch = self.probe_model, self.settings, self.probe_serving["micro_batch_size"]
        crossings = network_links.alone(model, self.links, settings.probe_prompt_tokens, batch)
        return probe_stage.assess(measured, self.devices, model, settings.reserve_mib, self.gpus, crossings)
