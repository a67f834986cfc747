# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import (
    context_table,
    expected_speeds,
    known_costs,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    known_devices,
    memory_plan,
    model_weights,
    workload,
)

SERVING: dict[str, t.Any] = {
    "context_size": 8192, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16",
}  # fmt: skip
LLAMA = model_shapes.model("llama_3_3_70b_q4_k_m")


def question(profile: str = "rtx4090_rtx3090", measured: bool = False, **changes: t.Any) -> context_table.Question:
    devices = known_devices.profile_devices(profile)
    rates = expected_speeds.published(devices)
    if measured:
        fit = {
            "decode_ms_per_layer": [0.66, 0.75], "prefill_ms_per_layer": [8.0, 14.0], "prefill_overlap": 1.0,
            "average_layer": model_weights.of_average_layer(LLAMA, SERVING, 64, 512),
            "error": 0.0,
            "spread": {},
        }  # fmt: skip
        rates = expected_speeds.measured(known_costs.of_fit("m-c8192", fit, []))
    objective = workload.Objective("request", 1024, 256, 0)
    return context_table.Question(LLAMA, {**SERVING, **changes}, devices, 512, objective, rates)


def test_each_type_goes_up_to_the_largest_context_and_says_what_is_missing_beyond() -> None:
    asked = question()
    rows = context_table.rows(asked)
    by_type = {name: [row for row in rows if row["cache_type_k"] == name] for name in ("f16", "q8_0", "q4_0")}
    assert sum(map(len, by_type.values())) == len(rows)
    for name, own in by_type.items():
        contexts = [row["context_size"] for row in own]
        assert contexts == sorted(set(contexts)) and own[-1]["layers"] is None
        assert all(row["layers"] is not None for row in own[:-1])
        assert own[-1]["missing_mib"] and all(mib > 0 for mib in own[-1]["missing_mib"].values())
        assert contexts[-2] % 1024 == 0
        for row in own[:-1]:
            serving = {**SERVING, "context_size": row["context_size"], "cache_type_k": name, "cache_type_v": name}
            mib = memory_plan.MemoryPlan(LLAMA, serving).mib(row["layers"])
            assert row["left_mib"] == [23633 - mib[0], 23982 - mib[1]] and min(row["left_mib"]) >= 512
    largest = {name: own[-2]["context_size"] for name, own in by_type.items()}
    assert largest["f16"] < largest["q8_0"] < largest["q4_0"]
    assert [row["context_size"] for row in rows if row["asked"]] == [8192]


def test_a_full_cache_costs_what_its_bytes_take_to_read() -> None:
    asked = question()
    row = next(r for r in context_table.rows(asked) if (r["context_size"], r["cache_type_k"]) == (16384, "f16"))
    per_ms = [device["bandwidth_gb_per_s"] * device["fraction"] * 1e6 for device in asked.devices]
    cached = [blocks * 16383 * 2 * 1024 * 2 for blocks in (row["layers"][0], row["layers"][1] - 1)]
    more = sum(size / rate for size, rate in zip(cached, per_ms, strict=True))
    empty, full = (1000 / row[name]["value"] for name in ("decode_empty", "decode_full"))
    assert full - empty == pytest.approx(more, rel=0.03)
    assert row["decode_full"]["low"] is None


def test_what_was_measured_comes_with_intervals_that_widen_with_the_cache() -> None:
    rows = [row for row in context_table.rows(question(measured=True)) if row["layers"]]
    for row in rows:
        for name in ("decode_empty", "decode_full", "ttft_ms"):
            assert row[name]["low"] < row[name]["value"] < row[name]["high"]
        widths = [row[name]["high"] / row[name]["low"] for name in ("decode_empty", "decode_full")]
        assert widths[1] > widths[0] > 1.2
    assert "m-c8192 measured" in context_table.source(question(measured=True).rates)
    assert context_table.source(question().rates).startswith("predicted: ")


def test_without_a_speed_there_is_the_roomiest_split() -> None:
    devices = [{"device": f"RPC{i}", "id": str(i), "free_mib": mib} for i, mib in enumerate((23000, 24000))]
    rates = expected_speeds.Rates((None, None), (None, None), (0.0, 0.0))
    objective = workload.Objective("request", 1024, 256, 0)
    rows = context_table.rows(context_table.Question(LLAMA, SERVING, devices, 512, objective, rates))
    row = rows[0]
    assert row["decode_empty"] is None and row["ttft_ms"] is None and min(row["left_mib"]) >= 512
    assert "  -  " in context_table.lines(rows, devices)[1]


def test_a_profile_of_its_own_is_a_row_of_its_own() -> None:
    rows = context_table.rows(question(context_size=12000, cache_type_k="q8_0"))
    (asked,) = [row for row in rows if row["asked"]]
    assert (asked["context_size"], asked["cache_type_k"], asked["cache_type_v"]) == (12000, "q8_0", "f16")
    assert context_table.cells(asked)[:2] == ["12000", "q8_0/f16"] and context_table.cells(asked)[-1] == "asked for"


def test_the_table_has_a_line_per_row() -> None:
    asked = question(profile="rtx3090_rtx3060_rtx3060")
    rows = context_table.rows(asked)
    lines = context_table.lines(rows, asked.devices)
    assert len(lines) == 1 + len(rows)
    assert lines[0].split("  ")[0] == "context"
    for row, line in zip(rows, lines[1:], strict=True):
        assert line.split()[0] == str(row["context_size"])
        assert ("does not fit" in line) == (row["layers"] is None)
