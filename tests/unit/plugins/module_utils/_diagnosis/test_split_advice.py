# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The advice against all splits that fit, one by one."""

from __future__ import annotations

import copy
import json
import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._diagnosis import split_advice
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import cost_model, deployment, layer_weights
from hypothesis import given
from hypothesis import strategies as st

FIXTURES = pathlib.Path(__file__).resolve().parents[4] / "fixtures"
PAIR = deployment.expand(json.loads((FIXTURES / "report" / "mixed_70b.json").read_text(encoding="utf-8"))["entry"])


def certain(layers):
    """The pair's record with another split, and a fit without error."""
    entry = copy.deepcopy(PAIR)
    entry["decision"].update(layers=layers, table=[])
    entry["decision"]["fit"].update(decode_residual_percent=0.1, prefill_residual_percent=0.1)
    return entry


def test_the_advice_reads_like_a_person_would_say_it():
    result = split_advice.advice(certain([39, 42]), [])
    assert result["moves"] == [{"layers": 5, "from": "CUDA1", "to": "CUDA0"}]
    assert result["headroom_mib"] == {"CUDA0": 16, "CUDA1": 3660}
    assert result["why"].startswith("move 5 layers from CUDA1 to CUDA0: +0.8 % decode, +7.5 % prefill, +1.4 % request;")
    assert "16 MiB left on CUDA0" in result["why"]


def test_a_split_that_failed_is_never_advised():
    entry = certain([39, 42])
    entry["decision"]["table"] = [{"layers": [44, 37], "status": "out_of_memory", "loads": 1, "objective_ms": None}]
    assert split_advice.advice(entry, [])["layers"] == [43, 38]


def test_what_was_measured_counts_more_than_the_fit():
    entry = certain([39, 42])
    entry["decision"]["table"] = [
        {"layers": layers, "status": "ok", "loads": 2, "objective_ms": {"mean": mean}}
        for layers, mean in (([39, 42], 1000.0), ([44, 37], 1010.0), ([43, 38], 1010.0), ([42, 39], 1010.0))
    ]
    advised = split_advice.advice(entry, [])["layers"]
    assert advised not in ([44, 37], [43, 38], [42, 39])


@st.composite
def records(draw):
    devices = draw(st.integers(2, 3))
    slots = draw(st.integers(devices + 1, 30))
    split = st.lists(st.integers(1, slots), min_size=devices - 1, max_size=devices - 1).map(
        lambda cuts: [b - a for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), slots], strict=True)]
    )
    rows = draw(st.lists(split.filter(all), min_size=1, max_size=25, unique_by=tuple))
    cost = st.lists(st.floats(0.05, 20), min_size=devices, max_size=devices)
    name = draw(st.sampled_from(["decode", "prefill", "ttft", "request", "agent"]))
    prompt, generated = draw(st.integers(1, 4000)), draw(st.integers(1, 500))
    return {
        "devices": [
            {"device": f"CUDA{i}", "id": f"GPU-{i}", "backend": "CUDA", "description": "x"} for i in range(devices)
        ],
        "serving": {"micro_batch_size": draw(st.sampled_from([64, 512])), "batch_size": 2048, "context_size": 8192,
                    "parallel_slots": 1, "kv_unified": True},
        "fingerprint_parts": {"tests": [
            {"kind": "prefill", "n_prompt": prompt, "n_gen": 0, "n_depth": 0},
            {"kind": "decode", "n_prompt": 0, "n_gen": 32, "n_depth": 0},
        ]},
        "feasible": [
            {"layers": one, "mib": [1] * devices, "headroom_mib": [10 + i for i in range(devices)]} for one in rows
        ],
        "decision": {
            "layers": draw(st.sampled_from(rows)), "split_mode": "layer", "table": [],
            "objective": {"name": name, "prompt_tokens": prompt, "generated_tokens": generated, "depth_tokens": 0},
            "fit": {"decode_ms_per_layer": draw(cost), "prefill_ms_per_layer": draw(cost),
                    "prefill_overlap": draw(st.sampled_from([0.0, 0.4, 1.0])),
                    "decode_residual_percent": draw(st.sampled_from([None, 0.5, 8.0])),
                    "prefill_residual_percent": draw(st.sampled_from([None, 2.0]))},
        },
    }  # fmt: skip


def objective_ms(entry, layers):
    """The objective's time, straight from the forms of cost_model."""
    fit, asked = entry["decision"]["fit"], entry["decision"]["objective"]
    name, batch = asked["name"], entry["serving"]["micro_batch_size"]
    batches = cost_model.micro_batches(asked["prompt_tokens"], batch)
    blocks = layer_weights.equal(sum(layers)).amounts("prefill", layers)
    prefill = cost_model.prefill_ms(fit["prefill_ms_per_layer"], blocks, batches, fit["prefill_overlap"])
    token = cost_model.decode_ms(fit["decode_ms_per_layer"], layers)
    generated = asked["generated_tokens"] * token
    return {"decode": generated, "agent": generated, "prefill": prefill, "ttft": prefill + token}.get(
        name, prefill + generated
    )


@given(records())
def test_the_advice_is_the_best_of_all_that_fit_or_none_is_worth_it(entry):
    now = entry["decision"]["layers"]
    times = {tuple(row["layers"]): objective_ms(entry, row["layers"]) for row in entry["feasible"]}
    name = entry["decision"]["objective"]["name"]
    fit = entry["decision"]["fit"]
    tokens = {"prefill": 0, "ttft": 1}.get(name, entry["decision"]["objective"]["generated_tokens"])
    part = tokens * cost_model.decode_ms(fit["decode_ms_per_layer"], now) / times[tuple(now)]
    residual = part * (fit["decode_residual_percent"] or 0) + (1 - part) * (fit["prefill_residual_percent"] or 0)
    threshold = max(0.01, residual / 100)
    best = min(times.values())
    gained = 1 - best / times[tuple(now)]
    result = split_advice.advice(entry, [])
    if gained <= threshold - 1e-9:
        assert result["layers"] is None and result["moves"] == []
        assert result["why"].startswith("nothing to move")
    elif gained >= threshold + 1e-9:
        assert times[tuple(result["layers"])] == pytest.approx(best)
        moved = list(now)
        for step in result["moves"]:
            moved[int(step["from"][-1])] -= step["layers"]
            moved[int(step["to"][-1])] += step["layers"]
        assert moved == result["layers"]
        assert result["gains_percent"][name] == pytest.approx(100 * (times[tuple(now)] / best - 1), abs=0.06)
