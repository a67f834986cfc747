# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Counts of right tokens, with simulated drafts: rounds of four tokens that are kept up to the first miss."""

from __future__ import annotations

import random

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import acceptance
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split.acceptance import Counted

N_MAX = 4


def counted(numbers, right, rounds):
    """Return what a server counts in so many rounds, of which each token is right with the chance C(right)."""
    accepted = 0
    for _round in range(rounds):
        reached = 0
        while reached < N_MAX and numbers.random() < right:
            reached += 1
        accepted += reached
    return Counted(N_MAX * rounds, accepted, rounds)


def test_a_share_and_what_a_round_gives():
    rows = [
        {"text": "code", "drafted": 40, "accepted": 30, "drafts": 10},
        {"text": "chat", "drafted": 40, "accepted": 10, "drafts": 10},
    ]
    both = acceptance.total(rows)
    assert both == Counted(80, 40, 20) and (both.share, both.tokens_per_draft) == (0.5, 3.0)
    assert (acceptance.total([]).share, acceptance.total([]).tokens_per_draft) == (0.0, 1.0)


@pytest.mark.parametrize("right", [0.05, 0.5, 0.8, 0.99])
def test_the_same_draft_is_seldom_called_another_one(right):
    numbers = random.Random(f"same {right}")
    told = 0
    for _campaign in range(400):
        found = acceptance.difference(counted(numbers, right, 200), counted(numbers, right, 200))
        assert found.low <= found.change <= found.high
        told += not found.low <= 0 <= found.high
    assert told <= 0.02 * 400


def test_a_draft_that_got_worse_is_found():
    numbers = random.Random("worse")
    for _campaign in range(100):
        assert acceptance.difference(counted(numbers, 0.8, 300), counted(numbers, 0.6, 300)).high < 0


def test_shares_of_nothing_and_of_all_have_an_interval():
    none, everything = Counted(80, 0, 20), Counted(80, 80, 20)
    assert acceptance.difference(none, none)[1:] == pytest.approx((-0.213, 0.213), abs=1e-3)
    assert acceptance.difference(everything, none).change == -1
    with pytest.raises(ValueError, match="nothing was drafted"):
        acceptance.difference(none, Counted(0, 0, 0))


def test_only_drafts_of_a_model_can_be_compared():
    assert acceptance.comparable({"speculation": {"kind": "draft-mtp"}})
    assert not any(map(acceptance.comparable, ({}, {"speculation": None}, {"speculation": {"kind": "ngram-mod"}})))
