# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What llama-server logs while it loads its model. Private to this collection. Pure functions only.

The lines are those of llama.cpp b11312. All sizes are MiB.
"""

from __future__ import annotations

import re
import typing as t

from .._base.types import Json
from . import allreduce_log

#: Sizes and counts of a load have no more digits; a line that was torn may hold anything.
_WHOLE: t.Final = r"[0-9]{1,12}"
_MIB: t.Final = r"[0-9]{1,12}(?:\.[0-9]{1,6})?"
_LOADED = re.compile(rf"^({_WHOLE})\.(\d{{2}})\.(\d{{3}})\.\d{{3}} [A-Z] .*llama_server: model loaded$")
_BUILD = re.compile(r"common_params_print_info: build (\d+ \(\S+\))")
_DEVICE = re.compile(rf"using device (\S+) \((.*)\) \(([^()]*)\) - ({_WHOLE}) MiB free$")
_BUFFER = re.compile(rf": +(\S+) +(model|KV|RS|compute|output) buffer size = *({_MIB}) MiB")
_CACHE = re.compile(
    rf"(llama_memory_recurrent)?: size = *({_MIB}) MiB \( *\d+ cells, *({_WHOLE}) layers,"
    rf".*?\)(?:, K \((\w+)\): *{_MIB} MiB, V \((\w+)\):)?"
)
_NEXTN = re.compile(rf"\.nextn_predict_layers +u32 += +({_WHOLE})$")
_MEMBER = re.compile(r"llama_prepare_model_devices: - device \d+: (\S+)")
_ASSIGNED = re.compile(rf"load_tensors: layer +({_WHOLE}) assigned to device (\w+)")
_OFFLOADED = re.compile(rf"offloaded ({_WHOLE})/({_WHOLE}) layers to GPU")
_CONTEXT = re.compile(r"llama_context: (\w+) += (\S+)$")
_OUTPUT_OFFLOADED = re.compile(r"offloading output layer to GPU")
_OVERRIDDEN = re.compile(r"tensor (\S+) \(\d+ MiB \S+\) buffer type overridden to (\S+)$")
_THREADS = re.compile(rf"system_info: n_threads = ({_WHOLE}) \(n_threads_batch = ({_WHOLE})\)")
_SPECULATES = re.compile(r"adding speculative implementation '([^']+)'")
#: Where a draft begins to be loaded, and where all is loaded; MTP blocks are a second context of the model.
_DRAFT_BEGINS = "loading draft model '"
_CONTEXT_BEGINS = "llama_context: constructing llama_context"
_DRAFT_ENDS = "load_model: initializing, n_slots"
_PIPELINE = re.compile(r"pipeline parallelism enabled|retrying without pipeline parallelism")


class _Cache:
    """One KV or recurrent cache: buffers by name, closed by the line that names its size and layers."""

    def __init__(self) -> None:
        self.buffers: dict[str, float] = {}
        self.size_mib = 0.0
        self.layers = 0
        self.recurrent = False

    def layers_by_buffer(self, layers: int) -> dict[str, int] | None:
        """Return how many of its layers each buffer holds, or None when these are not all of one size."""
        if not layers or not self.size_mib:
            return None
        counts = {}
        for name, size in self.buffers.items():
            count = size * layers / self.size_mib
            if abs(count - round(count)) > 0.1:
                return None
            counts[name] = round(count)
        return counts if sum(counts.values()) == layers else None


class _Log:
    """What the lines of one load say, taken up one by one."""

    def __init__(self) -> None:
        self.build: str | None = None
        self.devices: list[Json] = []
        self.members: list[str] = []
        self.assigned: dict[int, str] = {}
        self.sizes: dict[str, dict[str, float]] = {}
        self.caches: list[_Cache] = []
        self.open_cache = _Cache()
        self.cache_types: tuple[str | None, str | None] = (None, None)
        self.context: dict[str, str] = {}
        self.offloaded: tuple[int, int] | None = None
        self.output_offloaded = False
        self.pipeline = False
        self.overridden: dict[str, str] = {}
        self.threads: tuple[int, int] | None = None
        self.load_seconds: float | None = None
        self.speculation: list[str] = []
        self.nextn = 0

    def take(self, line: str) -> None:
        """Take up one line; most lines say nothing."""
        for pattern, taken in _TAKEN:
            if match := pattern.search(line):
                taken(self, match)
                return

    def buffer(self, match: re.Match[str]) -> None:
        name, kind, size = match[1], match[2], float(match[3])
        of_name = self.sizes.setdefault(name, {})
        # compute buffers are reserved again and again: the last one counts
        of_name[kind] = size if kind == "compute" else of_name.get(kind, 0.0) + size
        if kind in ("KV", "RS"):
            self.open_cache.buffers[name] = self.open_cache.buffers.get(name, 0.0) + size

    def cache(self, match: re.Match[str]) -> None:
        self.open_cache.recurrent = bool(match[1])
        self.open_cache.size_mib, self.open_cache.layers = float(match[2]), int(match[3])
        self.caches.append(self.open_cache)
        self.open_cache = _Cache()
        if match[4]:
            self.cache_types = (match[4], match[5])

    def set_nextn(self, match: re.Match[str]) -> None:
        self.nextn = int(match[1])

    def set_context(self, match: re.Match[str]) -> None:
        self.context.setdefault(match[1], match[2])

    def device(self, match: re.Match[str]) -> None:
        named = dict(zip(("device", "description", "pci_bus_id"), match.groups(), strict=False))
        self.devices.append({**named, "free_mib": int(match[4])})

    def member(self, match: re.Match[str]) -> None:
        self.members.append(match[1])

    def assign(self, match: re.Match[str]) -> None:
        self.assigned[int(match[1])] = match[2]

    def offload(self, match: re.Match[str]) -> None:
        self.offloaded = (int(match[1]), int(match[2]))

    def offload_output(self, _match: re.Match[str]) -> None:
        self.output_offloaded = True

    def set_pipeline(self, match: re.Match[str]) -> None:
        self.pipeline = match[0].endswith("enabled")

    def override(self, match: re.Match[str]) -> None:
        self.overridden[match[1]] = match[2]

    def set_threads(self, match: re.Match[str]) -> None:
        self.threads = (int(match[1]), int(match[2]))

    def set_build(self, match: re.Match[str]) -> None:
        self.build = match[1]

    def speculate(self, match: re.Match[str]) -> None:
        if match[1] != "none":
            self.speculation.append(match[1])

    def loaded(self, match: re.Match[str]) -> None:
        self.load_seconds = int(match[1]) * 60 + int(match[2]) + int(match[3]) / 1e3


#: What is looked for in a line, and what takes it up; the first that matches.
_TAKEN: t.Final[tuple[tuple[re.Pattern[str], t.Callable[[_Log, re.Match[str]], None]], ...]] = (
    (_BUFFER, _Log.buffer),
    (_CACHE, _Log.cache),
    (_CONTEXT, _Log.set_context),
    (_NEXTN, _Log.set_nextn),
    (_DEVICE, _Log.device),
    (_MEMBER, _Log.member),
    (_ASSIGNED, _Log.assign),
    (_OFFLOADED, _Log.offload),
    (_OUTPUT_OFFLOADED, _Log.offload_output),
    (_PIPELINE, _Log.set_pipeline),
    (_OVERRIDDEN, _Log.override),
    (_THREADS, _Log.set_threads),
    (_BUILD, _Log.set_build),
    (_SPECULATES, _Log.speculate),
    (_LOADED, _Log.loaded),
)


def is_loaded(line: str) -> bool:
    """Return whether a line says that the model is loaded: nothing after it is about the load."""
    return _LOADED.match(line.rstrip("\n")) is not None


def parse_load(text: str) -> Json:
    """Read what llama-server logged while it loaded its model (C(-lv 4) or more).

    Returns C(complete) (whether the load lines are there), C(build), C(tensor_devices) (in split mode tensor, where all
    of them are one device "Meta()" to the rest of llama.cpp, their names in order), C(allreduce) (how cards add up
    then, _split/allreduce.py; None where nothing says so), C(devices) (one per device in use:
    device, id, description, pci_bus_id, free_mib, layers, output, model_mib, kv_mib, compute_mib, total_mib), C(host)
    (the same three sizes for host memory), C(layers_source), C(layers_note), C(model_layers) and C(offloaded_layers)
    (repeating blocks and the output layer), C(host_layers), context_size, context_per_slot, slots, kv_unified,
    batch_size, micro_batch_size, flash_attention, cache_type_k, cache_type_v, pipeline_parallel, load_seconds,
    C(overridden) (which tensors were placed by hand, by name, and where; logged with C(-lv 5)), and C(threads) of the
    CPU for a token and for prompts. C(speculation) are the kinds of speculation. What a draft, or the model's own
    blocks for drafting, take of a device is part of its C(total_mib), and of no other size.

    The counts of layers come from the lines that name each layer's device where they are logged (C(-lv 5)), else from
    the KV buffers: within a cache all layers are equally large, so a device's share of the cache is its share of the
    layers; the output layer has no KV and is on the last device with weights. Blocks for drafting (C(drafting_blocks),
    MTP) have a cache only where they draft; else they count as on the device of the output layer.
    """
    log, draft = _Log(), _Log()
    for line, of_draft in _parted(text):
        (draft if of_draft else log).take(line)
    devices, buffer_of = _identified(log.devices)
    draft_mib = _draft_mib(draft, devices, buffer_of)
    for device in devices:
        sizes = _sizes(log.sizes.pop(buffer_of[device["device"]], {}))
        device.update(sizes)
        device["total_mib"] = round(sizes["total_mib"] + draft_mib.get(device["id"], 0.0), 2)
    host: dict[str, float] = {}
    for kind, size in (item for own in log.sizes.values() for item in own.items()):
        host[kind] = host.get(kind, 0.0) + size
    layers, source, note = _layers(log, draft, devices, buffer_of)
    for device in devices:
        device["layers"], device["output"] = layers[device["device"]] if layers else (None, None)
    offloaded, of_all = log.offloaded or (None, None)
    return {
        "complete": bool(devices) and of_all is not None and bool(log.context),
        "tensor_devices": log.members,
        "allreduce": allreduce_log.read(text) if log.members else None,
        "build": log.build,
        "devices": devices,
        "host": _sizes(host),
        "layers_source": source,
        "layers_note": note,
        "model_layers": of_all,
        "offloaded_layers": offloaded,
        "host_layers": of_all - offloaded if of_all is not None and offloaded is not None else None,
        **_context(log.context),
        "cache_type_k": log.cache_types[0],
        "cache_type_v": log.cache_types[1],
        "pipeline_parallel": log.pipeline,
        "load_seconds": log.load_seconds,
        "overridden": log.overridden,
        "threads": list(log.threads) if log.threads else None,
        "speculation": log.speculation,
        "drafting_blocks": log.nextn,
    }


def _parted(text: str) -> t.Iterator[tuple[str, bool]]:
    """Yield each line, and whether it is of the load of a draft, which says the same things again."""
    contexts, of_draft = 0, False
    for line in text.splitlines():
        contexts += _CONTEXT_BEGINS in line
        if _DRAFT_BEGINS in line or contexts > 1:
            of_draft = True
        if _DRAFT_ENDS in line:
            of_draft, contexts = False, 0
        yield line, of_draft


def _draft_mib(draft: _Log, devices: t.Sequence[Json], buffer_of: t.Mapping[str, str]) -> dict[str, float]:
    """Return what drafting takes of each device, by its id."""
    own, own_buffers = _identified(draft.devices)
    names = {buffer: row["id"] for rows, of in ((own, own_buffers), (devices, buffer_of)) for row in rows
             for name, buffer in of.items() if name == row["device"]}  # fmt: skip
    return {
        names[buffer]: _sizes(sizes)["total_mib"] for buffer, sizes in draft.sizes.items() if buffer in names
    }  # fmt: skip


def _identified(found: t.Sequence[Json]) -> tuple[list[Json], dict[str, str]]:
    """Return the devices with their ids, and what the buffers of each are called in the log."""
    per_endpoint: dict[str, int] = {}
    buffer_of: dict[str, str] = {}
    devices = []
    for device in found:
        name = identity = buffer = device["device"]
        if name.startswith("RPC"):
            # The server of an endpoint numbers its own devices: every endpoint has an RPC0[endpoint].
            identity = device["description"]
            number = per_endpoint.get(identity, 0)
            per_endpoint[identity] = number + 1
            buffer = f"RPC{number}[{identity}]"
        pci_bus_id = None if device["pci_bus_id"] == "unknown id" else device["pci_bus_id"]
        devices.append({**device, "id": identity, "pci_bus_id": pci_bus_id})
        buffer_of[name] = buffer
    return devices, buffer_of


def _context(said: t.Mapping[str, str]) -> Json:
    return {
        "context_size": _integer(said.get("n_ctx")),
        "context_per_slot": _integer(said.get("n_ctx_seq")),
        "slots": _integer(said.get("n_seq_max")),
        "batch_size": _integer(said.get("n_batch")),
        "micro_batch_size": _integer(said.get("n_ubatch")),
        "kv_unified": {"true": True, "false": False}.get(said.get("kv_unified", "")),
        "flash_attention": {"enabled": "on", "disabled": "off", "auto": "auto"}.get(said.get("flash_attn", "")),
    }


def _integer(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(_WHOLE, text) else None


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
    log: _Log, draft: _Log, devices: t.Sequence[Json], buffer_of: t.Mapping[str, str]
) -> tuple[dict[str, tuple[int, bool]] | None, str | None, str | None]:
    """Return ({device: (slots, holds the output layer)}, source, None) or (None, None, why not)."""
    if log.offloaded is None or not devices:
        return None, None, "the log does not hold the load of the model"
    slots = log.offloaded[1]
    names = [device["device"] for device in devices]
    if len(log.assigned) == slots:
        last = log.assigned[slots - 1]
        counts = {name: (sum(1 for other in log.assigned.values() if other == name), name == last) for name in names}
        return counts, "log", None
    with_weights = [device["device"] for device in devices if device["model_mib"] > 0]
    output = with_weights[-1] if log.output_offloaded and with_weights else None
    blocks = dict.fromkeys(names, 0)
    elsewhere = 0
    for cache, layers in _caches(log, draft, slots - 1):
        by_buffer = cache.layers_by_buffer(layers)
        if by_buffer is None:
            return None, None, "the layers of the KV cache are not all of one size"
        for name in names:
            blocks[name] += by_buffer.pop(buffer_of[name], 0)
        elsewhere += sum(by_buffer.values())
    unseen = slots - 1 - sum(blocks.values()) - elsewhere
    if output is not None and unseen == log.nextn:
        blocks[output] += unseen
    elif unseen:
        return None, None, f"the KV cache covers {slots - 1 - unseen} of {slots - 1} blocks"
    return {name: (blocks[name] + (name == output), name == output) for name in names}, "kv_buffers", None


def _caches(log: _Log, draft: _Log, blocks: int) -> list[tuple[_Cache, int]]:
    """Return the caches with the number of their layers.

    A recurrent one names all blocks of the model, and has those without attention. Blocks that draft have a cache of
    their own, in a context of the same model.
    """
    attention = [(cache, cache.layers) for cache in log.caches if not cache.recurrent]
    others = blocks - log.nextn - sum(layers for _cache, layers in attention)
    recurrent = [(cache, others) for cache in log.caches if cache.recurrent]
    own = [] if draft.offloaded else [(cache, cache.layers) for cache in draft.caches if cache.layers == log.nextn]
    return attention + recurrent + own
