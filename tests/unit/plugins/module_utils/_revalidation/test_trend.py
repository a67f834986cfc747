# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import trend


def result(at: str, **more: t.Any) -> dict[str, t.Any]:
    return {
        "at": at, "verdict": "ok", "accepted": True, "baseline_at": "2026-11-01T00:00:00Z", "driver_version": None,
        "checks": [{"name": "cards", "verdict": "ok", "detail": ""}], **more,
    }  # fmt: skip


def test_the_oldest_comes_first_with_the_change_of_each_kind() -> None:
    checks = [
        {"name": "decode", "change_percent": 8.3, "interval_percent": [7.1, 9.5]},
        {"name": "decode at 2048", "change_percent": 1.0, "interval_percent": None},
        {"name": "prefill (at_1k)", "change_percent": -0.4, "interval_percent": None},
    ]
    newest = result("2026-11-03T00:00:00Z", checks=checks, verdict="regressed", accepted=False)
    first, second = trend.rows([newest, result("2026-11-02T00:00:00Z")])
    assert (first["at"], first["decode"], first["prefill"]) == ("2026-11-02T00:00:00Z", None, None)
    assert (second["verdict"], second["accepted"]) == ("regressed", False)
    assert second["decode"] == {"percent": 8.3, "low": 7.1, "high": 9.5}
    assert second["prefill"] == {"percent": -0.4, "low": None, "high": None}


def test_what_is_no_revalidation_is_left_out() -> None:
    assert trend.rows([{}, {"at": 1, "verdict": "ok", "checks": []}, result("2026-11-02T00:00:00Z", checks=None)]) == []
