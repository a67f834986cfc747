# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import expert_loads, expert_threads
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner.expert_loads import Row, Run
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import split_problem
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split.expert_placement import ExpertPlacement
from ansible_collections.homelab.mixed_gpu.tests.fixtures.experts import machine


def problem_of(**changes: t.Any) -> split_problem.Problem:
    return split_problem.read_problem(machine.make_problem(**changes))


def run_of(times: t.Mapping[int, float], purpose: str = "anchor", kind: str = "decode", number: int = 1) -> Run:
    rows = tuple(Row(kind, 512 if kind == "prefill" else 0, 512, n, ms, (ms,)) for n, ms in times.items())
    placement = ExpertPlacement((18, 7), (0, 1))
    return Run(placement, number, purpose, f"load {number}", "ok", "", frozenset(), rows)


def curve_of(*runs: Run, **changes: t.Any) -> expert_threads.Curve:
    return expert_threads.Curve(problem_of(**changes), runs, [2, 4, 8, 16])


@pytest.mark.parametrize(
    ("cores", "threads", "expected"),
    [
        (8, 16, [2, 4, 6, 8, 12, 16]), (8, 8, [2, 4, 6, 8]), (1, 1, [1]), (2, 4, [1, 2, 3, 4]),
        (6, 12, [2, 3, 4, 6, 9, 12]),
    ],
)
def test_choices_reach_from_a_quarter_of_the_cores_to_all_threads(
    cores: int, threads: int, expected: list[int]
) -> None:
    assert expert_threads.choices(cores, threads) == expected


def test_the_fastest_number_is_the_best() -> None:
    curve = curve_of(run_of({2: 40.0, 4: 25.0, 8: 18.0, 16: 22.0}))
    assert curve.best == 8 and curve.measured == [2, 4, 8, 16]
    assert curve.factor("decode", 4) == pytest.approx(18 / 25) and curve.factor("decode", 5) == 1.0
    assert curve.around() == [4, 8, 16]
    assert curve.nearest("decode", [2, 4, 16]) == 16


def test_numbers_between_the_best_and_its_neighbours_are_looked_at_with_the_second_best() -> None:
    curve = curve_of(run_of({2: 40.0, 4: 25.0, 8: 18.0, 16: 22.0}))
    assert curve.between([2, 4, 8, 16]) == [5, 7, 11, 13, 16]
    assert curve_of(run_of({1: 2.0, 2: 1.0, 3: 3.0})).between([1, 2, 3]) == []


def test_one_value_out_of_order_does_not_move_the_optimum() -> None:
    # 4 is faster than 2 and 8 by noise alone: with more threads times fall, then rise
    curve = curve_of(run_of({1: 40.0, 2: 30.0, 4: 29.0, 6: 29.2, 8: 20.0, 16: 26.0}))
    assert curve.best == 8
    assert curve.factor("decode", 6) == pytest.approx(curve.factor("decode", 4), rel=0.01)


def test_a_later_scan_around_the_best_decides_and_loads_differ_as_a_whole() -> None:
    first = run_of({2: 40.0, 4: 25.0, 8: 18.0, 16: 22.0})
    # everything takes a tenth longer in this load, and 12 beats 8
    second = run_of({8: 19.8, 12: 17.0, 16: 24.2}, "best", number=2)
    curve = curve_of(first, second)
    assert curve.best == 12
    assert curve.factor("decode", 8) == pytest.approx(17 / 19.8, rel=1e-3)


def test_without_a_scan_three_quarters_of_the_choices_stand() -> None:
    assert curve_of().best == 16 and curve_of(run_of({8: 20.0})).best == 8


def test_prompts_have_no_say_where_cards_compute_them() -> None:
    decode, prefill = run_of({4: 20.0, 8: 10.0}), run_of({4: 1000.0, 8: 3000.0}, kind="prefill")
    both = dataclasses.replace(decode, rows=(*decode.rows, *prefill.rows))
    assert curve_of(both).best == 8
    rpc = machine.make_problem()
    for device in rpc["devices"]:
        device["backend"] = "RPC"
    problem = split_problem.read_problem(rpc)
    assert not expert_threads.prompts_on_cards(problem) and expert_threads.prompts_on_cards(problem_of())
    assert expert_threads.Curve(problem, [both], [4, 8]).best == 4


# --- loads ------------------------------------------------------------------------------------------------------------


def load_of(**changes: t.Any) -> dict[str, t.Any]:
    simulated = machine.Machine(machine.make_problem(), noise=0.0)
    wanted = {
        "label": "x", "split_mode": "layer", "layers": [18, 7], "load": 1, "purpose": "anchor",
        "experts_in_ram": {"kind": "experts", "blocks": [0, 1], "partial": None, "threads": 8, "no_host": False,
                           "override": ""},
        "tests": [
            {"kind": "prefill", "n_prompt": 512, "n_gen": 0, "n_depth": 0, "repetitions": 2},
            {"kind": "decode", "n_prompt": 0, "n_gen": 32, "n_depth": 0, "repetitions": 3, "threads": 4},
        ],
    }  # fmt: skip
    return {**simulated.measure(wanted), **changes}


def test_rows_are_ms_per_token_and_per_prompt() -> None:
    (run,) = expert_loads.read(problem_of(), [load_of()])
    simulated = machine.Machine(machine.make_problem())
    placement = ExpertPlacement((18, 7), (0, 1), threads=4)
    assert [(row.kind, row.threads, row.micro_batch) for row in run.rows] == [("prefill", 8, 512), ("decode", 4, 512)]
    assert run.rows[1].ms == pytest.approx(simulated.decode_ms(placement), rel=1e-6)
    assert run.of("decode", None, 4) == [run.rows[1]] and run.of("prefill", 1024, 8) == []


def test_a_load_that_lacks_a_result_is_not_ok() -> None:
    load = load_of()
    (run,) = expert_loads.read(problem_of(), [{**load, "results": load["results"][:1]}])
    assert run.status == "unreadable" and not run.ok and "lacks 1 of 2 results" in run.reason


def test_a_load_given_twice_counts_once() -> None:
    assert len(expert_loads.read(problem_of(), [load_of(), load_of()])) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": [18, 8]}, "layers must be 2 numbers with sum 25"),
        ({"layers": [25]}, "layers must be 2 numbers"),
        ({"load": 0}, "loads.0..load"),
        ({"status": "odd"}, "loads.0..status"),
        ({"experts_in_ram": {"kind": "experts", "blocks": [40]}}, "experts_in_ram.blocks must be blocks of the model"),
    ],
)
def test_a_wrong_field_of_a_load_is_named(changes: dict[str, t.Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        expert_loads.read(problem_of(), [load_of(**changes)])
