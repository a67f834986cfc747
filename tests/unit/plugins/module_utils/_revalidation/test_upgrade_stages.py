# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The record of upgrades: its form, and which stage leads to which."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import upgrade_stages as stages
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.interrupted_upgrades import (
    ASKED,
    LATER,
    NEW,
    NOW,
    OK,
    OLD,
    SLOW,
    at,
    ends,
)


@pytest.mark.parametrize("stage", stages.STAGES)
@pytest.mark.parametrize("after", stages.STAGES)
def test_a_stage_leads_only_where_it_can(stage, after):
    record = at(stage)
    if after == stage or after in stages.NEXT[stage]:
        assert stages.advance(record, after, LATER)["under_way"]["stage"] == after
    else:
        with pytest.raises(UserError, match=f"does not lead to {after}"):
            stages.advance(record, after, LATER)


def test_the_same_stage_again_changes_nothing():
    record = at("revalidating")
    assert stages.advance(record, "revalidating", "2027-01-01T00:00:00Z") == record


def test_one_upgrade_at_a_time():
    with pytest.raises(UserError, match="an upgrade of llama.cpp is under way already"):
        stages.begin(at("installing"), "driver", ends(OLD, NEW), ASKED, OK, NOW)
    with pytest.raises(UserError, match="no upgrade is under way"):
        stages.advance(stages.empty(), "keeping", NOW)
    with pytest.raises(UserError, match="gcc is no component"):
        stages.begin(stages.empty(), "gcc", ends(OLD, NEW), ASKED, OK, NOW)


@pytest.mark.parametrize("outcome", stages.OUTCOMES)
@pytest.mark.parametrize("stage", stages.STAGES)
def test_an_outcome_ends_its_stage_alone(stage, outcome):
    if stage not in stages.OUTCOMES[outcome]:
        with pytest.raises(UserError, match=f"does not end as {outcome}"):
            stages.finish(at(stage), outcome, LATER, 20)
        return
    done = stages.finish(at(stage), outcome, LATER, 20, SLOW)
    assert done["under_way"] is None
    assert (done["finished"][-1]["outcome"], done["finished"][-1]["finished_at"]) == (outcome, LATER)


def test_of_a_revalidation_its_verdict_is_kept_and_no_more_than_600_characters():
    long = {**SLOW, "summary": "slow " * 500, "checks": [1]}
    kept = stages.advance(at("revalidating"), "rolling_back", LATER, long)["under_way"]["verdicts"]["after"]
    assert set(kept) == {"verdict", "accepted", "summary"} and 590 < len(kept["summary"]) <= 600


def test_old_upgrades_are_forgotten():
    record = stages.empty()
    for number in range(5):
        target = {**NEW, "version": f"b{number}"}
        record = stages.begin(record, "llama_cpp", ends(OLD, target), ASKED, OK, NOW)
        record = stages.finish(record, "untouched", NOW, 3, None, "x")
    assert [upgrade["to"]["version"] for upgrade in record["finished"]] == ["b2", "b3", "b4"]


def test_a_record_survives_the_disk():
    for stage in stages.STAGES:
        record = at(stage, lenders=["pc2"])
        assert stages.FORM.data(json.dumps(record)) == record
        del record["under_way"]["why"]
        with pytest.raises(UserError, match="under_way.why is missing"):
            stages.FORM.data(json.dumps(record))
        record["under_way"]["lenders"]["pc2"]["from"] = {"version": "b1"}
        with pytest.raises(UserError):
            stages.FORM.data(json.dumps(record))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("{}", "schema is None"),
        ("[]", "a list instead of a dict"),
        ('{"schema": 2}', "schema is 2"),
        ('{"schema": 1, "finished": []}', "under_way is missing"),
        ('{"schema": 1, "finished": [], "under_way": {"component": "driver"}}', "under_way.stage is missing"),
        (json.dumps(at("keeping")).replace('"keeping"', '"sleeping"'), "stage must be one of .* not 'sleeping'"),
    ],
)
def test_a_damaged_or_newer_record_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        stages.FORM.data(text)
