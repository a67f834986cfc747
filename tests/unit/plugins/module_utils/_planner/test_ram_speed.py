# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import ram_speed


def entry(recorded_at: str, ms: float | None, size: int) -> dict[str, t.Any]:
    fit = {"decode_ms_per_block_in_ram": ms, "bytes_per_block_in_ram": size}
    return {"recorded_at": recorded_at, "decision": {"fit": fit}}


RECORD = {"models": {
    "old-c8192": entry("2026-10-01", 2.0, 40_000_000), "new-c8192": entry("2026-11-01", 0.5, 30_000_000),
    "dense-c8192": {"recorded_at": "2026-11-20", "decision": {"fit": {"decode_ms_per_layer": [0.5]}}},
    "unfitted-c8192": {"recorded_at": "2026-11-21", "decision": {"fit": None}},
}}  # fmt: skip


def test_without_knowledge_there_is_the_range_of_published_boxes() -> None:
    assert ram_speed.known(0, None) is None and ram_speed.known(0, {"models": {}}) is None
    usual = ram_speed.of(None)
    assert usual == ram_speed.of({"mode": "auto"}) == ram_speed.USUAL
    fast, slow = usual.ms(600e6, 10)
    assert (fast, slow) == pytest.approx((600 / 75 + 10 * 0.15, 600 / 40 + 10 * 1.0))
    assert fast < ram_speed.middle((fast, slow)) < slow
    assert "40 to 75 GB/s" in usual.source and "published" in usual.source


def test_a_given_rate_leaves_what_a_block_takes() -> None:
    given = ram_speed.of({"ram_speed": ram_speed.known(60.0, RECORD)})
    assert given.gb_per_s == (60.0, 60.0) and given.block_ms == ram_speed.USUAL.block_ms
    assert given.source.startswith("RAM of 60 GB/s, as given")


def test_the_latest_tuning_with_experts_in_ram_tells_what_ram_reaches_here() -> None:
    measured = ram_speed.of({"ram_speed": ram_speed.known(0, RECORD)})
    assert measured.gb_per_s == pytest.approx((60 * 0.75, 60 * 1.25)) and measured.block_ms == (0.0, 0.0)
    assert "60 GB/s, what new-c8192 measured on this host" in measured.source
