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
    ram_speed,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    expert_placement,
    known_devices,
    memory_plan,
    model_weights,
    split_problem,
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
    experts = changes.pop("experts", None) or {
        "mode": changes.pop("mode", "auto"), "ram_mib": changes.pop("ram_mib", None),
        "links_gb_per_s": changes.pop("links", None),
    }  # fmt: skip
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


NEXT, LARGE = "qwen3_next_80b_a3b_q4_k_m", "qwen3_5_122b_a10b_q4_k_m"
PAIR = "rtx4090_rtx5070ti"
NERD = "nerdpudding/llama_cpp, February 2026, Ryzen 5800X3D with DDR4"

#: profile, model, context, blocks in RAM, published tokens per second, source
PUBLISHED: list[tuple[str, str, int, str | int, float, str]] = [
    ("rtx3090_x2", GPT, 65536, 15, 50, "nijho.lt, November 2025, 64 GB"),
    ("rtx3090", GPT, 16384, 25, 33, "ai-maestro"),
    ("rtx3090", GPT, 16384, 26, 32.3, "ai-maestro, micro-batch 512"),
    ("rtx3090", GPT, 16384, 28, 30.1, "ai-maestro, micro-batch 8192"),
    ("rtx5090_x2", GPT, 8192, 3, 108, "a comment at llama.cpp PR 15077"),
    (PAIR, GPT, 8192, 18, 22, NERD),
    (PAIR, NEXT, 262144, "auto", 33, NERD),
    (PAIR, NEXT, 65536, 20, 30, f"{NERD}: Qwen3-Coder-Next 80B Q5_K_XL, 28 of 48 blocks on the cards"),
    (PAIR, LARGE, 262144, "auto", 18, f"{NERD}, UD-Q4_K_XL"),
]


@pytest.mark.parametrize(("profile", "model", "context", "mode", "decode", "source"), PUBLISHED)
def test_what_is_published_lies_in_the_range(
    profile: str, model: str, context: int, mode: str | int, decode: float, source: str
) -> None:
    best = ask(profile, model, mode=mode, context_size=context)["best"]
    low, high = best["decode_interval"]
    assert low <= decode <= high
    assert low < best["decode_tokens_per_second"] < high


def test_published_prompts_lie_in_the_range() -> None:
    """Tokens per second of gpt-oss-120b on one RTX 3090 by micro-batch (ai-maestro)."""
    rows = {row["micro_batch_size"]: row for row in ask("rtx3090", prompt=8192, context_size=16384)["rows"]}
    for size, published in {512: 380, 2048: 1113, 4096: 1683}.items():
        low, high = rows[size]["ttft_interval"]
        assert low <= 1000 * 8192 / published <= high


def test_a_known_ram_narrows_the_range() -> None:
    question = {"mode": "auto", "ram_speed": ram_speed.known(60.0, None)}
    wide, narrow = ask()["best"], ask(experts=question)["best"]
    assert narrow["layers"] == wide["layers"] and narrow["blocks_in_ram"] == wide["blocks_in_ram"]
    assert wide["decode_interval"][0] < narrow["decode_interval"][0] < narrow["decode_interval"][1]
    assert narrow["decode_interval"][1] < wide["decode_interval"][1]
    assert "RAM of 60 GB/s, as given" in "\n".join(ask(experts=question)["lines"])


def test_what_lies_on_the_cards_is_told_with_experts_in_ram_too() -> None:
    prediction = ask()
    best, held = prediction["best"], prediction["memory"]
    assert [card["layers"] for card in held] == best["layers"]
    free = [device["free_mib"] for device in prediction["devices"]]
    assert [card["free_mib"] for card in held] == [own - mib for own, mib in zip(free, best["mib"], strict=True)]
    assert all(card["weights_mib"] > 10000 for card in held)


def test_that_no_network_is_counted_is_said() -> None:
    said = "Where weights are in RAM, the network to other hosts is in no speed."
    far, near = ask("rtx4090+rtx3090@1gbe"), ask()
    assert far["network"] is None and far["lines"][-1] == said and said not in near["lines"]


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


def test_what_a_tuning_with_experts_in_ram_has_fitted_replaces_what_others_published() -> None:
    """Told for another KV cache and context by the loads of one campaign, within the interval that is stated."""
    simulated = machine.Machine(machine.make_problem(), decode=(2.0, 3.0))
    plan, _loads = simulated.drive()
    measured = {"deployment": "moe-c4096", "error": 0.06, "fit": plan["decision"]["fit"]}
    threads = plan["decision"]["experts_in_ram"]["threads"]
    serving = {**simulated.problem["serving"], "cache_type_k": "q8_0", "cache_type_v": "q8_0", "context_size": 8192}
    objective = {**simulated.problem["objective"], "depth_tokens": 0}
    asked = {**simulated.problem, "serving": serving, "objective": objective}
    asked["experts_in_ram"] = {**asked["experts_in_ram"], "measured": measured}
    unknown = {"bandwidth_gb_per_s": None, "fraction": 0.85, "launch_ms": 0.1, "prefill_tflops": None}
    devices = [{**device, **unknown} for device in asked["devices"]]
    prediction = expert_prediction.expect(split_problem.read_problem(asked), devices)
    assert prediction is not None and prediction["measured_by"] == "moe-c4096" and len(prediction["rows"]) > 1
    for row in prediction["rows"]:
        placed = expert_placement.from_json(row["layers"], {**row["experts_in_ram"], "threads": threads})
        assert placed is not None and row["launch_ms"] == 0
        low, high = row["decode_interval"]
        assert low < 1000 / simulated.decode_ms(placed) < high < 1.3 * low
        prompt = simulated.prefill_ms(placed, 2048, row["micro_batch_size"])
        assert row["ttft_interval"][0] < prompt < row["ttft_interval"][1]
    text = "\n".join(expert_prediction.table({**prediction, "contexts": {"rows": []}}))
    assert "PREDICTION from what moe-c4096 measured" in text and "with intervals of 95 %" in text
    assert "GB/s" not in text


def test_a_larger_cache_takes_room_from_experts() -> None:
    contexts = ask()["contexts"]["rows"]
    for name in ("f16", "q8_0", "q4_0"):
        own = [row for row in contexts if row["cache_type_k"] == name]
        assert [row["context_size"] for row in own] == [4096, 8192, 16384, 32768, 65536, 131072]
        blocks = [row["blocks_in_ram"] for row in own]
        assert blocks == sorted(blocks) and blocks[-1] > blocks[0] > 0
        for row in own:
            assert sum(row["layers"]) == 37 and min(row["left_mib"]) >= 512 and row["ram_mib"] > 15000
            empty, full = row["decode_empty"], row["decode_full"]
            assert empty["low"] < empty["value"] < empty["high"] and full["value"] < empty["value"]
    (asked,) = [row for row in contexts if row["asked"]]
    assert (asked["context_size"], asked["cache_type_k"]) == (8192, "f16")
    best = ask()["best"]
    assert (asked["layers"], asked["blocks_in_ram"]) == (best["layers"], best["blocks_in_ram"])


def test_a_context_for_which_ram_is_too_little_says_so() -> None:
    rows = ask("rtx3090", NEXT, ram_mib=24300)["contexts"]["rows"]
    own = [row for row in rows if row["cache_type_k"] == "f16"]
    assert own[-1]["layers"] is None and list(own[-1]["missing_mib"]) == ["RAM"] and own[-1]["missing_mib"]["RAM"] > 0
    assert all(row["layers"] for row in own[:-1]) and len(own) > 1
    lines = "\n".join(ask("rtx3090", NEXT, ram_mib=24300)["lines"])
    assert f"does not fit: {own[-1]['missing_mib']['RAM']} MiB on RAM missing" in lines


def test_from_some_context_on_experts_go_into_ram() -> None:
    contexts = ask("rtx5090_rtx3090", NEXT)["contexts"]["rows"]
    rows = [row for row in contexts if row["cache_type_k"] == "f16"]
    in_ram = [row["context_size"] for row in rows if row.get("blocks_in_ram")]
    whole = [row["context_size"] for row in rows if row["layers"] and not row.get("blocks_in_ram")]
    assert in_ram and whole and max(whole) < min(in_ram)


def test_a_long_prompt_is_cut_to_a_short_context() -> None:
    rows = ask("rtx3090", prompt=8192, context_size=16384)["contexts"]["rows"]
    assert rows[0]["context_size"] == 4096 and rows[0]["ttft_ms"]["value"] < rows[2]["ttft_ms"]["value"]


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
    prediction = predictor.predict(question, devices, None)
    best = prediction["best"]
    assert best["decode_interval"] is None and best["ttft_interval"] and best["objective_ms"] is None
    assert prediction["lines"]
