# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How llama-server is called and what it says about itself. Private to this collection. Pure functions only.

A deployment is an entry of the host's facts (docs/data_formats.md, "host facts"). All sizes are MiB.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import typing as t

from .._split import engines, layer_split, placement

Json = dict[str, t.Any]

RESULT_SCHEMA = 1

# llama-server rounds the context of a slot up to this many tokens (src/llama-context.cpp, GGML_PAD).
CONTEXT_STEP = 256

# What a unit has to let through for the devices of a backend; CPU and RPC devices need no device node.
_DEVICE_NODES = {"CUDA": ["char-nvidia*"], "Vulkan": ["char-drm", "char-nvidia*"], "ROCm": ["char-drm", "char-kfd"]}
_PREFIX = re.compile(r"^(\d+)\.(\d{2})\.(\d{3})\.(\d{3}) [A-Z] ")
_BUILD = re.compile(r"common_params_print_info: build (\d+ \(\S+\))")
_DEVICE = re.compile(r"using device (\S+) \((.*)\) \(([^()]*)\) - (\d+) MiB free$")
_BUFFER = re.compile(r": +(\S+) +(model|KV|RS|compute|output) buffer size = *([\d.]+) MiB")
_CACHE = re.compile(
    r": size = *([\d.]+) MiB \( *\d+ cells, *(\d+) layers,.*?\)(?:, K \((\w+)\): *[\d.]+ MiB, V \((\w+)\):)?"
)
_MEMBER = re.compile(r"llama_prepare_model_devices: - device \d+: (\S+)")
_ASSIGNED = re.compile(r"load_tensors: layer +(\d+) assigned to device (\w+)")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_CONTEXT = re.compile(r"llama_context: (\w+) += (\S+)$")


# --- calling it ------------------------------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Return whether an address without port means this host alone."""
    return host in ("localhost", "::1", "[::1]") or host.startswith("127.")


def endpoint_host(endpoint: str) -> str:
    """Return the host of C(host:port)."""
    return endpoint.rpartition(":")[0]


def url(host: str, port: int | str) -> str:
    """Return where a server that binds to C(host) is reached on its own host."""
    reachable = "127.0.0.1" if host in ("0.0.0.0", "::", "[::]", "localhost") else host
    if ":" in reachable and not reachable.startswith("["):
        reachable = f"[{reachable}]"
    return f"http://{reachable}:{port}"


def command(deployment: t.Mapping[str, t.Any], settings: t.Mapping[str, t.Any]) -> Json:
    """Return how a deployment is served.

    C(settings): host, port, alias, cache_ram_mib, cors_origins, log_verbosity, extra_arguments, allowed_networks.
    Returns C(arguments) (list of words, without the program and the key), C(environment), C(device_nodes) (for
    DeviceAllow=; empty when no device node is needed), C(local) (whether it talks to this host alone), C(networks) (for
    IPAddressAllow=; empty means no filter), C(layers) and C(url).
    Raises ValueError with one sentence when the deployment cannot be served.
    """
    devices = placement.used_devices(deployment)
    serving = deployment["serving"]
    endpoints = deployment["rpc_endpoints"]
    cuda = [device["id"] for device in deployment["devices"] if device["backend"] == "CUDA"]
    words = ["-m", deployment["model"]["path"]]
    # --rpc comes before -dev: the devices that -dev names exist only once their servers have been asked
    if endpoints:
        words += ["--rpc", ",".join(endpoints)]
    words += ["-dev", ",".join(device["device"] for device in devices)]
    words += ["-sm", "none" if len(devices) == 1 else deployment["split_mode"]]
    if len(devices) > 1:
        layers = [device["layers"] for device in devices]
        words += ["-ts", layer_split.render_tensor_split(layers, "llama_server")]
    words += ["-ngl", str(serving["gpu_layers"]), "-fit", "off"]
    words += ["-c", str(serving["context_size"]), "-np", str(serving["parallel_slots"])]
    words += ["-kvu" if serving["kv_unified"] else "-no-kvu"]
    words += ["-b", str(serving["batch_size"]), "-ub", str(serving["micro_batch_size"])]
    words += ["-fa", serving["flash_attention"], "-ctk", serving["cache_type_k"], "-ctv", serving["cache_type_v"]]
    words += ["-t", str(serving["threads"]), "--poll", str(serving["poll"]), "-lm", serving["load_mode"]]
    words += ["--cache-ram", str(settings["cache_ram_mib"])]
    words += ["-a", settings["alias"], "--host", settings["host"], "--port", str(settings["port"])]
    words += ["--cors-origins", settings["cors_origins"], "--metrics", "--slots", "-lv", str(settings["log_verbosity"])]
    words += [str(word) for word in settings["extra_arguments"]]

    environment = {"GGML_NO_BACKTRACE": "1"}
    environment.update(engines.cuda_environment(cuda))
    environment.update(deployment.get("environment") or {})
    nodes: list[str] = []
    for device in deployment["devices"]:
        nodes += [node for node in _DEVICE_NODES.get(device["backend"], []) if node not in nodes]

    networks = list(settings["allowed_networks"])
    local = is_loopback(settings["host"]) and all(is_loopback(endpoint_host(endpoint)) for endpoint in endpoints)
    if local or networks:
        networks = ["localhost", *networks]
    return {
        "arguments": words,
        "environment": environment,
        "device_nodes": nodes,
        "local": local,
        "networks": networks,
        "layers": [device["layers"] for device in devices],
        "url": url(settings["host"], settings["port"]),
    }


def memory_shortfalls(
    deployment: t.Mapping[str, t.Any], gpus: t.Sequence[t.Mapping[str, t.Any]], own_pids: t.Sequence[int] = ()
) -> list[Json]:
    """Compare the plan with the memory that each card has free now.

    C(gpus) are the cards of the fact C(mixed_gpu_gpus). Devices that NVML does not see (RPC, CPU) are left out, and so
    is a device whose plan or free memory is unknown. What the processes C(own_pids) hold counts as free: they are about
    to go.
    Returns one dict per card that is absent or too full: id, device, needed_mib, free_mib, missing_mib, processes and
    a sentence.
    """
    by_uuid = {gpu.get("uuid"): gpu for gpu in gpus}
    found = []
    for device in placement.used_devices(deployment):
        if device["backend"] != "CUDA" or not str(device["id"]).startswith("GPU-"):
            continue
        row: Json = {"id": device["id"], "device": device["device"], "needed_mib": device["mib"]}
        gpu = by_uuid.get(device["id"])
        if gpu is None:
            sentence = (
                f"{device['description']} ({device['id']}) is part of the recorded placement, but the driver does not "
                "list it: check the card, or run the tuning play again."
            )
            found.append({**row, "free_mib": None, "missing_mib": None, "processes": [], "sentence": sentence})
            continue
        free = gpu.get("memory_free_mib")
        if free is None or device["mib"] is None:
            continue
        others = []
        for process in gpu.get("processes") or []:
            used = process.get("memory_mib")
            if process.get("pid") not in own_pids:
                others.append({"pid": process.get("pid"), "name": process.get("name"), "memory_mib": used})
            elif used is None or free is None:
                free = None  # what will be free once the own process is gone cannot be known
            else:
                free += used
        if free is None:
            continue
        missing = device["mib"] - free
        if missing <= 0:
            continue
        names = ", ".join(f"{p['name'] or 'process'} (pid {p['pid']}, {_mib(p['memory_mib'])})" for p in others)
        sentence = (
            f"{device['description']} ({device['id']}) has {free} MiB free and the plan needs {device['mib']} MiB: "
            f"{missing} MiB are missing; in the way: {names or 'nothing that the driver names'}."
        )
        found.append({**row, "free_mib": free, "missing_mib": missing, "processes": others, "sentence": sentence})
    return found


def _mib(value: float | None) -> str:
    return "unknown" if value is None else f"{value} MiB"


# --- what systemd says -----------------------------------------------------------------------------------------------


def unit_state(properties: t.Mapping[str, str], health_status: int | None) -> str:
    """Return absent, stopped, failed, restarting, loading or ready.

    C(health_status) is the HTTP status of /health, None when nobody answered.
    """
    if properties.get("LoadState") == "not-found":
        return "absent"
    if properties.get("SubState") == "auto-restart":
        return "restarting"
    active = properties.get("ActiveState")
    if active == "failed":
        return "failed"
    if active in ("active", "reloading", "activating"):
        return "ready" if health_status == 200 else "loading"
    return "stopped"


# --- what it says about itself ---------------------------------------------------------------------------------------


class _Cache:
    """One KV or recurrent cache: buffers by name, closed by the line that names its size and layers."""

    def __init__(self) -> None:
        self.buffers: dict[str, float] = {}
        self.size_mib = 0.0
        self.layers = 0

    def layers_by_buffer(self) -> dict[str, int] | None:
        """Return how many layers each buffer holds, or None when the layers are not all of one size."""
        if not self.layers or not self.size_mib:
            return None
        counts = {}
        for name, size in self.buffers.items():
            count = size * self.layers / self.size_mib
            if abs(count - round(count)) > 0.1:
                return None
            counts[name] = round(count)
        return counts if sum(counts.values()) == self.layers else None


def parse_load(text: str) -> Json:
    """Read what llama-server logged while it loaded its model (C(-lv 4) or more).

    Returns C(complete) (whether the load lines are there), C(build), C(tensor_devices) (in split mode tensor, where all
    of them are one device "Meta()" to the rest of llama.cpp, their names in order), C(devices) (one per device in use:
    device, id, description, pci_bus_id, free_mib, layers, output, model_mib, kv_mib, compute_mib, total_mib), C(host)
    (the same three sizes for host memory), C(layers_source), C(layers_note), C(model_layers) and C(offloaded_layers)
    (repeating blocks and the output layer), C(host_layers), context_size, context_per_slot, slots, kv_unified,
    batch_size, micro_batch_size, flash_attention, cache_type_k, cache_type_v, pipeline_parallel, load_seconds.

    The counts of layers come from the lines that name each layer's device where they are logged (C(-lv 5)), else from
    the KV buffers: within a cache all layers are equally large, so a device's share of the cache is its share of the
    layers; the output layer has no KV and is on the last device with weights.
    """
    build = None
    devices: list[Json] = []
    assigned: dict[int, str] = {}
    members: list[str] = []
    sizes: dict[str, dict[str, float]] = {}
    caches: list[_Cache] = []
    cache = _Cache()
    context: dict[str, str] = {}
    cache_types: tuple[str, str] | None = None
    offloaded: tuple[int, int] | None = None
    output_offloaded = False
    pipeline = False
    load_seconds = None

    for line in text.splitlines():
        if match := _BUFFER.search(line):
            name, kind, size = match[1], match[2], float(match[3])
            of_name = sizes.setdefault(name, {})
            if kind == "compute":  # reserved again and again: the last one counts
                of_name[kind] = size
            else:
                of_name[kind] = of_name.get(kind, 0.0) + size
            if kind in ("KV", "RS"):
                cache.buffers[name] = cache.buffers.get(name, 0.0) + size
        elif match := _CACHE.search(line):
            cache.size_mib, cache.layers = float(match[1]), int(match[2])
            caches.append(cache)
            cache = _Cache()
            if match[3]:
                cache_types = (match[3], match[4])
        elif match := _CONTEXT.search(line):
            context.setdefault(match[1], match[2])
        elif match := _DEVICE.search(line):
            device = dict(zip(("device", "description", "pci_bus_id"), match.groups(), strict=False))
            devices.append({**device, "free_mib": int(match[4])})
        elif match := _MEMBER.search(line):
            members.append(match[1])
        elif match := _ASSIGNED.search(line):
            assigned[int(match[1])] = match[2]
        elif match := _OFFLOADED.search(line):
            offloaded = (int(match[1]), int(match[2]))
        elif "offloading output layer to GPU" in line:
            output_offloaded = True
        elif "pipeline parallelism enabled" in line:
            pipeline = True
        elif "retrying without pipeline parallelism" in line:
            pipeline = False
        elif match := _BUILD.search(line):
            build = match[1]
        elif line.endswith("llama_server: model loaded") and (match := _PREFIX.match(line)):
            load_seconds = int(match[1]) * 60 + int(match[2]) + int(match[3]) / 1e3

    per_endpoint: dict[str, int] = {}
    buffer_of: dict[str, str] = {}
    for device in devices:
        device["id"] = device["device"]
        if device["pci_bus_id"] == "unknown id":
            device["pci_bus_id"] = None
        buffer_of[device["device"]] = device["device"]
        if device["device"].startswith("RPC"):
            # The server of an endpoint numbers its own devices: every endpoint has an RPC0[endpoint].
            endpoint = device["id"] = device["description"]
            number = per_endpoint.get(endpoint, 0)
            per_endpoint[endpoint] = number + 1
            buffer_of[device["device"]] = f"RPC{number}[{endpoint}]"

    for device in devices:
        own = sizes.pop(buffer_of[device["device"]], {})
        device.update(_sizes(own))
    host: dict[str, float] = {}
    for own in sizes.values():
        for kind, size in own.items():
            host[kind] = host.get(kind, 0.0) + size

    layers, source, note = _layers(devices, buffer_of, assigned, caches, offloaded, output_offloaded)
    for device in devices:
        device["layers"] = layers[device["device"]][0] if layers else None
        device["output"] = layers[device["device"]][1] if layers else None
    return {
        "complete": bool(devices) and offloaded is not None and bool(context),
        "tensor_devices": members,
        "build": build,
        "devices": devices,
        "host": _sizes(host),
        "layers_source": source,
        "layers_note": note,
        "model_layers": offloaded[1] if offloaded else None,
        "offloaded_layers": offloaded[0] if offloaded else None,
        "host_layers": offloaded[1] - offloaded[0] if offloaded else None,
        "context_size": _integer(context.get("n_ctx")),
        "context_per_slot": _integer(context.get("n_ctx_seq")),
        "slots": _integer(context.get("n_seq_max")),
        "batch_size": _integer(context.get("n_batch")),
        "micro_batch_size": _integer(context.get("n_ubatch")),
        "kv_unified": {"true": True, "false": False}.get(context.get("kv_unified", "")),
        "flash_attention": {"enabled": "on", "disabled": "off", "auto": "auto"}.get(context.get("flash_attn", "")),
        "cache_type_k": cache_types[0] if cache_types else None,
        "cache_type_v": cache_types[1] if cache_types else None,
        "pipeline_parallel": pipeline,
        "load_seconds": load_seconds,
    }


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _sizes(own: t.Mapping[str, float]) -> Json:
    model, kv = own.get("model", 0.0), own.get("KV", 0.0) + own.get("RS", 0.0)
    compute = own.get("compute", 0.0) + own.get("output", 0.0)
    return {
        "model_mib": round(model, 2),
        "kv_mib": round(kv, 2),
        "compute_mib": round(compute, 2),
        "total_mib": round(model + kv + compute, 2),
    }


def _layers(
    devices: t.Sequence[Json],
    buffer_of: t.Mapping[str, str],
    assigned: t.Mapping[int, str],
    caches: t.Sequence[_Cache],
    offloaded: tuple[int, int] | None,
    output_offloaded: bool,
) -> tuple[dict[str, tuple[int, bool]] | None, str | None, str | None]:
    """Return ({device: (slots, holds the output layer)}, source, None) or (None, None, why not)."""
    if offloaded is None or not devices:
        return None, None, "the log does not hold the load of the model"
    slots = offloaded[1]
    names = [device["device"] for device in devices]
    if len(assigned) == slots:
        last = assigned[slots - 1]
        counts = {name: (sum(1 for other in assigned.values() if other == name), name == last) for name in names}
        return counts, "log", None
    blocks = dict.fromkeys(names, 0)
    elsewhere = 0
    for cache in caches:
        by_buffer = cache.layers_by_buffer()
        if by_buffer is None:
            return None, None, "the layers of the KV cache are not all of one size"
        for name in names:
            blocks[name] += by_buffer.pop(buffer_of[name], 0)
        elsewhere += sum(by_buffer.values())
    if sum(blocks.values()) + elsewhere != slots - 1:
        return None, None, f"the KV cache covers {sum(blocks.values()) + elsewhere} of {slots - 1} blocks"
    with_weights = [device["device"] for device in devices if device["model_mib"] > 0]
    output = with_weights[-1] if output_offloaded and with_weights else None
    return {name: (blocks[name] + (name == output), name == output) for name in names}, "kv_buffers", None


def deviations(deployment: t.Mapping[str, t.Any], load: t.Mapping[str, t.Any]) -> list[str]:
    """Compare what the server says about itself (C(parse_load)) with what the facts say it should do.

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
        return found + _serving_deviations(deployment["serving"], load)
    # a CUDA device is known to llama.cpp by its number alone; CUDA_VISIBLE_DEVICES ties the number to the uuid
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
        if load["layers_source"] is None:
            found.append(
                f"The layers per device cannot be read from the log ({load['layers_note']}): "
                "set llama_server_log_verbosity to 5, so that the server names the device of each layer."
            )
        elif layers != wanted:
            found.append(f"The server placed {layers} layers on {', '.join(seen)}; the facts say {wanted}.")
    return found + _serving_deviations(deployment["serving"], load)


def _serving_deviations(serving: t.Mapping[str, t.Any], load: t.Mapping[str, t.Any]) -> list[str]:
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


# --- measuring it ----------------------------------------------------------------------------------------------------


def prompt_tokens(count: int, vocabulary_size: int, seed: str) -> list[int]:
    """Return C(count) valid token ids that depend on the seed alone.

    The ids come from the middle of the vocabulary: special tokens are at its ends.
    """
    numbers = random.Random(seed)
    low, high = vocabulary_size // 4, max(vocabulary_size * 3 // 4, vocabulary_size // 4 + 1)
    return [numbers.randrange(low, high) for dummy in range(count)]


def does_not_fit(test: t.Mapping[str, t.Any], context_per_slot: int) -> str | None:
    """Return why a test cannot run in one slot, or None."""
    needed = test["prompt_tokens"] + test["generated_tokens"]
    if needed <= context_per_slot:
        return None
    return f"needs {needed} tokens and a slot of this server has {context_per_slot}"


def sample(timings: t.Mapping[str, t.Any], prompt_count: int) -> Json:
    """Turn the C(timings) of one answer into a sample.

    C(prompt_ms) ends when the first token is sampled from the logits of the prompt, so it is the time to the first
    token, without queueing and network; C(predicted_ms) holds the remaining C(predicted_n - 1) steps.
    Raises ValueError with one sentence when the answer is not what was asked for.
    """
    try:
        cached, evaluated = int(timings.get("cache_n", 0)), int(timings["prompt_n"])
        generated = int(timings["predicted_n"])
        prompt_ms, predicted_ms = float(timings["prompt_ms"]), float(timings["predicted_ms"])
    except (KeyError, TypeError, ValueError) as exc:
        raise ValueError(f"the answer has no usable timings ({exc})") from None
    if cached or evaluated != prompt_count:
        raise ValueError(
            f"the server evaluated {evaluated} tokens and took {cached} from its cache, not {prompt_count} and none"
        )
    if prompt_ms <= 0 or generated < 1:
        raise ValueError(f"the server reports {prompt_ms} ms for the prompt and {generated} generated tokens")
    steps = generated - 1
    decode = steps * 1000.0 / predicted_ms if steps and predicted_ms > 0 else None
    return {
        "ttft_ms": round(prompt_ms, 3),
        "prompt_tokens_per_second": round(evaluated * 1000.0 / prompt_ms, 3),
        "decode_tokens_per_second": None if decode is None else round(decode, 3),
        "generated_tokens": generated,
    }


def result_key(fingerprint: str, tests: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    """Return the SHA-256 under which the results of these tests on this configuration are kept."""
    canonical = json.dumps({"fingerprint": fingerprint, "tests": tests}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_result(text: str) -> Json:
    """Parse a stored result. Raises ValueError when it is damaged or of another schema."""
    stored = json.loads(text)
    known = isinstance(stored, dict) and stored.get("schema") == RESULT_SCHEMA
    if not known or not isinstance(stored.get("tests"), list):
        raise ValueError(f"it is not a result of schema {RESULT_SCHEMA}")
    return stored
