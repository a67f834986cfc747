# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The first load with drafts teaches of the others."""

from __future__ import annotations

import dataclasses

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import speculation_search, teaching_load
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split.speculation import (
    Arm,
    Offer,
    ServedLoad,
    TextResult,
)

WEIGHTS = {"code": 0.5, "prose": 0.5}
PLAIN = ServedLoad(Arm(), tuple(TextResult(text, 100, 1000.0) for text in WEIGHTS))


def search(*offers: Offer) -> speculation_search.Search:
    return speculation_search.Search(offers, 10.0, WEIGHTS, [PLAIN], 0.01)


def offer(draft: str, device: str, draft_ms: float, mode: str = "", target_ms: float = 10.0) -> Offer:
    return Offer("draft-simple", draft, device, (9, 8), target_ms, draft_ms, mode=mode)


def test_few_families_are_measured_anyway() -> None:
    assert teaching_load.first(search()) is None
    assert teaching_load.first(search(offer("a", "fast", 0.5), offer("a", "slow", 0.9))) is None


def test_a_draft_on_two_devices_teaches_more_than_another_one_alike() -> None:
    pair = [offer("a", "fast", 0.5), offer("a", "slow", 0.5)]
    taught = teaching_load.first(search(*pair, offer("b", "fast", 0.5)))
    assert taught is not None and taught.draft == "a"


def test_what_can_hardly_be_the_best_teaches_nothing() -> None:
    near = [offer("a", "fast", 0.5), offer("a", "slow", 0.5)]
    far = [dataclasses.replace(one, mode="tensor", target_ms=60.0) for one in near]
    taught = teaching_load.first(search(*near, *far))
    assert taught is not None and taught.mode == ""
