# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a revalidation is due: recorded, loaded and installed driver, in each way in which they can differ."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_versions
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import due
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record
from ansible_collections.homelab.mixed_gpu.tests.fixtures import least_entry

OLD, NEW = "580.95.05", "580.105.08"


def entry(version=OLD, at="2026-11-20T10:00:00Z"):
    return {"recorded_at": at, "fingerprint_parts": {"driver_version": version, "tests": []}}


def result(at, accepted=True, version=NEW):
    return {"at": at, "accepted": accepted, "driver_version": version}


@pytest.mark.parametrize(
    ("recorded", "loaded", "installed", "needed", "now", "words"),
    [
        (OLD, OLD, OLD, False, False, None),
        # upgraded, and not loaded yet
        (OLD, OLD, NEW, True, False, f"{NEW} is installed and loads at the next boot, and the speed was last compared"),
        # upgraded and booted
        (OLD, NEW, NEW, True, True, f"{NEW} is loaded, and the speed was last compared with {OLD}"),
        # booted, in a container without kernels
        (OLD, NEW, None, True, True, f"{NEW} is loaded"),
        (OLD, OLD, None, False, False, None),
        # went back before the boot, and after it
        (OLD, NEW, OLD, True, True, f"{NEW} is loaded"),
        # removed, and booted without
        (OLD, OLD, "", True, False, "no NVIDIA driver is installed for the next boot"),
        (OLD, "", "", True, True, "no NVIDIA driver is loaded"),
        # devices that need no driver
        (None, "", None, False, False, None),
        (None, NEW, NEW, False, False, None),
    ],
)
def test_each_way_to_differ(recorded, loaded, installed, needed, now, words):
    found = due.compare(recorded, loaded, installed)
    assert (found["needed"], found["now"]) == (needed, now)
    assert (found["why"] is None, found["cure"] is None) == (not needed, not needed)
    assert found["driver"] == {"recorded": recorded, "loaded": loaded, "installed": installed}
    if words:
        assert words in found["why"]
        assert found["cure"].startswith("ansible-playbook" if now else "reboot, then run ansible-playbook")


@pytest.mark.parametrize(
    ("history", "recorded"),
    [
        ([], OLD),
        ([result("2026-11-25T10:00:00Z")], NEW),
        # only what was accepted counts
        ([result("2026-11-25T10:00:00Z", accepted=False)], OLD),
        ([result("2026-11-26T10:00:00Z", accepted=False), result("2026-11-25T10:00:00Z")], NEW),
        ([result("2026-11-26T10:00:00Z", version=OLD), result("2026-11-25T10:00:00Z")], OLD),
        # of before the tuning
        ([result("2026-11-19T10:00:00Z")], OLD),
        # nobody could say which driver it was
        ([result("2026-11-25T10:00:00Z", version=None)], OLD),
    ],
)
def test_the_driver_that_was_validated_last_is_the_recorded_one(history, recorded):
    assert due.recorded_driver(entry(), history) == recorded


def test_without_a_record_or_a_driver_in_it_there_is_none():
    assert due.recorded_driver(None, []) is None
    assert due.recorded_driver(entry(None), []) is None


def test_a_host_is_read_with_its_history_and_a_damaged_one_counts_as_none(tmp_path, monkeypatch):
    monkeypatch.setattr(driver_versions, "read", lambda _root: driver_versions.Versions(NEW, NEW))
    fact, history = tmp_path / "mixed_gpu.fact", tmp_path / "revalidations"

    def read():
        return due.of_host(str(fact), str(tmp_path))

    assert not read()["needed"]
    whole = least_entry.entry({"GPU-1": 9}, **entry())
    fact.write_text(json.dumps({**fact_record.empty(), "active": "d", "models": {"d": whole}}))
    assert read()["needed"] and read()["driver"]["recorded"] == OLD
    history.mkdir()
    (history / "d@20261124T100000Z-000.json").write_text(json.dumps(result("2026-11-24T10:00:00Z")))
    (history / "d@20261125T100000Z-000.json").write_text("{")
    (history / "d@20261126T100000Z-000.json").mkdir()
    (history / "other@20261126T100000Z-000.json").write_text(json.dumps(result("2026-11-26T10:00:00Z", version="1")))
    assert not read()["needed"] and read()["driver"]["recorded"] == NEW
    fact.write_text("{")
    assert not read()["needed"]
    fact.unlink()
    fact.mkdir()
    assert not read()["needed"]
