# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The steps of a tuning with their arguments, and what is shown of each. Private to this collection. Pure.

Each function takes the state of the tuning that is to go on.
"""

from __future__ import annotations

import dataclasses
import statistics
import typing as t

from .._base.steps import Done, Step
from .._base.types import Json, Mapping
from .._split import context_room, memory_plan, network_links
from .._split.types import Serving
from . import context_stage, estimate_stage, expert_rival, tuning_experts
from .tuning_state import OWN_PLACEMENT, PROBE, TENSOR_QUESTION, State

#: Modules that have a private server answer texts.
ANSWERING: t.Final = ("speculation_benchmark", "exllama_draft_benchmark")
#: Seconds that a first load takes before anything is known of it, beside reading the file at this many bytes a second.
_START_SECONDS: t.Final = 20.0
_READ_BYTES_PER_SECOND: t.Final = 500e6
#: How long a job may wait for the lock of another measurement, beside its own limit.
_WAIT_SECONDS: t.Final = 3600


def look(state: State) -> Step:
    """Gather what a recorded split depends on."""
    settings, engine = state.settings, state.engine
    model = f"{settings.model_path}/{engine.model_file}" if engine.model_file else settings.model_path
    arguments = {
        "needed": [model, state.build_file],
        "build_file": state.build_file,
        "host_python": settings.host_python,
        **state.family.look(),
    }
    return Step("look", "split_tuning_info", arguments, "gather what the split depends on", 3)


def probe_model(state: State) -> Step:
    """Make the probe model."""
    settings = state.settings
    arguments = {
        "path": settings.probe_model_path,
        "blocks": settings.probe_blocks,
        "embedding_length": settings.probe_embedding_length,
        "feed_forward_length": settings.probe_feed_forward_length,
        "head_count": settings.probe_head_count,
        "head_count_kv": settings.probe_head_count_kv,
        "type": settings.probe_type,
        "manifest_dir": f"{settings.state_dir}/models",
        "host_python": settings.host_python,
    }
    return Step("probe model", "random_gguf", arguments, "make the probe model", 20)


def probe_sizes(state: State) -> Step:
    """Read the layer sizes of the probe model."""
    settings = state.settings
    arguments = {
        "path": settings.probe_model_path,
        "cache_dir": f"{settings.state_dir}/gguf_cache",
    }
    return Step("probe sizes", "gguf_info", arguments, "read the layer sizes of the probe model", 5)


def devices(state: State) -> Step:
    """List the devices as the engine sees them."""
    model = (state.result("weigh") or {}).get("model") or {}
    cards = tuning_experts.card_ids(state.settings, state.gpus, model, state.asked_serving)
    return state.family.devices(cards, state.environment)


def _measuring(state: State) -> Json:
    """Return the arguments that every measurement has."""
    return {
        "rpc_endpoints": state.settings.rpc_endpoints,
        "serving": state.serving,
        "environment": state.needed("devices")["environment"],
        "campaign": state.campaign,
        "fingerprint": state.fingerprint,
        "state_dir": state.settings.measurements_dir,
    }


def _device_names(state: State) -> list[str]:
    return [device["device"] for device in state.devices]


def load(state: State, wanted: Mapping) -> Step:
    """Measure one load of the model."""
    settings = state.settings
    arguments = {
        **_measuring(state),
        **state.family.bench(state.model, state.devices),
        "model_path": settings.model_path,
        "load": dict(wanted),
        "devices": _device_names(state),
        "host_python": settings.host_python,
        "timeout_seconds": settings.load_timeout_seconds,
    }
    seconds = expected_seconds(state.done, state.model, of_probe=False)
    label = str(wanted["label"])
    return Step(label, "split_benchmark", arguments, label, seconds, settings.load_timeout_seconds + _WAIT_SECONDS)


def probe(state: State, wanted: Mapping) -> Step:
    """Measure one device alone."""
    settings = state.settings
    fingerprint, campaign = state.probe_key
    arguments = {
        **_measuring(state),
        **state.family.bench(state.probe_model, state.devices),
        "model_path": settings.probe_model_path,
        "load": dict(wanted),
        "devices": _device_names(state),
        "serving": state.probe_serving,
        "campaign": campaign,
        "fingerprint": fingerprint,
        "host_python": settings.host_python,
        # a card that failed may have been repaired
        "reuse_failures": False,
        "timeout_seconds": settings.probe_timeout_seconds,
    }
    seconds = expected_seconds(state.done, state.probe_model, of_probe=True)
    label = str(wanted["label"])
    limit = settings.probe_timeout_seconds + _WAIT_SECONDS
    return Step(f"{PROBE}{label}", "split_benchmark", arguments, label, seconds, limit)


def trial(state: State, wanted: Mapping) -> Step:
    """Compare split mode tensor with layer mode, and keep it busy."""
    if state.engine.family == "exllama":
        return _trial_of_exllama(state, wanted)
    settings = state.settings
    arguments = {
        **_measuring(state),
        "llama_server": f"{settings.llama_cpp}/bin/llama-server",
        "model_path": settings.model_path,
        "trial": dict(wanted),
        "devices": state.devices,
        "soak_seconds": settings.tensor_soak_seconds,
        "idle_gaps": settings.tensor_idle_gaps,
        "idle_seconds": settings.tensor_idle_seconds,
        "load_timeout_seconds": settings.load_timeout_seconds,
    }
    label = str(wanted["label"])
    soak = settings.tensor_soak_seconds + settings.tensor_idle_gaps * settings.tensor_idle_seconds
    limit = 3 * settings.load_timeout_seconds + soak + _WAIT_SECONDS
    return Step(label, "split_mode_trial", arguments, label, 300.0 + soak, limit)


def _trial_of_exllama(state: State, wanted: Mapping) -> Step:
    """Load once more and keep it busy, with the same rests; each load answers a fixed text anyway."""
    settings = state.settings
    soak = {
        "seconds": settings.tensor_soak_seconds,
        "idle_gaps": settings.tensor_idle_gaps,
        "idle_seconds": settings.tensor_idle_seconds,
    }
    seconds = soak["seconds"] + soak["idle_gaps"] * soak["idle_seconds"]
    step = load(state, {**wanted, "tests": state.problem["tests"], "soak": soak})
    limit = settings.load_timeout_seconds + seconds
    return dataclasses.replace(
        step, args={**step.args, "timeout_seconds": limit}, expected_seconds=step.expected_seconds + seconds,
        limit_seconds=limit + _WAIT_SECONDS,
    )  # fmt: skip


def _dry_run(state: State, name: str, layers: t.Sequence[int], serving: Mapping, why: str) -> Step:
    settings = state.settings
    arguments = {
        "program": f"{settings.llama_cpp}/bin/llama-fit-params",
        "model_path": settings.model_path,
        "devices": _device_names(state),
        "layers": list(layers),
        "serving": dict(serving),
        "rpc_endpoints": settings.rpc_endpoints,
        "environment": state.needed("devices")["environment"],
    }
    return Step(name, "llama_fit_params_info", arguments, why, 5)


def dry_run(state: State) -> Step:
    """Ask llama.cpp's dry run about the memory of the chosen split; it checks the plan and decides nothing."""
    why = "compare the plan with llama.cpp's dry run"
    step = _dry_run(state, "dry run", state.decision["layers"], state.served, why)
    more = {
        "split_mode": state.decision["split_mode"],
        "model": state.model,
        "experts_in_ram": state.decision.get("experts_in_ram"),
    }
    return dataclasses.replace(step, args={**step.args, **more})


def own_placement(state: State) -> Step:
    """Ask llama.cpp where it would place a model whose experts have to be in RAM."""
    why = "ask llama.cpp for its own placement"
    step = _dry_run(state, OWN_PLACEMENT, [], state.serving, why)
    args = {name: value for name, value in step.args.items() if name != "layers"}
    margins = expert_rival.margins_mib(state.devices)
    return dataclasses.replace(step, args={**args, "fit": True, "model": state.model, "margins_mib": margins})


def tensor_question(state: State, wanted: Mapping) -> Step:
    """Ask llama.cpp's dry run whether it has split mode tensor for this model, KV type and build."""
    why = "ask llama.cpp whether it has split mode tensor for this model"
    step = _dry_run(state, TENSOR_QUESTION, wanted["layers"], state.serving, why)
    return dataclasses.replace(step, args={**step.args, "split_mode": "tensor"})


def estimate(state: State, layers: t.Sequence[int]) -> Step:
    """Ask llama.cpp's dry run about a split of a model whose memory is not modelled here."""
    name = estimate_stage.question(layers)
    return _dry_run(state, name, layers, state.estimated_serving, f"ask llama.cpp: {name}")


def context(state: State, context_size: int) -> Step:
    """Ask llama.cpp's dry run whether a context fits."""
    layers = state.placed(context_size)
    name = context_stage.question(context_size, layers)
    serving = context_room.with_context(state.asked_serving, context_size)
    return _dry_run(state, name, layers, serving, f"ask llama.cpp: {name}")


def draft_sizes(state: State, draft: str) -> Step:
    """Read the header of a draft."""
    module, arguments = state.family.draft_sizes(state.settings.own_drafts[draft]["path"])
    return Step(f"sizes of draft {draft}", module, arguments, f"read the layer sizes of the draft {draft}", 5)


def draft_dry_run(state: State, draft: str, blocks: int) -> Step:
    """Ask llama.cpp's dry run what a draft takes of one device; the server's own cannot be asked about drafts."""
    layers = [blocks + 1, *[0] * (len(state.devices) - 1)]
    why = f"ask llama.cpp for the memory of the draft {draft}"
    step = _dry_run(state, f"dry run of draft {draft}", layers, state.served, why)
    return dataclasses.replace(step, args={**step.args, "model_path": state.settings.own_drafts[draft]["path"]})


def speculation(state: State, wanted: Mapping) -> Step:
    """Have a server with one way to speculate answer all texts."""
    settings = state.settings
    most = memory_plan.context_cells(t.cast(Serving, state.serving))[0] - settings.speculation_tokens - 8
    module, own = state.family.answering()
    arguments = {
        **_measuring(state),
        **own,
        "model_path": settings.model_path,
        "load": dict(wanted),
        "devices": state.devices,
        "texts": state.speculation.texts[0],
        "generated_tokens": settings.speculation_tokens,
        "prompt_tokens": max(0, min(settings.prompt_tokens, most)),
        "load_timeout_seconds": settings.load_timeout_seconds,
    }
    label = str(wanted["label"])
    seconds = expected_seconds(state.done, state.model, of_probe=False)
    answers = len(state.speculation.texts[0]) * settings.speculation_tokens / 20
    limit = settings.load_timeout_seconds + 300 * (len(state.speculation.texts[0]) + 2) + _WAIT_SECONDS
    return Step(label, module, arguments, label, seconds + answers, limit)


def host() -> Step:
    """Gather what else a baseline compares."""
    return Step("host", "host_info", {}, "gather the configuration of the host", 3)


def expected_seconds(done: t.Sequence[Done], model: Mapping, of_probe: bool) -> float:
    """Return about how long a load of the model takes, from the last one like it."""
    for item in reversed(done):
        if item.step.module == "split_benchmark" and item.step.name.startswith(PROBE) == of_probe:
            wall_ms = item.result["load"].get("wall_ms")
            if wall_ms:
                return float(wall_ms) / 1000
    return _START_SECONDS + float(model["size_bytes"]) / _READ_BYTES_PER_SECOND


def line(done: Done) -> str:
    """Return what is shown of a step: speeds of a load, devices, how the dry run compares; else nothing."""
    result = done.result
    if done.step.module == "split_benchmark":
        return measured(result["load"])
    if done.step.module in ANSWERING:
        return answered(result["load"])
    if done.step.module == "split_mode_trial":
        found = result["load"]
        return "passed" if found["status"] == "ok" else f"{found['status']}: {found['reason']}"
    if done.step.name == "devices":
        return "; ".join(
            f"{device['device']} {device['description']}, {device['free_mib']} MiB free" for device in result["devices"]
        )
    if done.step.module == "rpc_link_info":
        return network_links.line(result["links"])
    if done.step.name == "dry run":
        return _dry_run_line(result)
    return ""


def measured(found: Mapping) -> str:
    """Return the speeds of a measured load in one line, or how it ended."""
    stored = ", measured before" if found.get("reused") else ""
    if found["status"] != "ok":
        return f"{found['status']}: {found['reason']}{stored}"
    words = []
    for result in found["results"]:
        speed = 1000 * (result["n_prompt"] + result["n_gen"]) / statistics.median(result["samples_ms"])
        size = f" at {result['micro_batch_size']}" if "micro_batch_size" in result else ""
        size += f" with {result['threads']} thread{'s' * (result['threads'] > 1)}" if "threads" in result else ""
        words.append(f"{result['kind']}{size} {speed:.1f} tokens/s")
    return f"{', '.join(words)}{stored}"


def answered(found: Mapping) -> str:
    """Return the speed of each kind of text in one line, with what was accepted, or how the load ended."""
    stored = ", measured before" if found.get("reused") else ""
    if found["status"] != "ok":
        return f"{found['status']}: {found['reason']}{stored}"
    words = []
    for row in (row for row in found["results"] if row["kind"] == "text"):
        share = f" ({100 * row['accepted'] / row['drafted']:.0f} % accepted)" if row["drafted"] else ""
        words.append(f"{row['text']} {1000 * row['tokens'] / row['decode_ms']:.1f}{share}")
    return f"{', '.join(words)} tokens/s{stored}"


def _dry_run_line(result: Mapping) -> str:
    if not result["available"]:
        return f"the plan was not checked: {result['reason']}"
    counted, more = (" + ".join(map(str, result["dry_run"][key])) for key in ("mib", "difference_mib"))
    return f"{counted} MiB; the plan counts {more} MiB more"
