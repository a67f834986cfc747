# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A dense model a little too large for its devices: FFN weights of some blocks in RAM."""

from __future__ import annotations

import dataclasses
import itertools
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import (
    catalogue_fit,
    comparison,
    configurations,
    expert_costs,
    expert_plane,
    predictor,
    stages,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import words
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    card_costs,
    expert_placement,
    known_devices,
    memory_plan,
    split_problem,
)
from ansible_collections.homelab.mixed_gpu.tests.fixtures.experts import machine

Json = dict[str, t.Any]

DENSE = machine.make_model(experts=0)
LLAMA = "llama_3_3_70b_q4_k_m"
SERVING = {
    "context_size": 32768, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16",
}  # fmt: skip
OBJECTIVE = {"name": "request", "prompt_tokens": 1024, "generated_tokens": 256, "depth_tokens": 0}
IN_RAM = {"mode": "auto", "ram_mib": 60000, "links_gb_per_s": None}
BENCH = {"prompt_tokens": 1024, "generated_tokens": 64, "repetitions": 1}


def question(in_ram: Json | None = IN_RAM, **changes: t.Any) -> Json:
    return {
        "model": LLAMA, "serving": {**SERVING, **changes}, "reserve_mib": 512, "objective": OBJECTIVE, "bench": BENCH,
        "experts_in_ram": in_ram,
    }  # fmt: skip


def problem_of(*free: int, mode: t.Any = "auto") -> split_problem.Problem:
    raw = machine.make_problem(free or (900, 800), model=DENSE, experts_in_ram={"mode": mode})
    return split_problem.read_problem(raw)


def test_only_a_dense_model_that_does_not_fit_is_moved() -> None:
    assert expert_plane.wanted(problem_of())
    assert not expert_plane.wanted(problem_of(mode="never"))
    assert not expert_plane.wanted(problem_of(2000, 2000))
    assert expert_plane.wanted(problem_of(2000, 2000, mode=3))
    # what is planned for one that fits is what would be planned without its FFN weights being known
    raw = machine.make_problem((2000, 2000), model=DENSE)
    plain = {**raw, "model": {**DENSE, "block_ffn_bytes": {}}}
    assert stages.plan(raw, []) == stages.plan(plain, [])


def test_a_model_that_does_not_fit_because_of_pipelining_has_a_part_of_a_block_in_ram() -> None:
    raw = machine.make_problem((1400, 1400), model=DENSE)
    bare = split_problem.read_problem(raw).memory
    layers = (13, 12)
    without = expert_placement.on_first_device(bare.model, layers, 1)
    held = memory_plan.MemoryPlan(bare.model, bare.serving, experts=without).mib(layers)
    # room for one block more on the first device, and for what is not pipelined on the second
    budgets = (held[0] + 90, held[1])
    assert min(memory_plan.headroom_mib(bare.mib(layers), budgets)) < 0
    plane = expert_plane.Plane(split_problem.read_problem(raw), budgets)
    found = plane.least(layers, 512)
    assert found is not None and not found.blocks and found.partial is not None and len(found.partial.parts) == 1
    assert min(plane.headroom(found, 512)) >= 0


def test_every_token_reads_all_of_what_is_in_ram() -> None:
    problem = problem_of()
    weigher = expert_costs.Weigher(problem)
    some = expert_placement.on_first_device(problem.memory.model, (13, 12), 6)
    none = expert_placement.ExpertPlacement((13, 12), ())
    away = 6 * 90 * machine.MIB / sum(weigher.read)
    left = weigher.amounts(none).cards[0] - weigher.amounts(some).cards[0]
    assert weigher.used == 1.0 and left == pytest.approx(weigher.rates["decode"][0] * away)


@pytest.mark.parametrize("changes", [{}, {"decode": (2.0, 9.0)}, {"block": 6.0}, {"noise": 0.01}])
def test_a_campaign_finds_a_placement_near_the_best(changes: Json) -> None:
    simulated = machine.Machine(machine.make_problem(model=DENSE), **changes)
    plan, loads = simulated.drive()
    decision = plan["decision"]
    assert decision is not None and not plan["experts"], plan["why"]
    placed = expert_placement.from_json(decision["layers"], decision["experts_in_ram"])
    assert placed is not None and placed.kind == expert_placement.FFN and placed.blocks
    assert all(load["experts_in_ram"]["kind"] == "ffn" for load in loads)
    problem = split_problem.read_problem(simulated.problem)
    plane = expert_plane.Plane(problem, problem.budgets)
    assert min(plane.headroom(placed, decision["micro_batch_size"])) >= 0
    best = min(
        simulated.request_ms(dataclasses.replace(own, threads=threads, no_host=no_host), size)
        for size in expert_plane.micro_batches(problem)
        for own, threads, no_host in itertools.product(plane.candidates(size), range(1, 17), (False, True))
    )
    assert simulated.request_ms(placed, decision["micro_batch_size"]) <= 1.03 * best
    # of llama.cpp's own placement, whole layers in RAM, nothing is known
    assert decision["default_layers"] is None and decision["gain_over_default_percent"] is None


def test_the_decision_says_what_it_costs_and_what_would_cost_less() -> None:
    entry = machine.Machine(machine.make_problem(model=DENSE)).record()
    decision = entry["decision"]
    count = len(entry["experts_in_ram"]["blocks"])
    assert f"FFN weights of {count} blocks" in decision["why"]
    assert "every token reads what is in RAM there, which takes about " in decision["why"]
    (instead,) = [note for note in decision["advice"] if note.startswith("the devices alone would hold it with ")]
    assert "a smaller quantisation" in instead
    assert f", with the FFN weights of {count} blocks" in words.placement_words(entry)
    assert "llama.cpp by itself leaves whole layers of such a model in RAM" in words.gain_words(entry)


def test_what_does_not_even_fit_so_is_refused_with_the_cures() -> None:
    plan, loads = machine.Machine(machine.make_problem((120, 100), model=DENSE)).drive()
    assert plan["decision"] is None and not loads
    assert "does not fit the devices even with all FFN weights in RAM" in plan["why"]
    short = machine.make_problem(model=DENSE, experts_in_ram={"ram_mib": 100})
    plan, loads = machine.Machine(short).drive()
    assert plan["decision"] is None and not loads and "and 100 MiB of it may be used" in plan["why"]
    assert "the devices alone would hold it with " in plan["why"] and "a smaller quantisation" in plan["why"]


def test_a_70b_with_a_long_context_on_a_4090_and_a_3090() -> None:
    devices = known_devices.profile_devices("rtx4090_rtx3090")
    prediction = predictor.predict(question(), devices, None)
    best, model = prediction["best"], model_shapes.model(LLAMA)
    placed = expert_placement.from_json(best["layers"], best["experts_in_ram"])
    assert placed is not None and placed.kind == expert_placement.FFN and machine.counts_of(placed)[1] == 0
    serving = {**SERVING, "micro_batch_size": best["micro_batch_size"]}
    assert best["mib"] == memory_plan.MemoryPlan(model, serving, experts=placed).mib(placed.layers)
    in_ram = expert_placement.ram_bytes(model, placed)
    assert best["ram_mib"] == -(-in_ram // machine.MIB) and best["ram_mib"] < 60000
    # a token reads them once: by 75 GB/s at most
    least = sum(expert_placement.block_ram_bytes(model, placed)) / 75e6
    assert 1000 / best["decode_interval"][1] > least
    text = "\n".join(prediction["lines"])
    assert "with FFN weights in RAM" in text and "every token reads all of them" in prediction["why"]
    for cure in ("KV cache", "a context of 16384 tokens instead of 32768", "a smaller quantisation"):
        assert cure in prediction["why"].partition("the devices alone would hold it with ")[2]
    rows = prediction["contexts"]["rows"]
    assert any(row.get("blocks_in_ram") for row in rows) and any(not row.get("blocks_in_ram") for row in rows)
    refused = predictor.predict(question({**IN_RAM, "mode": "never"}), devices, None)
    assert refused["best"] is None and "FFN weights in RAM (split_tuning_experts_in_ram: auto" in refused["why"]


def test_of_a_dense_model_that_fits_nothing_else_is_said() -> None:
    devices = known_devices.profile_devices("rtx4090_rtx3090")
    assert predictor.predict(question(context_size=8192), devices, None) == predictor.predict(
        question(None, context_size=8192), devices, None
    )


def test_a_configuration_to_be_bought_holds_a_dense_model_itself() -> None:
    (single,) = card_costs.read(["rtx3090"])
    asked = {name: value for name, value in question(context_size=8192).items() if name != "model"}
    row = configurations.serves(single, comparison.shape(LLAMA), asked)
    assert not row["fits"] and "some of its FFN weights in RAM" in row["why"]


def test_the_catalogue_says_how_much_of_a_dense_model_would_be_in_ram() -> None:
    card = known_devices.profile_devices("rtx4090")
    told = catalogue_fit.words(card, IN_RAM)["llama_3_3_70b_instruct_q4_k_m"]
    assert told.startswith("fits as 81 with ") and "blocks' FFN weights in RAM" in told and " to " in told
    little = catalogue_fit.words(card, {**IN_RAM, "ram_mib": 2000})
    assert little["llama_3_3_70b_instruct_q4_k_m"] == "does not fit, even with FFN weights in RAM"
