# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import itertools
import random
import typing as t

import numpy as np
import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    layer_search,
    layer_weights,
    memory_plan,
    split_cost,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, sparse

Layers = tuple[int, ...]


def plan_of(block_mib: t.Sequence[int], output_mib: int, flash_attention: str = "on") -> memory_plan.MemoryPlan:
    model = {
        "block_count": len(block_mib),
        "block_bytes": [mib * 2**20 for mib in block_mib],
        "output_bytes": output_mib * 2**20,
        "embedding_length": 1024,
        "vocabulary_size": 32000,
        "feed_forward_length": 2816,
        "head_count": 8,
        "kv_k_elements_per_token": [512] * len(block_mib),
        "kv_v_elements_per_token": [512] * len(block_mib),
    }
    serving = {
        "context_size": 2048,
        "parallel_slots": 1,
        "kv_unified": True,
        "batch_size": 2048,
        "micro_batch_size": 512,
        "flash_attention": flash_attention,
        "cache_type_k": "f16",
        "cache_type_v": "f16",
    }
    return memory_plan.MemoryPlan(model, serving)


def every_split(slots: int, devices: int) -> t.Iterator[Layers]:
    for cuts in itertools.combinations_with_replacement(range(slots + 1), devices - 1):
        edges = (0, *cuts, slots)
        yield tuple(high - low for low, high in itertools.pairwise(edges))


def missing_mib(plan: memory_plan.MemoryPlan, budgets: t.Sequence[int], layers: Layers) -> int:
    return sum(max(0, used - budget) for used, budget in zip(plan.mib(layers), budgets, strict=True))


def room(plan: memory_plan.MemoryPlan, budgets: t.Sequence[int], layers: Layers) -> int:
    used = zip(budgets, plan.mib(layers), layers, strict=True)
    return min(budget - mib for budget, mib, count in used if count)


class Case(t.NamedTuple):
    plan: memory_plan.MemoryPlan
    budgets: list[int]
    slots: int
    cost: split_cost.Cost
    search: layer_search.LayerSearch
    fitting: list[Layers]


@st.composite
def any_case(draw: st.DrawFn) -> Case:
    """A small model of unequal blocks on one to four devices, from ample to no room, of any speed."""
    blocks = draw(st.lists(st.integers(1, 60), min_size=1, max_size=9))
    devices = draw(st.integers(1, 4))
    flash = draw(st.sampled_from(["on", "off"]))
    plan = plan_of(blocks, draw(st.integers(0, 80)), flash)
    slots = len(blocks) + 1
    alone = plan.mib((slots,))[0]
    least = min(plan.mib((1, slots - 1, 0)))
    budgets = draw(st.lists(st.integers(0, alone + least), min_size=devices, max_size=devices))
    speeds = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0, 1.3, 2.0, 8.0]), min_size=devices, max_size=devices)
    weight = st.lists(st.sampled_from([0.5, 1.0, 1.0, 1.7]), min_size=slots, max_size=slots)
    weights = layer_weights.of_lists({"decode": draw(weight), "prefill": [*draw(weight)[1:], 0.0]}, slots)
    hop_ms = draw(st.sampled_from([0.0, 0.3, 2.0]))
    cost = split_cost.Cost(*(tuple(draw(speeds)) for _part in range(3)), draw(st.sampled_from([None, weights])), hop_ms)
    fitting = [layers for layers in every_split(slots, devices) if not missing_mib(plan, budgets, layers)]
    return Case(plan, budgets, slots, cost, layer_search.LayerSearch(plan, budgets, slots), fitting)


@given(any_case())
@settings(max_examples=300, deadline=None)
def test_memory_is_judged_as_brute_force_does(case: Case) -> None:
    assert case.search.count() == len(case.fitting)
    assert case.search.feasible == bool(case.fitting)
    splits = list(every_split(case.slots, len(case.budgets)))
    assert [layers for layers in splits if case.search.fits(layers)] == case.fitting
    nearest = case.search.nearest_miss()
    assert nearest in splits
    assert missing_mib(case.plan, case.budgets, nearest) == min(
        missing_mib(case.plan, case.budgets, layers) for layers in splits
    )


@given(any_case())
@settings(max_examples=300, deadline=None)
def test_the_extremes_are_those_of_brute_force(case: Case) -> None:
    whole = [layers for layers in case.fitting if all(layers)]
    found = case.search.extremes()
    assert bool(found) == bool(whole)
    assert set(found) <= set(whole)
    for device in range(len(case.budgets)) if whole else ():
        for pick in (max, min):
            count = pick(layers[device] for layers in whole)
            best = max(room(case.plan, case.budgets, layers) for layers in whole if layers[device] == count)
            assert any(
                layers[device] == count and room(case.plan, case.budgets, layers) == best for layers in found
            )
    any_device = case.search.extremes(whole=False)
    assert bool(any_device) == bool(case.fitting)
    assert set(any_device) <= set(case.fitting)
    for device in range(len(case.budgets)) if case.fitting else ():
        counts = [layers[device] for layers in case.fitting]
        assert {min(counts), max(counts)} <= {layers[device] for layers in any_device}


@given(any_case(), st.data())
@settings(max_examples=500, deadline=None)
def test_the_best_is_that_of_brute_force(case: Case, data: st.DataObject) -> None:
    caps = data.draw(st.lists(st.integers(0, case.slots), min_size=len(case.budgets), max_size=len(case.budgets)))
    ranked = sorted(
        (layers for layers in case.fitting if all(n <= cap for n, cap in zip(layers, caps, strict=True))),
        key=case.cost.ms,
    )
    without = set(ranked[: data.draw(st.integers(0, 3))])
    left = [layers for layers in ranked if layers not in without]
    found = case.search.best(case.cost, caps, without)
    assert (found is None) == (not left)
    if found is not None:
        assert found in left
        assert case.cost.ms(found) == pytest.approx(case.cost.ms(left[0]), rel=1e-9)


@given(any_case(), st.floats(1.0, 1.5))
@settings(max_examples=200, deadline=None)
def test_the_roomiest_is_that_of_brute_force(case: Case, factor: float) -> None:
    limit = factor * min(map(case.cost.ms, case.fitting), default=0.0) + 1e-9
    among = [layers for layers in case.fitting if case.cost.ms(layers) <= limit]
    found = case.search.roomiest(case.cost, limit)
    if not among:
        assert found is None
        return
    most = max(room(case.plan, case.budgets, layers) for layers in among)
    assert found in among
    assert room(case.plan, case.budgets, found) == most
    equal = [layers for layers in among if room(case.plan, case.budgets, layers) == most]
    assert case.cost.ms(found) == pytest.approx(min(map(case.cost.ms, equal)), rel=1e-9)


def milp_ms(search: layer_search.LayerSearch, mib: t.Mapping[tuple[int, int], int], cost: split_cost.Cost) -> float:
    """Return the least cost by mixed integer programming: a path of ranges over the devices, and the longest stage.

    A variable per device and range of slots that fits there (and one per device and place where it holds nothing), and
    one for the longest stage; from every node (devices so far, slots so far) goes what came in.
    """
    slots, devices = search.slots, len(search.budgets)
    edges = [
        (device, start, end)
        for device, budget in enumerate(search.budgets)
        for start in range(slots + 1)
        for end in range(start, slots + 1)
        if start == end or mib[start, end] <= budget
    ]
    rows, columns, signs = [], [], []
    stage_rows, stage_columns, stages, weights = [], [], [], []
    for column, (device, start, end) in enumerate(edges):
        count, blocks = end - start, end - start - (start < end == slots)
        rows += [device * (slots + 1) + start, (device + 1) * (slots + 1) + end]
        columns += [column, column]
        signs += [-1, 1]
        weights.append(count * cost.slot_ms[device] + blocks * cost.block_ms[device])
        stage_rows.append(device)
        stage_columns.append(column)
        stages.append(blocks * cost.stage_ms[device])
    flow = sparse.csr_array((signs, (rows, columns)), shape=((devices + 1) * (slots + 1), len(edges) + 1))
    into = np.zeros((devices + 1) * (slots + 1))
    into[0], into[devices * (slots + 1) + slots] = -1, 1
    longest = sparse.csr_array(
        (
            [*stages, *[-1.0] * devices],
            ([*stage_rows, *range(devices)], [*stage_columns, *[len(edges)] * devices]),
        ),
        shape=(devices, len(edges) + 1),
    )
    result = optimize.milp(
        [*weights, 1.0],
        integrality=[1] * len(edges) + [0],
        bounds=optimize.Bounds(0, [1.0] * len(edges) + [np.inf]),
        constraints=[optimize.LinearConstraint(flow, into, into), optimize.LinearConstraint(longest, -np.inf, 0)],
        options={"mip_rel_gap": 0},
    )
    assert result.success, result.message
    return float(result.fun)


@pytest.mark.parametrize(
    ("devices", "blocks", "share", "seed"),
    [(3, 128, 1.1, 1), (3, 60, 1.3, 2), (4, 80, 1.2, 3), (5, 48, 1.3, 4), (6, 28, 1.6, 5), (8, 40, 1.6, 6)],
)
def test_the_best_is_that_of_integer_programming(devices: int, blocks: int, share: float, seed: int) -> None:
    luck = random.Random(seed)
    plan = plan_of([luck.randrange(20, 60) for _block in range(blocks)], 90)
    slots = blocks + 1
    budgets = [int(share * luck.uniform(0.7, 1.3) * plan.mib((slots,))[0] / devices) + 30 for _device in range(devices)]
    search = layer_search.LayerSearch(plan, budgets, slots)
    mib = {
        (start, end): plan.mib((start, end - start, slots - end))[1]
        for start in range(slots)
        for end in range(start + 1, slots + 1)
    }
    speeds = [luck.uniform(0.3, 2.4) for _device in range(devices)]
    prefill = [speed * luck.uniform(3, 12) for speed in speeds]
    nothing = (0.0,) * devices
    decode = tuple(256 * speed for speed in speeds)
    for cost in (
        split_cost.Cost(decode, nothing, nothing),
        split_cost.Cost(nothing, tuple(prefill), tuple(3 * own for own in prefill)),
        split_cost.Cost(decode, tuple(prefill), tuple(31 * own for own in prefill)),
        split_cost.Cost(nothing, nothing, tuple(speeds)),
    ):
        found = search.best(cost)
        assert found is not None and search.fits(found)
        assert missing_mib(plan, budgets, found) == 0
        assert cost.ms(found) == pytest.approx(milp_ms(search, mib, cost), rel=1e-6)


def test_neighbours() -> None:
    assert set(layer_search.moved_by_one((2, 0, 1))) == {(1, 1, 1), (1, 0, 2), (3, 0, 0), (2, 1, 0)}
