# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How llama-server is called and what it says about itself. Private to this collection. Pure functions only.

A deployment is an entry of the host's facts (docs/data_formats.md, "record"). All sizes are MiB.
"""

from __future__ import annotations

import re
import shlex
import typing as t

from .._base import addresses, escaping, unit_end, unit_sandbox
from .._base.types import Json, Mapping
from .._split import deployment as deployments
from .._split import expert_placement, fallbacks, layer_split, network_links, placement
from . import allreduce_log, speculation_flags

#: Requests that wait for a slot hold a thread each. llama-server has five for one slot, so that a few clients that wait
#: keep /metrics from being answered, and the watchdog takes a busy server for one that hangs.
HTTP_THREADS: t.Final = 128
#: States of unit_state that become another one by themselves.
COMING: t.Final = ("loading", "restarting")
# systemd's own restarts after which a load is taken to fail each time
_RESTARTS: t.Final = 2

# --- calling it ------------------------------------------------------------------------------------------------------


def url(host: str, port: int | str) -> str:
    """Return where a server that binds to C(host) is reached on its own host."""
    reachable = "127.0.0.1" if host in ("0.0.0.0", "::", "[::]", "localhost") else host
    if ":" in reachable and not reachable.startswith("["):
        reachable = f"[{reachable}]"
    return f"http://{reachable}:{port}"


def command(deployment: Mapping, settings: Mapping) -> Json:
    """Return how a deployment is served.

    C(settings): host, port, alias, cache_ram_mib, cors_origins, log_verbosity, extra_arguments, allowed_networks,
    load_timeout_seconds.
    Returns C(arguments) (list of words, without the program and the key), C(environment), C(device_nodes) (for
    DeviceAllow=; empty when no device node is needed), C(cuda) (whether a device is one of CUDA), C(local) (whether it
    talks to this host alone), C(networks) (for IPAddressAllow=), C(nccl) (whether NCCL may run), C(nccl_file) (where it
    is to say so), C(layers), C(lenders) (endpoints of other hosts), C(placements) (the flags of each way to serve, one
    text each; as C(lenders) empty where there is one way), C(rpc_protocol) (spoken to lenders, "" unknown), C(url),
    C(wrong_answers) (while that file is there, nothing starts) and C(limits) (unit_end.Limits).
    Raises ValueError with one sentence when the deployment cannot be served.
    """
    for name in ("host", "alias", "cors_origins"):
        escaping.refuse_controls(settings[name], f"llama_server_{name}")
    devices = placement.used_devices(deployment)
    serving = deployment["serving"]
    endpoints = placement.served_endpoints(deployment)
    chosen = bool(deployment.get("fallbacks"))
    words = ["-m", deployment["model"]["path"]]
    # what differs between the ways to serve is chosen at each start (_programs/choose_placement.py)
    words += [] if chosen else _on_devices(deployment)
    words += ["-ngl", str(serving["gpu_layers"]), "-fit", "off"]
    words += [] if chosen else ["-c", str(serving["context_size"])]
    words += ["-np", str(serving["parallel_slots"]), "-kvu" if serving["kv_unified"] else "-no-kvu"]
    words += ["-b", str(serving["batch_size"]), "-ub", str(serving["micro_batch_size"])]
    words += ["-fa", serving["flash_attention"], "-ctk", serving["cache_type_k"], "-ctv", serving["cache_type_v"]]
    words += ["-t", str(serving["threads"]), "--poll", str(serving["poll"]), "-lm", serving["load_mode"]]
    words += [] if chosen else _beside(deployment)
    words += ["--cache-ram", str(settings["cache_ram_mib"])]
    words += ["-a", settings["alias"], "--host", settings["host"], "--port", str(settings["port"])]
    words += ["--threads-http", str(HTTP_THREADS)]
    words += ["--cors-origins", settings["cors_origins"], "--metrics", "--slots", "-lv", str(settings["log_verbosity"])]
    words += [str(word) for word in settings["extra_arguments"]]

    cuda = any(device["backend"] == "CUDA" for device in deployment["devices"])
    telling = allreduce_log.environment(cuda, deployment["split_mode"])
    environment = {"GGML_NO_BACKTRACE": "1", **telling, **deployment["environment"]}
    nodes = unit_sandbox.nodes(device["backend"] for device in deployment["devices"])

    given = addresses.networks(settings["allowed_networks"], "llama_server_allowed_networks")
    hosts = [settings["host"], *map(addresses.host_of, endpoints)]
    local = all(addresses.is_loopback(host) for host in hosts)
    return {
        "arguments": words,
        "environment": environment,
        "device_nodes": nodes,
        "cuda": cuda,
        "local": local,
        "networks": addresses.allowed(settings["host"], given, hosts[1:]),
        "nccl": unit_sandbox.uses_nccl(nodes, deployment["split_mode"]),
        "nccl_file": allreduce_log.NCCL_FILE,
        "layers": [device["layers"] for device in devices],
        "lenders": network_links.remote(endpoints) if chosen else [],
        "placements": [shlex.join(_chosen_words(served)) for served in fallbacks.ways(deployment)] if chosen else [],
        "rpc_protocol": deployment.get("rpc_protocol", ""),
        "url": url(settings["host"], settings["port"]),
        "wrong_answers": unit_end.WRONG_ANSWERS,
        "limits": unit_end.limits(int(settings["load_timeout_seconds"])),
    }


def _chosen_words(deployment: Mapping) -> list[str]:
    """Return all flags that differ between the ways to serve."""
    return [*_on_devices(deployment), "-c", str(deployment["serving"]["context_size"]), *_beside(deployment)]


def _on_devices(deployment: Mapping) -> list[str]:
    """Return the flags of the devices and their layers."""
    devices, endpoints = placement.used_devices(deployment), placement.served_endpoints(deployment)
    # --rpc comes before -dev: the devices that -dev names exist only once their servers have been asked
    words = ["--rpc", ",".join(endpoints)] if endpoints else []
    words += ["-dev", ",".join(device["device"] for device in devices)]
    words += ["-sm", "none" if len(devices) == 1 else deployment["split_mode"]]
    if len(devices) > 1:
        layers = [device["layers"] for device in devices]
        words += ["-ts", layer_split.render_tensor_split(layers, "llama_server")]
    return words


def _beside(deployment: Mapping) -> list[str]:
    """Return the flags of what is beside the layers on the devices."""
    return [*_experts(deployment), *speculation_flags.arguments(deployment)]


def _experts(deployment: Mapping) -> list[str]:
    """Return the flags of experts in RAM; prompts and single tokens are computed by the same threads."""
    experts = expert_placement.from_json(deployments.layers(deployment), deployment.get("experts_in_ram"))
    if experts is None:
        return []
    threads, no_host = str(deployment["serving"]["threads"]), ["--no-host"] if experts.no_host else []
    return ["-tb", threads, "-ot", expert_placement.render(experts, "llama_server"), *no_host]


# --- what systemd says -----------------------------------------------------------------------------------------------


def unit_state(properties: t.Mapping[str, str], health_status: int | None) -> str:
    """Return absent, stopped, failed, restarting, loading or ready.

    C(health_status) is the HTTP status of /health, None without an answer.
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


def settled(state: str, restarts: int, waits: bool) -> bool:
    """Return whether waiting longer for a server is in vain.

    C(state) is of unit_state, C(restarts) counts systemd's own restarts, C(waits) says that it waits for its lenders.
    """
    return state not in COMING or restarts >= _RESTARTS or waits


def failure(unit: str, state: str, restarts: int, reason: str, last_lines: t.Sequence[str]) -> list[str]:
    """Return why a server is not ready and the end of its journal, line by line; nothing for one that is ready.

    C(reason) is of unit_end.why.
    """
    if state == "ready":
        return []
    found = f"{unit} is not ready (state {state} after {restarts} automatic restarts)."
    journal = "The end of the journal of its last start, where the first error is the cause:" if last_lines else ""
    return [" ".join(filter(None, [found, reason, journal])), *last_lines]


def key_file(unit_text: str) -> str:
    """Return the path of the API key that a unit hands to its server, "" for none."""
    found = re.search(r"^LoadCredential=api_key:(/\S+)$", unit_text, re.MULTILINE)
    return found[1] if found else ""


def bound_to(unit_text: str) -> str:
    """Return the address that a unit binds its server to, "" where it does not say."""
    found = re.search(r"\s--host (\S+) --port [0-9]+\s", unit_text)
    return found[1] if found else ""


# --- what it says about itself ---------------------------------------------------------------------------------------
