# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import served_rows

CLAIM = {
    "name": "Decode",
    "metric": "decode_tokens_per_second@start",
    "low": 12,
    "high": 18,
    "unit": "tok/s",
    "source": "a guide",
    "model": "70b.*q4_k_m",
    "devices": ["4090", "3090"],
}


@pytest.mark.parametrize(
    ("change", "state", "shown"),
    [
        ({}, "as expected", True),
        ({"low": 18, "high": 20}, "below the expectation", True),
        ({"low": 5, "high": 6}, "above the expectation", True),
        ({"comparable": False, "low": 5, "high": 6}, "not comparable", True),
        ({"metric": "decode_tokens_per_second@nothing"}, "not measured here", False),
    ],
)
def test_claims_beside_what_was_measured(
    mixed: dict[str, t.Any], change: dict[str, t.Any], state: str, shown: bool
) -> None:
    tests = served_rows.served_tests(mixed["served"])
    (row,) = served_rows.expectation_rows(mixed["entry"], tests, [{**CLAIM, **change}], None)
    assert row["state"] == state
    assert (row["value"] is not None) == shown


@pytest.mark.parametrize("change", [{"model": "qwen"}, {"devices": ["4090", "4090"]}])
def test_a_claim_about_something_else_is_left_out(mixed: dict[str, t.Any], change: dict[str, t.Any]) -> None:
    tests = served_rows.served_tests(mixed["served"])
    assert served_rows.expectation_rows(mixed["entry"], tests, [{**CLAIM, **change}], None) == []


def test_power_is_claimed_in_watts(mixed: dict[str, t.Any]) -> None:
    claim = {**CLAIM, "metric": "power_watts", "low": 700, "high": 800}
    rows = served_rows.expectation_rows(mixed["entry"], [], [claim], power_watts=516.0)
    assert (rows[0]["value"], rows[0]["state"]) == (516.0, "below the expectation")
    assert served_rows.expectation_rows(mixed["entry"], [], [claim], None)[0]["state"] == "not measured here"
