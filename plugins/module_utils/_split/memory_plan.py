# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Memory of a split, per device, before anything is loaded. Private to this collection. Pure functions only.

A device holds the weights of its blocks (and of the output layer, if it is the last one in use), the KV cache of its
blocks, and a compute buffer. Weights and KV are exact. The compute buffer is an estimate that follows llama.cpp's own
dry run (`llama-fit-params -fitp on`) closely, see compute_bytes. Not counted, and covered by the problem's reserve: the
CUDA context and library workspaces beyond what the probing process already held.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing as t

from .._base.types import Mapping
from .._models import tensor_types
from . import engines, exl_split, expert_placement, layer_search, layer_split
from .types import Model, Serving

MIB = 1024 * 1024

#: Cache type -> (elements in one block, bytes of one block).
CACHE_TYPES: dict[str, tuple[int, int]] = {
    **{
        name: (tensor_types.BY_NAME[name].elements, tensor_types.BY_NAME[name].n_bytes)
        for name in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
    },
    # exllamav3's: 32 elements in so many bits each, and a scale of two bytes (cache/quant.py); exllamav2's Q8 and Q4
    # are as large as q8_0 and q4_0
    **{f"exl3_q{bits}": (32, 4 * bits + 2) for bits in range(2, 9)},
}

#: GGML_SCHED_MAX_COPIES of llama.cpp's build: with pipelining every input of a device exists this many times.
PIPELINE_COPIES = 4

#: Where two tensors of experts in RAM are copied, how many times the embedding length is in use beside, per token.
COPIED_AGAIN = 7

#: llama.cpp rounds contexts up to a multiple of this.
CONTEXT_STEP = 256


def cache_types(cache_mode: t.Any) -> list[str]:
    """Return the types of KV cache that an engine knows: those of an ExLlama with its C(cache_mode), or llama.cpp's."""
    return [name for name in CACHE_TYPES if cache_mode or not name.startswith("exl3_")]


def row_bytes(elements: int, cache_type: str) -> int:
    """Return the bytes of C(elements) values of a cache type; a started block counts whole. KeyError if unknown."""
    block_elements, block_bytes = CACHE_TYPES[cache_type]
    return -(-elements // block_elements) * block_bytes


def context_cells(serving: Serving) -> tuple[int, int]:
    """Return (tokens that one sequence can see, tokens that the KV cache holds in all).

    As in llama_context of llama.cpp: the context is rounded up to 256, and without a unified cache it is divided among
    the slots and every part rounded up again.
    """
    context = _round_up(serving["context_size"])
    slots = serving["parallel_slots"]
    if serving["kv_unified"] or slots == 1:
        return context, context
    per_slot = _round_up(context // slots)
    return per_slot, per_slot * slots


def window_cells(window: int, serving: Serving) -> tuple[int, int]:
    """Return what context_cells returns, for a block whose attention looks back on C(window) tokens; 0 means all.

    As in llama_kv_cache_iswa of llama.cpp b11312 without `--swa-full`: the window, once per slot of a unified cache,
    and a micro-batch, rounded up to 256; never more than the context.
    """
    seen, total = context_cells(serving)
    if not window:
        return seen, total
    sequences = serving["parallel_slots"] if serving["kv_unified"] else 1
    cells = _round_up(min(seen, window * sequences + micro_batch_tokens(serving)))
    return cells, cells * (total // seen)


def _round_up(tokens: int) -> int:
    return -(-tokens // CONTEXT_STEP) * CONTEXT_STEP


def micro_batch_tokens(serving: Serving) -> int:
    """Return how many tokens one micro-batch really has: never more than the batch or the context."""
    return min(serving["micro_batch_size"], serving["batch_size"], _round_up(serving["context_size"]))


def flash_attention(serving: Serving) -> bool:
    """Return whether attention is fused. C(auto) counts as on: the backends that we plan for all have it."""
    return serving["flash_attention"] != "off"


def kv_bytes_per_token(model: Model, serving: Serving) -> list[int]:
    """Return the bytes of K and V that one token has, per block."""
    return [
        row_bytes(k, serving["cache_type_k"]) + row_bytes(v, serving["cache_type_v"])
        for k, v in zip(model["kv_k_elements_per_token"], model["kv_v_elements_per_token"], strict=True)
    ]


def kv_bytes(model: Model, serving: Serving) -> list[int]:
    """Return the bytes of the KV cache per block, with what a block keeps whatever the context is.

    A block of an ExLlama's model that has a window and such a state keeps nothing else. llama.cpp keeps the state of
    recurrent blocks once per slot.
    """
    sequences = model.get("block_sequence_bytes") or [0] * model["block_count"]
    windows = model.get("window_tokens") or [0] * model["block_count"]
    states = model.get("block_state_bytes") or [0] * model["block_count"]
    return [
        (state if state and window else state + window_cells(window, serving)[1] * token_bytes)
        + sequence * serving["parallel_slots"]
        for window, state, token_bytes, sequence in zip(
            windows, states, kv_bytes_per_token(model, serving), sequences, strict=True
        )
    ]


def _expert_step(model: Model, hidden: int, forward: int) -> int:
    """Return the values per token of a step of experts, see compute_bytes."""
    used = model["expert_used_count"]
    wide, many = 3 * used * (model.get("expert_feed_forward_length") or forward), used * hidden
    return int(4 * hidden + max(wide, min(wide + many, 2 * many + hidden)))


def _before_output(model: Model, tokens: int, first: bool, experts: expert_placement.Copies | None) -> int:
    """Return what a card that copied from RAM still holds when the output layer is computed: an upper bound."""
    if experts is None or not experts.largest:
        return 0
    used = model.get("expert_used_count", 0)
    # what its last block's experts gave, until their fused sum is done; of a dense model the copy itself
    return 8 * tokens * used * model["embedding_length"] if used else first * experts.largest


def compute_bytes(
    model: Model, serving: Serving, layers: t.Sequence[int], device: int, experts: expert_placement.Copies | None = None
) -> int:
    """Return the compute buffer of C(device) as llama.cpp's dry run counts it, in bytes.

    Found by comparison with the dry run of llama.cpp b11312 over models of 0.4 to 70 billion parameters, among them one
    of experts and one with sliding windows, micro-batches of 128 to 2048 tokens, contexts of 1024 to 32768, and one to
    three devices (recorded in tests/fixtures/dry_run): it agrees within 3 % of what the device holds or 4 MiB. Per
    token of a micro-batch, in float32 values, with H the embedding length, F the feed-forward length, V the vocabulary,
    E the K elements of a token, and u experts of width X in use:

    - of experts in RAM (C(experts)), on the first device: the largest tensor of them, which is copied there for a
      prompt, with the step of experts; or two of them, an upper bound, see expert_placement.copies;
    - what comes in, once per pipeline copy (one where experts are in RAM, which ends pipelining): H on the first device
      and on one that holds the output layer alone, 2 H on others (the two terms of a block's last sum cross the border
      one by one);
    - the attention mask, per copy: one value of 2 bytes per visible token, 4 without flash attention; a second one
      where blocks have a window;
    - the largest of: a feed-forward step, 3 H + 3 F; a step of experts, 4 H + 3 u X, or, if that is more, the lesser of
      4 H + 3 u X + u H and 5 H + 2 u H (an upper bound: it depends on how the buffers happen to be packed); attention
      without flash attention, one score per head and visible token and 4 H + 8 E; the output layer, H + V, and more
      on a card with experts in RAM (_before_output). That counts an output for every token, as the dry run and
      llama-bench do; a server with few slots needs less.
    """
    if not layers[device]:
        return 0
    if engines.of(serving).family == "exllama":
        return exl_split.compute_bytes(model, serving, layers, device)
    last = device == layer_split.output_device(layers)
    first = not any(layers[:device])
    has_blocks = layers[device] > 1 or not last
    # a device without slots is not named to llama.cpp
    copies = PIPELINE_COPIES if sum(1 for count in layers if count) > 1 and experts is None else 1
    fused = flash_attention(serving)
    seen, _total = context_cells(serving)
    hidden = model["embedding_length"]
    inputs = copies * hidden * (1 if first or not has_blocks else 2)
    steps, mask_bytes = [], 0
    if has_blocks:
        # a model of experts alone names no feed-forward length: four times the width is the usual one
        forward = model["feed_forward_length"] or 4 * hidden
        steps.append(3 * hidden + 3 * forward)
        if model.get("expert_used_count"):
            steps.append(_expert_step(model, hidden, forward))
        window = max(model.get("window_tokens", ()), default=0)
        masked = seen + (window_cells(window, serving)[0] if window else 0)
        mask_bytes = copies * masked * (2 if fused else 4)
        if not fused:
            steps.append(model["head_count"] * seen + 4 * hidden + 8 * max(model["kv_k_elements_per_token"], default=0))
    tokens = micro_batch_tokens(serving)
    needed = [tokens * (4 * max(steps) + mask_bytes)] if steps else []
    if first and experts is not None and experts.largest:
        again = experts.two + 4 * tokens * COPIED_AGAIN * hidden if experts.two else 0
        needed = [max(needed[0] + experts.largest if needed else 0, again)]
    if last:
        # the mask is not needed any more, but stays where there are copies
        output = tokens * (4 * (hidden + model["vocabulary_size"]) + (mask_bytes if copies > 1 else 0))
        needed.append(output + _before_output(model, tokens, first, experts))
    return 4 * tokens * inputs + max(needed)


@dataclasses.dataclass(frozen=True)
class DeviceMemory:
    """What one device would hold, in bytes."""

    weights: int
    kv: int
    compute: int

    @property
    def mib(self) -> int:
        """All of it in MiB, a started one counted whole."""
        return -(-(self.weights + self.kv + self.compute) // MIB)


def _corrected(planned: t.Sequence[int], before: t.Sequence[int], told: t.Sequence[int]) -> list[int]:
    """Return the cache of each block: as it was told, in proportion where another serving profile is planned for."""
    return [held * now // was if was else held for now, was, held in zip(planned, before, told, strict=True)]


class MemoryPlan:
    """The memory of every split of one model under one serving profile."""

    def __init__(
        self,
        model: Model,
        serving: Serving,
        weight_factor: float = 1.0,
        experts: expert_placement.ExpertPlacement | None = None,
        copied: bool = True,
    ) -> None:
        """Take a model and a serving profile of docs/data_formats.md; C(weight_factor) asks about lighter weights.

        C(experts) are in RAM, and on no device: their layers do not matter, those asked about do. C(copied) tells
        whether the first device copies them for prompts, as a card does, and an RPC device does not.
        """
        self.model = model
        self.experts, self.copied = experts if experts is not None and experts.any else None, copied
        self.serving = serving
        self.weight_factor = weight_factor
        kv = kv_bytes(model, serving)
        # of a model that is not modelled here the engine's dry run has said what it holds (_planner/estimate_stage.py)
        corrections = model.get("memory_corrections")
        self.compute_factor = corrections["compute"] if corrections else 1.0
        if corrections:
            self.weight_factor *= corrections["weights"]
            kv = _corrected(kv, corrections["planned_bytes"], corrections["cache_bytes"])
        self.cache_bytes = kv
        # sums up to and including each slot, so that a split costs two look-ups per device
        in_ram = expert_placement.block_ram_bytes(model, experts)
        held = [whole - moved for whole, moved in zip(model["block_bytes"], in_ram, strict=True)]
        self._weights = [0, *itertools.accumulate([*held, model["output_bytes"]])]
        self._kv = [0, *itertools.accumulate([*kv, 0])]

    def devices(self, layers: t.Sequence[int]) -> list[DeviceMemory]:
        """Return what each device holds under C(layers)."""
        return [self.device(layers, device) for device in range(len(layers))]

    def device(self, layers: t.Sequence[int], device: int) -> DeviceMemory:
        """Return what one device holds under C(layers)."""
        start = sum(layers[:device])
        end = start + layers[device]
        return DeviceMemory(
            int((self._weights[end] - self._weights[start]) * self.weight_factor),
            self._kv[end] - self._kv[start],
            int(compute_bytes(self.model, self.serving, layers, device, self._copies(layers)) * self.compute_factor),
        )

    def _copies(self, layers: t.Sequence[int]) -> expert_placement.Copies | None:
        if self.experts is None:
            return None
        return expert_placement.copies(self.model, self.experts, layers) if self.copied else expert_placement.NO_COPIES

    def slot_bytes(self, slot: int) -> int:
        """Return weights and KV cache of one slot."""
        return self._weights[slot + 1] - self._weights[slot] + self._kv[slot + 1] - self._kv[slot]

    def mib(self, layers: t.Sequence[int]) -> list[int]:
        """Return the MiB of each device under C(layers)."""
        return [memory.mib for memory in self.devices(layers)]


def budgets_mib(devices: t.Sequence[Mapping], reserve_mib: int) -> list[int]:
    """Return what a plan may use of each device: the smaller of its free memory and its budget, less the reserve."""
    free = [min(d["free_mib"], d["free_mib"] if d.get("budget_mib") is None else d["budget_mib"]) for d in devices]
    return [max(0, value - reserve_mib) for value in free]


def headroom_mib(mib: t.Sequence[int], budgets: t.Sequence[int]) -> list[int]:
    """Return what is left of each budget; negative where the split does not fit."""
    return [budget - used for used, budget in zip(mib, budgets, strict=True)]


def fits(plan: MemoryPlan, splits: t.Iterable[t.Sequence[int]], budgets: t.Sequence[int]) -> bool:
    """Return whether any of C(splits) fits; with more than two devices, whether any split at all does."""
    if len(budgets) > 2:
        return layer_search.LayerSearch(plan, budgets, len(plan.model["block_bytes"]) + 1).feasible
    return any(min(headroom_mib(plan.mib(layers), budgets)) >= 0 for layers in splits)


def why_nothing_fits(
    devices: t.Sequence[Mapping], model: Model, serving: Serving, splits: t.Sequence[t.Sequence[int]],
    budgets: t.Sequence[int], reserve_mib: int,
) -> str:  # fmt: skip
    """Return one sentence: how many MiB are missing, where, in the nearest split, and what would make it fit.

    C(reserve_mib) is what the budgets leave free on every device, already taken off them.
    """
    plan = MemoryPlan(model, serving)
    missing, layers = min(
        (sum(max(0, -left) for left in headroom_mib(plan.mib(layers), budgets)), tuple(layers)) for layers in splits
    )
    kept = f", {reserve_mib} MiB of each kept free" if reserve_mib else ""
    lacks = [
        f"{device['device']} needs {used} MiB of its {budget} MiB"
        for device, used, budget, count in zip(devices, plan.mib(layers), budgets, layers, strict=True)
        if used > budget and count
    ]
    found = cures(model, serving, splits, budgets)
    in_ram = _in_ram(model, serving, splits, budgets)
    found = [*in_ram, *found] if model.get("expert_count") else [*found, *in_ram]
    # the largest reserve with which something fits: budgets rise by what it is lowered
    room = next(
        (
            reserve
            for reserve in range(reserve_mib - 1, -1, -1)
            if fits(plan, [layers], [budget + reserve_mib - reserve for budget in budgets])
        ),
        None,
    )
    if room is not None and len(budgets) <= 2:
        found.insert(0, f"a reserve of {room} MiB instead of {reserve_mib} (it covers what no plan can count)")
    return (
        f"{model['name'] or model['path']} does not fit: {missing} MiB are missing in the split that comes nearest, "
        f"{layer_split.split_name(layers)} ({', '.join(lacks)}{kept}); "
        + (
            f"it would fit with {', or with '.join(found)}"
            if found
            else "neither a smaller context nor a smaller cache makes it fit: take a smaller model or more devices"
        )
    )


def _in_ram(
    model: Model, serving: Serving, splits: t.Sequence[t.Sequence[int]], budgets: t.Sequence[int]
) -> list[str]:
    """Return whether the model fits with experts, or FFN weights, in RAM, as a cure; none where it does not."""
    plan = MemoryPlan(model, serving, experts=expert_placement.all_in_ram(model))
    if engines.of(serving).family != "llama_cpp" or not fits(plan, splits, budgets):
        return []
    name = expert_placement.name_of(model)
    return [f"some of its {name} in RAM (split_tuning_experts_in_ram: auto, with a named context)"]


def cures(
    model: Model,
    serving: Serving,
    splits: t.Sequence[t.Sequence[int]],
    budgets: t.Sequence[int],
) -> list[str]:
    """Return what would make the model fit the devices, each alone, in the order in which people would try it."""
    found = []
    if flash_attention(serving):
        for name in ("q8_0", "q4_0"):
            changed: Serving = {**serving, "cache_type_k": name, "cache_type_v": name}
            now = row_bytes(32, serving["cache_type_k"]) + row_bytes(32, serving["cache_type_v"])
            smaller = 2 * row_bytes(32, name) < now
            if smaller and fits(MemoryPlan(model, changed), splits, budgets):
                mode = name.partition("_")[0].upper()
                cache = f"a {name} KV cache (split_tuning_cache_type_k and split_tuning_cache_type_v)"
                found.append(f"cache mode {mode}" if "cache_mode" in serving else cache)
                break
    context = _round_up(serving["context_size"]) // 2
    while context >= 2 * CONTEXT_STEP:
        if fits(MemoryPlan(model, {**serving, "context_size": context}), splits, budgets):
            found.append(f"a context of {context} tokens instead of {serving['context_size']}")
            break
        context //= 2
    if serving["micro_batch_size"] > 128 and fits(
        MemoryPlan(model, {**serving, "micro_batch_size": 128}), splits, budgets
    ):
        found.append(f"a micro-batch of 128 tokens instead of {serving['micro_batch_size']}")
    low, high = 0.0, 1.0
    for _step in range(12):
        middle = (low + high) / 2
        if fits(MemoryPlan(model, serving, middle), splits, budgets):
            low = middle
        else:
            high = middle
    if low > 0:
        weights = sum(model["block_bytes"]) + model["output_bytes"]
        found.append(
            f"a smaller quantisation (weights on the devices of at most {int(weights * low) // MIB} MiB, "
            f"now {weights // MIB} MiB)"
        )
    return found
