# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import os

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.modules import upgrade_record
from ansible_collections.homelab.mixed_gpu.tests.fixtures import least_entry

OK = {"verdict": "ok", "accepted": True, "summary": "as before", "checks": [], "contended": None}
PLANNED = {"present": "580.95.05-1", "wanted": "580.105.08-1", "foreign": ""}
INSTALLED = {**PLANNED, "present": "580.105.08-1"}
ASKED = {"version": "580.105.08"}


def found(planned=None, component="driver", **more):
    """What the action plugin knows of the host."""
    return {"box": {"planned": {component: planned} if planned else {}, **more}}


BEGUN = {"component": "driver", "found": found(PLANNED), "asked": ASKED, "revalidation": OK}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "upgrade.json"


@pytest.fixture
def run(path, call_module):
    def _run(action, **arguments):
        given = {"action": action, "path": str(path), "fact_file": "/nonexistent/of/nobody", **arguments}
        return call_module(upgrade_record, given)

    return _run


def test_llama_cpp_of_a_box_is_not_upgraded_without_its_lenders(run, tmp_path):
    fact = tmp_path / "mixed_gpu.fact"
    lent = "192.168.1.7:50052"
    entry = least_entry.entry({lent: 9}, rpc_endpoints=["127.0.0.1:50052", lent])
    fact.write_text(json.dumps({"schema": 3, "active": "m", "models": {"m": entry}}))
    asked = {"component": "llama_cpp", "asked": {"version": "b11500"}, "fact_file": str(fact)}
    refused = run("open", **asked)
    assert refused["failed"]
    assert "this host serves over the lender 192.168.1.7, and llama.cpp's RPC wants the same build" in refused["msg"]
    # a driver is each host's own
    assert run("open", **{**asked, "component": "driver"})["opening"]["plan"]
    fact.write_text(json.dumps({"schema": 3, "active": None, "models": {"m": entry}}))
    assert run("open", **asked)["opening"]["plan"]


def test_the_whole_way(run, path):
    assert run("open", component="driver")["opening"]["plan"]
    assert not path.exists()
    assert run("decide", component="driver", found=found(PLANNED))["step"]["do"] == "begin"
    assert run("begin", **BEGUN)["step"]["do"] == "install"
    assert (path.stat().st_mode & 0o777, sorted(os.listdir(path.parent))) == (0o644, [".upgrade.lock", "upgrade.json"])
    assert run("open")["opening"]["asked"]["version"] == "580.105.08"
    assert run("advance", stage="installing")["step"]["do"] == "install"
    first = run("advance", stage="revalidating")
    assert first["changed"] and first["step"]["do"] == "revalidate"
    assert not run("advance", stage="revalidating")["changed"]
    assert run("decide", component="driver", found=found(INSTALLED))["step"]["do"] == "install"
    shown = run("judge", revalidation=OK, _ansible_check_mode=True, _ansible_diff=True)
    assert shown["changed"] and '"keeping"' in shown["diff"]["after"] and '"keeping"' not in path.read_text()
    assert run("judge", revalidation=OK)["step"]["do"] == "accept"
    assert "run the playbook upgrade to go on" in run("verify")["msg"]
    done = run("finish")
    assert done["result"]["summary"].startswith("The upgrade of the driver from 580.95.05-1 to 580.105.08-1 is done")
    assert done["ended_well"] and 'nvidia_driver_version: "580.105.08-1"' in done["inventory"]
    assert json.loads(path.read_text()) == done["record"]
    assert not run("verify").get("failed")
    assert run("open", component="driver", on_resume="rollback")["opening"]["sentence"] == ""
    there = found(INSTALLED | {"wanted": "580.105.08-1"})
    assert run("decide", component="driver", found=there)["step"]["do"] == "nothing"


CONTENDED = {
    "verdict": "inconclusive", "accepted": False, "summary": "inconclusive", "checks": [],
    "contended": "something else computes (stress 1.0 of 2 CPUs): wait or stop it",
}  # fmt: skip


def test_contention_accuses_no_version(run, path):
    refused = run("admit", found=found(), revalidation=CONTENDED)
    assert "nothing was changed: something else computes (stress" in refused["msg"] and not path.exists()
    slow = run("admit", found=found(), revalidation=CONTENDED | {"contended": None})
    assert "box is not as its baseline says" in slow["msg"]
    assert not run("admit", revalidation=OK).get("failed")
    run("begin", **BEGUN)
    run("advance", stage="installing")
    run("advance", stage="revalidating")
    before = path.read_text()
    assert "stress 1.0 of 2 CPUs" in run("judge", revalidation=CONTENDED)["msg"] and path.read_text() == before
    run("advance", stage="rolling_back")
    run("advance", stage="proving")
    before = path.read_text()
    assert "stress 1.0 of 2 CPUs" in run("finish", revalidation=CONTENDED)["msg"] and path.read_text() == before


def test_a_failure_ends_waits_or_leads_back(run, path):
    run("begin", **BEGUN)
    before = path.read_text()
    waiting = found(failure="Reboot, then run again.", reboot_required=True)
    waits = run("advance", stage="revalidating", found=waiting)
    assert waits["msg"] == "Reboot, then run again. The upgrade goes on from there." and path.read_text() == before
    back = run("advance", stage="revalidating", found=found(failure="no room " * 200))
    assert back["step"]["do"] == "restore" and len(back["step"]["sentence"]) <= 600
    assert run("decide", component="driver", on_resume="continue")["step"]["do"] == "restore"


def test_a_build_that_fails_leaves_everything_as_it_was(run):
    there = {"version": "b1", "builds": {"main": "b1-0"}}
    planned = {"present": there, "wanted": {"version": "b2", "builds": {"main": "b2-0"}}}
    host = found(planned, "llama_cpp")
    run("begin", component="llama_cpp", found=host, revalidation=OK)
    host["box"]["failure"] = "no compiler"
    told = run("advance", stage="installing", found=host)
    assert told["failed"] and "failed before anything was changed (no compiler)" in told["msg"]
    assert told["record"]["under_way"] is None


def test_hosts_move_together_and_each_knows_its_builds(run, path):
    there, new = {"version": "b1", "builds": {"main": "b1-0"}}, {"version": "b2", "builds": {"main": "b2-0"}}
    lent, other = {"version": "b1", "builds": {"main": "b1-9"}}, {"version": "b2", "builds": {"main": "b2-9"}}
    hosts = {
        "box": {"planned": {"llama_cpp": {"present": there, "wanted": new}}},
        "pc2": {"planned": {"llama_cpp": {"present": lent, "wanted": other}}, "lends_at": "10.0.0.7"},
    }
    begun = run("begin", component="llama_cpp", found=hosts, revalidation=OK)
    assert begun["former"] == {"box": there, "pc2": lent}
    assert {name: place["builds"] for name, place in begun["wanted"].items()} == {
        "box": new["builds"], "pc2": other["builds"]
    }  # fmt: skip
    before = path.read_text()
    away = run("advance", stage="installing", found=hosts, lost=["pc2"])
    assert away["failed"] and away["msg"].startswith("pc2 does not answer any more. The upgrade of llama.cpp on this")
    assert "all hosts move or none. Wake it, then finish that first, with -e component=llama_cpp" in away["msg"]
    assert path.read_text() == before
    run("advance", stage="installing", found=hosts)
    hosts["pc2"]["failure"] = "the unit does not start"
    hosts["box"]["planned"]["llama_cpp"]["present"] = new
    back = run("advance", stage="revalidating", found=hosts)
    assert back["step"] == {"do": "restore", "sentence": "pc2: the unit does not start"}
    assert back["former"] == {"box": there, "pc2": lent}
    run("advance", stage="proving", found=hosts)
    ended = run("finish", found=hosts, revalidation=OK)
    said = ended["result"]["summary"]
    assert "not accepted (broken: pc2: the unit does not start), and b1 is in use again on all hosts, as before" in said
    assert not ended["ended_well"]
    gone = run("open", component="llama_cpp", found=hosts, lost=["pc2"])
    assert "so nothing was changed: a box and its lenders move together" in gone["msg"]


def test_what_makes_no_sense_is_refused_and_leaves_the_file(run, path):
    run("begin", **BEGUN)
    before = path.read_text()
    for action, arguments in (("begin", BEGUN), ("advance", {"stage": "proving"}), ("finish", {})):
        assert f"mv {path}" in run(action, **arguments)["msg"]
    assert run("open", component="llama_cpp", found=found())["msg"].endswith("-e upgrade_on_resume=rollback.")
    assert path.read_text() == before


def test_a_damaged_record_names_file_and_cure(run, path):
    path.parent.mkdir()
    path.write_text("{")
    message = run("open")["msg"]
    assert f"{path} cannot be used: it holds no JSON" in message and f"mv {path} {path}.old" in message
    assert path.read_text() == "{"


def test_two_runs_do_not_write_at_once(run, path, monkeypatch):
    path.parent.mkdir()
    monkeypatch.setattr(json_file, "POLL_SECONDS", 0.01)
    taken = json_file.take_lock
    monkeypatch.setattr(json_file, "take_lock", lambda lock, seconds: taken(lock, 0.05))
    lock = taken(str(path.parent / ".upgrade.lock"), 0)
    assert "locked by another run" in run("begin", **BEGUN)["msg"]
    json_file.release_lock(lock)
    assert run("begin", **BEGUN)["changed"]


def test_a_record_that_cannot_be_written_says_why(run, path):
    path.parent.parent.joinpath("state").write_text("a file in the way")
    assert "run as root" in run("begin", **BEGUN)["msg"]
