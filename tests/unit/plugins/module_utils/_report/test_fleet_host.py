# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Boxes as files are read; what is damaged, huge or hostile is a sentence."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import fleet_host, fleet_table
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import unattended, upgrade_stages
from ansible_collections.homelab.mixed_gpu.tests.fixtures import fleet


def read(root, units=None):
    places = fleet_host.Places(str(root), "/var/lib/mixed_gpu", "/opt/llama.cpp/current", "/opt/exllama")
    return fleet_host.read(places, units, fleet.NOW)


def test_a_tuned_box_says_all_of_it(tmp_path):
    seen = read(fleet.box(tmp_path))
    assert seen["cards"] == ["NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3090"]
    served = seen["deployments"][0]
    assert (served["deployment"], served["served"], served["model"]) == (fleet.NAME, True, "Llama 3.3 70B Instruct")
    assert (served["split"], served["unit"]) == ("44,37", "llama-server.service")
    assert served["decode_tokens_per_second"] == fleet.ENTRY["decision"]["decode_tokens_per_second"]
    assert seen["verdict"] == {
        "verdict": "ok", "accepted": True, "summary": "decode is slow", "at": "2026-11-29T07:00:00Z", "age_hours": 5.0,
    }  # fmt: skip
    assert seen["driver"]["loaded"] == seen["driver"]["recorded"] == fleet.DRIVER
    assert seen["build"] == {"engine": "llama.cpp", "version": "b11312", "key": "ab" * 4 + "a..."}
    assert seen["collection"] == "0.1.0"
    assert seen["watchdog"] == {"watches": True, "restarts": 0, "reason": None, "stuck": [], "failed": []}
    assert (seen["due"], seen["upgrade"], seen["wrong_answers"], seen["reboot_required"]) == (None, None, None, False)
    assert (seen["lends"], seen["units"], seen["problems"]) == (0, None, [])


def test_a_bare_machine_has_nothing_and_no_problem(tmp_path):
    seen = read(tmp_path)
    assert (seen["cards"], seen["deployments"], seen["verdict"], seen["build"], seen["watchdog"]) == (
        [],
        [],
        None,
        None,
        None,
    )
    assert seen["problems"] == []


def test_the_served_deployment_is_the_first(tmp_path):
    fleet.box(tmp_path)
    path = tmp_path / "etc/ansible/facts.d/mixed_gpu.fact"
    record = json.loads(path.read_text())
    record["models"]["a-model"] = fleet.entry()
    path.write_text(json.dumps(record))
    assert [one["deployment"] for one in read(tmp_path)["deployments"]] == [fleet.NAME, "a-model"]


def test_a_lender_has_units_and_no_record(tmp_path):
    for number in (0, 1):
        fleet.write(tmp_path, f"etc/systemd/system/ggml-rpc-server-{number}.service", "[Unit]\n")
    assert read(tmp_path)["lends"] == 2
    # a box whose own devices are RPC devices, as the sandbox's, lends nothing
    assert read(fleet.box(tmp_path))["lends"] == 0


@pytest.mark.parametrize(
    ("stamps", "verdict", "hours"),
    [
        ([("regressed", "2026-11-28T12:00:00Z")], "regressed", 24.0),
        # the newest counts
        ([("regressed", "2026-11-28T12:00:00Z"), ("ok", "2026-11-29T11:00:00Z")], "ok", 1.0),
        # of before the tuning
        ([("regressed", "2026-11-19T12:00:00Z")], None, None),
        # the clock was moved
        ([("ok", "2026-11-30T12:00:00Z")], "ok", 0.0),
    ],
)
def test_the_verdict_is_the_newest_since_the_tuning(tmp_path, stamps, verdict, hours):
    fleet.box(tmp_path)
    for old in (tmp_path / fleet.STATE / "revalidations").iterdir():
        old.unlink()
    for name, at in stamps:
        fleet.revalidated(tmp_path, name, at)
    found = read(tmp_path)["verdict"]
    assert (found and found["verdict"], found and found["age_hours"]) == (verdict, hours)


def test_an_unattended_verdict_counts_where_it_is_newer(tmp_path):
    fleet.box(tmp_path)
    outcome = unattended.outcome({
        "deployment": fleet.NAME, "verdict": "broken", "accepted": False, "measured": False, "summary": "no card",
        "checks": [],
    })  # fmt: skip
    fleet.write(tmp_path, f"{fleet.STATE}/unattended/state.json", unattended.new_state(outcome, "2026-11-29T10:00:00Z"))
    assert read(tmp_path)["verdict"]["verdict"] == "broken"
    fleet.revalidated(tmp_path, "ok", "2026-11-29T11:00:00Z")
    assert read(tmp_path)["verdict"]["verdict"] == "ok"


def test_what_waits_for_somebody(tmp_path):
    fleet.box(tmp_path, driver="590.10")
    begun = upgrade_stages.begin(
        upgrade_stages.empty(), "llama_cpp",
        [upgrade_stages.Ends("box", {"version": "b1", "builds": {}}, {"version": "b2", "builds": {}})], {},
        {"verdict": "ok", "accepted": True, "summary": "well"}, fleet.NOW,
    )  # fmt: skip
    fleet.write(tmp_path, upgrade_stages.PATH.lstrip("/"), begun)
    fleet.write(tmp_path, "run/reboot-required", "")
    fleet.write(tmp_path, f"{fleet.STATE}/wrong_answers", "the placement computes other answers\n")
    seen = read(tmp_path)
    assert "the NVIDIA driver 590.10 is loaded" in seen["due"]["why"] and seen["due"]["now"]
    assert "upgrade of llama.cpp from b1 to b2" in seen["upgrade"]["why"]
    assert seen["reboot_required"] is True
    assert seen["wrong_answers"] == "the placement computes other answers"


def test_the_watchdog_of_a_day(tmp_path):
    fleet.box(tmp_path)
    fleet.watched(tmp_path, hours=[30, 3, 1], stuck=True, failed=2)
    assert read(tmp_path)["watchdog"] == {
        "watches": True, "restarts": 2, "reason": "llama-server.service: nothing moved for 60 seconds",
        "stuck": ["llama-server.service"], "failed": ["llama-server.service"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": 1}', json.dumps({"schema": 3, "active": None, "models": {"d": {}}})]
)
def test_a_damaged_record_is_a_problem_and_not_an_untuned_host(tmp_path, text):
    fleet.box(tmp_path)
    fleet.write(tmp_path, "etc/ansible/facts.d/mixed_gpu.fact", text)
    seen = read(tmp_path)
    assert seen["deployments"] is None
    assert len(seen["problems"]) == 1 and "mixed_gpu.fact cannot be used" in seen["problems"][0]


@pytest.mark.parametrize("path", ["unattended/state.json", "watchdog/state.json"])
@pytest.mark.parametrize("text", ["{", "[" * 5000, '{"units": {"u": {"restarts": 3}}, "outcome": 7}', "null"])
def test_damaged_states_end_nothing(tmp_path, path, text):
    fleet.write(fleet.box(tmp_path), f"{fleet.STATE}/{path}", text)
    seen = read(tmp_path)
    assert seen["verdict"]["verdict"] == "ok" and len(seen["problems"]) <= 1


def test_a_revalidation_that_cannot_be_opened_is_named_beside_the_others(tmp_path):
    fleet.box(tmp_path)
    (tmp_path / fleet.STATE / "revalidations" / f"{fleet.NAME}@20261129T110000Z-000.json").mkdir()
    seen = read(tmp_path)
    assert seen["verdict"]["at"] == "2026-11-29T07:00:00Z" and len(seen["deployments"]) == 1
    (problem,) = seen["problems"]
    assert "000.json cannot be read (Is a directory): use --become" in problem


def test_a_huge_file_is_not_read(tmp_path):
    path = fleet.box(tmp_path) / "etc/ansible/facts.d/mixed_gpu.fact"
    with path.open("r+b") as file:
        file.truncate(fleet_host.MOST_BYTES + 1)
    seen = read(tmp_path)
    assert seen["deployments"] is None and "bytes: move it away" in seen["problems"][0]


def test_an_answer_is_small_and_of_single_lines_whatever_is_recorded(tmp_path):
    evil = "\x1b[2J\r\nFAKE | row\u202e" * 20000
    decision = {**fleet.ENTRY["decision"], "decode_tokens_per_second": evil, "prefill_tokens_per_second": 1e300}
    devices = [{**device, "description": evil} for device in fleet.ENTRY["devices"]]
    model = {**fleet.ENTRY["model"], "name": evil}
    fleet.box(tmp_path, build=evil, model=model, devices=devices, decision=decision)
    fleet.revalidated(tmp_path, evil, "2026-11-29T11:00:00Z", evil)
    fleet.write(tmp_path, f"{fleet.STATE}/wrong_answers", evil)
    text = json.dumps(read(tmp_path, [{"Id": evil}]), ensure_ascii=False)
    assert len(text) < 6000
    assert not [mark for mark in ("\x1b", "\\u001b", "\\r", "\\n", "\u202e") if mark in text]
    assert read(tmp_path)["deployments"][0]["decode_tokens_per_second"] is None
    assert read(tmp_path)["deployments"][0]["prefill_tokens_per_second"] is None


def test_units_as_systemd_says_them(tmp_path):
    said = {"Id": "llama-server.service", "ActiveState": "activating", "StatusText": "x"}
    ended = {"SubState": "auto-restart", "Result": "oom-kill", "NRestarts": "3"}
    (well,), (unit,) = (read(tmp_path, [one])["units"] for one in (said, {**said, **ended}))
    assert well == {"unit": "llama-server.service", "state": "activating", "status": "x", "why": ""}
    assert "llama-server.service ended and is started again (end 4 in a row): the kernel killed" in unit["why"]


def test_the_longest_reason_of_a_unit_keeps_its_cure(tmp_path):
    said = {"Id": "llama-server.service", "ActiveState": "failed", "Result": "oom-kill", "NRestarts": "9"}
    (unit,) = read(tmp_path, [said])["units"]
    result = {"host": {**read(fleet.box(tmp_path)), "units": [unit]}}
    assert "then run site" in fleet_table.table({"box": result})["report"]["attention"][0]
