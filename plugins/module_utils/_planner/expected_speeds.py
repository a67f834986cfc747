# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Times to expect of a split that was not measured. Private to this collection. Pure functions only.

For one request at a time:

- decode: the devices take turns, and each reads its weights (of experts those in use) and the KV cache of the tokens
  that its blocks look back on, once per token. So the time grows with the context by bytes of KV over the rate. To that
  comes launching the kernels of each block, which decides for small and sparse models.
- prefill: two floating point operations per weight and token, through the pipeline of _cost_model. Attention's own
  work, which grows with the prompt, and the transfers between cards are left out. A micro-batch of a model of experts
  reads nearly all of them, and each has few of its tokens, which cards are slower at.
- a device of another host: network_links adds to each token, and to the stage of that device in a prompt's pipeline.

Rates come from one of two sources. Published: the fraction of the nominal memory bandwidth, operations per second and
launches per block that published runs tell of a card. Measured: the costs that a tuning of this host has fitted,
which contain the launches; what is said then has an interval of 95 %. Those of another model of the same kind are
taken apart: bytes over a rate, and the launches of its blocks.
"""

from __future__ import annotations

import typing as t

from .._base import stats
from .._base.types import Mapping
from .._split import cost_model, layer_weights, memory_plan, model_weights, network_links, split_cost, workload
from .._split.types import Model, Serving
from . import known_costs

#: What operations of a prompt take of a model of experts, against those of a dense one: published runs of gpt-oss-20b
#: took 1.2 to 1.8 (RTX 4090 in micro-batches of 1024 and 2048, RTX 5090), of Qwen3-30B-A3B on a Tesla P40 2.2.
EXPERT_WORK: t.Final = 2.0


class Rates(t.NamedTuple):
    """How fast devices read and compute, per ms; None where nothing is known of a device."""

    read_bytes: tuple[float | None, ...]
    operations: tuple[float | None, ...]
    launch_ms: tuple[float, ...]  # of one block, where reading does not contain it
    overlap: float = 1.0
    cache: tuple[float, float, float] = (1.0, 1.0, 1.0)  # time of a byte of KV against one of weights: least to most
    error: float | None = None  # relative standard deviation; None: published, not measured here
    deployment: str = ""  # whose tuning measured them
    of_kind: bool = False  # of a model with other blocks
    links: tuple[Mapping | None, ...] = ()  # of devices of other hosts; measured rates contain the network


def published(devices: t.Sequence[Mapping]) -> Rates:
    """Return the rates that published runs reached on devices of known_devices."""
    return Rates(
        tuple(d["bandwidth_gb_per_s"] * d["fraction"] * 1e6 if d["bandwidth_gb_per_s"] else None for d in devices),
        tuple(d["prefill_tflops"] * 1e9 if d["prefill_tflops"] else None for d in devices),
        tuple(d["launch_ms"] for d in devices),
        links=tuple(d.get("link") for d in devices),
    )


def measured(known: known_costs.Known, devices: t.Sequence[Mapping] = ()) -> Rates:
    """Return the rates that an earlier tuning has measured.

    C(devices), of known_devices, say what launches take where blocks were others: at most half of what was fitted.
    """
    layer = known.layer
    read = layer["weights_bytes"] + known.cache[1] * layer["cache_bytes"]
    decode, prefill = known.decode or [], known.prefill or []
    none = [None] * len(decode or prefill)
    launch = [0.0] * len(none)
    if known.of_kind and decode:
        launch = [min(device["launch_ms"], ms / 2) for device, ms in zip(devices, decode, strict=True)]
    reading = [ms - own for ms, own in zip(decode, launch, strict=False)]
    return Rates(
        tuple(read / ms if ms > 0 else None for ms in reading) if decode else tuple(none),
        tuple(layer["operations"] / ms if ms > 0 else None for ms in prefill) if prefill else tuple(none),
        tuple(launch),
        known.overlap, known.cache, known.error, known.deployment, known.of_kind,
    )  # fmt: skip


class Time(t.NamedTuple):
    """A time in ms with its interval of 95 %, which is None where nothing was measured."""

    ms: float
    low: float | None
    high: float | None


class Speeds:
    """Expected times of the splits of one model under one serving profile."""

    def __init__(self, model: Model, serving: Serving, objective: workload.Objective, rates: Rates) -> None:
        self.objective, self.rates = objective, rates
        self.prompt, self.generated = objective.prompt_tokens, objective.generated_tokens
        # half of the answer is there, on average, when a token is generated
        self.depth = objective.depth_tokens + self.prompt + self.generated // 2
        self.micro_batch = memory_plan.micro_batch_tokens(serving)
        self._model, self._serving = model, serving
        self._weights = model_weights.bytes_read(model, serving, 0)
        # the output layer is one kernel, and a block that only predicts further tokens is not run
        self._launched = [1 if read else 0 for read in self._weights[:-1]] + [0]
        # a server asks for the last token's output only, so the output layer costs a prompt next to nothing
        self._work = [2.0 * weights for weights in model["block_weights"]] + [0.0]
        self._more_read = [0.0] * len(self._weights)
        if rates.error is None and model.get("expert_count") and model.get("block_ffn_bytes"):
            self._work = [EXPERT_WORK * work for work in self._work]
            self._more_read = _read_by_many(model, min(self.micro_batch, self.prompt)) + [0.0]

    def launch_ms(self, layers: t.Sequence[int]) -> float:
        """Return what launching kernels takes of each token; 0 where measured costs contain it."""
        return sum(
            blocks * ms for blocks, ms in zip(stages(self._launched, layers), self.rates.launch_ms, strict=True)
        )

    def decode(self, layers: t.Sequence[int], depth: int | None = None) -> Time | None:
        """Return the time of one token, at the depth of the objective or another; None where a rate is unknown."""
        depth = self.depth if depth is None else depth
        whole = model_weights.bytes_read(self._model, self._serving, depth)
        cached = [all_of_it - own for all_of_it, own in zip(whole, self._weights, strict=True)]
        weights, cache = (
            _divided(stages(values, layers), self.rates.read_bytes) for values in (self._weights, cached)
        )
        if weights is None or cache is None:
            return None
        least, expected, most = (sum(weights) + factor * sum(cache) for factor in self.rates.cache)
        # measured costs contain what the protocol itself takes
        protocol = network_links.RPC_MS if self.rates.error is None else 0.0
        waited = sum(one.token_ms + protocol for one in self._network(layers, depth) if one.token_ms)
        return self._time(least, expected, most, self.launch_ms(layers) + waited)

    def _network(self, layers: t.Sequence[int], depth: int) -> list[network_links.Cost]:
        """Return what the network costs each device where tokens are generated at a depth."""
        fused = memory_plan.flash_attention(self._serving)
        asked = network_links.work(self.prompt, self.micro_batch, self.objective.depth_tokens, depth, fused)
        links = self.rates.links or [None] * len(layers)
        return network_links.costs(t.cast(Mapping, self._model), layers, links, asked)

    def without_network(self) -> Speeds:
        """Return the speeds as if all devices were in one host."""
        return Speeds(self._model, self._serving, self.objective, self.rates._replace(links=()))

    def ttft(self, layers: t.Sequence[int]) -> Time | None:
        """Return the time of the prompt; None where a used device's rate is unknown or there is no prompt."""
        if not self.prompt or not any(self._work):
            return None
        batches = cost_model.micro_batches(self.prompt, self.micro_batch)
        tokens = self.prompt / batches
        computed = _divided([work * tokens for work in stages(self._work, layers)], self.rates.operations)
        read = _divided(stages(self._more_read, layers), self.rates.read_bytes)
        if computed is None or read is None:
            return None
        times = [sum(own) for own in zip(computed, read, strict=True)]
        crossings = self._network(layers, 0)
        times = [time + one.micro_batch_ms - one.hidden_ms for time, one in zip(times, crossings, strict=True)]
        times += [one.hidden_ms for one in crossings if one.hidden_ms]  # a stage of its own
        # the pipeline of _cost_model, with stages whose blocks differ
        of_sum, of_max = cost_model.prefill_weights(batches, self.rates.overlap)
        ms = of_sum * sum(times) + of_max * max(times)
        return self._time(ms, ms, ms, 0.0)

    def _time(self, least: float, expected: float, most: float, more: float) -> Time:
        error = self.rates.error
        if error is None:
            return Time(expected + more, None, None)
        side = stats.NORMAL_95 * error
        return Time(expected + more, least * max(0.0, 1 - side) + more, most * (1 + side) + more)

    def decode_ms(self, layers: t.Sequence[int]) -> float | None:
        """Return the time of one token at the depth of the objective."""
        found = self.decode(layers)
        return None if found is None else found.ms

    def ttft_ms(self, layers: t.Sequence[int]) -> float | None:
        """Return the time of the prompt."""
        found = self.ttft(layers)
        return None if found is None else found.ms

    def objective_ms(self, layers: t.Sequence[int]) -> float | None:
        """Return the time of the objective; None where a part of it is unknown."""
        name, decode, ttft = self.objective.name, self.decode_ms(layers), self.ttft_ms(layers)
        if name == "decode":
            return decode
        if name == "agent":
            return None if decode is None else self.generated * decode
        if name == "prefill":
            return ttft
        generated = 1 if name == "ttft" else self.generated
        return None if decode is None or ttft is None else ttft + generated * decode

    def cost(self, weights: layer_weights.LayerWeights) -> split_cost.Cost | None:
        """Return the objective as the exact search takes it; None where a device's rate is unknown."""
        devices, total = len(self.rates.read_bytes), len(self._weights)
        whole = [tuple(total if other == index else 0 for other in range(devices)) for index in range(devices)]
        decode = [self.decode_ms(layers) for layers in whole]
        ttft = [self.ttft_ms(layers) for layers in whole]
        prompt, generated = workload.counted(self.objective.name, self.prompt, self.generated or 1)
        if (generated and None in decode) or (prompt and None in ttft):
            return None
        batches = cost_model.micro_batches(prompt, self.micro_batch) if prompt else 1
        of_sum, of_max = cost_model.prefill_weights(batches, self.rates.overlap)
        stage = [(ms or 0.0) / (of_sum + of_max) / (total - 1) if prompt else 0.0 for ms in ttft]
        return split_cost.Cost(
            tuple(generated * (ms or 0.0) / total for ms in decode),
            tuple(of_sum * ms for ms in stage),
            tuple(of_max * ms for ms in stage),
            weights,
        )


def stages(values: t.Sequence[float], layers: t.Sequence[int]) -> list[float]:
    """Return the sum of C(values), one per layer, on each device."""
    result, start = [], 0
    for count in layers:
        result.append(sum(values[start : start + count]))
        start += count
    return result


def _read_by_many(model: Model, tokens: int) -> list[float]:
    """Return the bytes of experts in each block that a micro-batch reads beyond those of one token."""
    unused = 1 - model["expert_used_count"] / model["expert_count"]
    experts = [sum(sizes) for sizes in zip(*model["block_ffn_bytes"].values(), strict=True)]
    return [size * (unused - unused**tokens) for size in experts]


def _divided(amounts: t.Sequence[float], rates: t.Sequence[float | None]) -> list[float] | None:
    result = []
    for amount, rate in zip(amounts, rates, strict=True):
        if amount and not rate:
            return None
        result.append(amount / rate if rate else 0.0)
    return result
