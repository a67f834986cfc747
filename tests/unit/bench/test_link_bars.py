# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The arithmetic of the benchmark of networks; what it measures is llama.cpp's."""

from __future__ import annotations

import pathlib
import sys
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import gguf_model, random_model
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import expected_speeds
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import memory_plan, network_links

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "bench"))
import link_bars

LOOPBACK: t.Final = {
    "protocol": "7.0.0", "round_trip_ms": 0.1, "stalls_ms": 0.0, "to_mb_per_s": 500.0, "from_mb_per_s": 250.0,
}  # fmt: skip
LINK: t.Final = {**LOOPBACK, "round_trip_ms": 0.5, "stalls_ms": 2.0, "to_mb_per_s": 100.0, "from_mb_per_s": 50.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> t.Any:
    path = str(tmp_path_factory.mktemp("models") / "bench.gguf")
    shape = {**link_bars.MODEL, "vocabulary_size": 512}
    random_model.write_model(path, random_model.checked_options(shape), "bench")
    return gguf_model.read(gguf_model.files_of(path))


def test_of_a_link_counts_what_loopback_does_not_take() -> None:
    found = link_bars.beyond(LINK, LOOPBACK)
    assert found["round_trip_ms"] == pytest.approx(0.4) and found["stalls_ms"] == 2.0
    assert found["to_mb_per_s"] == pytest.approx(125.0) and found["from_mb_per_s"] == pytest.approx(62.5)


@pytest.mark.parametrize("lent_first", [True, False])
def test_a_fit_gives_a_split_between_back_and_the_cable_adds_to_it(model: t.Any, lent_first: bool) -> None:
    # the lender takes 3 ms a block of a token and 200 of a micro-batch, the box 2 and 100
    own = ((3.0, 200.0), (2.0, 100.0)) if lent_first else ((2.0, 100.0), (3.0, 200.0))

    def took(split: tuple[int, int]) -> tuple[float, float]:
        blocks = (split[0], split[1] - 1)
        token = sum(count * ms for count, (ms, _prompt) in zip(blocks, own, strict=True))
        stages = [count * ms for count, (_token, ms) in zip(blocks, own, strict=True)]
        return token, sum(stages) + 3 * max(stages)

    rates = link_bars.fitted(model, {split: took(split) for split in link_bars.FITTED})
    nothing = {"round_trip_ms": 0.0, "stalls_ms": 0.0, "to_mb_per_s": None, "from_mb_per_s": None}
    near = link_bars.predicted(model, rates, lent_first, nothing, link_bars.BETWEEN)
    assert near == pytest.approx(took(link_bars.BETWEEN), rel=0.03)
    far = link_bars.predicted(model, rates, lent_first, {**nothing, "round_trip_ms": 5.0}, link_bars.BETWEEN)
    assert far[0] - near[0] == pytest.approx(5.0 * network_links.WAITS)
    assert 0 < far[1] - near[1] <= 4 * 5.0 * network_links.WAITS + 1e-6


def test_the_planner_uses_what_the_box_has_room_for_where_the_cable_costs_much(model: t.Any) -> None:
    def rates(first: bool) -> expected_speeds.Rates:
        own = ((3.0, 200.0), (2.0, 100.0)) if first else ((2.0, 100.0), (3.0, 200.0))

        def took(split: tuple[int, int]) -> tuple[float, float]:
            blocks = (split[0], split[1] - 1)
            stages = [count * ms for count, (_token, ms) in zip(blocks, own, strict=True)]
            return sum(count * ms for count, (ms, _p) in zip(blocks, own, strict=True)), sum(stages) + 3 * max(stages)

        return link_bars.fitted(model, {split: took(split) for split in link_bars.FITTED})

    far = {"round_trip_ms": 500.0, "stalls_ms": 0.0, "to_mb_per_s": None, "from_mb_per_s": None}
    both = {first: rates(first) for first in (True, False)}
    choice = link_bars.chosen(model, both, far)
    in_box = choice.split[choice.lent_first]
    memory = memory_plan.MemoryPlan(model, t.cast(t.Any, link_bars.SERVING))
    room = link_bars.ROOM * max(memory.mib((9, 0)))
    assert memory.mib(choice.split)[choice.lent_first] <= room and in_box < 9
    near = link_bars.chosen(model, both, {**far, "round_trip_ms": 0.0})

    def ms(one: link_bars.Choice, link: dict[str, t.Any]) -> float:
        token, prompt = link_bars.predicted(model, both[one.lent_first], one.lent_first, link, one.split)
        return prompt + link_bars.ANSWER * token

    assert ms(near, {**far, "round_trip_ms": 0.0}) <= 1.02 * ms(choice, {**far, "round_trip_ms": 0.0})


def test_the_section_shows_every_cable_with_how_far_the_prediction_is_off() -> None:
    row = link_bars.Row("1 GbE", t.cast(t.Any, LINK), (4, 5), True, (22.0, 1500.0), (20.0, 1600.0))
    text = link_bars.text([row], 1.5)
    assert "| 1 GbE | 5 of 9, last | 0.50 + 2.0 | 100, 50 | 22.0, 20.0 | +10.0 % | 1500.0, 1600.0 | -6.2 % |" in text
    assert "said after 1.5 s" in text
