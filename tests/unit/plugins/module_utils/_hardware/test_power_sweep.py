# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json
import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import power_sweep
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_bench

RECORDED = pathlib.Path(__file__).parents[4] / "fixtures" / "llama_bench" / "h200_mps_pair.jsonl"
FAST, SLOW = "GPU-a", "GPU-b"
GPUS = [
    {
        "id": uuid, "name": f"NVIDIA GeForce RTX {name}", "power_limit_default_watts": default,
        "power_limit_min_watts": least, "power_limit_max_watts": most,
    }
    for uuid, name, least, most, default in ((FAST, "4090", 150.0, 600.0, 450.0), (SLOW, "3090", 100.0, 366.0, 350.0))
]  # fmt: skip
DECODE = {"name": "decode", "prompt_tokens": 1024, "generated_tokens": 256}
REQUEST = {**DECODE, "name": "request"}


def plan(fractions=(1.0, 0.7), limits=None):
    return power_sweep.plan(GPUS, list(fractions), limits or {})


def test_one_card_at_a_time():
    assert [(point["label"], point["limits_watts"]) for point in plan((1.0, 0.7, 0.25))] == [
        ("450 + 350 W", {FAST: 450, SLOW: 350}),
        ("315 + 350 W", {FAST: 315, SLOW: 350}),
        ("150 + 350 W", {FAST: 150, SLOW: 350}),  # a quarter is less than the card accepts
        ("450 + 245 W", {FAST: 450, SLOW: 245}),
        ("450 + 100 W", {FAST: 450, SLOW: 100}),
    ]


def test_limits_of_ones_own():
    points = plan((1.0,), {SLOW: [280, 350, 280]})
    assert [point["limits_watts"] for point in points] == [{FAST: 450, SLOW: 350}, {FAST: 450, SLOW: 280}]


@pytest.mark.parametrize(
    ("fractions", "limits", "words"),
    [
        ((1.0,), {"GPU-x": [300]}, "none of the cards in use"),
        ((1.0,), {SLOW: [400]}, "from 100 to 366 W"),
        ((1.0,), {SLOW: ["much"]}, "much was asked for"),
        ((1.5,), {}, "above 0, up to 1"),
        ((), {}, "above 0, up to 1"),
    ],
)
def test_senseless_plans_are_refused(fractions, limits, words):
    with pytest.raises(UserError, match=words):
        plan(fractions, limits)


def test_a_card_without_limits_cannot_be_swept():
    with pytest.raises(UserError, match="no power limit that can be set"):
        power_sweep.plan([{**GPUS[0], "power_limit_min_watts": None}], [1.0], {})


# A pair that takes turns. Each card: milliseconds per generated token, watts at work; 20 W at rest. A lower limit slows
# the RTX 3090 by 1 % (280 W) or 30 % (200 W), the RTX 4090 at 315 W not at all, because decode draws less.
MS = {FAST: {450: 10.0, 315: 10.0, 200: 14.0}, SLOW: {350: 12.0, 280: 12.12, 200: 15.6}}
WATTS = {FAST: {450: 250, 315: 250, 200: 200}, SLOW: {350: 340, 280: 280, 200: 200}}
REST = 20


def measured(limits, number=1, slower=1.0):
    """What split_benchmark returns for a load with these limits."""
    ms = {uuid: MS[uuid][watts] * slower for uuid, watts in limits.items()}
    together = sum(ms.values())
    joules = {
        uuid: (ms[uuid] * WATTS[uuid][watts] + (together - ms[uuid]) * REST) / 1000 for uuid, watts in limits.items()
    }

    def result(kind, n_prompt, n_gen, per_token):
        tokens, samples = n_prompt + n_gen, 2
        return {
            "kind": kind, "n_prompt": n_prompt, "n_gen": n_gen, "n_depth": 0,
            "samples_ms": [tokens * together * per_token] * samples,
            "energy": {
                "seconds": 0, "source": dict.fromkeys(joules, "counter"),
                "joules": {uuid: value * per_token * tokens * samples for uuid, value in joules.items()},
            },
        }  # fmt: skip

    results = [result("prefill", 512, 0, 0.1), result("decode", 0, 64, 1.0)]
    return {"label": "", "load": number, "status": "ok", "reason": None, "results": results}


def sweep():
    points = plan((1.0,), {FAST: [450, 315, 200], SLOW: [350, 280, 200]})
    return [{**point, "loads": [measured(point["limits_watts"])]} for point in points]


def test_a_row_says_speed_and_energy_per_token():
    (row, *_rest) = power_sweep.choose(sweep(), GPUS, DECODE, 3.0, False)["rows"]
    decode = row["decode"]
    assert decode["ms_per_token"] == pytest.approx(22) and decode["tokens_per_second"] == pytest.approx(45.45, abs=0.01)
    assert decode["joules_per_token"] == pytest.approx((10 * 250 + 12 * 20 + 12 * 340 + 10 * 20) / 1000)
    assert decode["watts"] == pytest.approx({FAST: (2500 + 240) / 22, SLOW: (4080 + 200) / 22}, abs=0.1)
    assert decode["source"] == "counter" and row["prefill"]["ms_per_token"] == pytest.approx(2.2)


def test_the_best_combination_is_predicted_first_and_measured_then():
    points = sweep()
    choice = power_sweep.choose(points, GPUS, REQUEST, 3.0, False)
    # 200 W are too slow for either card; 315 W save nothing in this box, and equal energy goes to the faster
    assert choice["limits_watts"][SLOW] == 280 and choice["slower_percent"] == pytest.approx(0.55, abs=0.01)
    choice = power_sweep.choose(points, GPUS, REQUEST, 100.0, False)
    assert (choice["limits_watts"], choice["measured"]) == ({FAST: 450, SLOW: 200}, True)
    MS[FAST][315], WATTS[FAST][315] = 10.1, 220
    try:
        points = sweep()
        choice = power_sweep.choose(points, GPUS, REQUEST, 3.0, False)
        assert (choice["limits_watts"], choice["measured"]) == ({FAST: 315, SLOW: 280}, False)
        assert "315 + 280 W" in choice["why"] and "predicted" in choice["why"]
        expected = measured(choice["limits_watts"])
        points.append({"label": choice["label"], "limits_watts": choice["limits_watts"], "loads": [expected]})
        after = power_sweep.choose(points, GPUS, REQUEST, 3.0, measured_only=True)
        assert after["measured"] and after["limits_watts"] == choice["limits_watts"] and "(measured)" in after["why"]
        # cards that take turns: the prediction from one card at a time is the measurement
        assert after["less_energy_percent"] == pytest.approx(choice["less_energy_percent"], abs=0.02)
        assert after["slower_percent"] == pytest.approx(choice["slower_percent"], abs=0.02)
        # a combination that turns out slower than predicted is dropped for what was measured
        points[-1]["loads"] = [measured(choice["limits_watts"], slower=1.2)]
        after = power_sweep.choose(points, GPUS, REQUEST, 3.0, measured_only=True)
        assert after["measured"] and after["limits_watts"] == {FAST: 450, SLOW: 280}
    finally:
        MS[FAST][315], WATTS[FAST][315] = 10.0, 250


def test_without_a_gain_the_limits_stay():
    points = sweep()[:1]
    choice = power_sweep.choose(points, GPUS, DECODE, 3.0, False)
    assert choice["limits_watts"] == {FAST: 450, SLOW: 350} and "keep 450 + 350 W" in choice["why"]
    assert choice["noise_percent"] is None


def test_a_machine_that_is_disturbed_is_said_to_be():
    points = sweep()
    points[0]["loads"].append(measured(points[0]["limits_watts"], 2, slower=1.1))
    choice = power_sweep.choose(points, GPUS, DECODE, 3.0, False)
    assert choice["noise_percent"] == pytest.approx(10) and "do not rely on it" in choice["why"]


def test_a_point_that_failed_is_left_out_and_shown():
    points = sweep()
    points[1]["loads"] = [{"status": "crashed", "reason": "it fell over", "results": []}]
    choice = power_sweep.choose(points, GPUS, DECODE, 3.0, False)
    assert choice["rows"][1]["decode"] is None and choice["limits_watts"][SLOW] == 280
    assert any("crashed: it fell over" in line for line in power_sweep.table(choice, GPUS))
    points[0]["loads"] = points[1]["loads"]
    with pytest.raises(UserError, match="it fell over"):
        power_sweep.choose(points, GPUS, DECODE, 3.0, False)


def test_other_cards_of_the_box_do_not_count():
    points = sweep()
    before = power_sweep.row(points[0])
    for load in points[0]["loads"]:
        for result in load["results"]:
            result["energy"]["joules"]["GPU-c"] = 1e6
            result["energy"]["source"]["GPU-c"] = "power"
    assert power_sweep.row(points[0]) == before


def test_results_without_energy_cannot_be_chosen_from():
    points = sweep()
    for load in points[0]["loads"]:
        for result in load["results"]:
            result["energy"] = None
    assert power_sweep.row(points[0])["decode"]["joules_per_token"] is None
    with pytest.raises(UserError, match="no energy in the results"):
        power_sweep.choose(points, GPUS, DECODE, 3.0, False)


@pytest.mark.parametrize(
    ("name", "ms"),
    [
        ("decode", 256 * 22),
        ("request", 1024 * 2.2 + 256 * 22),
        ("ttft", 1024 * 2.2 + 22),
        ("prefill", 1024 * 2.2),
    ],
)
def test_every_objective_has_its_cost(name, ms):
    found = power_sweep.cost(power_sweep.row(sweep()[0]), {**DECODE, "name": name})
    assert found[0] == pytest.approx(ms)


def test_the_table_can_be_read():
    lines = power_sweep.table(power_sweep.choose(sweep(), GPUS, REQUEST, 3.0, False), GPUS)
    assert lines[0].startswith("RTX 4090 + RTX 3090, one limit lowered at a time")
    assert len(lines) == 8 and max(len(line) for line in lines[:-1]) < 100
    assert [line for line in lines if line.endswith("recommended")][0].startswith("  450 + 280 W")


def test_recorded_output_of_llama_bench_gets_its_energy():
    """Rows as a real llama-bench printed them, with what the meter adds, through the reader of split_benchmark."""
    rows = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    row = next(row for row in rows if row["n_gen"] and not row["n_depth"])
    seconds = sum(row["samples_ns"]) / 1e9
    row["energy"] = {
        "seconds": seconds,
        "joules": {FAST: 200 * seconds, SLOW: 100 * seconds},
        "source": {FAST: "counter", SLOW: "power"},
    }
    serving = {field: row[name] for field, name in llama_bench._ROW_FIELDS}
    serving |= {"flash_attention": "auto", "micro_batch_size": row["n_ubatch"], "threads": row["n_threads"]}
    shares = [int(float(share)) for share in row["tensor_split"].split("/")]
    devices = row["devices"].split("/")
    load = {
        "label": "recorded", "split_mode": row["split_mode"], "load": 1, "layers": (shares + [0])[: len(devices)],
        "tests": [{"kind": "decode", "n_prompt": 0, "n_gen": row["n_gen"], "n_depth": 0, "repetitions": 1}],
    }  # fmt: skip
    load["layers"] = [max(1, layers) for layers in load["layers"]]
    row["tensor_split"] = "/".join(f"{layers:.2f}" for layers in load["layers"])
    order = llama_bench.make_order(load, devices, serving)
    verdict = llama_bench.judge(0, json.dumps(row), "", None, order)
    assert verdict.status == "ok", verdict.reason
    measured_load = {"status": "ok", "results": verdict.results}
    found = power_sweep.row({"label": "", "limits_watts": {FAST: 1, SLOW: 1}, "loads": [measured_load]})
    assert found["decode"]["tokens_per_second"] == pytest.approx(row["avg_ts"], rel=0.05)
    assert found["decode"]["watts"] == pytest.approx({FAST: 200, SLOW: 100}, abs=0.1)
    assert found["decode"]["joules_per_token"] == pytest.approx(300 / found["decode"]["tokens_per_second"], rel=0.001)
    assert found["decode"]["source"] == "counter and power"


def test_loads_of_one_point_come_together():
    one, other = {"label": "a", "limits_watts": {FAST: 450}}, {"label": "b", "limits_watts": {FAST: 315}}
    again = {**one, "limits_watts": {FAST: 450.0}}
    found = power_sweep.group([{**one, "load": 1}, {**other, "load": 2}, {**again, "load": 3}])
    assert found == [{**one, "loads": [1, 3]}, {**other, "loads": [2]}]
