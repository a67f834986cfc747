# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ways to speculate, their names, and what a load of one says."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import speculation
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split.speculation import Arm, Offer, TextResult


def test_an_arm_survives_its_record() -> None:
    for arm in (Arm(), Arm("draft-simple", "d", "GPU-1", 4), Arm("ngram-mod")):
        assert speculation.from_json({**speculation.as_json(arm), "path": "/m"}) == arm


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"kind": "medusa", "n_max": 1}, "must be one of none, draft-simple, .*, draft-model, not 'medusa'"),
        ({"kind": "draft-mtp", "n_max": -1}, "speculation.n_max must be a whole number, not -1"),
        ({"kind": "draft-mtp", "n_max": True}, "not True"),
    ],
)
def test_what_is_no_arm_is_named(stored, words) -> None:
    with pytest.raises(ValueError, match=words):
        speculation.from_json(stored)


def test_names_and_arms_of_a_family() -> None:
    assert Arm().name() == "no speculation"
    assert Arm("draft-simple", "small", "GPU-1", 4).name("CUDA0") == "draft-simple small on CUDA0 n-max 4"
    assert [arm.n_max for arm in Offer("draft-mtp", "", "GPU-1", (3, 2), 10.0, 1.0, 3).arms()] == [1, 2, 3]
    assert Offer("ngram-mod", "", "", (3, 2), 10.0, 0.0).arms() == [Arm("ngram-mod")]


def test_a_round_gives_its_own_token_beside_the_accepted_ones() -> None:
    assert TextResult("code", 100, 1000.0, 200, 60).rounds == 40
    assert TextResult("code", 100, 1000.0).rounds == 100
