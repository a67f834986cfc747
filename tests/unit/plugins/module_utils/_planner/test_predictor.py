# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import (
    catalogue_fit,
    configurations,
    context_table,
    expected_speeds,
    predictor,
    quant_table,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    card_costs,
    known_devices,
    model_weights,
    workload,
)

RECORDED = json.loads(
    (pathlib.Path(__file__).parents[4] / "fixtures" / "dry_run" / "shapes_b11312.json").read_text(encoding="utf-8")
)
SERVING = {
    "context_size": 8192, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16",
}
BENCH = {"prompt_tokens": 1024, "generated_tokens": 64, "repetitions": 1}
LLAMA = "llama_3_3_70b_q4_k_m"


def ask(model: t.Any = LLAMA, profile: str = "rtx4090_rtx3090", **changes: t.Any) -> dict[str, t.Any]:
    objective = {
        "name": changes.pop("name", "request"), "prompt_tokens": changes.pop("prompt", 1024),
        "generated_tokens": changes.pop("generated", 256), "depth_tokens": changes.pop("depth", 0),
    }
    question = {
        "model": model, "serving": {**SERVING, **changes}, "reserve_mib": 512, "objective": objective,
        "bench": BENCH,
    }
    return predictor.predict(question, known_devices.profile_devices(profile), None)


def test_only_what_is_shown_makes_the_table_of_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ask()
    monkeypatch.delattr(context_table, "rows")
    devices = known_devices.profile_devices("rtx4090_rtx3090")
    question = {name: whole[name] for name in ("serving", "objective", "reserve_mib")}
    question["bench"] = BENCH
    model: t.Any = model_shapes.model(LLAMA)
    expected = predictor.expect({**question, "model": model}, devices)
    assert expected == {name: whole[name] for name in whole if name not in ("contexts", "memory", "network", "lines")}
    assert configurations.serves(card_costs.read(["rtx4090_rtx3090"])[0], model, question)["layers"] == [43, 38]
    found = {"quant": "Q4_K_M", "files": [], "size_bytes": 1, "model": model, "problem": None}
    assert quant_table.rows([found], question, devices, None)[0]["layers"] == [43, 38]
    assert catalogue_fit.words(devices, None)["llama_3_3_70b_instruct_q4_k_m"].startswith("fits as 43/38")


@pytest.mark.parametrize("profile", ["rtx4090_rtx3090", "rtx3060_x5"])
def test_of_cards_of_unknown_speed_the_usable_row_leaves_the_reserve(profile: str) -> None:
    devices = [{**device, "bandwidth_gb_per_s": None} for device in known_devices.profile_devices(profile)]
    whole = ask(profile=profile)
    prediction = predictor.expect({**whole, "model": LLAMA, "bench": BENCH}, devices)
    assert prediction["best"] is None
    row = predictor.usable(prediction)
    assert row is not None and row["verdict"] == "fits" and min(row["headroom_mib"]) >= 512
    assert predictor.usable(whole) == whole["best"]


def by_first(prediction: dict[str, t.Any]) -> dict[int, dict[str, t.Any]]:
    return {row["layers"][0]: row for row in prediction["rows"]}


def test_llama_70b_on_a_4090_and_a_3090() -> None:
    """The shared facts: 37 to 44 blocks on the 4090 go into free memory, 45 is marginal, 46 is too much."""
    rows = by_first(ask())
    verdicts = {first: row["verdict"] for first, row in rows.items()}
    assert verdicts == {
        35: "no", 36: "marginal", 37: "tight", **dict.fromkeys(range(38, 44), "fits"), 44: "tight", 45: "marginal",
        46: "no",
    }
    dry_runs = {
        row["layers"][0]: [sum(parts) for parts in row["mib"]]
        for row in RECORDED
        if row["shape"] == LLAMA and not row["serving"] and row["layers"][1] and "experts_in_ram" not in row
    }
    assert set(dry_runs) >= {37, 44, 45, 46}
    for first, mib in dry_runs.items():
        assert rows[first]["mib"] == pytest.approx(mib, abs=2)


def test_what_a_lender_costs_and_buys_is_said_before_it_is_bought() -> None:
    found = ask(profile="rtx4090+rtx3090@1gbe")
    network, best, near = found["network"], found["best"], ask(profile="rtx3090_rtx4090")
    assert [device["device"] for device in found["devices"]] == ["RPC0", "CUDA0"]
    (same,) = [row for row in near["rows"] if row["layers"] == best["layers"]]
    assert network["mib"] == best["mib"][0] == same["mib"][0] and near["network"] is None
    decode, prompt = (same[name] / best[name] for name in ("decode_tokens_per_second", "prefill_tokens_per_second"))
    assert network["decode_percent"] == pytest.approx(100 * (1 - 1 / decode))
    assert network["prefill_percent"] == pytest.approx(100 * (1 - 1 / prompt))
    assert network["why"] == (
        f"the 1 GbE link (0.4 ms, assumed) costs {network['prefill_percent']:.0f} % of prompts and"
        f" {network['decode_percent']:.0f} % of decode; it buys 20.1 GiB of memory; without other hosts the model does"
        " not fit"
    )
    assert f"Network: {network['why']}." in found["lines"]
    faster = ask(profile="rtx4090+rtx3090@10gbe")["network"]
    assert faster["prefill_percent"] < network["prefill_percent"]


def test_a_lender_that_cannot_help_is_said_before_it_is_bought() -> None:
    found = ask("qwen2_5_coder_32b_q4_k_m", "rtx4090+rtx3090@2.5gbe")
    assert found["best"]["layers"] == [0, 65] and found["network"]["mib"] == 0
    assert "they would not help; without other hosts the model fits and gives" in found["network"]["why"]


def test_two_networks_are_named() -> None:
    why = ask(profile="rtx4090+rtx3060@10gbe+rtx3060@1gbe")["network"]["why"]
    assert why.startswith("the ") and "10 GbE link (0.4 ms, assumed) and 1 GbE link (0.4 ms, assumed) cost " in why
    assert "; they buy " in why


def test_an_objective_of_prompts_puts_the_lender_last_in_every_answer() -> None:
    objective = {"name": "prefill", "prompt_tokens": 4096, "generated_tokens": 0, "depth_tokens": 0}
    question = {"serving": SERVING, "reserve_mib": 512, "objective": objective, "bench": BENCH}
    devices = known_devices.profile_devices("rtx4090+rtx3090@1gbe")
    model: t.Any = model_shapes.model(LLAMA)
    assert [one["device"] for one in predictor.in_order({**question, "model": model}, devices)] == ["CUDA0", "RPC0"]
    row = configurations.serves(card_costs.read(["rtx4090+rtx3090@1gbe"])[0], model, question)
    assert row["tensor"] is None and [placed["device"] for placed in row["memory"]] == ["CUDA0", "RPC0"]
    assert ask(profile="rtx4090+rtx3090@1gbe", name="prefill", prompt=4096)["devices"][1]["device"] == "RPC0"


@pytest.mark.parametrize(
    ("context", "mode", "first"), [(8192, "auto", "RPC0"), (131072, "auto", "CUDA0"), (131072, "never", "RPC0"),
                                   (8192, 4, "CUDA0"), ("max", "auto", "RPC0")],
)  # fmt: skip
def test_a_lender_is_not_first_where_weights_stay_in_ram_beside_the_first_device(
    context: t.Any, mode: t.Any, first: str
) -> None:
    objective = {"name": "decode", "prompt_tokens": 0, "generated_tokens": 64, "depth_tokens": 0}
    question = {
        "serving": {**SERVING, "context_size": context}, "reserve_mib": 512, "objective": objective, "bench": BENCH,
        "model": model_shapes.model(LLAMA), "experts_in_ram": {"mode": mode},
    }  # fmt: skip
    devices = known_devices.profile_devices("rtx4090+rtx3090@1gbe")
    assert sum(device["free_mib"] for device in devices) * 2**20 > model_shapes.model(LLAMA)["size_bytes"]
    assert predictor.in_order(question, devices)[0]["device"] == first


def test_the_best_is_a_corner_for_decoding_and_the_reserve_stays_free() -> None:
    prediction = ask(name="decode", prompt=0)
    assert prediction["best"]["layers"] == [43, 38] and prediction["best"]["verdict"] == "fits"
    assert prediction["default_layers"] == [41, 40]
    speeds = [row["decode_tokens_per_second"] for row in prediction["rows"]]
    assert speeds == sorted(speeds)
    # two cards of one kind give what was published of them: that is where the numbers come from
    published = {"rtx3090_rtx3090": 16.29, "rtx4090_rtx4090": 19.06}
    for profile, value in published.items():
        rows = ask(profile=profile, name="decode", prompt=0, generated=1)["rows"]
        assert all(row["decode_tokens_per_second"] == pytest.approx(value, rel=0.005) for row in rows)


def test_prefill_of_equal_cards_is_what_was_published() -> None:
    for profile, value in {"rtx3090_rtx3090": 394, "rtx4090_rtx4090": 905}.items():
        row = by_first(ask(profile=profile, name="prefill", context_size=4096))[40]
        assert row["prefill_tokens_per_second"] == pytest.approx(value, rel=0.02)
        assert row["ttft_ms"] == pytest.approx(1024 / value * 1000, rel=0.02)


@pytest.mark.parametrize(
    ("card", "model", "micro_batch", "published"),
    [
        # llama.cpp PR 15631, prompts of 4096
        ("rtx4090", "gpt_oss_20b_mxfp4", 1024, 11078),
        ("rtx4090", "gpt_oss_20b_mxfp4", 2048, 10649),
        ("p40", "qwen3_30b_a3b_q4_k_m", 512, 709),
        ("p40", "qwen3_30b_a3b_q4_k_m", 2048, 871),
        # smeltcore.com, 2026, at 4K
        ("rtx5090", "gpt_oss_20b_mxfp4", 512, 9443.8),
    ],
)
def test_prompts_of_models_of_experts_are_within_what_configurations_say(
    card: str, model: str, micro_batch: int, published: float
) -> None:
    asked = ask(model, card, prompt=4096, micro_batch_size=micro_batch)
    expected = asked["best"]["ttft_ms"]
    assert configurations.FASTEST_PROMPT * expected < 4096e3 / published < (1 + configurations.PROMPT_SPREAD) * expected


def test_experts_make_a_prompt_slower_than_their_operations() -> None:
    """A micro-batch reads nearly all experts of a block; one token reads those that it uses."""
    devices = known_devices.profile_devices("rtx4090")
    model: t.Any = model_shapes.model("qwen3_30b_a3b_q4_k_m")
    serving: t.Any = SERVING
    rates = expected_speeds.published(devices)
    prompt = workload.Objective("ttft", 512, 1, 0)
    whole = expected_speeds.Speeds(model, serving, prompt, rates).ttft_ms((49,))
    dense = expected_speeds.Speeds({**model, "block_ffn_bytes": {}}, serving, prompt, rates).ttft_ms((49,))
    idle = sum(map(sum, model["block_ffn_bytes"].values())) * (1 - 8 / 128)
    read = idle / rates.read_bytes[0]
    assert whole == pytest.approx(expected_speeds.EXPERT_WORK * dense + read, rel=0.001)


def test_a_prompt_of_many_micro_batches_goes_to_the_balance_point() -> None:
    short = ask("qwen2_5_coder_32b_q4_k_m", name="ttft", prompt=512)["best"]["layers"]
    long = ask("qwen2_5_coder_32b_q4_k_m", name="ttft", prompt=8000)["best"]["layers"]
    assert short == [65, 0]                       # one micro-batch: nothing overlaps
    assert 40 < long[0] < 50                      # 92.9 : 40.5 of 64 blocks


def test_a_model_that_fits_one_card_is_said_to() -> None:
    prediction = ask("qwen2_5_coder_32b_q4_k_m")
    assert prediction["best"]["layers"] == [65, 0]
    assert prediction["why"].endswith("the model fits on CUDA0 (NVIDIA GeForce RTX 4090) alone")


def test_a_sparse_model_is_bound_by_launches_as_published() -> None:
    """One RTX 4090 gives up to 196 tokens per second with Qwen3-30B-A3B at Q4_K_M; people are told what bounds it."""
    prediction = ask("qwen3_30b_a3b_q4_k_m", "rtx4090")
    assert prediction["best"]["decode_tokens_per_second"] == pytest.approx(196, rel=0.06)
    note = next(line for line in prediction["lines"] if "launching the kernels of 48 blocks" in line)
    assert "141 tokens per second on an RTX 3090" in note and "167 on an RTX 3090 Ti" in note and "196 on" in note
    dense = ask("llama_3_3_70b_q4_k_m", "rtx4090_rtx3090")
    assert dense["best"]["launch_ms"] > 4 and not any("launching" in line for line in dense["lines"])


def test_what_would_fit_keeps_the_reserve() -> None:
    prediction = ask("llama_3_3_70b_q4_k_m", "rtx4090_rtx3090", context_size=65536)
    assert prediction["best"] is None and "512 MiB of each kept free" in prediction["why"]
    if "q8_0 KV cache" in prediction["why"]:
        smaller = ask(
            "llama_3_3_70b_q4_k_m", "rtx4090_rtx3090", context_size=65536, cache_type_k="q8_0", cache_type_v="q8_0"
        )
        assert any(row["verdict"] == "fits" for row in smaller["rows"])


def test_the_cache_types_of_another_engine_are_refused() -> None:
    with pytest.raises(ValueError, match="cache_type_k.*exl3_q4") as refused:
        ask("llama_3_3_70b_q4_k_m", "rtx4090_rtx3090", cache_type_k="exl3_q4")
    assert "exl3_q8" not in str(refused.value) and "q8_0" in str(refused.value)


def test_experts_are_read_by_their_use_and_windows_by_their_length() -> None:
    moe, dense = ask("qwen3_30b_a3b_q4_k_m", "rtx3090"), ask("qwen2_5_coder_32b_q4_k_m", "rtx3090")
    ratio = moe["best"]["decode_tokens_per_second"] / dense["best"]["decode_tokens_per_second"]
    # by bytes it would be 10, but launching kernels takes as long for a sparse model: 141 and 33.9 were published
    assert ratio == pytest.approx(141 / 33.9, rel=0.12)
    gemma = model_shapes.model("gemma_3_27b_it_q4_k_m")
    flat = {**gemma, "window_tokens": [0] * 62}
    near, far = (model_weights.bytes_read(gemma, SERVING, depth) for depth in (1024, 8192))
    assert [b - a for a, b in zip(near, far, strict=True)][4:7] == [0, 7168 * 8192, 0]
    assert sum(model_weights.bytes_read(flat, SERVING, 8192)) > sum(far)


def test_what_does_not_fit_says_what_would() -> None:
    prediction = ask(profile="rtx3090_rtx3060")
    assert prediction["best"] is None and prediction["rows"] == []
    assert "MiB are missing in the split that comes nearest" in prediction["why"]
    lines = prediction["lines"]
    assert sum(line.startswith("Llama 3.3 70B Instruct does not fit") for line in lines) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"profile": "rtx4090_gtx970"}, "no hardware profile 'rtx4090_gtx970'; known are rtx4090_rtx3090, "),
        ({"model": "llama_9"}, "known are gemma_3_27b_it_q4_k_m"),
        ({"model": {"block_count": 1}}, "problem.model.block_bytes is missing"),
        ({"cache_type_k": "q3"}, "problem.serving.cache_type_k must be one of"),
        ({"name": "agent", "context_size": 4096}, "raise the context size"),
    ],
)
def test_what_cannot_be_asked(changes: dict[str, t.Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ask(**changes)


def test_numbers_may_come_as_text() -> None:
    told = ask(context_size="16384", parallel_slots="2", kv_unified="False", prompt="2048")
    assert told["rows"] == ask(context_size=16384, parallel_slots=2, kv_unified=False, prompt=2048)["rows"]
    assert told["serving"]["kv_unified"] is False


def test_without_a_speed_there_is_memory_and_a_reason() -> None:
    devices = known_devices.host_devices(
        [{"device": f"RPC{i}", "id": f"h:{i}", "description": f"h:{i}", "free_mib": 20000} for i in (0, 1)], []
    )
    question = {
        "model": "qwen2_5_coder_32b_q4_k_m", "serving": SERVING, "reserve_mib": 512,
        "objective": {"name": "request", "prompt_tokens": 1024, "generated_tokens": 256},
        "bench": {"prompt_tokens": 1024, "generated_tokens": 64, "repetitions": 1},
    }
    prediction = predictor.predict(question, devices, None)
    assert prediction["best"] is None
    assert prediction["feasible_splits"] == sum(row["verdict"] in ("fits", "tight") for row in prediction["rows"]) > 20
    assert prediction["why"].endswith("the memory bandwidth of RPC0, RPC1 is not known")
    assert any(" -  " in line for line in prediction["lines"])
    with pytest.raises(ValueError, match="there are no devices"):
        predictor.predict(question, [], None)


def test_a_context_beyond_what_the_model_was_trained_for_is_said() -> None:
    for tokens, said in ((131072, ""), (262144, " (the model was trained for 131072)")):
        head = ask(context_size=tokens)["lines"][1]
        assert head.startswith(f"  context {tokens} tokens{said}, 1 slot(s)"), head


def test_the_table_says_that_it_is_a_prediction_and_where_numbers_come_from() -> None:
    lines = ask()["lines"]
    assert lines[0] == "PREDICTION, nothing was measured: Llama 3.3 70B Instruct Q4_K_M"
    (best,) = [line for line in lines if line.endswith(", best")]
    assert best.split()[:5] == ["43/38", "22706", "(+927)", "20573", "(+3409)"]
    assert len({len(line.split("  ")[0]) for line in lines if "MiB free" in line}) == 1
    for card in ("4090", "3090"):
        for number in ("free", "bandwidth", "decode", "prefill"):
            assert any(line.startswith(f"NVIDIA GeForce RTX {card}: {number}: ") for line in lines)


def test_eight_cards() -> None:
    prediction = ask(profile="_".join(["rtx3060"] * 8))
    assert prediction["best"] is not None and len(prediction["rows"]) <= predictor.MOST_ROWS
    assert prediction["best"] in prediction["rows"]
