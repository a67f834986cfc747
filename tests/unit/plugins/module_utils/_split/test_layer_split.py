# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import math
import random
import struct

import numpy as np
import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import layer_split
from hypothesis import assume, given, settings
from hypothesis import strategies as st


@st.composite
def any_split(draw: st.DrawFn) -> tuple[int, ...]:
    slots = draw(st.integers(2, 129))
    devices = draw(st.integers(1, 8))
    cuts = sorted(draw(st.lists(st.integers(0, slots), min_size=devices - 1, max_size=devices - 1)))
    edges = [0, *cuts, slots]
    return tuple(high - low for low, high in zip(edges, edges[1:], strict=False))


def by_llama_cpp(printed: str, slots: int) -> tuple[int, ...]:
    """Return the layers by llama.cpp's code, retold with real float32: common/arg.cpp and load_tensors.

    std::stof of each share, running sums, division by the last, std::upper_bound of slot / slots.
    """
    sums = np.cumsum(np.array([np.float32(share) for share in printed.split(",")]), dtype=np.float32)
    splits = sums / sums[-1]
    places = np.arange(slots, dtype=np.float32) / np.float32(slots)
    assert splits.dtype == places.dtype == np.float32
    return tuple(np.bincount(np.searchsorted(splits, places, side="right"), minlength=len(sums)).tolist())


@pytest.mark.parametrize("slots", range(2, 130))
def test_every_edge_between_devices_is_where_it_is_meant(slots: int) -> None:
    """Of every split over any number of devices, for up to 128 blocks.

    A device's end is a whole number of slots before it, whatever the split. If a fraction of each such number lies
    above the place of the slot below it and not above its own, every slot of every split lies where it is meant.
    """
    for end in range(1, slots + 1):
        assert by_llama_cpp(f"{end},{slots - end}", slots) == (end, slots - end)


@pytest.mark.parametrize("slots", range(2, 130))
@pytest.mark.parametrize("devices", range(1, 9))
def test_printed_ratios_give_exactly_the_layers_meant(devices: int, slots: int) -> None:
    luck = random.Random(1000 * devices + slots)
    for _sample in range(8):
        cuts = sorted(luck.randint(0, slots) for _cut in range(devices - 1))
        layers = tuple(high - low for low, high in zip([0, *cuts], [*cuts, slots], strict=True))
        printed = layer_split.render_tensor_split(layers, "llama_server")
        assert by_llama_cpp(printed, slots) == layers
        assert layer_split.layers_from_shares(layers, slots) == layers


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=8), st.integers(2, 129))
@settings(max_examples=500, deadline=None)
def test_any_shares_are_rounded_as_llama_cpp_does(shares: list[float], slots: int) -> None:
    assume(sum(shares) > 1e-3)
    assert layer_split.layers_from_shares(shares, slots) == by_llama_cpp(",".join(map(repr, shares)), slots)


@given(any_split())
@settings(max_examples=500, deadline=None)
def test_layer_counts_given_as_shares_give_exactly_these_layers(layers: tuple[int, ...]) -> None:
    assert layer_split.layers_from_shares(layers, sum(layers)) == layers


@pytest.mark.parametrize("slots", range(2, 130))
def test_every_two_device_split_of_every_model_size(slots: int) -> None:
    for first in range(slots + 1):
        assert layer_split.layers_from_shares((first, slots - first), slots) == (first, slots - first)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.integers(2, 129))
@settings(deadline=None)
def test_any_shares_give_out_every_slot_once(shares: list[float], slots: int) -> None:
    layers = layer_split.layers_from_shares(shares, slots)
    assert sum(layers) == slots and min(layers) >= 0


@pytest.mark.parametrize(
    ("shares", "slots", "layers"),
    [
        # what llama-bench b11312 reports as "layer N assigned to device" for a model of 32 blocks
        ((20, 13), 33, (20, 13)),
        ((17, 16), 33, (17, 16)),
        ((32, 1), 33, (32, 1)),
        ((1, 32), 33, (1, 32)),
        ((33, 0), 33, (33, 0)),
        ((1.2, 1), 33, (18, 15)),
        ((0.9, 0.4), 33, (23, 10)),
    ],
)
def test_recorded_placements(shares: tuple[float, ...], slots: int, layers: tuple[int, ...]) -> None:
    assert layer_split.layers_from_shares(shares, slots) == layers


def test_the_rule_is_in_float32() -> None:
    """A share whose edge is a slot's edge in double precision, and not in single precision, moves that slot."""

    def in_double(share: float, slots: int) -> int:
        return sum(1 for slot in range(slots) if slot / slots < share / (share + (1 - share)))

    moved = [
        (first, slots)
        for slots in range(2, 130)
        for first in range(1, slots)
        if in_double(first / slots + 1e-9, slots) != layer_split.layers_from_shares(
            (first / slots + 1e-9, 1 - first / slots - 1e-9), slots
        )[0]
    ]
    assert moved


@pytest.mark.parametrize("shares", [(), (0, 0), (-1, 2), (math.nan, 1), (math.inf, 1)])
def test_shares_that_are_none(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="shares must be"):
        layer_split.layers_from_shares(shares, 33)


def test_the_default_follows_free_memory() -> None:
    assert layer_split.default_layers((24105, 24105), 33) == (17, 16)  # seen
    assert layer_split.default_layers((23660, 24020), 81) == (41, 40)
    assert layer_split.default_layers((1000, 3000), 33) == (9, 24)
    assert layer_split.default_layers((0, 0), 33) == (17, 16)


def test_two_devices_have_slots_less_one_splits() -> None:
    splits = layer_split.enumerate_splits(33, 2)
    assert splits == [(first, 33 - first) for first in range(1, 33)]
    assert layer_split.enumerate_splits(1, 2) == []
    assert layer_split.enumerate_splits(33, 1) == [(33,)]


@pytest.mark.parametrize("devices", range(1, 9))
def test_many_devices_make_a_coarser_list_not_an_endless_one(devices: int) -> None:
    splits = layer_split.enumerate_splits(129, devices)
    assert 0 < len(splits) <= layer_split.MOST_SPLITS
    assert len(set(splits)) == len(splits)
    assert all(sum(layers) == 129 and min(layers) >= 1 for layers in splits)
    if devices <= 2:
        assert len(splits) == math.comb(128, devices - 1)


def test_names() -> None:
    assert layer_split.load_label((20, 13), 2) == "20/13 load 2"
    assert layer_split.output_device((20, 13, 0)) == 1
    places = [layer_split.last_block_device(layers) for layers in ((20, 13, 0), (20, 0, 1), (32, 1), (1, 0))]
    assert places == [1, 0, 0, 0]
    assert layer_split.single_device_splits(33, 3) == [(33, 0, 0), (0, 33, 0), (0, 0, 33)]


def test_float32_is_what_the_machine_has() -> None:
    assert layer_split._float32(0.1) == struct.unpack("<f", b"\xcd\xcc\xcc\x3d")[0]
