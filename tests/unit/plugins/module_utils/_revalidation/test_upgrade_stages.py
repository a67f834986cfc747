# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import upgrade_stages as stages

NOW, LATER = "2026-11-25T12:00:00Z", "2026-11-25T13:00:00Z"
OK = {"verdict": "ok", "accepted": True, "summary": "as on 2026-11-24."}
SLOW = {"verdict": "regressed", "accepted": False, "summary": "regressed: decode: 41.0 % more time."}
OLD = {"version": "b11312", "builds": {"main": "b11312-0a", "slow": "b11312-0b"}}
NEW = {"version": "b11400", "builds": {"main": "b11400-1a", "slow": "b11400-1b"}}
OTHER = {"version": "b11500", "builds": {"main": "b11500-2a", "slow": "b11500-2b"}}
HALF = {"version": "b11400", "builds": {"main": "b11400-1a", "slow": "b11312-0b"}}
ASKED = {"version": "b11400", "sha256": ""}
BACK = ("rolling_back", "proving")


def at(stage, asked=None):
    """A record of an upgrade that was interrupted in this stage."""
    record = stages.begin(stages.empty(), "llama_cpp", OLD, NEW, asked or ASKED, OK, NOW)
    ways = {
        "installing": [],
        "revalidating": ["revalidating"],
        "keeping": ["revalidating", "keeping"],
        "rolling_back": ["revalidating", "rolling_back"],
        "proving": ["revalidating", "rolling_back", "proving"],
    }
    for step in ways[stage]:
        verdict = {"keeping": OK, "rolling_back": SLOW}.get(step)
        record = stages.advance(record, step, LATER, verdict)
    assert record["under_way"]["stage"] == stage
    return record


def test_a_host_begins_where_nothing_is_under_way():
    opened = stages.opening(stages.empty(), "llama_cpp", "b11400", "rollback")
    assert (opened["error"], opened["component"], opened["version"]) == ("", "llama_cpp", "b11400")
    assert opened["plan"]
    assert stages.decide(stages.empty(), OLD, NEW, "rollback")["do"] == "begin"


def test_what_is_there_already_is_nothing_to_upgrade():
    step = stages.decide(stages.empty(), OLD, OLD, "continue")
    assert step["do"] == "nothing" and "b11312 is what is asked for" in step["sentence"]
    # the same version in another build is another thing
    assert stages.decide(stages.empty(), OLD, {**OLD, "builds": {"main": "b11312-ff"}}, "continue")["do"] == "begin"


@pytest.mark.parametrize("stage", stages.STAGES)
def test_everybody_is_told_of_an_upgrade_that_nobody_ended(stage):
    found = stages.unfinished(json.dumps(at(stage)))
    assert found["needed"] and stages.STAGES[stage] in found["why"]
    assert "homelab.mixed_gpu.upgrade" in found["cure"] and "-e component=llama_cpp" in found["cure"]
    assert ("upgrade_on_resume=rollback" in found["cure"]) == (stage in ("installing", "revalidating"))
    for name in ("started_at", "stage_at", "stage"):
        record = at(stage)
        record["under_way"][name] = None
        assert "damaged" in stages.unfinished(json.dumps(record))["why"]


def test_nobody_is_told_of_none():
    assert not stages.unfinished(None)["needed"] and not stages.unfinished(json.dumps(stages.empty()))["needed"]
    damaged = stages.unfinished("{")
    assert damaged["needed"] and "damaged" in damaged["why"]


def test_nothing_asked_and_nothing_under_way_is_an_error():
    assert "-e component=driver" in stages.opening(stages.empty(), "", "", "continue")["error"]


@pytest.mark.parametrize("stage", stages.STAGES)
@pytest.mark.parametrize("on_resume", ["continue", "rollback"])
@pytest.mark.parametrize("component", ["", "llama_cpp"])
@pytest.mark.parametrize("version", ["", "b11400"])
@pytest.mark.parametrize("present", [OLD, HALF, NEW])
def test_every_stage_is_gone_on_with_or_rolled_back(stage, on_resume, component, version, present):
    record = at(stage)
    opened = stages.opening(record, component, version, on_resume)
    assert opened["error"] == ""
    assert (opened["component"], opened["version"]) == ("llama_cpp", "b11400")
    assert stages.STAGES[stage] in opened["sentence"] and LATER in opened["sentence"] or stage == "installing"
    backwards = on_resume == "rollback" or stage in BACK
    assert opened["plan"] is not backwards
    step = stages.decide(record, *((present, NEW) if opened["plan"] else (None, None)), on_resume)
    if stage == "keeping" and on_resume == "rollback":
        assert step["do"] == "refuse" and "It was accepted" in step["sentence"]
    elif backwards:
        assert step["do"] == "roll_back"
    elif stage == "keeping" and present == NEW:
        assert step["do"] == "keep"
    else:
        assert step["do"] == "install"


@pytest.mark.parametrize("stage", stages.STAGES)
@pytest.mark.parametrize("on_resume", ["continue", "rollback"])
def test_another_component_is_refused_with_the_cure(stage, on_resume):
    error = stages.opening(at(stage), "driver", "", on_resume)["error"]
    assert "The upgrade of llama.cpp from b11312 to b11400" in error and stages.STAGES[stage] in error
    if stage in BACK:
        assert error.endswith("run upgrade with -e component=llama_cpp and without a version to finish that first.")
    else:
        assert "finish that first, with -e component=llama_cpp -e version=b11400" in error
        # what was accepted is not gone back from
        assert error.endswith("-e upgrade_on_resume=rollback.") == (stage != "keeping")


@pytest.mark.parametrize("stage", stages.STAGES)
@pytest.mark.parametrize("on_resume", ["continue", "rollback"])
def test_another_version_is_refused_with_the_cure(stage, on_resume):
    record = at(stage)
    opened = stages.opening(record, "llama_cpp", "b11500", on_resume)
    if stage in BACK or on_resume == "rollback":
        assert "It comes before b11500" in opened["error"]
        return
    assert opened["error"] == "" and opened["plan"]
    step = stages.decide(record, NEW, OTHER, on_resume)
    assert step["do"] == "refuse" and "Asked for now is b11500" in step["sentence"]
    assert "-e component=llama_cpp -e version=b11400" in step["sentence"]


def test_other_variables_than_those_of_then_are_refused():
    record = at("installing", {"version": "", "sha256": ""})
    step = stages.decide(record, OLD, {**NEW, "builds": {"main": "b11400-ee"}}, "continue")
    assert step["do"] == "refuse"
    assert "another build of b11400 (b11400-ee)" in step["sentence"]
    assert "with the inventory's variables as they were then" in step["sentence"]


def test_the_hash_that_was_asked_for_comes_along():
    record = at("installing", {"version": "0.3.40", "sha256": "ab" * 32})
    assert stages.opening(record, "", "", "continue")["sha256"] == "ab" * 32
    assert f"-e version=0.3.40 -e sha256={'ab' * 32}" in stages.opening(record, "driver", "", "continue")["error"]
    assert stages.opening(record, "", "0.3.41", "continue")["sha256"] == ""


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
    with pytest.raises(UserError, match="under way already"):
        stages.begin(at("installing"), "driver", OLD, NEW, ASKED, OK, NOW)
    with pytest.raises(UserError, match="no upgrade is under way"):
        stages.advance(stages.empty(), "keeping", NOW)
    with pytest.raises(UserError, match="gcc is no component"):
        stages.begin(stages.empty(), "gcc", OLD, NEW, ASKED, OK, NOW)


@pytest.mark.parametrize(
    ("stage", "outcome", "verdict", "why", "words"),
    [
        ("keeping", "kept", None, None, ["is done", "ok: as on 2026-11-24"]),
        ("installing", "untouched", None, "no compiler.", ["anything was changed (no compiler)", "b11312 is in"]),
        ("proving", "rolled_back", OK, None, ["(regressed: decode: 41.0 % more time)", "before (ok: as on"]),
        ("proving", "broken", SLOW, None, ["NOT proved", "accepted (regressed: decode", "is regressed:"]),
    ],
)  # fmt: skip
def test_the_end_is_told_in_one_sentence(stage, outcome, verdict, why, words):
    done = stages.finish(at(stage), outcome, LATER, 20, verdict, why)
    assert done["under_way"] is None
    upgrade = done["finished"][-1]
    assert (upgrade["outcome"], upgrade["finished_at"]) == (outcome, LATER)
    for word in words:
        assert word in stages.summary(upgrade)
    for other in set(stages.OUTCOMES) - {outcome}:
        if stages.OUTCOMES[other] != stage:
            with pytest.raises(UserError, match=f"does not end as {other}"):
                stages.finish(at(stage), other, LATER, 20)


def test_two_builds_of_one_version_are_told_apart():
    record = stages.begin(stages.empty(), "llama_cpp", OLD, {**NEW, "version": "b11312"}, ASKED, OK, NOW)
    for stage in ("revalidating", "rolling_back", "proving"):
        record = stages.advance(record, stage, NOW, SLOW if stage == "rolling_back" else None)
    told = stages.summary(stages.finish(record, "rolled_back", NOW, 20, OK)["finished"][0])
    assert told.startswith(
        "The upgrade of llama.cpp from b11312 to another build of it was rolled back: the other build "
    )
    assert "and the build of before (b11312) is in use again" in told


def test_a_rollback_that_was_asked_for_says_so():
    record = stages.advance(at("revalidating"), "rolling_back", LATER)
    done = stages.finish(stages.advance(record, "proving", LATER), "rolled_back", LATER, 20, OK)
    assert "b11400 was given up (a rollback was asked for)" in stages.summary(done["finished"][0])


def test_old_upgrades_are_forgotten():
    record = stages.empty()
    for number in range(5):
        target = {**NEW, "version": f"b{number}"}
        record = stages.begin(record, "llama_cpp", OLD, target, ASKED, OK, NOW)
        record = stages.finish(record, "untouched", NOW, 3, None, "x")
    assert [upgrade["to"]["version"] for upgrade in record["finished"]] == ["b2", "b3", "b4"]


def test_a_record_survives_the_disk():
    for stage in stages.STAGES:
        assert stages.FORM.data(json.dumps(at(stage))) == at(stage)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("{}", "schema is None"),
        ("[]", "a list instead of a dict"),
        ('{"schema": 2}', "schema is 2"),
        ('{"schema": 1, "finished": []}', "not what this collection writes"),
        ('{"schema": 1, "finished": [], "under_way": {"component": "driver"}}', "not what this collection writes"),
        (json.dumps(at("keeping")).replace('"keeping"', '"sleeping"'), "not what this collection writes"),
    ],
)
def test_a_damaged_or_newer_record_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        stages.FORM.data(text)
