# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Both split modes side by side, in the summary and on the page."""

from __future__ import annotations

import copy
import pathlib
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import mode_rows, page, summary
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report.view import Seen

TEMPLATE = pathlib.Path(__file__).parents[5] / "roles/report/templates/report.html.j2"


def row(layers: list[int], ran: str | None, decode: float | None, **changes: t.Any) -> dict[str, t.Any]:
    return {
        "mode": "tensor" if ran else "layer", "layers": layers, "asked": [ran] if ran else [], "allreduce": ran,
        "transport": None, "fallback": None, "loads": 2, "status": "ok", "reason": None, "decode_ms_per_token": decode,
        "prefill_ms": None if decode is None else 1000.0, "objective_ms": decode, "less_percent": 0.0,
        "verdict": "slower", **changes,
    }  # fmt: skip


TABLE = [
    row([45, 36], None, 53.1),
    row([4, 4], "nccl", 37.4, transport="SHM", less_percent=29.6, verdict="chosen"),
    row([4, 4], "internal", 60.0, asked=["internal"], less_percent=-13.0),
    row([5, 3], "nccl", None, status="out_of_memory", reason="CUDA0 is full", less_percent=None, verdict="failed"),
]


@pytest.fixture
def entry(mixed: dict[str, t.Any]) -> dict[str, t.Any]:
    found = copy.deepcopy(mixed["entry"])
    found["decision"]["tensor"] = {"verdict": "faster", "why": "tensor mode 4/4 takes 29.6 % less", "table": TABLE}
    return found


def test_the_summary_shows_each_arm_of_both_modes(entry: dict[str, t.Any]) -> None:
    lines = summary.summary_lines(entry, None, None, None)
    start = next(index for index, line in enumerate(lines) if line.startswith("Both split modes"))
    shown = [" ".join(line.split()) for line in lines[start + 2 : start + 7]]
    prefill = mode_rows.mode_rows(entry)[0]["prefill"]
    assert shown == [
        f"layer 45,36 - 53.1 18.8 {prefill} - slower",
        f"tensor 4,4 NCCL, host memory 37.4 26.7 {prefill} -29.6% chosen",
        f"tensor 4,4 internal 60.0 16.7 {prefill} +13.0% slower",
        "tensor 5,3 NCCL - - - - failed",
        "tensor 5,3: out of memory: CUDA0 is full",
    ]
    assert max(map(len, lines)) <= summary.WIDTH


def test_what_stood_in_for_another_all_reduce_is_said() -> None:
    entry = {"decision": {"layers": [4, 4], "tensor": {"table": [
        row([4, 4], "internal", 40.0, asked=["nccl", "internal"], fallback="NCCL init failed (unhandled system error)"),
    ]}}}  # fmt: skip
    (found,) = mode_rows.mode_rows(entry)
    assert found["why"] == (
        "NCCL was asked for, and llama.cpp's internal all-reduce ran: NCCL init failed (unhandled system error)"
    )


@pytest.mark.parametrize("tensor", [None, {"verdict": "not_tried", "why": "tensor mode was not tried: a reason"}])
def test_without_a_measurement_of_tensor_mode_there_is_no_table(
    mixed: dict[str, t.Any], tensor: dict[str, t.Any] | None
) -> None:
    found = copy.deepcopy(mixed["entry"])
    found["decision"]["tensor"] = tensor
    text = " ".join("\n".join(summary.summary_lines(found, None, None, None)).split())
    assert "Both split modes" not in text
    assert ("tensor mode was not tried: a reason" in text) == (tensor is not None)


def test_the_page_has_the_same_table(entry: dict[str, t.Any]) -> None:
    template = TEMPLATE.read_text(encoding="utf-8")
    html = page.render(entry, template, Seen(), [], [], "", "", "")
    assert "Both split modes" in html and "NCCL, host memory" in html and "out of memory: CUDA0 is full" in html
    entry["decision"]["tensor"] = None
    assert "Both split modes" not in page.render(entry, template, Seen(), [], [], "", "", "")
