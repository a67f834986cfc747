# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import statistics
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import expert_costs
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner.expert_costs import Point
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    cost_model,
    expert_placement,
    split_problem,
)
from ansible_collections.homelab.mixed_gpu.tests.fixtures.experts import machine

RECORDED = pathlib.Path(machine.__file__).with_name("h200x2.jsonl")


def weigher_of(**changes: t.Any) -> expert_costs.Weigher:
    return expert_costs.Weigher(split_problem.read_problem(machine.make_problem(**changes)))


def placed(count: int, layers: tuple[int, int] = (18, 7)) -> expert_placement.ExpertPlacement:
    return expert_placement.on_first_device(machine.make_model(), layers, count)


def test_amounts_are_what_is_where() -> None:
    weigher = weigher_of()
    none, some = weigher.amounts(placed(0)), weigher.amounts(placed(6))
    assert (none.cpu, some.cpu) == (0, pytest.approx(6))
    assert sum(none.cards) == pytest.approx(1) and sum(none.works) == pytest.approx(1)
    assert none.cards[0] / none.cards[1] == pytest.approx(18 / 6, rel=0.1)
    # of what a block reads, experts in use are 11.25 of 17.25 MiB; the output layer and the cache are little
    assert sum(some.cards) == pytest.approx(1 - 6 * 11.25 / (24 * 17.25), abs=0.01)
    assert sum(some.works) == pytest.approx(1)
    unpinned = weigher.amounts(dataclasses.replace(placed(6), no_host=True))
    assert (some.unpinned, unpinned) == (0, dataclasses.replace(some, unpinned=some.cpu))
    part = expert_placement.place(machine.make_model(), (18, 7), [2, 0], (0, ("up", "down")))
    assert weigher.amounts(part).cpu == pytest.approx(2 + 2 / 3)


def test_the_probe_weighs_cards_and_a_prompts_experts_are_computed_by_the_first() -> None:
    probe = {"devices": [
        {"status": "ok", "decode_ms_per_token": {"median": ms}, "prefill_tokens_per_second": 1000 / ms}
        for ms in (1.0, 3.0)
    ]}  # fmt: skip
    weigher = weigher_of(device_probe=probe)
    assert sum(weigher.amounts(placed(0, (20, 5))).cards) < sum(weigher.amounts(placed(0, (5, 20))).cards)
    model = machine.make_model()
    behind = expert_placement.place(model, (12, 13), [0, 6])
    assert sum(weigher.amounts(behind).works) < sum(weigher.amounts(dataclasses.replace(behind, blocks=())).works)


def test_what_is_exactly_linear_is_found_with_two_points_and_the_prior() -> None:
    weigher = weigher_of()

    def ms(count: int) -> float:
        amounts = weigher.amounts(placed(count))
        return 3 * sum(amounts.cards) + 1.2 * amounts.cpu

    points = [Point(weigher.amounts(placed(count)).decode, ms(count)) for count in (8, 16)]
    fit = expert_costs.fit_decode(points, weigher, 0.001)
    assert fit is not None
    for count in (9, 12, 18):
        assert fit.ms(weigher.amounts(placed(count)).decode) == pytest.approx(ms(count), rel=0.01)
    one = expert_costs.fit_decode(points[:1], weigher, 0.001)
    assert one is not None and min(one.coefficients) >= 0
    assert one.ms(points[0].features) == pytest.approx(points[0].ms, rel=0.01)


def test_nothing_measured_is_no_fit() -> None:
    assert expert_costs.fit_decode([], weigher_of(), 0.01) is None
    assert expert_costs.fit_prefill([], weigher_of(), 0.01) is None


def test_no_coefficient_is_negative() -> None:
    weigher = weigher_of()
    points = [Point(weigher.amounts(placed(count)).decode, ms) for count, ms in ((10, 20.0), (16, 15.0))]
    fit = expert_costs.fit_decode(points, weigher, 0.001)
    assert fit is not None and min(fit.coefficients) >= 0
    assert all(min(draw) >= 0 for draw in fit.draws)
    # a card's cost is never nothing, so no placement takes no time
    assert all(min(draw[2:]) > 0 for draw in (fit.coefficients, *fit.draws))


def test_unlike_cards_are_told_apart_by_another_split_whatever_was_thought_of_them() -> None:
    weigher = weigher_of()

    def ms(layers: tuple[int, int], count: int) -> float:
        amounts = weigher.amounts(placed(count, layers))
        return 2 * amounts.cards[0] + 8 * amounts.cards[1] + 0.3 * amounts.cpu

    def fitted(*splits: tuple[tuple[int, int], int]) -> expert_costs.Fit:
        points = [Point(weigher.amounts(placed(count, layers)).decode, ms(layers, count)) for layers, count in splits]
        fit = expert_costs.fit_decode(points, weigher, 0.001)
        assert fit is not None
        return fit

    def width(fit: expert_costs.Fit) -> float:
        far = weigher.amounts(placed(20, (24, 1))).decode
        return statistics.stdev(cost_model.decode_ms(draw, far) for draw in fit.draws) / fit.ms(far)

    alike, unlike = fitted(((12, 13), 4), ((12, 13), 8)), fitted(((12, 13), 4), ((12, 13), 8), ((20, 5), 8))
    # the same split again leaves open what only another one tells
    assert width(unlike) < width(alike) / 3
    far = placed(20, (24, 1))
    assert unlike.ms(weigher.amounts(far).decode) == pytest.approx(ms((24, 1), 20), rel=0.05)


def test_unpinned_memory_changes_only_what_is_in_ram() -> None:
    weigher = weigher_of()

    def amounts(count: int, no_host: bool) -> expert_costs.Amounts:
        return weigher.amounts(dataclasses.replace(placed(count), no_host=no_host))

    def ms(count: int, no_host: bool) -> float:
        return 3 * sum(amounts(count, no_host).cards) + (0.9 if no_host else 1.2) * amounts(count, no_host).cpu

    points = [Point(amounts(*own).decode, ms(*own)) for own in ((4, False), (16, False), (4, True))]
    fit = expert_costs.fit_decode(points, weigher, 0.001)
    assert fit is not None
    # 0.3 of each block, not the share of the token that the fewest blocks show
    assert fit.ms(amounts(16, True).decode) == pytest.approx(ms(16, True), rel=0.02)


# --- two H200, llama-bench (tests/fixtures/experts) -------------------------------------------------------------------


def recorded() -> dict[tuple[int, str, int], float]:
    """Return ms per token (micro-batch 0) or per prompt of 2048, by blocks in RAM, split and micro-batch."""
    found: dict[t.Any, list[float]] = collections.defaultdict(list)
    for line in RECORDED.read_text().splitlines():
        row = json.loads(line)
        size = 0 if row["n_gen"] else row["ub"]
        tokens = 1 if row["n_gen"] else row["n_prompt"]
        found[row["ncmoe"], row["ts"], size].append(1000 * tokens / row["ts_tok"])
    return {key: sum(values) / len(values) for key, values in found.items()}


def h200() -> expert_costs.Weigher:
    model = machine.make_model(expert_mib=305, dense_mib=14)
    return weigher_of(free_mib=(80000, 80000), model=model, experts_in_ram={"mode": 6, "links_gb_per_s": None})


def amounts(weigher: expert_costs.Weigher, count: int, split: str) -> expert_costs.Amounts:
    """Return what is where; more than the first card's blocks go to RAM behind it, too."""
    first = int(float(split.split("/")[0]))
    model = machine.make_model(expert_mib=305)
    in_ram = [min(count, first), max(0, count - first)]
    return weigher.amounts(expert_placement.place(model, (first, 25 - first), in_ram))


def test_two_recorded_numbers_of_blocks_foretell_the_others() -> None:
    weigher = h200()
    decode = {
        (n, split): Point(amounts(weigher, n, split).decode, ms)
        for (n, split, size), ms in recorded().items()
        if not size
    }
    known = [point for (n, _split), point in decode.items() if n in (6, 18)]
    assert len(known) == 2 and len(decode) == 5
    fit = expert_costs.fit_decode(known, weigher, 0.02)
    assert fit is not None
    for key, point in decode.items():
        assert fit.ms(point.features) == pytest.approx(point.ms, rel=0.1), key


def test_two_recorded_numbers_of_blocks_foretell_the_prompts_of_the_others() -> None:
    """Prompts in micro-batches of 512 scattered by up to 10 %, which more blocks than were measured show most."""
    weigher = h200()
    prompts = {
        (n, split, size): Point(amounts(weigher, n, split).prefill(2048, size), ms)
        for (n, split, size), ms in recorded().items()
        if size
    }
    known = [point for (n, _split, _size), point in prompts.items() if n in (6, 18)]
    assert len(known) == 4 and len(prompts) == 10
    fit = expert_costs.fit_prefill(known, weigher, 0.02)
    assert fit is not None
    apart = {key: abs(fit.ms(point.features) / point.ms - 1) for key, point in prompts.items()}
    assert max(off for (_n, split, size), off in apart.items() if size == 2048 and split == "13.00/12.00") < 0.03
    # another split than the measured one
    assert max(off for (_n, split, _size), off in apart.items() if split == "19.00/6.00") < 0.16
    assert max(off for (n, split, size), off in apart.items() if size == 512 and n <= 18) < 0.16
    assert apart[24, "13.00/12.00", 512] < 0.28
