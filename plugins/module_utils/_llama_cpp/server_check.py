# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a running llama-server does what was recorded. Private to this collection. Pure functions only."""

from __future__ import annotations

import re
import typing as t

from .._base.types import Mapping
from .._split import allreduce, expert_placement, placement
from .._split import deployment as deployments

#: By how much the log, which rounds, and the header may differ; the experts of one part of a block are far more.
RAM_TOLERANCE_MIB = 0.2
RAM_TOLERANCE = 0.001

# llama-server rounds the context of a slot up to this many tokens (src/llama-context.cpp, GGML_PAD).
CONTEXT_STEP = 256


def deviations(deployment: Mapping, load: Mapping) -> list[str]:
    """Compare what the server says about itself (server_log.parse_load) with what the facts say it should do.

    Returns one sentence per difference; an empty list means that placement and serving profile are the planned ones.
    """
    if not load["complete"]:
        return [
            "The journal of the running llama-server does not hold the lines of its start (any more): restart "
            "llama-server.service, so that it says where it puts the model."
        ]
    found = []
    if load["host_layers"]:
        found.append(
            f"{load['host_layers']} of {load['model_layers']} layers are on the CPU: "
            f"only {load['offloaded_layers']} were offloaded; -ngl must be at least {load['model_layers']}."
        )
    planned = placement.used_devices(deployment)
    if deployment["split_mode"] == "tensor" and len(planned) > 1:
        names = [device["device"] for device in planned]
        if load["tensor_devices"] != names:
            used = ", ".join(load["tensor_devices"]) or "one device at a time, in layer mode"
            found.append(f"The server uses {used}; the facts say split mode tensor over {', '.join(names)}.")
        return found + _speculation(deployment, load) + _serving_deviations(deployment["serving"], load)
    # a CUDA device is known to llama.cpp by its number alone; CUDA_VISIBLE_DEVICES ties the number to the id
    names = [device["device"] if device["backend"] == "CUDA" else device["id"] for device in planned]
    seen = [device["device"] if device["device"].startswith("CUDA") else device["id"] for device in load["devices"]]
    if names != seen:
        found.append(f"The server uses the devices {', '.join(seen)}; the facts say {', '.join(names)}.")
    else:
        for plan, device in zip(planned, load["devices"], strict=True):
            if plan["backend"] == "CUDA" and plan["description"] != device["description"]:
                found.append(f"{plan['device']} is {device['description']}; the facts say {plan['description']}.")
    if names == seen and (deployment["split_mode"] == "layer" or len(planned) == 1):
        wanted = [device["layers"] for device in planned]
        layers = [device["layers"] for device in load["devices"]]
        unseen = load["drafting_blocks"] if load["layers_source"] == "kv_buffers" else 0
        if load["layers_source"] is None:
            found.append(
                f"The layers per device cannot be read from the log ({load['layers_note']}): "
                "set llama_server_log_verbosity to 5, so that the server names the device of each layer."
            )
        elif layers not in (wanted, _without_caches(wanted, unseen)):
            found.append(f"The server placed {layers} layers on {', '.join(seen)}; the facts say {wanted}.")
    found += _ram_deviations(deployment, load) + _speculation(deployment, load)
    return found + _serving_deviations(deployment["serving"], load)


def _without_caches(layers: t.Sequence[int], drafting: int) -> list[int]:
    """Return planned layers as a log counts them where the blocks that only draft have no cache.

    These are before the output layer, and counted on its device.
    """
    owners = [device for device, count in enumerate(layers) for _layer in range(count)]
    owners[-1 - drafting :] = owners[-1:] * (drafting + 1)
    return [owners.count(device) for device in range(len(layers))]


def _speculation(deployment: Mapping, load: Mapping) -> list[str]:
    """Return one sentence where the server speculates in another way than the facts say."""
    recorded, seen = deployment.get("speculation"), load["speculation"]
    planned = [] if recorded is None else [recorded["kind"]]
    if seen == planned:
        return []
    words, says = (" and ".join(kinds) or "nothing" for kinds in (seen, planned))
    return [
        f"The server drafts with {words}; the facts say {says}: take --spec-type out of llama_server_extra_arguments, "
        "or restart llama-server.service."
    ]


def _ram_deviations(deployment: Mapping, load: Mapping) -> list[str]:
    """Return one sentence per difference in what is in RAM: exactly the planned weights, and nothing else."""
    recorded = deployment.get("experts_in_ram")
    experts = expert_placement.from_json(deployments.layers(deployment), recorded)
    moved = {name: buffer for name, buffer in load["overridden"].items() if not _planned(name, experts)}
    found = []
    if moved:
        first = min(moved)
        found.append(
            f"{len(moved)} tensors are not where the facts say, {first} on {moved[first]} for one: take -ot, -cmoe, "
            "-ncmoe and -ncffn out of llama_server_extra_arguments."
        )
    if experts is None or recorded is None:
        return found
    name = expert_placement.NAMES[experts.kind]
    planned, seen = recorded["ram_bytes"] / expert_placement.MIB, load["host"]["model_mib"]
    if not experts.override and abs(seen - planned) > max(RAM_TOLERANCE_MIB, RAM_TOLERANCE * planned):
        found.append(
            f"{seen} MiB of weights are in RAM; the facts say {planned:.2f} MiB, with the {name} of "
            f"{len(experts.blocks) + bool(experts.partial)} blocks."
        )
    threads = deployment["serving"]["threads"]
    if load["threads"] not in (None, [threads, threads]):
        found.append(f"{load['threads'][0]} threads compute the {name} in RAM; the facts say {threads}.")
    if load["pipeline_parallel"]:
        found.append("Prompts are pipelined, which llama.cpp never does with weights in RAM.")
    return found


def _planned(name: str, experts: expert_placement.ExpertPlacement | None) -> bool:
    """Return whether a tensor is moved by the recorded placement."""
    if experts is None or not experts.any:
        return False
    overrides = expert_placement.render(experts, "llama_server").split(",")
    return any(re.search(override.rpartition("=")[0], name) for override in overrides)


def allreduce_deviation(deployment: Mapping, load: Mapping) -> str:
    """Return a sentence where the server adds up in another way than the one that was measured and tried, else ""."""
    recorded, seen = allreduce.recorded(deployment), load["allreduce"]
    if recorded is None or seen is None or allreduce.same(recorded, seen):
        return ""
    why = f" ({seen['fallback']})" if seen["fallback"] else ""
    return (
        f"The server adds up with {allreduce.words(seen)}{why}; {allreduce.words(recorded)} was measured: see what"
        " changed on this host (/dev/shm, driver, NCCL), and revalidate or tune again."
    )


def _serving_deviations(serving: Mapping, load: Mapping) -> list[str]:
    """Return one sentence per flag of the serving profile that the server says something else about."""
    found = []
    slack = CONTEXT_STEP * (1 if serving["kv_unified"] else serving["parallel_slots"])
    if not serving["context_size"] <= load["context_size"] < serving["context_size"] + slack:
        found.append(f"The context has {load['context_size']} tokens; the facts say {serving['context_size']}.")
    named = {"parallel_slots": "slots", "kv_unified": "kv_unified", "flash_attention": "flash_attention"}
    for key, name in named.items():
        if load[name] is not None and load[name] != "auto" and serving[key] not in (load[name], "auto"):
            found.append(f"{key} is {load[name]}; the facts say {serving[key]}.")
    for key in ("batch_size", "micro_batch_size"):
        if load[key] != min(serving[key], load["context_size"], serving["batch_size"]):
            found.append(f"{key} is {load[key]}; the facts say {serving[key]}.")
    for key in ("cache_type_k", "cache_type_v"):
        if load[key] not in (None, serving[key]):
            found.append(f"{key} is {load[key]}; the facts say {serving[key]}.")
    return found
