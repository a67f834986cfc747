# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import (
    expert_prediction,
    known_costs,
    predictor,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    expert_placement,
    known_devices,
    memory_plan,
    model_weights,
)
from ansible_collections.homelab.mixed_gpu.tests.fixtures.experts import machine

SERVING = {
    "context_size": 8192, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16",
}  # fmt: skip
GPT = "gpt_oss_120b_mxfp4"


def ask(
    profile: str = "rtx4090_rtx3090", model: t.Any = GPT, known: known_costs.Known | None = None, **changes: t.Any
) -> dict[str, t.Any]:
    objective = {
        "name": changes.pop("name", "request"), "prompt_tokens": changes.pop("prompt", 1024),
        "generated_tokens": changes.pop("generated", 256), "depth_tokens": 0,
    }  # fmt: skip
    experts = {"mode": changes.pop("mode", "auto"), "ram_mib": changes.pop("ram_mib", None),
               "links_gb_per_s": changes.pop("links", None)}  # fmt: skip
    question = {
        "model": model, "serving": {**SERVING, **changes}, "reserve_mib": 512, "objective": objective,
        "bench": {"prompt_tokens": 1024, "generated_tokens": 64, "repetitions": 1}, "experts_in_ram": experts,
    }  # fmt: skip
    return predictor.predict(question, known_devices.profile_devices(profile), known)


def test_gpt_oss_120b_on_a_4090_a_3090_and_64_gb() -> None:
    prediction = ask(ram_mib=65536)
    best = prediction["best"]
    assert best is not None and best in prediction["rows"] and prediction["experts_in_ram"]
    placed = expert_placement.from_json(best["layers"], best["experts_in_ram"])
    assert placed is not None and sum(placed.layers) == 37 and machine.counts_of(placed)[1] == 0
    model, size = model_shapes.model(GPT), best["micro_batch_size"]
    plan = memory_plan.MemoryPlan(model, {**SERVING, "micro_batch_size": size}, experts=placed)
    assert best["mib"] == plan.mib(placed.layers)
    free = [device["free_mib"] for device in prediction["devices"]]
    assert all(used + 512 <= own for used, own in zip(best["mib"], free, strict=True))
    assert best["ram_mib"] <= 65536 and min(best["headroom_mib"]) >= 0
    assert "does not fit the devices" in prediction["why"] and f"{best['ram_mib']} MiB" in prediction["why"]
    text = "\n".join(prediction["lines"])
    assert "PREDICTION, nothing was measured" in text and "with experts in RAM" in text and "best" in text


@pytest.mark.parametrize(
    ("profile", "changes", "decode"),
    [
        # published: 50 on two RTX 3090 and 33 on one (docs/experts.md)
        ("rtx3090_rtx3090", {"context_size": 65536}, 50),
        ("rtx3090", {"context_size": 16384}, 33),
    ],
)
def test_what_is_published_lies_in_the_range_or_a_tenth_beside_it(
    profile: str, changes: dict[str, t.Any], decode: float
) -> None:
    low, high = ask(profile, **changes)["rows"][0]["decode_interval"]
    assert 0.9 * low <= decode <= 1.1 * high


def test_larger_micro_batches_copy_less_often_and_put_more_into_ram() -> None:
    rows = ask("rtx3090", prompt=8192, context_size=16384)["rows"]
    assert [row["micro_batch_size"] for row in rows] == [512, 1024, 2048, 4096]
    for smaller, larger in zip(rows, rows[1:], strict=False):
        assert larger["prefill_tokens_per_second"] > smaller["prefill_tokens_per_second"]
        assert larger["blocks_in_ram"] >= smaller["blocks_in_ram"]


def test_a_narrow_link_makes_prompts_slower_and_tokens_not() -> None:
    wide, narrow = ask(links=[31.5, 31.5])["rows"][0], ask(links=[7.9, 31.5])["rows"][0]
    assert narrow["ttft_ms"] > 2 * wide["ttft_ms"]
    assert narrow["decode_interval"] == wide["decode_interval"]
    assert ask(links=[31.5, 31.5])["link_gb_per_s"] == pytest.approx(expert_prediction.LINK_SHARE * 31.5)


def test_launches_count_whatever_an_earlier_tuning_has_measured() -> None:
    fit = {
        "decode_ms_per_layer": [0.1, 0.2], "prefill_ms_per_layer": [1.0, 2.0], "prefill_overlap": 1.0, "error": 0.01,
        "average_layer": model_weights.of_average_layer(model_shapes.model(GPT), SERVING, 64, 512), "spread": {},
    }  # fmt: skip
    prediction = ask(known=known_costs.of_fit("another-c8192", fit, []))
    assert prediction["best"]["launch_ms"] > 1 and prediction == ask()


def test_an_objective_without_a_prompt_is_about_tokens_alone() -> None:
    prediction = ask(name="decode")
    assert [row["micro_batch_size"] for row in prediction["rows"]] == [512]
    assert prediction["best"]["objective_ms"] is not None


def test_too_little_ram_is_said_with_what_is_needed() -> None:
    needed = ask()["rows"][0]["ram_mib"]
    prediction = ask(ram_mib=needed - 2000)
    assert prediction["best"] is None and prediction["rows"] == []
    assert f"and {needed - 2000} MiB of it may be used" in prediction["why"]


def test_a_model_that_fits_is_predicted_as_before_and_never_is_kept_to() -> None:
    fits = ask("rtx5090_rtx5090")
    assert not fits.get("experts_in_ram") and fits["best"] is not None
    never = ask(mode="never")
    assert never["best"] is None and "some of its experts in RAM (split_tuning_experts_in_ram: auto" in never["why"]


def test_a_number_of_blocks_can_be_asked_for() -> None:
    prediction = ask(mode=20)
    assert {row["blocks_in_ram"] for row in prediction["rows"]} == {20.0}


def test_a_card_of_unknown_speed_leaves_times_open() -> None:
    devices = [{**device, "bandwidth_gb_per_s": None} for device in known_devices.profile_devices("rtx4090_rtx3090")]
    question = {
        "model": GPT, "serving": SERVING, "reserve_mib": 512,
        "objective": {"name": "request", "prompt_tokens": 1024, "generated_tokens": 256, "depth_tokens": 0},
        "bench": {"prompt_tokens": 1024, "generated_tokens": 64, "repetitions": 1}, "experts_in_ram": {"mode": "auto"},
    }  # fmt: skip
    prediction = predictor.predict(question, devices)
    assert prediction["best"]["decode_interval"] is None and prediction["best"]["objective_ms"] is None
    assert prediction["lines"]
