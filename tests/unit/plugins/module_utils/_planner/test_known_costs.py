# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import known_costs

PARTS: dict[str, t.Any] = {
    "llama_cpp": "b1", "driver_version": "580.95.05", "gpus": [{"id": "GPU-a", "power_limit_watts": 350}],
    "rpc_endpoints": [], "environment": {}, "extra": {}, "model_sha256": "aa", "serving": {"context_size": 2048},
}  # fmt: skip


def entry(recorded_at: str = "2026-01-01T00:00:00Z", **parts: t.Any) -> dict[str, t.Any]:
    fit = {"decode_ms_per_layer": [0.4, 0.9], "prefill_ms_per_layer": [4.0, 9.0], "prefill_overlap": 1.0}
    return {
        "decision": {"fit": fit}, "devices": [{"id": "GPU-a"}, {"id": "GPU-b"}], "recorded_at": recorded_at,
        "fingerprint_parts": {**PARTS, **parts},
    }  # fmt: skip


def find(models: dict[str, t.Any], ids: t.Sequence[str] = ("GPU-a", "GPU-b")) -> t.Any:
    return known_costs.find(models, {**PARTS, "serving": {"context_size": 8192}}, ids)


def test_the_latest_tuning_of_the_same_model_tells() -> None:
    found = find({"old": entry(), "new": entry("2026-02-01T00:00:00Z"), "other": entry(model_sha256="bb")})
    assert (found["deployment"], found["decode"], found["error"]) == ("new", [0.4, 0.9], 0.05)


@pytest.mark.parametrize(
    "changed",
    [
        {"llama_cpp": "b2"},
        {"driver_version": "590.1"},
        {"gpus": [{"id": "GPU-a", "power_limit_watts": 300}]},
        {"model_sha256": "bb"},
        {"environment": {"GGML_CUDA_P2P": "1"}},
    ],
)
def test_another_host_or_model_tells_nothing(changed: dict[str, t.Any]) -> None:
    assert find({"one": entry(**changed)}) is None


def test_other_devices_or_a_useless_fit_tell_nothing() -> None:
    assert find({"one": entry()}, ids=("GPU-b", "GPU-a")) is None
    useless = entry()
    useless["decision"]["fit"]["decode_ms_per_layer"] = [0.0, 0.9]
    assert find({"one": useless}) is None
    assert find({"one": {**entry(), "decision": {"fit": None}}}) is None
