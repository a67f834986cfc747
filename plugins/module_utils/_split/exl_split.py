# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How ExLlama fills cards, and the C(gpu_split) that makes it place the layers that were meant. Private to this
collection. Pure functions only.

Neither engine is told layers. Both take gigabytes (2^30 bytes) per card and go through the model's modules in order,
each to the first card, not before that of the module before, that has room for it:

- exllamav2 0.3.2 adds up on paper (C(set_device_map) of model.py): half a block (attention, then feed-forward) goes to
  a card while its weights, the largest scratch space there so far and the largest attention buffer there so far fit
  what is left of the card's number, from which constants for rotary embedding, state and mask were taken first. The KV
  cache does not count.
- exllamav3 1.6.5 loads for real (C(_load_autosplit) of model/model_ls.py): a block with its KV cache goes to a card
  until PyTorch's allocations and the largest transient of a forward pass exceed the card's number.

So a number must lie between what the layers meant for a card need and what one more would need. The middle is the
safest: half a module (exllamav2) or half a block (exllamav3) to both sides. The worker reports what was really placed
and moves a number that missed.
"""

from __future__ import annotations

import re
import typing as t

from .._base.fields import is_whole
from .._base.types import Json, Mapping
from . import engines, layer_split
from .types import Model, Serving

MIB = 1024**2
GIB = 1024**3

#: TabbyAPI's cache modes for exllamav2 -> types of K and V. Q6 keeps K in 8 bits (ExLlamaV2Cache_Q6 of cache.py).
_V2_CACHE: t.Final = {"FP16": ("f16", "f16"), "Q8": ("q8_0", "q8_0"), "Q6": ("q8_0", "q4_0"), "Q4": ("q4_0", "q4_0")}
#: Both round prompts' chunks and the cache to pages of this many tokens.
PAGE_TOKENS: t.Final = 256
#: TabbyAPI's chunk_size where its settings name none: tokens of a prompt that go through the model at once.
CHUNK_TOKENS: t.Final = 2048
#: exllamav2's config.max_dq_size: elements that are dequantised at once.
_DEQUANTISED: t.Final = 512 * 1024**2
#: exllamav3's MAX_RECONSTRUCT_SLICE_N: columns of a matrix that are rebuilt in float16 at once.
_REBUILT_COLUMNS: t.Final = 32768
#: exllamav3 keeps this free beyond the largest transient (EXL3_AUTOSPLIT_MARGIN_MB).
_V3_MARGIN_BYTES: t.Final = 256 * MIB
#: Decimals of a gpu_split: about a kilobyte.
_DECIMALS: t.Final = 6


def cache_types(engine: str, mode: str) -> tuple[str, str]:
    """Return the types of K and V of a cache mode in TabbyAPI's words. Raises ValueError for an unknown one."""
    if engine == "exllamav2":
        if mode not in _V2_CACHE:
            raise ValueError(f"ExLlamaV2 has no cache mode {mode!r}: it has {', '.join(_V2_CACHE)}")
        return _V2_CACHE[mode]
    match = re.fullmatch(r"(?:Q([468])|([2-8])\s*,\s*([2-8]))", mode)
    if mode != "FP16" and match is None:
        raise ValueError(
            f"ExLlamaV3 has no cache mode {mode!r}: it has FP16, Q8, Q6, Q4, or bits of K and V such as 8,6"
        )
    if match is None:
        return "f16", "f16"
    return f"exl3_q{match[1] or match[2]}", f"exl3_q{match[1] or match[3]}"


def serving_profile(
    engine: str, context_size: int, cache_mode: str, chunk_size: int = CHUNK_TOKENS, flash_attention: bool = True
) -> Json:
    """Return the serving profile (docs/data_formats.md) of an ExLlama. Raises ValueError naming what is wrong.

    C(flash_attention) is whether exllamav2 finds the package flash-attn; exllamav3 brings its own.
    """
    known = [other.name for other in engines.in_family("exllama")]
    if engine not in known:
        raise ValueError(f"unknown engine {engine!r}: known are {', '.join(known)}")
    for name, value in (("context_size", context_size), ("chunk_size", chunk_size)):
        if not is_whole(value, PAGE_TOKENS) or value % PAGE_TOKENS:
            raise ValueError(f"{name} is {value!r}: ExLlama wants a multiple of {PAGE_TOKENS}, at least {PAGE_TOKENS}")
    type_k, type_v = cache_types(engine, cache_mode)
    chunk = min(chunk_size, context_size)
    return {
        "engine": engine,
        "context_size": context_size,
        "parallel_slots": 1,
        "kv_unified": True,
        "batch_size": chunk,
        "micro_batch_size": chunk,
        "flash_attention": "on" if flash_attention or engine == "exllamav3" else "off",
        "cache_mode": cache_mode,
        "cache_type_k": type_k,
        "cache_type_v": type_v,
    }


def environment(serving: Mapping) -> dict[str, str]:
    """Return the variables that exllamav2 needs, as exllama-server.service has them; exllamav3 needs none."""
    if serving["engine"] != "exllamav2":
        return {}
    # its attention by PyTorch alone lets a prompt see its own future
    without = {} if serving["flash_attention"] == "on" else {"EXLLAMA_NO_FLASH_ATTN": "1"}
    return {"EXLLAMA_NO_SDPA": "1", **without}


# --- exllamav2's modules ---------------------------------------------------------------------------------------------


class Memory(t.Protocol):
    """The memory of every split, as memory_plan.MemoryPlan tells it."""

    def device(self, layers: t.Sequence[int], device: int) -> t.Any:
        """Return what one device holds under C(layers)."""

    def slot_bytes(self, slot: int) -> int:
        """Return weights and KV cache of one slot."""


class Module(t.NamedTuple):
    """One module as exllamav2 places it: its slot, and bytes of weights, scratch space and attention buffer."""

    slot: int
    weights: int
    scratch: int
    attention: int


def _scratch_v2(model: Model, serving: Serving) -> tuple[int, int, int, int]:
    """Return bytes of scratch space of (an attention, a feed-forward, the output layer), and the attention buffer.

    These are scratch_space and temp_attn_size of exllamav2's attn.py, mlp.py, moe_mlp.py and linear.py.
    """
    hidden, chunk, context = model["embedding_length"], serving["micro_batch_size"], serving["context_size"]
    heads, kv_heads, length = model["head_count"], model["head_count_kv"], model["key_length"]
    wide, forward = heads * length, model["expert_feed_forward_length"] or model["feed_forward_length"]
    queries = chunk * wide * 2 + 128
    keys = chunk * kv_heads * length * 2 + 128
    repeated = 0 if kv_heads == heads else 2 * context * wide * 2 + 128
    attention = (
        chunk * max(wide, hidden) * 2 + 128 + queries + 2 * keys + 2 * min(hidden * wide, _DEQUANTISED) + repeated
    )
    inner = 2 * (chunk * max(hidden, forward) * 2 + 128)
    feed_forward = chunk * hidden * 2 + 128 + inner + 2 * min(hidden * forward, _DEQUANTISED)
    if model["expert_count"]:
        feed_forward += chunk * (hidden + model["expert_count"]) * 2 + 256
    scores: float = min(chunk**2, context**2)
    if serving["flash_attention"] != "off":
        scores //= chunk / 190
    head = 2 * min(hidden * model["vocabulary_size"], _DEQUANTISED)
    return attention, feed_forward, head, int(2 * scores * heads * 2 + 128)


def modules_v2(model: Model, serving: Serving) -> list[Module]:
    """Return the modules of a model in exllamav2's order, without the token embedding, which stays in host memory.

    The norm before the output layer counts as part of the last block: where it lies makes no difference.
    """
    attention, feed_forward, head, buffer = _scratch_v2(model, serving)
    result = []
    for slot, (whole, of_attention) in enumerate(
        zip(model["block_bytes"], model["block_attention_bytes"], strict=True)
    ):
        result.append(Module(slot, of_attention, attention, buffer))
        result.append(Module(slot, whole - of_attention, feed_forward, 0))
    norm = 2 * model["embedding_length"]
    result.append(Module(model["block_count"] - 1, norm, 0, 0))
    result.append(Module(model["block_count"], model["output_bytes"] - norm, head, 0))
    return result


def constant_v2(model: Model, serving: Serving) -> int:
    """Return the bytes that exllamav2 takes off every card's number: rotary embedding, state, mask."""
    chunk = serving["micro_batch_size"]
    rotary = model["key_length"] * serving["context_size"] * 2 * 2
    return rotary + model["embedding_length"] * chunk * 2 + chunk**2 * 2


def _needs_v2(modules: t.Sequence[Module], constant: int) -> int:
    """Return the bytes with which these modules, and nothing else, fit one card."""
    most = max(m.scratch for m in modules) + max(m.attention for m in modules)
    return constant + sum(m.weights for m in modules) + most


# --- both ------------------------------------------------------------------------------------------------------------


def compute_bytes(model: Model, serving: Serving, layers: t.Sequence[int], device: int) -> int:
    """Return what a card needs beside weights and KV cache, in bytes.

    For exllamav2 what it reserves itself: constants, scratch space, attention buffer. For exllamav3 an estimate of the
    largest transient, a chunk of a prompt in one block (values of float32 between matrices, and a matrix that is
    rebuilt in float16), and the margin that it keeps beyond.
    """
    if not layers[device]:
        return 0
    if engines.of(serving).name == "exllamav2":
        attention, feed_forward, head, buffer = _scratch_v2(model, serving)
        with_output = device == layer_split.output_device(layers)
        if layers[device] > with_output:
            return constant_v2(model, serving) + max(attention, feed_forward, head if with_output else 0) + buffer
        return constant_v2(model, serving) + head
    return _transient_v3(model, serving) + _V3_MARGIN_BYTES


def _transient_v3(model: Model, serving: Serving) -> int:
    chunk, hidden = serving["micro_batch_size"], model["embedding_length"]
    wide, forward = (
        model["head_count"] * model["key_length"],
        model["feed_forward_length"] or 4 * model["embedding_length"],
    )
    keys = model["head_count_kv"] * model["key_length"]
    rebuilt = 2 * hidden * min(max(forward, wide), _REBUILT_COLUMNS)
    feed_forward = chunk * (4 * 2 * forward + 2 * forward + (4 + 2) * hidden)
    attention = chunk * (2 * 2 * (wide + keys) + (4 + 2) * hidden)
    if serving["cache_type_k"] != "f16":
        attention += 2 * 2 * keys * serving["context_size"]
    return rebuilt + max(feed_forward, attention)


def gpu_split_gb(
    model: Model, serving: Serving, memory: Memory, layers: t.Sequence[int], budgets_mib: t.Sequence[int]
) -> list[float]:
    """Return one number of gigabytes per card with which ExLlama places C(layers), see this file's head.

    C(memory) is the memory_plan.MemoryPlan of model and profile, C(budgets_mib) is what the plan may use of each card.
    The last card that is used gets its budget whole, since nothing can be put beyond it; a card without layers gets 0.
    Raises ValueError for a split over other cards than the budgets are of.
    """
    if len(layers) != len(budgets_mib) or sum(layers) != model["block_count"] + 1:
        raise ValueError(
            f"{layer_split.split_name(layers)} is no split of {model['block_count'] + 1} slots over"
            f" {len(budgets_mib)} cards"
        )
    last = layer_split.output_device(layers)
    shares = []
    for device, count in enumerate(layers):
        budget_bytes = budgets_mib[device] * MIB
        if not count:
            shares.append(0.0)
        elif engines.of(serving).name == "exllamav2":
            shares.append(_share_v2(model, serving, layers, device, last, budget_bytes))
        else:
            need = memory.device(layers, device)
            whole = need.weights + need.kv + need.compute - _V3_MARGIN_BYTES
            follows = sum(layers[: device + 1])
            room = 0 if device == last else (memory.slot_bytes(follows) // 2)
            shares.append(max(whole, budget_bytes) if device == last else min(whole + room, max(whole, budget_bytes)))
    return [round(share / GIB, _DECIMALS) for share in shares]


def _share_v2(
    model: Model, serving: Serving, layers: t.Sequence[int], device: int, last: int, budget_bytes: int
) -> float:
    """Return the bytes for one card of exllamav2, where the KV cache counts against the budget and not in the share."""
    modules, constant = modules_v2(model, serving), constant_v2(model, serving)
    first = sum(layers[:device])
    own = [m for m in modules if first <= m.slot < first + layers[device]]
    least = _needs_v2(own, constant)
    if device == last:
        return max(least + MIB, budget_bytes)
    following = next(m for m in modules if m.slot >= first + layers[device])
    return least + (_needs_v2([*own, following], constant) - least) / 2


def own_split(memory: Memory, budgets_mib: t.Sequence[int], slots: int) -> tuple[int, ...]:
    """Return the split that ExLlama makes when it is told none: it fills one card after the other.

    What fits no card is counted on the last, where it shows as missing memory.
    """
    layers = [0] * len(budgets_mib)
    left = slots
    for device, budget in enumerate(budgets_mib[:-1]):
        while left:
            trial = [*layers[:device], layers[device] + 1, left - 1, *[0] * (len(layers) - device - 2)]
            if memory.device(trial, device).mib > budget:
                break
            layers[device] += 1
            left -= 1
    layers[-1] = left
    return tuple(layers)
