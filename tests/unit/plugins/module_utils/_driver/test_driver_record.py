# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_packages, driver_record

NOW = "2026-11-25T12:00:00Z"
MAIN = "nvidia-headless-580-server-open"


def info(version, held=(), **others):
    names = {MAIN: version, "libnvidia-compute-580-server": version, **others}
    packages = {
        name: {"version": number, "source": "", "held": name in held, "whole": True} for name, number in names.items()
    }
    kernel = {"version": "6.8.0.90", "source": "linux-meta", "held": True, "whole": True}
    return driver_record.Present({**packages, "linux-image-generic": kernel}, "pin", "6.8.0-90-generic")


def state(version, reason="installed", main=MAIN):
    return driver_record.snapshot(info(version), main, reason, NOW)


def record(*states):
    result = driver_record.empty()
    for entry in states:
        result = driver_record.with_state(result, entry)
    return result


FIRST, SECOND, THIRD = state("580.65.06-1"), state("580.95.05-1"), state("580.105.08-1")


def present(entry):
    return entry["packages"]


def test_a_snapshot_has_the_drivers_packages_and_all_holds():
    taken = driver_record.snapshot(info("580.95.05-1", held=[MAIN]), MAIN, "found", NOW)
    assert taken["packages"] == {MAIN: "580.95.05-1", "libnvidia-compute-580-server": "580.95.05-1"}
    assert taken["holds"] == ["linux-image-generic", MAIN]
    assert taken["version"] == "580.95.05-1"


def test_a_foreign_drivers_version_is_that_of_most_of_its_packages():
    taken = driver_record.snapshot(info("580.95.05-1", **{"nvidia-modprobe": "570.133.07-1"}), "", "found", NOW)
    assert (taken["version"], taken["main"]) == ("580.95.05-1", "")
    assert driver_record.snapshot(driver_record.Present({}, "", ""), "", "found", NOW) is None


def test_the_same_packages_are_one_state_and_stay_the_roles_own():
    twice = record(FIRST, state("580.65.06-1", "found", ""))
    assert len(twice["states"]) == 1
    assert (twice["states"][0]["reason"], twice["states"][0]["main"]) == ("installed", MAIN)
    assert driver_record.ours(twice) == sorted(FIRST["packages"])
    # back again, and then installed as it is: the same state, told once
    back = record(FIRST, SECOND, state("580.65.06-1", "rolled back"))
    assert driver_record.with_state(back, FIRST) == back
    assert driver_record.ours(record(state("580.65.06-1", "found"))) == []
    assert driver_record.ours(driver_record.empty()) == []


def test_old_states_are_forgotten():
    kept = driver_record.empty()
    for number in range(driver_record.KEEP_STATES + 2):
        kept = driver_record.with_state(kept, state(f"580.{number}-1"))
    versions = [entry["version"] for entry in kept["states"]]
    assert (len(versions), versions[0]) == (driver_record.KEEP_STATES, "580.2-1")


def test_the_way_back_leads_to_the_state_before():
    assert driver_record.target(record(FIRST, SECOND), present(SECOND), "") == FIRST
    assert driver_record.target(record(FIRST, SECOND, THIRD), present(THIRD), "") == SECOND


def test_the_way_back_leads_to_a_named_version():
    known = record(FIRST, SECOND, THIRD)
    for name in ("580.65.06", "580.65.06-1"):
        assert driver_record.target(known, present(THIRD), name) == FIRST
    assert driver_record.target(known, present(FIRST), "580.65.06") is None
    with pytest.raises(UserError, match="570.1 was not recorded on this host, only 580.105.08-1, 580.95.05-1"):
        driver_record.target(known, present(THIRD), "570.1")


def test_without_an_earlier_driver_there_is_no_way_back():
    for known in (record(FIRST), driver_record.empty()):
        with pytest.raises(UserError, match="no other driver"):
            driver_record.target(known, present(FIRST), "")


def test_a_rollback_that_was_broken_off_is_gone_on_with_and_one_that_ended_is_not_undone():
    begun = driver_record.begin(record(FIRST, SECOND), FIRST, "580.95.05-1", NOW)
    half = {**present(FIRST), MAIN: "580.95.05-1"}
    assert driver_record.target(begun, half, "") == FIRST
    assert driver_record.begin(begun, FIRST, "x", "later") == begun
    ended = driver_record.finish(driver_record.with_state(begun, {**FIRST, "reason": "rolled back"}), NOW)
    assert driver_record.target(ended, present(FIRST), "") is None
    assert driver_record.finish(ended, "later") == ended
    # an upgrade after that can be gone back from again
    upgraded = driver_record.with_state(ended, THIRD)
    assert present(driver_record.target(upgraded, present(THIRD), "")) == present(FIRST)


def test_a_driver_that_the_role_installs_meanwhile_ends_a_rollback_that_was_broken_off():
    known = record(FIRST, SECOND)
    begun = driver_record.begin(known, FIRST, "580.95.05-1", NOW)
    other = driver_record.with_state(begun, THIRD)
    overtaken = driver_record.overtaken(begun, other, "later")
    assert overtaken["rollback"] is None
    assert present(driver_record.target(overtaken, present(THIRD), "")) == present(SECOND)
    # what the role finds as it was, and what it does after a rollback that ended, changes nothing
    assert driver_record.overtaken(begun, driver_record.with_state(begun, SECOND), "later") == begun
    ended = driver_record.finish(begun, NOW)
    assert driver_record.overtaken(ended, driver_record.with_state(ended, THIRD), "x")["rollback"] == ended["rollback"]
    assert driver_record.overtaken(driver_record.empty(), known, "later") == known


def test_a_rollback_that_the_role_completed_has_ended_and_is_not_undone():
    begun = driver_record.begin(record(FIRST, SECOND), FIRST, "580.95.05-1", NOW)
    there = driver_record.overtaken(begun, driver_record.with_state(begun, FIRST), "later")
    assert there["rollback"]["finished_at"] == "later"
    assert driver_record.target(there, present(FIRST), "") is None


def test_packages_come_from_the_sources_or_from_the_kept_files():
    policies = {
        MAIN: {"versions": ["580.95.05-1", "580.65.06-1"]},
        "libnvidia-compute-580-server": {"versions": ["580.95.05-1"]},
    }
    kept = {"libnvidia-compute-580-server": {"580.65.06-1": "/kept/lib.deb"}}
    now = {**present(SECOND), "nvidia-firmware-580-server": "580.95.05-1"}
    back = driver_record.way_back(FIRST, now, policies, kept)
    assert back == {
        "version": "580.65.06-1", "install": present(FIRST),
        "files": {"libnvidia-compute-580-server": "/kept/lib.deb"}, "remove": ["nvidia-firmware-580-server"],
    }  # fmt: skip
    with pytest.raises(UserError, match="cannot be restored.*libnvidia-compute-580-server 580.65.06-1"):
        driver_record.way_back(FIRST, now, policies, {})


def test_the_present_driver_and_the_one_before_are_kept():
    known = record(FIRST, SECOND, THIRD)
    now = driver_packages.own_versions(info("580.105.08-1").packages)
    wanted = driver_record.keeping(known, now, {MAIN: {"580.105.08-1": "/x"}})
    assert wanted == (
        ["libnvidia-compute-580-server=580.105.08-1"], "580.105.08", ["580.105.08", "580.95.05"],
    )  # fmt: skip
    unknown = driver_packages.own_versions(info("590.1-1").packages)
    assert driver_record.keeping(known, unknown, {}).download == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[]", "a list instead of a dict"), ("{}", "schema is None"),
        ('{"schema": 2}', "schema is 2"),
        ('{"schema": 1, "states": [{}], "rollback": null}', r"states\[0\].version is missing"),
        ('{"schema": 1, "states": [{"version": "1", "packages": {}}], "rollback": null}', "recorded_at is missing"),
        ('{"schema": 1, "states": []}', "rollback is missing"),
    ],
)
def test_a_damaged_or_newer_record_is_refused(text, words):
    with pytest.raises(UserError, match=f"/x/record.json cannot be used: .*{words}.*; move it away"):
        driver_record.parse(text, "/x/record.json")


def test_a_record_survives_being_written():
    known = driver_record.begin(record(FIRST, SECOND), FIRST, "580.95.05-1", NOW)
    assert driver_record.parse(json.dumps(known), "/x") == known
