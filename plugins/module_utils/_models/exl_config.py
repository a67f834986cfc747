# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a config.json says of each block: what it attends to, what it keeps per token, what it keeps at all.

Private to this collection. Pure functions. The rules are those of exllamav3 1.6.5 (architecture/*.py, cache/*.py); what
they do not cover is told in notes and counted as a block that sees everything, which is the most that it can keep.
"""

from __future__ import annotations

import typing as t

from .._base.errors import UserError
from .._base.fields import is_number, is_whole
from .._base.types import Json, Mapping
from . import exl_classes as classes
from .exl_classes import FULL, NONE, STATE, WINDOW

#: No model has more blocks, and no number in a config.json is larger.
MOST_BLOCKS, LARGEST = 4096, 1 << 31
#: TabbyAPI's max_batch_size for models whose blocks keep a state (backends/exllamav3/model.py).
STATE_SLOTS = 4
#: Tokens beside the window that SlidingAttention keeps, and the pages that it rounds up to.
_WINDOW_SLACK, _PAGE = 512, 256


class Block(t.NamedTuple):
    """One block: elements of K and V per token, heads, and bytes that it keeps whatever the context is."""

    k: int
    v: int
    heads: int
    kv_heads: int
    head_length: int
    state_bytes: int | None
    window: int
    forward: int


class Shape(t.NamedTuple):
    """The model, and what was not understood of it."""

    blocks: list[Block]
    hidden: int
    forward: int
    experts: int
    experts_used: int
    expert_forward: int
    vocabulary: int
    context: int
    notes: list[str]


def number(config: Mapping, *names: str) -> int:
    """Return the first whole number above 0 that a config gives one of these names, or 0."""
    for name in names:
        value = config.get(name)
        if is_whole(value, 1, LARGEST):
            return value
    return 0


def first_text(value: t.Any) -> str:
    """Return a text, or the first one of a list, or an empty string."""
    found = next(iter(value), "") if isinstance(value, list) else value
    return found[:200] if isinstance(found, str) and found.isprintable() else ""


def language_part(config: Mapping) -> Json:
    """Return what a config.json says of the language model: its own keys, those of text_config, its class's defaults.

    The defaults are under the key C(_defaults), since a key that is there and null means something else.
    """
    merged, inner = dict(config), config
    for name in ("text_config", "llm_config", "language_config", "thinker_config", "text_config"):
        part = inner.get(name)
        if isinstance(part, t.Mapping):
            merged |= part
            inner = part
    architecture = first_text(config.get("architectures"))
    kind = first_text(inner.get("model_type")) if inner is not config else ""
    outer = first_text(config.get("model_type"))
    kind = kind or (classes.TEXT_OF.get(outer, outer) if outer else classes.TYPE_OF.get(architecture, ""))
    kind = classes.TEXT_OF.get(kind, kind)
    return {**merged, "_defaults": classes.DEFAULTS.get(kind, {}), "_architecture": architecture}


def read(path: str, config: Mapping, version: int, found: t.Sequence[str | None]) -> Shape:
    """Return the shape of a model. Raises UserError where it is no language model that can be planned.

    ``version``: 2 or 3, of ExLlama. ``found``: per block what the names of its tensors show (full, state, none), or
    None; shorter or longer where fewer or more blocks have tensors.
    """
    own = language_part(config)
    notes: list[str] = []
    count = number(own, "num_hidden_layers", "n_layer", "n_layers", "num_layers") or _pattern_length(own)
    count = count or _needed(path, own, "num_hidden_layers")
    if count > MOST_BLOCKS:
        raise UserError(f"config.json of {path} declares {count} blocks, and {MOST_BLOCKS} are the most: correct it.")
    hidden = _needed(path, own, "hidden_size", "n_embd", "d_model")
    kinds = _kinds(own, count, version, found, notes)
    blocks = [_block(path, own, hidden, index, kind, version) for index, kind in enumerate(kinds)]
    _note_unknown(own, version, blocks, notes)
    experts = _given(own, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
    forwards = [block.forward for block in blocks]
    forward = max(forwards, default=0)
    return Shape(
        blocks, hidden, forward, experts,
        min(experts, _given(own, "num_experts_per_tok", "top_k_experts", "moe_top_k", "moe_topk")),
        _given(own, "moe_intermediate_size", "expert_intermediate_size") or (forward if experts else 0),
        _given(own, "vocab_size"), _given(own, "max_position_embeddings", "n_positions", "max_seq_len"), notes,
    )  # fmt: skip


def _given(own: Mapping, *names: str) -> int:
    """Return what a config or, where it names none of the keys, its class says. A key that is null has no default."""
    value = number(own, *names)
    return value or (0 if any(name in own for name in names) else number(own["_defaults"], *names))


def _needed(path: str, own: Mapping, *names: str) -> int:
    value = _given(own, *names)
    if not value:
        raise UserError(f"config.json of {path} has no {names[0]}: it is no language model that can be planned.")
    return value


def _pattern_length(own: Mapping) -> int:
    pattern = own.get("hybrid_override_pattern") or own.get("layers_block_type")
    return len(pattern) if isinstance(pattern, (list, str)) else 0


_ATTEND = "blocks count as attending where no tensor shows another kind"

# ---- kinds of blocks -------------------------------------------------------------------------------------------------


def _kinds(
    own: Mapping, count: int, version: int, found: t.Sequence[str | None], notes: list[str]
) -> list[str]:
    """Return the kind of each block. Tensors are believed where they show that a block does not attend."""
    declared = _declared(own, count, notes) or [FULL] * count
    shown = [*found[:count], *[None] * (count - len(found))]
    if FULL not in shown:                                # names of another kind: they tell nothing
        shown = [STATE if each == STATE else None for each in shown]
    kinds, other = [], 0
    for by_config, by_tensors in zip(declared, shown, strict=True):
        attends = by_config in (FULL, WINDOW)
        kinds.append(by_tensors if attends and by_tensors in (STATE, NONE) else by_config)
        other += not attends and by_config != NONE and by_tensors == NONE
    if other:
        notes.append(f"{other} blocks are to keep a state by config.json, and have no tensors of one.")
    listed = own.get("block_configs")
    mute = count - sum(bool(_part(own, index)) for index in range(count)) if listed is not None else 0
    if mute:
        notes.append(f"block_configs tells nothing of {mute} of the {count} blocks: they count with all heads.")
    if version == 2 and STATE in kinds:
        notes.append("ExLlamaV2 does not know blocks that keep a state instead of a cache.")
    return kinds


def _declared(own: Mapping, count: int, notes: list[str]) -> list[str] | None:
    """Return the kinds that config.json declares in one of the known ways, or None where it declares none."""
    for name in ("layer_types", "layers_block_type", "block_types", "hybrid_override_pattern", "attention_types"):
        listed = own.get(name)
        if isinstance(listed, list) or (isinstance(listed, str) and name == "hybrid_override_pattern"):
            if listed:
                return _listed(name, list(listed), count, notes)
        elif listed is not None:
            notes.append(f"{name} is no list, and is left aside: {_ATTEND}.")
    listed = own.get("block_configs")
    if isinstance(listed, list) and any(isinstance(each, t.Mapping) and "block_type" in each for each in listed):
        types = [each.get("block_type") if isinstance(each, t.Mapping) else None for each in listed]
        return _listed("block_configs", types, count, notes)
    for name, words in (("hybrid_layer_pattern", (FULL, WINDOW)), ("attn_type_list", (STATE, FULL))):
        listed = own.get(name)
        if isinstance(listed, list) and listed:
            as_words = [words[each] if each in (0, 1) and isinstance(each, int) else each for each in listed]
            return _listed(name, as_words, count, notes)
    return _scheduled(own, count)


def _listed(name: str, listed: t.Sequence[t.Any], count: int, notes: list[str]) -> list[str] | None:
    if len(listed) < count:
        notes.append(f"{name} has {len(listed)} entries for {count} blocks, and is left aside: {_ATTEND}.")
        return None
    kinds, strange = [], []
    for each in listed[:count]:
        kind = each if each in (FULL, WINDOW, STATE, NONE) else classes.KINDS.get(str(each).lower())
        strange += [] if kind else [str(each)[:30]]
        kinds.append(kind or FULL)
    if strange:
        shown = ascii(sorted(set(strange))[0])
        notes.append(f"{name} calls {len(strange)} blocks {shown}, which is not understood: they count as attending.")
    return kinds


def _scheduled(own: Mapping, count: int) -> list[str] | None:
    """Return the kinds that follow from a number or from lists of block numbers, or None."""
    linear = own.get("linear_attn_config")
    if isinstance(linear, t.Mapping) and isinstance(linear.get("kda_layers"), list):
        states = {each for each in linear["kda_layers"] if isinstance(each, int)}
        return [STATE if index + 1 in states else FULL for index in range(count)]
    numbers = own.get("full_attn_idxs")
    if isinstance(numbers, list):
        attending = {each for each in numbers if isinstance(each, int)}
        return [FULL if index in attending else STATE for index in range(count)]
    group = number(own, "layer_group_size")
    if group:
        whole = count // group * group
        return [FULL if (index + 1) % group == 0 or index >= whole else STATE for index in range(count)]
    period = number(own, "attn_layer_period")
    if period:
        offset = own.get("attn_layer_offset")
        first = offset if isinstance(offset, int) else 0
        return [FULL if index % period == first % period else STATE for index in range(count)]
    interval = _given(own, "full_attention_interval") or (4 if own["_architecture"].startswith("Lfm2") else 0)
    if interval:
        return [FULL if (index + 1) % interval == 0 else STATE for index in range(count)]
    pattern = _given(own, "sliding_window_pattern") if own["_architecture"] in classes.V3_KEEPS_WINDOW else 0
    return [WINDOW if (index + 1) % pattern else FULL for index in range(count)] if pattern else None


# ---- what a block keeps ----------------------------------------------------------------------------------------------


def _block(path: str, own: Mapping, hidden: int, index: int, kind: str, version: int) -> Block:
    part = _part(own, index)
    of_part = part.get("attention")
    attention: Mapping = of_part if isinstance(of_part, t.Mapping) else {}
    if attention.get("no_op") or attention.get("replace_with_linear"):
        kind = NONE
    own = {**own, **_override(own, index)}
    heads = _heads(path, own, index, kind)
    kv_heads = _kv_heads(own, index, kind, heads, attention)
    length = _head_length(own, kind) or max(1, hidden // heads)
    forward = _forward(own, index, hidden, part)
    if kind in (STATE, NONE):
        state = _state_bytes(own, hidden) if kind == STATE and version == 3 else 0
        return Block(0, 0, heads, kv_heads, length, state, 0, forward)
    latent = _given(own, "kv_lora_rank") if version == 3 else 0
    k = latent or kv_heads * length
    # a latent is K and V, with one key of positions beside
    v = _given(own, "qk_rope_head_dim") if latent else kv_heads * _v_length(own, kind, length)
    window = _given(own, "sliding_window") if kind == WINDOW and version == 3 else 0
    if window and own["_architecture"] in classes.V3_KEEPS_WINDOW:
        kept = -(-(window + _WINDOW_SLACK) // _PAGE) * _PAGE
        return Block(k, v, heads, kv_heads, length, 2 * STATE_SLOTS * kept * (k + v), window, forward)
    return Block(k, v, heads, kv_heads, length, 0, 0, forward)


def _part(own: Mapping, index: int) -> Mapping:
    """Return the entry of block_configs for a block, or an empty dict."""
    listed = own.get("block_configs")
    part = listed[index] if isinstance(listed, list) and index < len(listed) else None
    return part if isinstance(part, t.Mapping) else {}


def _override(own: Mapping, index: int) -> Mapping:
    """Return what per_layer_config has for a block, or an empty dict. It comes before what a kind of block has."""
    layers = own.get("per_layer_config")
    part = layers.get(str(index)) if isinstance(layers, t.Mapping) else None
    if not isinstance(part, t.Mapping):
        return {}
    heads = {"num_global_key_value_heads": part["num_key_value_heads"]} if "num_key_value_heads" in part else {}
    return {**part, **heads, **({"global_head_dim": part["head_dim"]} if "head_dim" in part else {})}


def _of_block(own: Mapping, index: int, *names: str) -> int:
    """Return the number that a list gives a block under one of these names, or 0."""
    for name in names:
        listed = own.get(name)
        if isinstance(listed, list) and index < len(listed):
            value = number({"value": listed[index]}, "value")
            if value:
                return value
    return 0


def _other(own: Mapping, kind: str) -> Mapping:
    """Return what blocks with a window have otherwise (Step), or an empty dict."""
    other = own.get("attention_other_setting")
    return other if kind == WINDOW and isinstance(other, t.Mapping) else {}


def _heads(path: str, own: Mapping, index: int, kind: str) -> int:
    names = ("num_attention_heads", "n_head", "n_heads", "num_query_heads")
    return (
        number(_other(own, kind), "num_attention_heads")
        or _of_block(own, index, "num_attention_heads_per_layer", *names)
        or _needed(path, own, *names)
    )


def _kv_heads(own: Mapping, index: int, kind: str, heads: int, attention: Mapping) -> int:
    """Return the heads of K and V of a block: its own, those of its kind, the model's, or as many as there are."""
    group = number(attention, "n_heads_in_group")
    names = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "num_attention_groups")
    of_kind = {WINDOW: ("swa_num_key_value_heads",), FULL: ("num_global_key_value_heads",)}.get(kind, ())
    inner = own.get("attn_config")
    return (
        (max(1, heads // group) if group else 0)
        or number(attention, *names)
        or number(_other(own, kind), *names)
        or _of_block(own, index, "num_key_value_heads_per_layer", "num_kv_heads_per_layer", *names)
        or number(own, *of_kind, *names, "multi_query_group_num")
        or (number(inner, "kv_n_heads") if isinstance(inner, t.Mapping) else 0)
        or (1 if own.get("multi_query") is True else 0)
        or (0 if any(name in own for name in names) else number(own["_defaults"], *names))
        or heads
    )


def _head_length(own: Mapping, kind: str) -> int:
    of_kind = {WINDOW: ("swa_head_dim",), FULL: ("global_head_dim",)}.get(kind, ())
    return _given(own, *of_kind, "head_dim", "kv_channels", "attention_head_dim")


def _v_length(own: Mapping, kind: str, length: int) -> int:
    names = ("swa_v_head_dim", "v_head_dim") if kind == WINDOW else ("v_head_dim",)
    return number(own, *names) or length


def _forward(own: Mapping, index: int, hidden: int, part: Mapping) -> int:
    """Return the feed-forward length of a block, 0 where it is not known."""
    ffn = part.get("ffn")
    if isinstance(ffn, t.Mapping):
        factor = ffn.get("ffn_mult")
        if is_number(factor) and 0 < factor < 1000:
            return -(-int(2 * factor * hidden / 3) // 256) * 256
        return number(ffn, "intermediate_size")
    names = ("intermediate_size", "n_inner", "ffn_hidden_size")
    return _of_block(own, index, *names) or _given(own, *names)


def _state_bytes(own: Mapping, hidden: int) -> int | None:
    """Return what a block keeps of all slots instead of a cache, or None where that is not known.

    GDNLayerState of modules/gated_delta_net.py, which Mamba 2 shares in float32, and ShortConvLayerState.
    """
    linear = own.get("linear_attn_config")
    if isinstance(linear, t.Mapping):                    # Kimi's: one length of a head for Q, K and V
        heads, length = number(linear, "num_heads"), number(linear, "head_dim")
        width, conv = 3 * heads * length, number(linear, "short_conv_kernel_size") or 4
        return _scan_bytes(width, conv, heads, length * length, 2, heads * length) if heads and length else None
    values = _given(own, "linear_num_value_heads")
    if values:
        keys = _given(own, "linear_num_key_heads") or values
        k, v = _given(own, "linear_key_head_dim") or 128, _given(own, "linear_value_head_dim") or 128
        conv = _given(own, "linear_conv_kernel_dim") or 4
        return _scan_bytes(2 * keys * k + values * v, conv, values, k * v, 2, values)
    heads, length, state = (number(own, name) for name in ("mamba_num_heads", "mamba_head_dim", "ssm_state_size"))
    if heads and length and state:
        width = heads * length + 2 * (number(own, "n_groups") or 1) * state
        return _scan_bytes(width, number(own, "conv_kernel") or 4, heads, length * state, 4, heads)
    conv = _given(own, "conv_L_cache")
    return STATE_SLOTS * hidden * conv * 2 if conv else None


def _scan_bytes(width: int, conv: int, heads: int, per_head: int, element_bytes: int, gate: int) -> int:
    """Return the bytes of a ring of inputs, two rows of states, and the staged inputs of one token, for all slots."""
    return STATE_SLOTS * (2 * width * conv + 2 * heads * per_head * element_bytes + 2 * width + 2 * heads + 4 * gate)


def _note_unknown(own: Mapping, version: int, blocks: t.Sequence[Block], notes: list[str]) -> None:
    """Note what the engine has beside, or does not have."""
    architecture = own["_architecture"]
    if version == 3 and architecture and architecture not in classes.V3_KNOWN:
        notes.append(f"ExLlamaV3 1.6.5 does not know {architecture}: how its blocks keep tokens is a guess.")
    if version == 3 and architecture in classes.V3_MORE_CACHES:
        notes.append(f"The {classes.V3_MORE_CACHES[architecture]} that {architecture} keeps beside are not counted.")
    unknown = sum(block.state_bytes is None for block in blocks)
    if unknown:
        notes.append(f"{unknown} blocks keep a state whose size is not known: it is not counted.")
    if number(own, "num_kv_shared_layers"):
        notes.append(f"{own['num_kv_shared_layers']} blocks share the cache of others: they are counted all the same.")
