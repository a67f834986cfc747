# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a later revalidation compares with: its loads, its file, its memory."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import baselines, changes
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.described_pair import (
    ENTRY,
    FAST,
    SLOW,
    baseline,
    load,
    server,
)


def test_a_baseline_survives_its_file_and_a_truncated_one_is_named():
    text = json.dumps(baseline())
    assert baselines.FORM.parse(text, "f") == json.loads(text)
    with pytest.raises(UserError, match="holds no JSON.*mv f f.old.*-e accept=true"):
        baselines.FORM.parse(text[:-100], "f")
    with pytest.raises(UserError, match="its schema is 9"):
        baselines.FORM.parse(text.replace('"schema": 1', '"schema": 9', 1), "f")
    for field in ("loads", "memory", "configuration"):
        less = {key: value for key, value in baseline().items() if key != field}
        with pytest.raises(UserError, match=field):
            baselines.checked(less)


def test_a_baseline_without_the_words_of_a_loaded_server_is_incomplete():
    assert not baselines.incomplete(None) and not baselines.incomplete(baseline())
    assert baselines.incomplete(baseline(memory=None)) and baselines.incomplete(baseline(served=None))
    drafts = {**baseline()["configuration"], "speculation": {"kind": "draft-simple"}}
    assert baselines.incomplete(baseline(configuration=drafts))
    told = baselines.complete(baseline(configuration=drafts), None, None, None, {"texts": "t", "rows": []})
    assert not baselines.incomplete(told) and told["acceptance"] == {"texts": "t", "rows": []}


def test_memory_is_that_of_the_devices_in_use():
    assert baselines.memory(ENTRY, server()["server"]) == [
        {"id": FAST, "planned_mib": 22900, "loaded_mib": 22880.0, "free_mib": 23700},
        {"id": SLOW, "planned_mib": 20100, "loaded_mib": 20080.0, "free_mib": 23900},
    ]
    assert baselines.memory(ENTRY, {"complete": False, "devices": []}) is None
    first = baseline(memory=None, served=None)
    assert baselines.complete(first, [{"id": FAST}], None, None, None)["memory"] == [{"id": FAST}]
    assert baselines.complete(baseline(), [{"id": "other"}], [], None, None)["memory"] == baseline()["memory"]


def test_a_new_tuning_says_what_became_of_the_speed():
    first = baseline()
    assert changes.since(None, first) is None
    later = baseline([load(number, decode=1.06, layers=[40, 41]) for number in (1, 2, 3)])
    later["configuration"] = {
        **later["configuration"], "driver_version": "580.105.08",
        "placement": [{"id": FAST, "layers": 40}, {"id": SLOW, "layers": 41}],
    }  # fmt: skip
    said = changes.since(first, later)
    assert "decode takes 6.1 % more time" in said and "prefill is the same within noise" in said
    assert "driver_version 580.95.05 -> 580.105.08" in said and "placement 44/37 -> 40/41" in said


def test_another_way_to_speculate_is_another_configuration():
    one, other = ({**ENTRY, "speculation": {"kind": "draft-simple", "n_max": n_max}} for n_max in (3, 5))
    without, three, five = (baselines.configuration(entry, "b", {}, {}) for entry in (ENTRY, one, other))
    assert "speculation" not in without
    assert [change["part"] for change in changes.changes(without, three)] == ["speculation"]
    assert changes.changes(three, five)[0]["now"] == {"kind": "draft-simple", "n_max": 5}
