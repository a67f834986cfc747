# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import recorded


def test_prefill_tokens_come_from_the_tests_of_the_tuning(sandbox: dict[str, t.Any]) -> None:
    entry = sandbox["entry"]
    assert recorded.prompt_tokens_of(entry) == 256
    entry["fingerprint_parts"] = {}
    # then from rate and time of the chosen split, which agree
    assert recorded.prompt_tokens_of(entry) == 256


def test_rates_turn_the_ends_of_an_interval_around() -> None:
    rate = recorded.rate_of({"mean": 20.0, "low": 16.0, "high": 25.0, "predicted": None}, 1)
    assert rate == {"mean": 50.0, "low": 40.0, "high": 62.5, "predicted": None}
