# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Whole campaigns with experts in RAM, on simulated machines."""

from __future__ import annotations

import dataclasses
import itertools
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_bench, llama_server
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import store
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import (
    expert_better,
    expert_evidence,
    expert_loads,
    expert_memory,
    expert_plane,
    expert_rival,
    expert_stage,
    failed_loads,
    stages,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    deployment,
    expert_placement,
    memory_plan,
    split_problem,
)
from ansible_collections.homelab.mixed_gpu.tests.fixtures.experts import machine

Json = dict[str, t.Any]


def least_ms(simulated: machine.Machine) -> float:
    """Return the true least of the objective over splits, micro-batches, threads and kinds of host memory."""
    problem = split_problem.read_problem(simulated.problem)
    plane = expert_plane.Plane(problem, problem.budgets)
    values = []
    for size in expert_plane.micro_batches(problem):
        for placed in plane.candidates(size):
            for threads, no_host in itertools.product(range(1, 17), (False, True)):
                own = dataclasses.replace(placed, threads=threads, no_host=no_host)
                values.append(simulated.request_ms(own, size))
    return min(values)


def chosen_ms(simulated: machine.Machine, decision: Json) -> float:
    placed = expert_placement.from_json(decision["layers"], decision["experts_in_ram"])
    assert placed is not None
    return simulated.request_ms(placed, decision["micro_batch_size"])


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"best_threads": 4}, {"best_threads": 16}, {"unpinned": 0.8}, {"copy": 2.0}, {"block": 6.0},
        {"decode": (2.0, 9.0)}, {"decode": (9.0, 2.0)}, {"noise": 0.01},
    ],
)  # fmt: skip
def test_the_choice_is_within_two_percent_of_the_best_after_five_loads(changes: Json) -> None:
    simulated = machine.Machine(machine.make_problem(), **changes)
    plan, loads = simulated.drive()
    assert plan["decision"] is not None, plan["why"]
    assert chosen_ms(simulated, plan["decision"]) <= 1.02 * least_ms(simulated)
    assert sum(1 for load in loads if load["purpose"] != "confirm") <= expert_stage.MOST_BEFORE


@pytest.fixture(scope="module")
def campaign() -> tuple[machine.Machine, Json, list[Json]]:
    simulated = machine.Machine(machine.make_problem())
    return simulated, *simulated.drive()


def test_a_campaign_is_anchor_line_best_and_a_confirmation_in_turns(
    campaign: tuple[machine.Machine, Json, list[Json]]
) -> None:
    _simulated, plan, loads = campaign
    assert [load["purpose"] for load in loads][:3] == ["anchor", "line", "best"]
    confirming = [load for load in loads if load["purpose"] == "confirm"]
    assert len({str(load["experts_in_ram"]) for load in confirming}) == 2
    assert [load["load"] for load in loads] == list(range(1, len(loads) + 1))
    assert len({store.file_name(store.load_key("f", "c", load)) for load in loads}) == len(loads)
    assert plan["decision"]["loads_used"] == len(loads)


def test_every_load_can_be_measured_and_fits(campaign: tuple[machine.Machine, Json, list[Json]]) -> None:
    simulated, _plan, loads = campaign
    serving, model = simulated.problem["serving"], simulated.problem["model"]
    for load in loads:
        order = llama_bench.make_order(load, ["CUDA0", "CUDA1"], serving)
        words = llama_bench.bench_command("llama-bench", "/m", order, [])
        placed = expert_placement.from_json(load["layers"], load["experts_in_ram"])
        assert placed is not None and words[words.index("-ot") + 1] == expert_placement.render(placed, "llama_bench")
        size = max(test.get("micro_batch_size", 512) for test in load["tests"])
        used = {**serving, "micro_batch_size": size, "batch_size": max(2048, size)}
        mib = memory_plan.MemoryPlan(model, used, experts=placed).mib(load["layers"])
        assert all(own <= free["free_mib"] for own, free in zip(mib, simulated.problem["devices"], strict=True))


def test_a_decision_is_served_as_it_was_measured(campaign: tuple[machine.Machine, Json, list[Json]]) -> None:
    simulated, plan, _loads = campaign
    decision = plan["decision"]
    entry = machine.Machine(simulated.problem).record()
    settings = {
        "host": "127.0.0.1", "port": 8080, "alias": "moe", "cache_ram_mib": 0, "cors_origins": "localhost",
        "log_verbosity": 4, "extra_arguments": [], "allowed_networks": [], "load_timeout_seconds": 300,
    }  # fmt: skip
    words = llama_server.command(entry, settings)["arguments"]
    told = dict(zip(words, words[1:], strict=False))
    placed = expert_placement.from_json(decision["layers"], decision["experts_in_ram"])
    assert placed is not None
    assert told["-ot"] == expert_placement.render(placed, "llama_server")
    assert (told["-t"], told["-ub"]) == (str(placed.threads), str(decision["micro_batch_size"]))
    assert int(told["-b"]) >= int(told["-ub"]) and told["-lm"] == "none"
    assert entry["experts_in_ram"]["ram_bytes"] == expert_placement.ram_bytes(simulated.problem["model"], placed)
    # a later revalidation measures the tests that the baseline has
    tests = deployment.served_tests(entry)
    assert [(test["kind"], test["n_prompt"]) for test in tests] == [
        ("prefill", max(512, decision["micro_batch_size"])), ("decode", 0),
    ]  # fmt: skip
    assert not any("micro_batch_size" in test for test in tests)


def test_the_recorded_costs_are_those_of_the_whole_model_on_each_device() -> None:
    simulated = machine.Machine(machine.make_problem(), decode=(2.0, 5.0))
    plan, loads = simulated.drive()
    checked = split_problem.read_problem(simulated.problem)
    evidence = expert_evidence.Evidence(checked, expert_loads.read(checked, loads))
    told = plan["decision"]["fit"]
    for device, layers in enumerate(((checked.slots, 0), (0, checked.slots))):
        amounts = evidence.weigher.amounts(expert_placement.ExpertPlacement(layers, ()))
        assert evidence.decode_fit is not None and evidence.prefill_fit is not None
        assert told["decode_ms_per_device"][device] == pytest.approx(evidence.decode_fit.ms(amounts.decode), rel=1e-3)
        prompt = told["prefill_ms"]["start"] + told["prefill_ms"]["compute"][device]
        assert prompt == pytest.approx(evidence.prefill_fit.ms(amounts.prefill(1000, 1000)), rel=1e-3)


def test_what_is_said_follows_from_the_loads(campaign: tuple[machine.Machine, Json, list[Json]]) -> None:
    simulated, plan, _loads = campaign
    decision = plan["decision"]
    assert f"{decision['layers'][0]}/{decision['layers'][1]}, experts of " in decision["why"]
    assert f"{decision['experts_in_ram']['threads']} threads" in decision["why"]
    placed = expert_placement.from_json(decision["layers"], decision["experts_in_ram"])
    assert placed is not None
    assert decision["ram_mib"] == expert_plane.ram_mib(simulated.problem["model"], placed)
    assert 1000 / decision["decode_tokens_per_second"] == pytest.approx(simulated.decode_ms(placed), rel=0.01)
    tried = {row["threads"]: row["decode_more_percent"] for row in decision["threads_tried"]}
    assert set(tried) >= {2, 4, 8, 16} and tried[placed.threads] == 0 and min(tried.values()) == 0
    chosen = [
        row for row in decision["table"]
        if row["layers"] == decision["layers"] and row["micro_batch_size"] == decision["micro_batch_size"]
        and expert_placement.from_json(row["layers"], row["experts_in_ram"]) == placed
    ]  # fmt: skip
    assert len(chosen) == 1 and chosen[0]["loads"] >= 2
    # of the prompt that the problem's test has, as in other tables
    assert chosen[0]["prefill_ms"]["mean"] == pytest.approx(simulated.prefill_ms(placed, 512, 512), rel=0.1)
    assert any("a q8_0 KV cache would need" in note for note in decision["advice"])


def test_planning_again_says_the_same(campaign: tuple[machine.Machine, Json, list[Json]]) -> None:
    simulated, plan, loads = campaign
    assert stages.plan(simulated.problem, loads) == plan


def test_out_of_memory_lowers_what_the_named_device_may_hold() -> None:
    problem = machine.make_problem()
    simulated = machine.Machine(
        problem, fate={1: ("out_of_memory", "out of memory: 64.00 MiB more were wanted on CUDA0")}
    )
    plan, loads = simulated.drive()
    assert plan["decision"] is not None
    first, second = (expert_placement.from_json(load["layers"], load["experts_in_ram"]) for load in loads[:2])
    assert first is not None and second is not None and first != second
    checked = split_problem.read_problem(problem)
    plane = expert_plane.Plane(checked, checked.budgets)
    # by a fiftieth, as 64 MiB are more
    before = plane.mib(first, 512)[0]
    assert plane.mib(second, 512)[0] <= before - before // 50
    assert [load["purpose"] for load in loads[:2]] == ["anchor", "anchor"]
    failed = [row for row in plan["decision"]["table"] if row["status"] == "out_of_memory"]
    assert len(failed) == 1 and "64.00 MiB more" in failed[0]["reason"]


def test_a_device_that_held_as_much_is_not_blamed() -> None:
    simulated = machine.Machine(machine.make_problem(), fate={2: ("out_of_memory", "the device is full")})
    plan, loads = simulated.drive()
    assert plan["decision"] is not None
    checked = split_problem.read_problem(simulated.problem)
    evidence = expert_evidence.Evidence(checked, expert_loads.read(checked, loads[:2]))
    held = expert_plane.Plane(checked, checked.budgets).mib(evidence.ok[0].placement, 512)
    assert all(budget >= own for budget, own in zip(evidence.plane.budgets, held, strict=True))
    key = expert_plane.key_of(evidence.runs[1].placement)
    later = [expert_placement.from_json(load["layers"], load["experts_in_ram"]) for load in loads[2:]]
    assert key not in [expert_plane.key_of(placed) for placed in later if placed is not None]


def test_short_ram_lowers_what_experts_may_have() -> None:
    reason = "out of memory: 100 MiB more were wanted on CPU"
    simulated = machine.Machine(machine.make_problem(), fate={2: ("out_of_memory", reason)})
    plan, loads = simulated.drive()
    limit = expert_plane.ram_mib(
        simulated.problem["model"],
        expert_placement.from_json(loads[1]["layers"], loads[1]["experts_in_ram"]),  # type: ignore[arg-type]
    )
    assert plan["decision"] is not None and plan["decision"]["ram_mib"] <= limit - 100


def test_ram_that_no_placement_is_content_with_ends_with_what_is_missing() -> None:
    plan, loads = machine.Machine(machine.make_problem(experts_in_ram={"ram_mib": 100})).drive()
    assert plan["decision"] is None and not loads and plan["stage"] == "impossible"
    assert "and 100 MiB of it may be used; free RAM" in plan["why"]


def test_a_model_too_large_for_all_is_impossible_with_a_cure() -> None:
    plan, loads = machine.Machine(machine.make_problem((120, 100))).drive()
    assert plan["decision"] is None and not loads
    assert "does not fit the devices even with all experts in RAM" in plan["why"] and "q8_0 KV cache" in plan["why"]


def test_a_load_that_crashes_is_measured_once_more() -> None:
    simulated = machine.Machine(machine.make_problem(), fate={2: ("crashed", "it ended with 139")})
    plan, loads = simulated.drive()
    assert plan["decision"] is not None
    assert (loads[1]["layers"], loads[1]["experts_in_ram"]) == (loads[2]["layers"], loads[2]["experts_in_ram"])
    again = expert_stage.plan(split_problem.read_problem(simulated.problem), loads[:2])
    assert again["stage"] == "retry" and "it ended with 139" in again["why"]


@pytest.mark.parametrize(
    ("fate", "words", "count"),
    [
        ({n: ("crashed", "it ended with 139") for n in range(1, 20)}, "fail in the same way", 3),
        ({1: ("device_lost", "CUDA1 fell off the bus")}, "a device was lost", 1),
        ({n: ("timed_out", "it took 1800 s") for n in range(1, 20)}, "fail in the same way", 3),
    ],
)
def test_what_no_placement_cures_ends_the_campaign(fate: t.Any, words: str, count: int) -> None:
    plan, loads = machine.Machine(machine.make_problem(), fate=fate).drive()
    assert plan["decision"] is None and words in plan["why"] and len(loads) == count
    assert fate[1][1] in plan["why"]


def test_crashes_of_different_kinds_are_no_failure_alike() -> None:
    reasons = ("it ended with 139", "CUDA error: invalid argument", "it ended with 1", "GGML_ASSERT failed")
    fate = {number: ("crashed", reason) for number, reason in enumerate(reasons, 1)}
    plan, _loads = machine.Machine(machine.make_problem(), fate=fate).drive()
    assert plan["decision"] is not None


def test_memory_that_runs_out_again_and_again_ends_too() -> None:
    fate = {n: ("out_of_memory", "the device is full") for n in range(1, 40)}
    plan, loads = machine.Machine(machine.make_problem(), fate=fate).drive()
    assert plan["decision"] is None and plan["done"]
    most = simulated_most(machine.make_problem(), loads)
    assert len(loads) <= most and "the device is full" in plan["why"] and "run again" in plan["why"]


def simulated_most(problem: Json, loads: list[Json]) -> int:
    checked = split_problem.read_problem(problem)
    return expert_stage.most_loads(checked, expert_loads.read(checked, loads))


def test_a_number_of_blocks_is_kept_to() -> None:
    plan, loads = machine.Machine(machine.make_problem(experts_in_ram={"mode": 16})).drive()
    assert plan["decision"] is not None
    assert len(plan["decision"]["experts_in_ram"]["blocks"]) == 16
    assert all(len(load["experts_in_ram"]["blocks"]) == 16 for load in loads)
    assert "16 blocks were asked for" in plan["decision"]["why"]


def test_an_objective_without_a_prompt_has_no_prompts_in_its_loads() -> None:
    simulated = machine.Machine(machine.make_problem(objective="decode"))
    plan, loads = simulated.drive()
    assert plan["decision"] is not None and plan["decision"]["micro_batch_size"] == 512
    assert [load["purpose"] for load in loads][:2] == ["anchor", "line"]
    first, second = (len(load["experts_in_ram"]["blocks"]) for load in loads[:2])
    assert second > first


def test_one_device_and_three_are_planned_too() -> None:
    for free in ((1200,), (600, 500, 400)):
        simulated = machine.Machine(machine.make_problem(free), decode=(2.0,) * len(free))
        plan, _loads = simulated.drive()
        assert plan["decision"] is not None, plan["why"]
        assert chosen_ms(simulated, plan["decision"]) <= 1.03 * least_ms(simulated)


# --- llama.cpp's own placement ----------------------------------------------------------------------------------------

OWN = {
    "layers": [10, 15],
    "experts_in_ram": {"kind": "experts", "blocks": list(range(11, 24)), "partial": None, "threads": 0,
                       "no_host": False, "override": "blk[.](11|12)[.]ffn_(up)_(ch|)exps=CPU"},
}  # fmt: skip


def test_the_winner_is_confirmed_against_llama_cpps_own_placement() -> None:
    simulated = machine.Machine(machine.make_problem(experts_in_ram={"own": OWN}))
    plan, loads = simulated.drive()
    decision = plan["decision"]
    assert decision is not None and decision["default_layers"] == OWN["layers"]
    assert decision["default_experts_in_ram"]["override"] == OWN["experts_in_ram"]["override"]
    own = [load for load in loads if load["layers"] == OWN["layers"]]
    assert len(own) >= 2 and all(load["purpose"] == "confirm" for load in own)
    # its threads are llama.cpp's: as many as the CPU has cores
    assert all(load["experts_in_ram"]["threads"] == 8 for load in own)
    assert decision["gain_over_default_percent"] is not None and "llama.cpp's own placement" in decision["why"]


def test_an_own_placement_that_no_load_can_have_is_no_rival() -> None:
    strange = {**OWN, "experts_in_ram": {**OWN["experts_in_ram"], "blocks": [24]}}
    plan, _loads = machine.Machine(machine.make_problem(experts_in_ram={"own": strange})).drive()
    assert plan["decision"] is not None and plan["decision"]["default_layers"] != OWN["layers"]


def test_an_own_placement_that_fails_does_not_stop_the_campaign() -> None:
    problem = machine.make_problem(experts_in_ram={"own": OWN})
    simulated = machine.Machine(problem)
    real = simulated.measure

    def measure(wanted: Json) -> Json:
        if wanted["layers"] == OWN["layers"]:
            return {**wanted, "status": "crashed", "reason": "it ended with 1", "results": []}
        return real(wanted)

    simulated.measure = measure  # type: ignore[method-assign]
    plan, loads = simulated.drive()
    assert plan["decision"] is not None and plan["decision"]["layers"] != OWN["layers"]
    assert sum(1 for load in loads if load["layers"] == OWN["layers"]) <= 2


def test_without_the_program_its_rule_is_followed() -> None:
    problem = split_problem.read_problem(machine.make_problem((6000, 5000), model=machine.make_model(expert_mib=700)))
    evidence = expert_evidence.Evidence(problem, [])
    own = expert_rival.own_arm(evidence)
    assert own is not None and own.micro_batch == 512 and own.placement.threads == 8
    # the last blocks are those in RAM, and every device keeps its margin
    assert own.placement.blocks == tuple(range(24 - len(own.placement.blocks), 24))
    mib = evidence.plane.mib(own.placement, 512)
    assert all(free - used >= 0 for free, used in zip((6000, 5000), mib, strict=True))


def test_a_budget_is_withheld_from_fit() -> None:
    devices = [
        {"device": "CUDA0", "free_mib": 24000, "budget_mib": None},
        {"device": "CUDA1", "free_mib": 24000, "budget_mib": 20000},
        {"device": "RPC0", "free_mib": 9000, "budget_mib": 40},
    ]
    assert expert_rival.margins_mib(devices) == [1024, 5024, 8965]


def test_what_a_short_device_holds_is_searched_from_both_sides() -> None:
    problem = machine.make_problem()
    checked = split_problem.read_problem(problem)
    reason = "out of memory: 800 MiB more were wanted on CUDA0"
    plan, loads = machine.Machine(problem, fate={1: ("out_of_memory", reason)}).drive()
    assert plan["decision"] is not None
    plane = expert_plane.Plane(checked, checked.budgets)
    runs = expert_loads.read(checked, loads)
    failed = plane.mib(runs[0].placement, 512)[0]
    evidence = expert_evidence.Evidence(checked, runs[:2])
    held = plane.mib(runs[1].placement, 512)[0]
    assert evidence.plane.budgets[0] == held + int(failed_loads.HALFWAY * (failed - held)) and held < failed
    # never what is known to be too much, and never less than what was held
    for count in range(2, len(runs)):
        assert held <= expert_evidence.Evidence(checked, runs[:count]).plane.budgets[0] < failed


@pytest.mark.parametrize("objective", ["decode", "request"])
@pytest.mark.parametrize("decode", [(60.0, 2.0), (2.0, 60.0)])
def test_one_fast_card_and_ram_are_found_where_nothing_tells_cards_apart(decode: t.Any, objective: str) -> None:
    """Nobody knows these cards and no probe ran, and blocks in RAM are faster than those on the slow card."""
    simulated = machine.Machine(machine.make_problem(objective=objective), decode=decode, block=0.6, copy=3.0)
    plan, loads = simulated.drive()
    assert plan["decision"] is not None
    slow = decode.index(60.0)
    assert loads[0]["layers"][slow] and not plan["decision"]["layers"][slow]
    assert sum(1 for load in loads if load["purpose"] != "confirm") <= expert_stage.MOST_BEFORE


def test_what_a_device_may_hold_is_tried_where_it_saves_enough() -> None:
    problem = machine.make_problem(objective="decode", experts_in_ram={"no_host": False})
    checked = split_problem.read_problem(problem)
    reason = "out of memory: 800 MiB more were wanted on CUDA0"
    simulated = machine.Machine(problem, fate=dict.fromkeys((1, 2), ("out_of_memory", reason)))
    loads: list[Json] = []
    while "needs more than the devices have held" not in (plan := expert_stage.plan(checked, loads))["why"]:
        assert not plan["done"]
        loads += [simulated.measure(wanted) for wanted in plan["loads"]]
    evidence = expert_evidence.Evidence(checked, expert_loads.read(checked, loads))
    wanted = expert_placement.from_json(plan["loads"][0]["layers"], plan["loads"][0]["experts_in_ram"])
    assert wanted is not None
    mib, memory = evidence.plane.mib(wanted, 512), evidence.memory
    assert memory.too_much[0] is not None and memory.held[0] < mib[0] < memory.too_much[0]
    best = evidence.best(arm for arm in evidence.candidates() if evidence.objectives(arm))
    assert best is not None and evidence.weigher.amounts(wanted).cpu < evidence.weigher.amounts(best.placement).cpu
    # it is not risked for ever
    evidence.memory = memory._replace(failed=expert_memory.MOST_SEARCHED)
    assert expert_better.may_hold_more(evidence, best) is None


def test_no_device_may_hold_more_than_the_problem_allows() -> None:
    problem = machine.make_problem()
    simulated = machine.Machine(problem, fate={2: ("out_of_memory", "out of memory: 90 MiB more were wanted on CUDA0")})
    loads = [
        simulated.measure({
            "label": f"load {number}", "split_mode": "layer", "layers": layers, "experts_in_ram": None,
            "load": number, "purpose": "confirm", "tests": problem["tests"],
        })
        for number, layers in ((1, [12, 13]), (2, [14, 11]))
    ]  # fmt: skip
    checked = split_problem.read_problem(problem)
    evidence = expert_evidence.Evidence(checked, expert_loads.read(checked, loads))
    assert evidence.ok and evidence.memory.held[0] > checked.budgets[0]
    assert evidence.plane.budgets == checked.budgets


def test_what_llama_cpp_moves_by_itself_says_nothing_about_what_a_device_holds() -> None:
    """By the plan's counting it held more than was too much for the load before it."""
    problem = machine.make_problem()
    checked = split_problem.read_problem(problem)
    reason = "out of memory: 800 MiB more were wanted on CUDA0"
    _plan, loads = machine.Machine(problem, fate={1: ("out_of_memory", reason)}).drive()
    planned = expert_loads.read(checked, loads)[:2]
    override = "blk.1.ffn_up_exps.weight=CPU"
    own = dataclasses.replace(planned[1], placement=expert_placement.ExpertPlacement((12, 13), (), override=override))
    known = expert_memory.bounds(checked, planned)
    assert own.ok and known.too_much[0] is not None
    assert expert_plane.Plane(checked, checked.budgets).mib(own.placement, 512)[0] > known.too_much[0]
    assert expert_memory.bounds(checked, [*planned, own]) == known
