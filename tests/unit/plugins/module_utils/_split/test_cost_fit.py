# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import collections
import json
import math
import pathlib
import random
import statistics

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import cost_fit, cost_model
from hypothesis import given, settings
from hypothesis import strategies as st

FIXTURES = pathlib.Path(__file__).parents[4] / "fixtures" / "llama_bench"


def recorded(name: str, slots: int, n_prompt: int) -> dict[tuple[int, int], float]:
    """Return the best recorded time by amounts: ms per token by layers for n_prompt 0, else ms per prompt by blocks."""
    samples = collections.defaultdict(list)
    for line in (FIXTURES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["n_prompt"] == n_prompt:
            first = round(float(row["tensor_split"].split("/")[0]))
            last = slots - first
            amounts = (first, last) if not n_prompt else (first, last - 1) if last else (first - 1, 0)
            samples[amounts] += [ns / 1e6 / max(1, row["n_gen"]) for ns in row["samples_ns"]]
    return {layers: min(values) for layers, values in samples.items()}


@pytest.mark.parametrize(
    ("name", "slots", "anchors", "percent"),
    [("h200_mps_pair", 25, ((22, 3), (4, 21)), 4.0), ("cpu_sleep_shim_3to1_decode", 33, ((32, 1), (1, 32)), 3.3)],
)
def test_two_splits_predict_the_decoding_of_all_others(
    name: str, slots: int, anchors: tuple[tuple[int, int], ...], percent: float
) -> None:
    measured = {layers: ms for layers, ms in recorded(name, slots, 0).items() if all(layers)}
    fit = cost_fit.fit_decode([(layers, measured[layers]) for layers in anchors], None)
    predicted = [cost_model.decode_ms(fit, layers) for layers in measured]
    assert len(measured) > 5
    assert cost_model.residual_percent(predicted, list(measured.values())) <= percent


def test_recorded_prefill_of_a_cpu_pair_finds_the_balance_point() -> None:
    """pp256 in micro-batches of 32 on a busy machine: the fit of all recorded splits finds the optimum seen."""
    measured = recorded("cpu_avx_pair", 33, 256)
    fit = cost_fit.fit_prefill(list(measured.items()), 8, None, 1.0, None)
    splits = [(first, 32 - first) for first in range(33)]
    best = min(splits, key=lambda layers: cost_model.prefill_ms(fit, layers, 8, 1.0))
    assert min(measured, key=lambda layers: measured[layers]) in {(21, 11), (23, 9)}
    assert 19 <= best[0] <= 23


def test_a_prior_settles_what_one_split_leaves_open() -> None:
    prior = cost_fit.Prior((3.0, 9.0), 0.2, 0.02)
    fit = cost_fit.fit_decode([((20, 12), 50.4)], prior)
    assert fit[1] / fit[0] == pytest.approx(3.0, rel=1e-3)
    assert cost_model.decode_ms(fit, (20, 12)) == pytest.approx(50.4, rel=1e-3)


def test_a_prior_hardly_moves_what_splits_determine() -> None:
    """Two splits far apart say that the devices differ by 2.0; a prior of 3.0 changes that by a few percent at most."""
    points = [((30, 3), 36.0), ((3, 30), 63.0)]
    fit = cost_fit.fit_decode(points, cost_fit.Prior((1.0, 3.0), 0.2, 0.01))
    assert fit == pytest.approx([1.0, 2.0], rel=0.03)
    assert fit != pytest.approx([1.0, 2.0], rel=1e-6)


@pytest.mark.parametrize(("form", "overlap"), [("pipeline", 1.0), ("serial", 0.0), ("between", 0.5)])
@pytest.mark.parametrize("slot_ms", [(10.0, 25.0), (4.0, 7.0, 10.0)])
def test_a_prior_tells_the_form_of_prefill_from_as_many_splits_as_devices(
    form: str, overlap: float, slot_ms: tuple[float, ...]
) -> None:
    """The splits alone cannot: each form fits them exactly, with other costs. The last device is the longest stage."""
    ends = [(20, 29), (5, 44)] if len(slot_ms) == 2 else [(10, 10, 29), (5, 20, 24), (20, 5, 24)]
    points = [(layers, cost_model.prefill_ms(slot_ms, layers, 8, overlap)) for layers in ends]
    prior = cost_fit.Prior([1.05 * slot_ms[0], *slot_ms[1:]], 0.2, 0.01)
    fit = cost_fit.choose_prefill(points, 8, 0.01, prior=prior, start=None)
    assert fit.form == form
    assert fit.overlap == pytest.approx(overlap, abs=0.15)
    assert fit.slot_ms == pytest.approx(list(slot_ms), rel=0.1)
    assert cost_fit.choose_prefill(points, 8, 0.01, None, None).form == "pipeline"


def residual_over(measured: dict[tuple[int, int], float], fit: cost_fit.PrefillFit, batches: int) -> float:
    return cost_model.residual_percent(
        [cost_model.prefill_ms(fit.slot_ms, layers, batches, fit.overlap) for layers in measured],
        list(measured.values()),
    )


def test_a_recorded_pipeline_is_recognised() -> None:
    """Two servers of unequal speed, 4 micro-batches: two splits predict the others within 3.7 % (15.7 % when the
    output slot counted as a block), and three or more show that it is a pipeline (serial misses by 13.2 %)."""
    measured = {layers: ms for layers, ms in recorded("h200_mps_pair", 25, 2048).items() if all(layers)}
    two, three, every = (
        cost_fit.choose_prefill([(layers, measured[layers]) for layers in layers_used], 4, 0.025, None, None)
        for layers_used in (((22, 2), (4, 20)), ((22, 2), (13, 11), (4, 20)), tuple(measured))
    )
    assert (two.form, two.overlap, two.residual_percent) == ("pipeline", 1.0, None)
    assert residual_over(measured, two, 4) < 4
    assert (three.form, every.form) == ("pipeline", "pipeline")
    assert three.residual_percent is not None and three.residual_percent < 1
    assert every.residual_percent is not None and every.residual_percent < 2.5
    serial = cost_fit.fit_prefill(list(measured.items()), 4, overlap=0.0, start=None, prior=None)
    assert residual_over(measured, cost_fit.PrefillFit("serial", 0.0, serial, None), 4) > 12


def test_recorded_stages_of_one_chip_are_serial() -> None:
    """Two equal devices that are one chip: a pipeline misses by 13.6 %, serial by 1.2 %, and three splits show it."""
    measured = {layers: ms for layers, ms in recorded("h200_virtual_layer", 25, 2048).items() if all(layers)}
    fit = cost_fit.choose_prefill(list(measured.items()), 4, 0.025, None, None)
    assert (fit.form, fit.overlap) == ("serial", 0.0)
    assert residual_over(measured, fit, 4) < 1.3
    pipeline = cost_fit.fit_prefill(list(measured.items()), 4, None, 1.0, None)
    assert residual_over(measured, cost_fit.PrefillFit("pipeline", 1.0, pipeline, None), 4) > 13


@given(st.floats(0.5, 5), st.floats(0.5, 5), st.floats(0.2, 0.8), st.sampled_from([2, 4, 16]))
@settings(max_examples=30, deadline=None)
def test_an_overlap_in_between_is_found(first: float, second: float, overlap: float, batches: int) -> None:
    splits = [(30, 3), (24, 9), (17, 16), (9, 24), (5, 28)]
    points = [(layers, cost_model.prefill_ms((first, second), layers, batches, overlap)) for layers in splits]
    fit = cost_fit.choose_prefill(points, batches, 0.001, None, None)
    assert fit.residual_percent is not None and fit.residual_percent < 0.5
    if fit.form == "between":
        assert fit.overlap == pytest.approx(overlap, abs=0.05)


@pytest.mark.parametrize(("overlap", "form"), [(1.0, "pipeline"), (0.5, "between"), (0.0, "serial")])
def test_the_form_of_three_devices(overlap: float, form: str) -> None:
    splits = [(27, 3, 3), (3, 27, 3), (3, 3, 27), (11, 11, 11), (18, 9, 6)]
    points = [(layers, cost_model.prefill_ms((1.0, 2.0, 3.0), layers, 8, overlap)) for layers in splits]
    fit = cost_fit.choose_prefill(points, 8, 0.005, None, None)
    assert (fit.form, fit.overlap) == (form, pytest.approx(overlap, abs=0.05))
    assert fit.slot_ms == pytest.approx([1.0, 2.0, 3.0], rel=0.05)


@pytest.mark.parametrize(("overlap", "form"), [(1.0, "pipeline"), (0.0, "serial")])
def test_the_simplest_form_that_noise_allows_is_taken(overlap: float, form: str) -> None:
    """Noise of 1 % at each of four points: in 60 runs hardly any calls for a third coefficient."""
    chance = random.Random(1)
    found = collections.Counter(
        cost_fit.choose_prefill(
            [
                (layers, cost_model.prefill_ms((2.0, 4.0), layers, 4, overlap) * math.exp(chance.gauss(0, 0.01)))
                for layers in ((30, 3), (22, 11), (14, 19), (5, 28))
            ],
            4,
            0.01, None, None,
        ).form
        for _run in range(60)
    )
    assert found[form] >= 54, found


def test_two_points_or_one_micro_batch_cannot_tell_the_form() -> None:
    points = [(layers, cost_model.prefill_ms((2.0, 4.0), layers, 4, 0.0)) for layers in ((30, 3), (5, 28))]
    assert cost_fit.choose_prefill(points, 4, 0.01, None, None)[:2] == ("pipeline", 1.0)
    points = [(layers, cost_model.prefill_ms((2.0, 4.0), layers, 1, 1.0)) for layers in ((30, 3), (17, 16), (5, 28))]
    fit = cost_fit.choose_prefill(points, 1, 0.01, None, None)
    assert fit.form == "pipeline" and fit.residual_percent == pytest.approx(0, abs=1e-3)


costs = st.floats(0.1, 10)


@given(st.lists(costs, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_exact_decode_times_give_the_costs_back(slot_ms: list[float]) -> None:
    devices = len(slot_ms)
    splits = [tuple(20 if other == device else 3 for other in range(devices)) for device in range(devices)]
    fit = cost_fit.fit_decode([(layers, cost_model.decode_ms(slot_ms, layers)) for layers in splits], None)
    assert fit == pytest.approx(slot_ms, rel=1e-4)


@given(costs, costs, st.integers(1, 32))
@settings(max_examples=60, deadline=None)
def test_exact_prefill_times_give_the_costs_back(first: float, second: float, batches: int) -> None:
    points = [(layers, cost_model.prefill_ms((first, second), layers, batches, 1.0)) for layers in ((30, 3), (5, 28))]
    assert cost_fit.fit_prefill(points, batches, None, 1.0, None) == pytest.approx([first, second], rel=1e-3)


@given(st.lists(costs, min_size=3, max_size=3), st.sampled_from([1, 2, 8]))
@settings(max_examples=25, deadline=None)
def test_three_devices_are_predicted(slot_ms: list[float], batches: int) -> None:
    splits = [(20, 3, 3), (3, 20, 3), (3, 3, 20)]
    points = [(layers, cost_model.prefill_ms(slot_ms, layers, batches, 1.0)) for layers in splits]
    fit = cost_fit.fit_prefill(points, batches, slot_ms, 1.0, None)
    assert cost_model.residual_percent(
        [cost_model.prefill_ms(fit, layers, batches, 1.0) for layers in splits], [ms for _layers, ms in points]
    ) < 0.1


def test_costs_are_never_negative() -> None:
    fit = cost_fit.fit_decode([((30, 3), 10.0), ((3, 30), 200.0)], None)
    assert min(fit) >= 0 and fit[1] > 3


def test_what_the_splits_leave_open_is_the_mean() -> None:
    """One device always has one slot: nothing tells what that costs, so it is taken as an average one."""
    fit = cost_fit.fit_decode([((20, 12, 1), 30.0), ((10, 22, 1), 40.0)], None)
    assert fit[2] == pytest.approx(statistics.fmean((30 / 33, 40 / 33)), rel=0.05)
    assert [cost_model.decode_ms(fit, layers) for layers in ((20, 12, 1), (10, 22, 1))] == pytest.approx([30, 40])


def test_what_two_splits_leave_open_are_several_overlaps() -> None:
    """Each form fits two splits exactly; without a prior a pipeline is as likely as before, not certain."""
    points = [(layers, cost_model.prefill_ms((10.0, 25.0), layers, 8, 0.6)) for layers in ((20, 29), (5, 44))]
    known = cost_fit.choose_prefill(points, 8, 0.01, None, None)
    likely = cost_fit.likely_prefills(known, points, (0.01, 0.01), 8, None)
    assert sum(probability for probability, _fit in likely) == pytest.approx(1)
    assert {fit.overlap for _probability, fit in likely} >= {overlap for overlap, _before in cost_fit.OVERLAPS}
    assert all(probability > 0.02 for probability, _fit in likely)


def test_splits_that_tell_the_overlap_leave_only_that() -> None:
    splits = ((20, 29), (5, 44), (40, 9), (30, 19), (35, 14))
    points = [(layers, cost_model.prefill_ms((10.0, 25.0), layers, 8, 0.6)) for layers in splits]
    known = cost_fit.choose_prefill(points, 8, 0.01, None, None)
    likely = cost_fit.likely_prefills(known, points, (0.003,) * len(points), 8, None)
    near = sum(probability for probability, fit in likely if abs(fit.overlap - 0.6) < 0.1)
    assert near > 0.99


def test_one_micro_batch_has_no_overlap_to_tell() -> None:
    points = [((20, 29), 900.0), ((5, 44), 1200.0)]
    known = cost_fit.choose_prefill(points, 1, 0.01, None, None)
    assert cost_fit.likely_prefills(known, points, (0.01, 0.01), 1, None) == [(1.0, known)]


def test_no_device_takes_no_time_however_much_loads_differ():
    """Seen on a busy machine: 1/12 at 0.14 ms a token, 11/2 at 6.6 ms. Later shares divide by what a split takes."""
    points = [((1, 12), 0.14), ((11, 2), 6.6)]
    costs = cost_fit.fit_decode(points, None)
    assert min(costs) > 0 and costs[0] > 1000 * costs[1]
    for overlap in (0.0, 0.5, 1.0):
        assert min(cost_fit.fit_prefill(points, 2, overlap=overlap, start=None, prior=None)) > 0
    known = cost_fit.choose_prefill(points, 2, 0.01, None, None)
    assert cost_fit.likely_prefills(known, points, [0.1, 0.1], 2, None)
