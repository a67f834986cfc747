# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Splits of a model over devices, in whole layers. Private to this collection. Pure functions only.

A model of L repeating blocks has L + 1 slots: its blocks and, last, its output layer. A split is a tuple with one
integer per device, in llama.cpp's device order, whose sum is L + 1. A device with 0 slots takes no part.
"""

from __future__ import annotations

import math
import struct
import typing as t

from .._base.fields import is_whole

Layers = tuple[int, ...]

#: What stands between the shares in each program's `--tensor-split`. In llama-bench a comma separates whole tests.
#: vLLM's VLLM_PP_LAYER_PARTITION is no such share: see render_layer_partition.
SEPARATORS: dict[str, str] = {"llama_bench": "/", "llama_fit_params": ",", "llama_server": ",", "vllm": ","}

#: More splits than this are never listed: with many devices the grid is made coarser instead, and _layer_search finds
#: what lies between.
MOST_SPLITS = 500


def _float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def layers_from_shares(shares: t.Sequence[float], slots: int) -> Layers:
    """Return how many of C(slots) slots each device gets from llama.cpp for these `--tensor-split` shares.

    The rule is load_tensors of llama.cpp's src/llama-model.cpp with every layer offloaded: shares become cumulative
    fractions, all in float32, and slot i goes to the first device whose cumulative fraction exceeds i / slots
    (std::upper_bound). Raises ValueError when no share is positive or one is negative.
    """
    if slots < 1:
        raise ValueError(f"a model has at least one slot, not {slots}")
    if not shares or any(not math.isfinite(share) or share < 0 for share in shares) or not any(shares):
        raise ValueError(f"shares must be zero or more, and one of them more than zero: {list(shares)}")
    cumulative: list[float] = []
    total = 0.0
    for share in shares:
        total = _float32(total + _float32(share))
        cumulative.append(total)
    limits = [_float32(value / total) for value in cumulative]
    layers = [0] * len(limits)
    for slot in range(slots):
        position = _float32(slot / slots)
        layers[next(device for device, limit in enumerate(limits) if limit > position)] += 1
    return tuple(layers)


def default_layers(free_mib: t.Sequence[int], slots: int) -> Layers:
    """Return the split that llama.cpp makes when it is told none: by the devices' free memory, through the same rule.

    llama.cpp reads bytes and we know MiB, which can move a slot only where a share falls on a slot's edge. Devices that
    report no memory at all count as equal.
    """
    return layers_from_shares(free_mib if any(free_mib) else [1] * len(free_mib), slots)


def enumerate_splits(slots: int, devices: int) -> list[Layers]:
    """Return the splits that give every one of C(devices) devices at least one slot, fewest on the first device first.

    Two devices have slots - 1 of them. Where there would be more than MOST_SPLITS, only every second, third... count of
    each device but the last is listed.
    """
    if devices < 1 or slots < devices:
        return []
    step = 1
    while math.comb(-(-slots // step) + devices - 2, devices - 1) > MOST_SPLITS:
        step += 1
    return list(_compositions(slots, devices, step))


def _compositions(slots: int, devices: int, step: int) -> t.Iterator[Layers]:
    if devices == 1:
        yield (slots,)
        return
    for first in range(1, slots - devices + 2, step):
        for rest in _compositions(slots - first, devices - 1, step):
            yield (first, *rest)


def single_device_splits(slots: int, devices: int) -> list[Layers]:
    """Return the placements on one device alone, one per device."""
    return [tuple(slots if other == device else 0 for other in range(devices)) for device in range(devices)]


def output_device(layers: t.Sequence[int]) -> int:
    """Return the index of the device that holds the output slot: the last one that has any slot."""
    return max(device for device, count in enumerate(layers) if count)


def last_block_device(layers: t.Sequence[int]) -> int:
    """Return the index of the device that holds the slot before the output slot, as a model's own drafting blocks."""
    last = output_device(layers)
    before = [device for device, count in enumerate(layers[:last]) if count]
    return last if layers[last] > 1 or not before else before[-1]


def split_name(layers: t.Sequence[int]) -> str:
    """Return a split as people read it: C(20/13)."""
    return "/".join(str(count) for count in layers)


def row_name(row: t.Mapping[str, t.Any]) -> str:
    """Return the split of a row of a table, with the blocks whose experts are in RAM and the MiB that they take."""
    in_ram = f", {row['blocks_in_ram']:g} in RAM ({row['ram_mib']})" if row.get("blocks_in_ram") else ""
    return split_name(row["layers"]) + in_ram


def load_label(layers: t.Sequence[int], load: int) -> str:
    """Return the label of one load: C(20/13 load 1)."""
    return f"{split_name(layers)} load {load}"


def render_tensor_split(layers: t.Sequence[t.Any], program: str) -> str:
    """Return C(layers) as the `--tensor-split` value of C(program), one of SEPARATORS.

    Layer counts printed as shares give exactly these layers (see layers_from_shares). Raises ValueError for an unknown
    program and for layers that are no split.
    """
    if program not in SEPARATORS:
        raise ValueError(f"unknown program {program!r}: known are {', '.join(sorted(SEPARATORS))}")
    if isinstance(layers, str) or not isinstance(layers, t.Sequence) or not layers:
        raise ValueError(f"layers must be a list with one integer per device, not {layers!r}")
    for count in layers:
        if not is_whole(count, 0):
            raise ValueError(f"layers must be whole numbers of zero or more, not {count!r}")
    if not any(layers):
        raise ValueError("layers must give at least one device a slot: all are 0")
    counts = blocks_per_stage(layers) if program == "vllm" else layers
    return SEPARATORS[program].join(str(int(count)) for count in counts)


def blocks_per_stage(layers: t.Sequence[int]) -> list[int]:
    """Return a split as vLLM counts it: the model's blocks per pipeline stage, without the output slot.

    vLLM wants as many numbers as stages, adding up to the model's blocks (get_pp_indices of its distributed/utils.py),
    and keeps the output layer on the last stage, which is where the last slot is. Raises ValueError where a stage would
    have no block.
    """
    counts = list(layers)
    counts[-1] -= 1 if layers[-1] else 0
    empty = [index for index, count in enumerate(counts) if not count]
    if empty:
        raise ValueError(
            f"{split_name(layers)} leaves stage {empty[0]} of vLLM no block: leave its card out of CUDA_VISIBLE_DEVICES"
            " and of the split"
        )
    return counts
