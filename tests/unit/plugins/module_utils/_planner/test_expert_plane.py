# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import expert_plane
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    expert_placement,
    layer_split,
    memory_plan,
    split_problem,
)
from ansible_collections.homelab.mixed_gpu.tests.fixtures.experts import machine

MIB = 2**20


def problem_of(*arguments: t.Any, **changes: t.Any) -> split_problem.Problem:
    return split_problem.read_problem(machine.make_problem(*arguments, **changes))


def plane_of(*arguments: t.Any, **changes: t.Any) -> expert_plane.Plane:
    problem = problem_of(*arguments, **changes)
    return expert_plane.Plane(problem, problem.budgets, (problem.raw["experts_in_ram"] or {}).get("ram_mib"))


def fewest(plane: expert_plane.Plane, layers: tuple[int, ...], size: int) -> int | None:
    """Return the least bytes of experts in RAM by trying every number of blocks and parts of the first device."""
    first = next(device for device, count in enumerate(layers) if count)
    counts = len(expert_placement.movable_blocks(plane.model, layers, first))
    found = []
    for count in range(counts + 1):
        for parts in ((), ("up",), ("gate",), ("down",), ("up", "gate"), ("up", "down"), ("gate", "down")):
            if parts and count == counts:
                continue
            numbers = [count if device == first else 0 for device in range(len(layers))]
            placed = expert_placement.place(plane.model, layers, numbers, (first, parts) if parts else None)
            if min(plane.headroom(placed, size)) >= 0:
                found.append(sum(expert_placement.block_ram_bytes(plane.model, placed)))
    return min(found, default=None)


@pytest.mark.parametrize("size", [512, 2048])
def test_each_split_has_the_fewest_experts_in_ram_that_memory_allows(size: int) -> None:
    plane = plane_of()
    for layers in plane.splits(size):
        placed, by_trial = plane.least(layers, size), fewest(plane, layers, size)
        if placed is None:
            assert by_trial is None, layers
            continue
        assert min(plane.headroom(placed, size)) >= 0
        held = sum(expert_placement.block_ram_bytes(plane.model, placed))
        # the copy of experts is counted for all of them, which may cost a part of a block
        assert by_trial is not None and by_trial <= held <= by_trial + 30 * MIB
        first = next(device for device, count in enumerate(layers) if count)
        assert all(count == 0 for device, count in enumerate(machine.counts_of(placed)) if device != first)


def test_weights_that_count_more_than_their_bytes_fit_as_well() -> None:
    model = machine.make_model()
    cache = memory_plan.kv_bytes(model, machine.make_problem()["serving"])
    told = {"weights": 1.5, "compute": 1.0, "planned_bytes": cache, "cache_bytes": cache}
    plane = plane_of((700, 680), model={**model, "memory_corrections": told})
    placed = plane.candidates(512)
    assert any(placement.partial for placement in placed)
    for placement in placed:
        left = plane.headroom(placement, 512)
        assert min(mib for mib, count in zip(left, placement.layers, strict=True) if count) >= 0, placement


def test_experts_of_another_device_move_only_where_nothing_else_fits() -> None:
    plane = plane_of((900, 800))
    assert all(machine.counts_of(placed)[1] == 0 or placed.layers[0] == 0 for placed in plane.candidates(512))
    # neither device has room for the layers of the model without experts: both have to give some away
    model = machine.make_model(dense_mib=40)
    tight = plane_of((640, 640), model=model)
    assert tight.candidates(512) and any(all(machine.counts_of(placed)) for placed in tight.candidates(512))
    for placed in tight.candidates(512):
        assert min(tight.headroom(placed, 512)) >= 0


def test_of_three_devices_the_best_is_among_the_candidates() -> None:
    plane = plane_of((500, 450, 400))
    held = {
        placed.layers: sum(expert_placement.block_ram_bytes(plane.model, placed)) for placed in plane.candidates(512)
    }
    every = [
        plane.least(layers, 512) for layers in layer_split.enumerate_splits(plane.problem.slots, 3) if all(layers)
    ]
    least = min(sum(expert_placement.block_ram_bytes(plane.model, placed)) for placed in every if placed is not None)
    assert min(held.values()) <= least and len(held) < 200


def test_blocks_without_experts_stay_on_their_device() -> None:
    plane = plane_of(model=machine.make_model(lead=3))
    candidates = plane.candidates(512)
    assert candidates and all(min(placed.blocks) >= 3 for placed in candidates if placed.blocks)


def test_an_exact_number_is_neither_more_nor_fewer() -> None:
    plane = plane_of(experts_in_ram={"mode": 14})
    candidates = plane.candidates(512)
    assert candidates and all(len(p.blocks) == 14 and p.partial is None for p in candidates)
    assert plane_of(experts_in_ram={"mode": 1}).candidates(512) == []


def test_ram_is_a_bound() -> None:
    free = plane_of()
    least = min(expert_plane.ram_mib(free.model, placed) for placed in free.candidates(512))
    assert plane_of(experts_in_ram={"ram_mib": least - 200}).candidates(512) == []
    bound = plane_of(experts_in_ram={"ram_mib": least})
    assert {expert_plane.ram_mib(bound.model, placed) for placed in bound.candidates(512)} == {least}


@pytest.mark.parametrize(
    ("mode", "free", "wanted"),
    [("auto", (900, 800), True), ("auto", (1500, 1500), False), ("never", (900, 800), False), (3, (1500, 1500), True),
     (0, (1500, 1500), False)],
)  # fmt: skip
def test_experts_go_into_ram_where_they_have_to_or_where_it_is_asked_for(
    mode: t.Any, free: tuple[int, ...], wanted: bool
) -> None:
    assert expert_plane.wanted(problem_of(free, experts_in_ram={"mode": mode})) is wanted


def test_a_model_without_a_feed_forward_part_has_nothing_to_move() -> None:
    model = {**machine.make_model(), "block_ffn_bytes": {}}
    assert not expert_plane.wanted(problem_of(model=model))
    with pytest.raises(UserError, match="is 4, but the model has neither experts nor FFN weights"):
        expert_plane.wanted(problem_of(model=model, experts_in_ram={"mode": 4}))


@pytest.mark.parametrize("mode", ["some", -1, True, 1.5, None])
def test_a_wrong_mode_is_named(mode: t.Any) -> None:
    with pytest.raises(UserError, match="must be auto, never or a number of blocks"):
        expert_plane.mode_of(problem_of(experts_in_ram={"mode": mode}))


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, [512, 1024, 2048]),
        ({"objective": {"name": "request", "prompt_tokens": 800, "generated_tokens": 64}}, [512, 1024]),
        ({"objective": {"name": "request", "prompt_tokens": 800, "generated_tokens": 64}, "micro_batches": [768]},
         [512, 768, 1024]),
        ({"objective": {"name": "decode", "prompt_tokens": 0, "generated_tokens": 64}}, [512]),
        # a slot sees fewer tokens than a micro-batch has
        ({"objective": {"name": "request", "prompt_tokens": 100, "generated_tokens": 64},
          "serving": {**machine.make_problem()["serving"], "parallel_slots": 16, "kv_unified": False},
          "tests": [{"kind": "prefill", "n_prompt": 128, "n_gen": 0, "n_depth": 0, "repetitions": 2},
                    {"kind": "decode", "n_prompt": 0, "n_gen": 32, "n_depth": 0, "repetitions": 3}]}, [512]),
    ],
)  # fmt: skip
def test_micro_batches_end_with_the_first_that_takes_the_whole_prompt(
    changes: dict[str, t.Any], sizes: list[int]
) -> None:
    raw = {**machine.make_problem(), **changes}
    assert expert_plane.micro_batches(split_problem.read_problem(raw)) == sizes


def test_a_batch_holds_the_largest_micro_batch() -> None:
    problem = problem_of()
    assert expert_plane.serving_at(problem, 4096)["batch_size"] == 4096
    assert expert_plane.serving_at(problem, 512)["batch_size"] == 2048
    assert problem.memory.serving["micro_batch_size"] == 512


def test_an_rpc_device_copies_no_experts() -> None:
    raw = machine.make_problem()
    for device in raw["devices"]:
        device["backend"] = "RPC"
    problem = split_problem.read_problem(raw)
    plane = expert_plane.Plane(problem, problem.budgets)
    placed = plane.candidates(512)[-1]
    whole = memory_plan.MemoryPlan(plane.model, problem.memory.serving, experts=placed, copied=False)
    assert plane.mib(placed, 512) == whole.mib(placed.layers)
    assert plane.mib(placed, 512)[0] < plane_of().mib(placed, 512)[0]
