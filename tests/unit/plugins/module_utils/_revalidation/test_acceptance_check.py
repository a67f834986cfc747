# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The share of right tokens against the baseline's, and what is said of it."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import acceptance_check, explain

ENTRY = {"speculation": {"kind": "draft-simple", "n_max": 4}}


def rows(code, prose, drafted=600):
    return [
        {"text": name, "drafted": drafted, "accepted": round(drafted * share), "drafts": drafted // 4}
        for name, share in (("code", code), ("prose", prose))
    ]


def checked(before, now, entry=ENTRY, texts="t"):
    known = None if before is None else {"texts": "t", "rows": before}
    observed = {"entry": entry, "baseline": {"acceptance": known}, "acceptance": {"texts": texts, "rows": now}}
    return acceptance_check.checked(observed, 3.0)


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        (rows(0.8, 0.6), "ok"),
        (rows(0.79, 0.59), "ok"),
        (rows(0.5, 0.6), "regressed"),
        (rows(0.3, 0.2), "regressed"),
        (rows(0.95, 0.9), "improved"),
        # two answers say little
        (rows(0.4, 0.4, 20), "ok"),
        (rows(0, 0, 0), "broken"),
    ],
)
def test_the_verdict_is_that_of_the_interval(now, verdict):
    assert checked(rows(0.8, 0.6), now)["verdict"] == verdict


def test_a_loss_is_told_with_its_interval_and_its_texts():
    found = checked(rows(0.8, 0.6), rows(0.5, 0.6))
    assert found["detail"] == (
        "55.0 % of 1200 drafted tokens were right, 70.0 % in the baseline (difference -15.0 points, 98 % interval -23.8"
        " to -5.8): 3.20 tokens per round instead of 3.80; code 80 -> 50 %, prose 60 -> 60 %"
    )
    assert found["tokens_per_round_percent"] == -15.79 and (found["share"], found["share_before"]) == (0.55, 0.7)


def test_what_cannot_be_compared_is_said():
    assert checked(None, rows(0.8, 0.6), {}) is None
    missing = checked(None, rows(0.8, 0.6))
    assert missing["verdict"] == "ok" and missing["detail"].endswith("does not say how many were: site completes it")
    other = checked(rows(0.8, 0.6), rows(0.8, 0.6), texts="other")
    assert other["verdict"] == "inconclusive" and "-e accept=true" in other["detail"]
    nothing = checked(rows(0.8, 0.6), rows(0, 0, 0))
    assert nothing["detail"].startswith("the record drafts with draft-simple, and no token was drafted: see journalctl")
    observed = {"entry": ENTRY, "baseline": None, "acceptance": None}
    assert acceptance_check.checked(observed, 3.0) is None


def test_a_loss_is_explained_by_what_changed():
    fell = checked(rows(0.8, 0.6), rows(0.5, 0.6))
    moved = [{"part": "llama_cpp", "before": "b1", "now": "b2"}]
    found = explain.explain([fell], moved, [], True)
    assert found["cause"] == "acceptance" and "llama_cpp b1 -> b2" in found["detail"]
    assert "llama_cpp_source" in found["next"][0] and "retune=true" in found["next"][-1]
    assert "no software changed" in explain.explain([fell], [], [], True)["detail"]
    assert explain.explain([checked(rows(0.8, 0.6), rows(0.8, 0.6))], moved, [], True) is None
