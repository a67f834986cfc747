# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.steps import Done, Step
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import tuning_effort


def done(name: str, minute: int, **load: t.Any) -> Done:
    result = {"load": load} if load else {}
    return Done(Step(name, "split_benchmark", {}, name), result, f"2026-11-29T10:{minute:02d}:00Z")


def test_loads_are_counted_and_the_lease_is_timed() -> None:
    steps = [
        done("look", 0), done("devices", 5), done("probe", 6, status="ok", wall_ms=40_400),
        done("20/13", 8, status="ok", wall_ms=90_000, reused=True),
        done("21/12", 12, status="out_of_memory", reason="x"), done("host", 13),
    ]  # fmt: skip
    assert tuning_effort.of(steps, "devices") == {
        "measuring_seconds": 130, "leased_seconds": 480, "loads": 3, "kept_loads": 1,
    }  # fmt: skip


def test_without_a_lease_it_took_none() -> None:
    assert tuning_effort.of([done("look", 0), done("weigh", 1)], "devices")["leased_seconds"] == 0
