# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The start of vLLM over the cards of one host or of several: how many blocks each card gets, and every command.

Private. Pure. A plan: nothing was run or measured. In a pipeline that many requests fill, the slowest stage decides, so
blocks are shared out until the slowest stage is as quick as memory allows. A stage is as slow as its reads of weights.
"""

from __future__ import annotations

import typing as t

from .._base.errors import UserError
from .._base.text import card_name, columns, number
from .._base.types import Json, Mapping
from .._split import memory_plan, pipeline_start
from .._split.pipeline_start import Node

#: Of each card, what activations, CUDA graphs and NCCL take: assumed, since vLLM tells it when it runs.
BUFFERS_MIB: t.Final = 1024
#: Embedding and output matrix are not quantised in AWQ and GPTQ files, and what stages hand on is of this width, too.
_WIDE_BYTES: t.Final = 2
#: Of a weight in AWQ and GPTQ files: 4 bits, and a scale of 16 and a zero of 4 bits for each group of 128 weights.
_QUANTISED_BITS: t.Final = 4 + (16 + 4) / 128
#: Bytes that links carry in a second, with TCP.
_LINKS: t.Final = {"1 GbE": 117e6, "2.5 GbE": 294e6, "10 GbE": 1.17e9}


class _Stage(t.NamedTuple):
    """A card of the pipeline before blocks are shared out."""

    name: str
    host: str
    budget_mib: float
    extra_mib: float
    block_ms: float
    extra_ms: float


def plan(model: Mapping, devices: t.Sequence[Mapping], nodes: t.Sequence[Node], context: int, repo: str) -> Json:
    """Return C({start, lines, why}), see docs/data_formats.md.

    C(devices): of known_devices, in the order of the stages. C(nodes): those that they are in, none for this host
    alone. C(repo): what vLLM is to serve, or empty. Raises UserError where it does not fit.
    """
    served = _served(model)
    quantised, sizes = _block_bytes(model, served)
    stages = _stages(model, devices, nodes, sum(sizes) / len(sizes))
    kv = [size / memory_plan.MIB for size in _kv_bytes(model, context)[:served]]
    blocks = [size / memory_plan.MIB for size in sizes]
    counts = _shared(stages, max(block + cache for block, cache in zip(blocks, kv, strict=True)), len(blocks), context)
    rows, tokens = _rows(stages, counts, blocks, kv, context)
    single = len(nodes) < 2
    start: Json = {
        "prediction": True,
        "vllm": pipeline_start.VLLM_VERSION,
        "ray": None if single else pipeline_start.RAY_VERSION,
        "model": model["name"],
        "weights": "4 bits (AWQ, GPTQ)" if quantised else model["file_type"],
        "blocks": len(blocks),
        "context_size": context,
        "stages": rows,
        "kv_cache_tokens": tokens,
        "commands": _alone(devices, nodes, counts, context, repo) if single else _joined(nodes, counts, context, repo),
        "limits": _limits(model, nodes),
    }
    why = f"{len(rows)} stages of {', '.join(str(count) for count in counts)} blocks; the slowest decides"
    return {"start": start, "lines": _lines(start), "why": why}


def _served(model: Mapping) -> int:
    """Return how many blocks vLLM counts: not those that come last and only predict further tokens."""
    return int(model["block_count"] - (model.get("nextn_blocks") or 0))


def _block_bytes(model: Mapping, served: int) -> tuple[bool, list[int]]:
    """Return the bytes of each block, and whether they are those of 4 bits, which vLLM has no GGUF for.

    Experts that one token does not use are not counted in block_weights, so such a model has the bytes of its GGUF.
    """
    known = all(model["block_weights"]) and not model["expert_count"]
    if not known or model["file_type"] in ("F16", "BF16"):
        return False, list(model["block_bytes"][:served])
    return True, [round(weights * _QUANTISED_BITS / 8) for weights in model["block_weights"][:served]]


def _stages(
    model: Mapping, devices: t.Sequence[Mapping], nodes: t.Sequence[Node], block_bytes: float
) -> list[_Stage]:
    """Return the cards of the pipeline; where the speed of one is not known, all count as equally fast."""
    hosts = [node.address for node in nodes for _card in range(node.cards)] or ["this host"] * len(devices)
    rates = [(device["bandwidth_gb_per_s"] or 0) * device["fraction"] for device in devices]
    rates = rates if all(rates) else [0.0] * len(rates)
    wide = model["vocabulary_size"] * model["embedding_length"] * _WIDE_BYTES
    served = _served(model)
    read = sum(model["block_read_bytes"][:served]) / served if model["expert_count"] else block_bytes
    last = len(devices) - 1
    return [
        _Stage(
            name=card_name(device["description"]),
            host=host,
            budget_mib=device["total_mib"] * pipeline_start.GPU_MEMORY_UTILIZATION - BUFFERS_MIB,
            # the embedding is on the first stage, the output matrix on the last
            extra_mib=((index == 0) + (index == last)) * wide / memory_plan.MIB,
            block_ms=read / rate / 1e6 if rate else 1.0,
            extra_ms=wide / rate / 1e6 if rate and index == last else 0.0,
        )
        for index, (device, host, rate) in enumerate(zip(devices, hosts, rates, strict=True))
    ]


def _kv_bytes(model: Mapping, context: int) -> list[int]:
    """Return the bytes of the KV cache of one request with a full context, of 16 bits, per block."""
    serving: t.Any = {
        "context_size": context, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 2048,
        "cache_type_k": "f16", "cache_type_v": "f16",
    }  # fmt: skip
    return memory_plan.kv_bytes(t.cast(t.Any, model), serving)


def _shared(stages: t.Sequence[_Stage], block_mib: float, blocks: int, context: int) -> list[int]:
    """Return the blocks of each stage: the slowest stage is as quick as memory allows. Raises UserError."""
    most = [int((stage.budget_mib - stage.extra_mib) // block_mib) for stage in stages]
    small = next((index for index, count in enumerate(most) if count < 1), None)
    if small is not None:
        raise UserError(
            f"No start: {stages[small].name} of {stages[small].host} has no room for one block of"
            f" {block_mib:.0f} MiB: leave it out, or choose a smaller model or context than {context}"
        )
    if len(stages) > blocks:
        raise UserError(f"No start: {blocks} blocks do not give each of {len(stages)} cards one: leave cards out")
    if sum(most) < blocks:
        raise UserError(
            f"No start: {blocks - sum(most)} of {blocks} blocks, {(blocks - sum(most)) * block_mib:.0f} MiB with a"
            f" context of {context} tokens, have no room: add a card, or choose a smaller model or context"
        )
    counts = [1] * len(stages)
    for _block in range(blocks - len(stages)):
        able = [index for index, count in enumerate(counts) if count < most[index]]
        after = {index: (counts[index] + 1) * stages[index].block_ms + stages[index].extra_ms for index in able}
        counts[min(able, key=lambda index: (after[index], counts[index] - most[index]))] += 1
    return counts


def _rows(
    stages: t.Sequence[_Stage], counts: t.Sequence[int], blocks: t.Sequence[float], kv: t.Sequence[float], context: int
) -> tuple[list[Json], int]:
    """Return a row per stage, and how many tokens all requests together may have: every stage has as many."""
    rows, tokens, begin = [], [], 0
    for stage, count in zip(stages, counts, strict=True):
        weights = sum(blocks[begin : begin + count]) + stage.extra_mib
        left = stage.budget_mib - weights
        tokens.append(int(left / (sum(kv[begin : begin + count]) / context)))
        begin += count
        rows.append({
            "host": stage.host, "card": stage.name, "blocks": count, "weights_mib": round(weights),
            "cache_mib": round(left), "read_ms": round(count * stage.block_ms + stage.extra_ms, 2),
        })  # fmt: skip
    return rows, min(tokens)


def _alone(
    devices: t.Sequence[Mapping], nodes: t.Sequence[Node], counts: t.Sequence[int], context: int, repo: str
) -> list[Json]:
    """Return the one command of one host, which needs no Ray."""
    node = nodes[0] if nodes else None
    ids = list(node.uuids) if node else [device["id"] for device in devices if str(device["id"]).startswith("GPU-")]
    cards = [{"id": name} for name in ids] or [{}]
    p2p = node.p2p if node else len(devices) == 1
    variables = pipeline_start.environment("vllm", cards, counts, p2p)
    line = f"{pipeline_start.exports(variables)} {pipeline_start.serve(repo, len(counts), context, ray=False)}"
    return [{"host": node.address if node else "this host", "does": "serves", "command": line}]


def _joined(nodes: t.Sequence[Node], counts: t.Sequence[int], context: int, repo: str) -> list[Json]:
    """Return every command of several hosts, in their order: the head first."""
    head = nodes[0].address
    found = [{
        "host": head, "does": "makes the token of the cluster; copy ~/.ray/auth_token to the other hosts, mode 0600",
        "command": "ray get-auth-token --generate >/dev/null",
    }]  # fmt: skip
    for node in nodes:
        variables = pipeline_start.exports(pipeline_start.node_environment(node))
        words = f"{variables} {pipeline_start.ray_start(node, head)}"
        does = "begins the cluster" if node.address == head else "joins"
        found.append({"host": node.address, "does": does, "command": words})
    partition = pipeline_start.partition(nodes, counts)
    served = {"RAY_AUTH_MODE": "token", "VLLM_HOST_IP": head, "VLLM_PP_LAYER_PARTITION": partition}
    words = f"{pipeline_start.exports(served)} {pipeline_start.serve(repo, len(counts), context, ray=True)}"
    return [*found, {"host": head, "does": "serves, when all have joined", "command": words}]


def _limits(model: Mapping, nodes: t.Sequence[Node]) -> list[str]:
    """Return what such a start cannot do, a sentence each."""
    found = [
        "nothing of vLLM was run by this collection: sizes follow from the shape of the model, a GiB of each card is"
        " left for vLLM's buffers, and vLLM says at its start what its cache holds",
        "one request passes the stages one after the other and gains nothing; several requests fill them",
        "the same quantisation must run on all cards: 4 bits in AWQ or GPTQ, or 16 bits; no GGUF, EXL2 or EXL3",
    ]
    if len(nodes) < 2:
        return found
    handed = 2 * model["embedding_length"] * _WIDE_BYTES
    carried = ", ".join(f"{rate / handed:.0f} over {link}" for link, rate in _LINKS.items())
    return [
        *found,
        f"a border between hosts carries {handed / 1024:.0f} KiB per token, so at most {carried} of prompts and answers"
        " together in a second",
        "the cards of a host are in the order of their PCI addresses under Ray, whatever CUDA_VISIBLE_DEVICES says:"
        " name them in that order, as nvidia-smi does",
        "Ray, NCCL and vLLM's queues use further ports, chosen at the start: let the hosts reach each other on all"
        " ports, and nobody else; NCCL and the queues know no password",
        "a host that dies ends the server: start it again with the hosts that are left, planned anew",
    ]


def _lines(start: Mapping) -> list[str]:
    """Return the plan for a screen."""
    with_ray = f" and Ray {start['ray']}" if start["ray"] else ", which needs no Ray on one host"
    head = ("stage", "host", "card", "blocks", "weights MiB", "cache MiB", "reads ms")
    body = [
        (
            str(index), row["host"], row["card"], str(row["blocks"]), str(row["weights_mib"]), str(row["cache_mib"]),
            number(row["read_ms"]),
        )
        for index, row in enumerate(start["stages"])
    ]  # fmt: skip
    tokens, context = start["kv_cache_tokens"], start["context_size"]
    packages = f"vllm=={start['vllm']}" + (f" ray=={start['ray']}" if start["ray"] else "")
    lines = [
        f"PLAN of a start, nothing was run: {start['model']}, {start['weights']}, with vLLM"
        f" {start['vllm']}{with_ray}",
        *(f"  {line}" for line in columns([head, *body], right=(3, 4, 5, 6))),
        f"  The cache holds {tokens} tokens of all requests, {tokens / context:.1f} with {context} each. reads: time to"
        " read the weights of a stage once, from the cards' bandwidth.",
    ]
    lines.append(f"Run each command in a shell with vLLM's Python environment (pip install {packages}).")
    for index, step in enumerate(start["commands"], 1):
        lines += [f"{index}. {step['host']} {step['does']}:", f"   {step['command']}"]
    return [*lines, *(f"Limit: {limit}." for limit in start["limits"])]
