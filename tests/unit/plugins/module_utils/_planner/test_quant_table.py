# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The table of a repository's quants, and its memory against llama.cpp's own dry run."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import (
    gguf_model,
    hub_api,
    hub_quants,
    model_shapes,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import predictor, quant_table
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import known_devices, memory_plan
from ansible_collections.homelab.mixed_gpu.tests.fixtures.dry_run import record
from ansible_collections.homelab.mixed_gpu.tests.local_hub import quants

QUESTION = {
    "serving": record.BASE, "reserve_mib": 512,
    "objective": {"name": "request", "prompt_tokens": 1024, "generated_tokens": 256, "depth_tokens": 0},
    "bench": {"prompt_tokens": 1024, "generated_tokens": 64, "repetitions": 1},
}  # fmt: skip
PAIR = known_devices.profile_devices("rtx4090_rtx3090")


def found(folder: pathlib.Path, shape: str, wanted: t.Iterable[str] = quants.QUANTS) -> list[dict[str, t.Any]]:
    paths = quants.write(folder, "Model", shape, {name: quants.QUANTS[name] for name in wanted})
    models = []
    for quant, path in paths.items():
        model = gguf_model.read(gguf_model.files_of(str(path)))
        models.append({
            "quant": quant, "files": model["shards"], "size_bytes": model["size_bytes"], "model": model,
            "problem": None,
        })  # fmt: skip
    return models


def test_what_fits_where(tmp_path: pathlib.Path) -> None:
    models = found(tmp_path, "qwen2_5_coder_32b_q4_k_m", ("F16", "Q8_0", "Q4_K_M"))
    models.append({"quant": "Q2_K", "files": ["x"], "size_bytes": 1, "model": None, "problem": "It is no model."})
    rows = {row["quant"]: row for row in quant_table.rows(models, QUESTION, PAIR, None)}
    assert rows["F16"]["layers"] is None and "MiB" in rows["F16"]["problem"] and rows["F16"]["context_size"] == 0
    assert rows["Q8_0"]["alone_on"] == [] and sum(rows["Q8_0"]["layers"]) == 65
    assert rows["Q4_K_M"]["alone_on"] == ["CUDA0", "CUDA1"] and rows["Q4_K_M"]["layers"] == [65, 0]
    trained = model_shapes.SHAPES["qwen2_5_coder_32b_q4_k_m"].context_length
    assert rows["Q4_K_M"]["context_size"] == rows["Q8_0"]["context_size"] == trained
    assert rows["Q4_K_M"]["decode_tokens_per_second"] > rows["Q8_0"]["decode_tokens_per_second"]
    assert rows["Q2_K"]["problem"] == "It is no model."
    lines = quant_table.lines("owner/name", list(rows.values()), QUESTION, PAIR)
    assert lines[0] == "PREDICTION, nothing was downloaded: 4 quants of owner/name"
    assert "Q8_0 is the largest that fits; Q4_K_M is the largest that one card holds alone." in lines
    assert "  Q2_K: It is no model." in lines
    assert "  decode/s: published runs were up to 12% slower and faster" in lines


def test_the_largest_context_is_planned_for_each_quant(tmp_path: pathlib.Path) -> None:
    models = found(tmp_path, "llama_3_3_70b_q4_k_m", ("Q8_0", "Q4_K_M"))
    question = {**QUESTION, "serving": {**record.BASE, "context_size": "max"}}
    table = quant_table.rows(models, question, PAIR, None)
    rows = {row["quant"]: row for row in table}
    assert rows["Q8_0"]["layers"] is None and rows["Q8_0"]["context_size"] == 0
    assert rows["Q8_0"]["missing_mib"] > 20000
    assert sum(rows["Q4_K_M"]["layers"]) == 81 and rows["Q4_K_M"]["context_size"] > 8192
    assert min(rows["Q4_K_M"]["left_mib"]) >= QUESTION["reserve_mib"]
    assert any(line.split()[:2] == ["Q8_0", "75.0"] for line in quant_table.lines("o/n", table, question, PAIR))


def test_nothing_fits(tmp_path: pathlib.Path) -> None:
    card = known_devices.profile_devices("rtx3060")
    rows = quant_table.rows(found(tmp_path, "llama_3_3_70b_q4_k_m", ("Q8_0", "Q2_K")), QUESTION, card, None)
    assert quant_table.advice(rows).startswith("None of them fits: the smallest is Q2_K with ")


def test_experts_that_have_no_room_are_in_ram(tmp_path: pathlib.Path) -> None:
    card = known_devices.profile_devices("rtx3060")
    models = found(tmp_path, "qwen3_30b_a3b_q4_k_m", ("Q8_0", "Q4_K_M"))
    question = {**QUESTION, "experts_in_ram": {"mode": "auto"}}
    rows = {row["quant"]: row for row in quant_table.rows(models, question, card, None)}
    assert rows["Q8_0"]["blocks_in_ram"] > rows["Q4_K_M"]["blocks_in_ram"] > 0
    assert rows["Q4_K_M"]["layers"] == [49] and rows["Q4_K_M"]["problem"] is None
    assert rows["Q8_0"]["ram_mib"] > rows["Q4_K_M"]["ram_mib"] > 5000 and rows["Q4_K_M"]["left_mib"][0] >= 512
    for row in rows.values():
        assert row["decode_interval"][0] < row["decode_tokens_per_second"] < row["decode_interval"][1]
        assert row["ttft_interval"][0] < row["ttft_ms"] < row["ttft_interval"][1]
    lines = quant_table.lines("owner/name", list(rows.values()), QUESTION, card)
    shown = next(line for line in lines if line.split()[:1] == ["Q4_K_M"])
    assert f"49, {rows['Q4_K_M']['blocks_in_ram']:g} in RAM ({rows['Q4_K_M']['ram_mib']})" in shown
    assert shown.count(" to ") == 2 and any("40 to 75 GB/s" in line and "published" in line for line in lines)
    bounded = {**question, "experts_in_ram": {"mode": "auto", "ram_mib": rows["Q4_K_M"]["ram_mib"]}}
    least = {row["quant"]: row for row in quant_table.rows(models, bounded, card, None)}
    assert least["Q4_K_M"]["layers"] == [49] and least["Q8_0"]["layers"] is None
    assert f"{rows['Q4_K_M']['ram_mib']} MiB of it may be used" in least["Q8_0"]["problem"]
    said = "None of them fits the devices alone; with weights in RAM Q4_K_M needs the fewest there"
    assert any(line.startswith(said) for line in lines)
    never = quant_table.rows(models, QUESTION, card, None)
    assert all(row["layers"] is None and not row["blocks_in_ram"] for row in never)


def test_a_dense_quant_a_little_too_large_is_shown_beside_the_one_that_fits(tmp_path: pathlib.Path) -> None:
    cards = known_devices.profile_devices("rtx4090_rtx3090")
    models = found(tmp_path, "llama_3_3_70b_q4_k_m", ("Q5_K_M", "Q4_K_M"))
    question = {**QUESTION, "experts_in_ram": {"mode": "auto", "ram_mib": 65536 - 3072}}
    rows = {row["quant"]: row for row in quant_table.rows(models, question, cards, None)}
    less, more = rows["Q4_K_M"], rows["Q5_K_M"]
    assert not less["blocks_in_ram"] and more["blocks_in_ram"] > 0 and more["problem"] is None
    assert more["decode_interval"][1] < less["decode_tokens_per_second"] and min(more["left_mib"]) >= 512
    lines = quant_table.lines("owner/name", list(rows.values()), question, cards)
    shown = next(line for line in lines if line.split()[:1] == ["Q5_K_M"])
    assert f"{more['blocks_in_ram']:g} in RAM ({more['ram_mib']})" in shown
    assert quant_table.advice(list(rows.values())).startswith("Q4_K_M is the largest that fits")


def test_cards_of_another_host_are_named_with_their_network(tmp_path: pathlib.Path) -> None:
    devices = known_devices.profile_devices("rtx3060+rtx3060@1gbe")
    question = {**QUESTION, "experts_in_ram": {"mode": "auto"}}
    rows = quant_table.rows(found(tmp_path, "qwen3_30b_a3b_q4_k_m", ("F16", "Q4_K_M")), question, devices, None)
    lines = quant_table.lines("owner/name", rows, question, devices)
    assert [line.split()[0] for line in lines if "of another host, over the 1 GbE link" in line] == ["RPC0"]
    assert rows[0]["blocks_in_ram"] and any("the network to other hosts is in no speed" in line for line in lines)


def test_a_quant_fits_cards_of_unknown_speed(tmp_path: pathlib.Path) -> None:
    unknown = [{**device, "bandwidth_gb_per_s": None} for device in PAIR]
    rows = quant_table.rows(found(tmp_path, "llama_3_3_70b_q4_k_m", ("Q8_0", "Q4_K_M")), QUESTION, unknown, None)
    assert rows[0]["layers"] is None
    assert sum(rows[1]["layers"]) == 81 and min(rows[1]["left_mib"]) >= QUESTION["reserve_mib"]
    assert rows[1]["decode_tokens_per_second"] is None
    assert quant_table.advice(rows).startswith("Q4_K_M is the largest that fits")


def test_quants_are_told_apart() -> None:
    every = {
        "M-Q4_K_M.gguf": 5, "UD/M-UD-Q4_K_XL.gguf": 6, "mmproj-F16.gguf": 1, "M-Q8_0-00001-of-00002.gguf": 9,
        "M-Q8_0-00002-of-00002.gguf": 9, "M.imatrix.gguf": 1, "README.md": 1, "other.gguf": 3,
    }  # fmt: skip
    named = {quant.name: len(quant.files) for quant in hub_quants.of(every, "o/n", None)}
    assert named == {"Q8_0": 2, "UD-Q4_K_XL": 1, "Q4_K_M": 1, "other": 1}
    twice = {"A-Q4_K_M.gguf": 1, "B-Q4_K_M.gguf": 2}
    assert [quant.name for quant in hub_quants.of(twice, "o/n", None)] == ["B-Q4_K_M", "A-Q4_K_M"]


def test_a_quant_is_found_as_for_a_download() -> None:
    every = {"M-UD-Q4_K_XL.gguf": 6, "M-Q8_0.gguf": 9, "M-UD-Q8_0.gguf": 9}
    for asked, name in (("q4_k_xl", "M-UD-Q4_K_XL.gguf"), ("M-Q8_0", "M-Q8_0.gguf"), ("UD-Q8_0", "M-UD-Q8_0.gguf")):
        assert [quant.files for quant in hub_quants.of(every, "o/n", asked)] == [(name,)]
        assert hub_api.select(every, [], asked, "o/n") == ("gguf", [name])
    said = r"o/n has 2 models of quant Q8_0 \(M-Q8_0\.gguf, M-UD-Q8_0\.gguf\): name more of it as quant\."
    with pytest.raises(UserError, match=said):
        hub_quants.of(every, "o/n", "Q8_0")


def test_a_row_is_in_the_order_of_the_devices_whatever_its_tuning_takes() -> None:
    """Without weights in RAM the lender's card is the first, and Q8_0 has weights in RAM."""
    devices = known_devices.profile_devices("rtx4090+rtx3090@10gbe")
    small = t.cast("dict[str, t.Any]", model_shapes.model("llama_3_3_70b_q4_k_m"))
    large = {
        **small, "size_bytes": 2 * small["size_bytes"],
        **{name: [2 * size for size in small[name]] for name in ("block_bytes", "block_read_bytes")},
        "block_ffn_bytes": {name: [2 * size for size in part] for name, part in small["block_ffn_bytes"].items()},
    }  # fmt: skip
    question = {
        **QUESTION, "experts_in_ram": {"mode": "auto", "ram_mib": 200_000},
        "objective": {"name": "decode", "prompt_tokens": 0, "generated_tokens": 256, "depth_tokens": 0},
    }  # fmt: skip
    models = [
        {"quant": name, "files": 1, "size_bytes": model["size_bytes"], "problem": None, "model": model}
        for name, model in (("Q8_0", large), ("Q4_K_M", small))
    ]
    of_ram, alone = quant_table.rows(models, question, devices, None)
    assert of_ram["blocks_in_ram"] and not alone["blocks_in_ram"]
    best = predictor.expect({**question, "model": small}, devices)["best"]
    assert (alone["layers"], alone["mib"]) == (best["layers"][::-1], best["mib"][::-1])
    for row in (of_ram, alone):
        assert [(card["device"], card["layers"]) for card in row["memory"]] == list(
            zip(("CUDA0", "RPC0"), row["layers"], strict=True)
        )
        left = [device["free_mib"] - mib for device, mib in zip(devices, row["mib"], strict=True)]
        assert row["left_mib"] == left


@pytest.mark.live
@pytest.mark.parametrize("shape", ["llama_3_3_70b_q4_k_m", "qwen3_30b_a3b_q4_k_m"])
def test_memory_of_every_quant_is_that_of_the_dry_run(
    shape: str, llama_bin: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Weights, KV cache and compute buffer of every quant on two devices, within 1 %."""
    blocks = model_shapes.SHAPES[shape].blocks
    split = [blocks // 2, blocks + 1 - blocks // 2]
    with record.rpc_servers(llama_bin, 2) as endpoints:
        for model in found(tmp_path, shape):
            theirs, _host = record.ask(llama_bin, pathlib.Path(model["files"][0]), split, record.BASE, endpoints)
            plan = memory_plan.MemoryPlan(model["model"], record.BASE).mib(split)
            for ours, parts in zip(plan, theirs, strict=True):
                assert abs(ours - sum(parts)) <= 0.01 * sum(parts), (model["quant"], plan, theirs)
