# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the counters of a server say of its drafts, beside the baseline's."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._diagnosis import diagnosis, draft_findings

BASELINE = {"texts": "t", "rows": [{"text": "code", "drafted": 1200, "accepted": 840, "drafts": 300}]}


def metrics(drafted, accepted, drafts):
    return (
        f"llamacpp:spec_decode_num_draft_tokens_total {drafted}\n"
        f"llamacpp:spec_decode_num_accepted_tokens_total {accepted}\n"
        f"llamacpp:spec_decode_num_drafts_total {drafts}\n"
    )


def test_fewer_right_tokens_explain_slow_text():
    (found,) = draft_findings.drafts(metrics(4000, 1200, 1000), BASELINE)
    assert (found["subject"], found["kind"], found["severity"]) == ("speculation", "acceptance", "note")
    assert found["detail"] == (
        "since the start of the server 30 % of 4000 drafted tokens were right, 70 % with the texts of the baseline: so"
        " text takes about 73 % more time than it did then, and no device is to blame"
    )
    assert "split_tuning_texts" in found["cure"]


@pytest.mark.parametrize(
    ("text", "baseline", "count"),
    [
        (metrics(4000, 2790, 1000), BASELINE, 1),
        # few answers say little
        (metrics(20, 6, 5), BASELINE, 1),
        (metrics(4000, 1200, 1000), None, 1),
        (metrics(4000, 1200, 1000), {"texts": "t", "rows": []}, 1),
        (metrics(0, 0, 0), BASELINE, 0),
        ("", BASELINE, 0),
    ],
)
def test_what_says_nothing_bad_is_no_note(text, baseline, count):
    found = draft_findings.drafts(text, baseline)
    assert [one["severity"] for one in found] == ["ok"] * count


def test_the_acceptance_of_a_baseline_is_read_with_it():
    text = json.dumps({"configuration": {"gpus": []}, "acceptance": BASELINE})
    assert diagnosis.read_baseline(text) == ({"configuration": {"gpus": []}, "acceptance": BASELINE}, [])
    assert diagnosis.read_baseline("")[0]["acceptance"] is None
