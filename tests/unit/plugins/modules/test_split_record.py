# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_versions
from ansible_collections.homelab.mixed_gpu.plugins.modules import split_record


def tuning(**changes):
    return {
        "model": {"id": "m", "path": "/m.gguf", "sha256": "5a"},
        "problem": {
            "devices": [
                {"id": "a:1", "device": "RPC0", "backend": "RPC"}, {"id": "b:2", "device": "RPC1", "backend": "RPC"},
            ],
            "model": {
                "size_bytes": 9, "block_count": 32, "architecture": "llama", "file_type": "Q8_0", "expert_count": 0,
                "block_bytes": [1],
            },
            "serving": {"context_size": 2048, "micro_batch_size": 512},
        },
        "plan": {
            "decision": {"layers": [20, 13], "split_mode": "layer", "micro_batch_size": 256, "why": "it is faster"},
            "feasible": [],
        },
        "loads": [], "rpc_endpoints": ["127.0.0.1:1", "127.0.0.1:2"],
        "dry_run": None, "device_probe": None, "probe_settings": None,
        "fingerprint_parts": {"driver_version": None, "tests": []}, "campaign": "c1", **changes,
    }  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "facts.d" / "mixed_gpu.fact"


@pytest.fixture
def run(path, tmp_path, call_module):
    def _run(deployment="d", check=False, diff=False, **arguments):
        arguments = {
            "deployment": deployment, "path": str(path), "history_dir": str(_run.history), "lock_wait_seconds": 0,
            **arguments, "_ansible_check_mode": check, "_ansible_diff": diff,
        }
        return call_module(split_record, arguments)

    _run.history = tmp_path / "history"
    return _run


def test_the_first_entry_makes_the_file(run, path):
    result = run(tuning=tuning(), diff=True)
    record = json.loads(path.read_text())
    assert result["changed"] and result["record"] == record and result["history_file"] is None
    assert record["schema"] == 3 and record["active"] == "d"
    entry = record["models"]["d"]
    assert entry["recorded_at"].endswith("Z")
    assert entry["placement"] == [{"id": "a:1", "layers": 20}, {"id": "b:2", "layers": 13}]
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["mixed_gpu.fact"]
    assert result["diff"]["before"] == "" and result["diff"]["after"] == path.read_text()


def test_the_same_entry_again_changes_nothing(run, path):
    run(tuning=tuning())
    before = path.stat()
    result = run(tuning=tuning(), diff=True)
    assert not result["changed"] and result["diff"]["before"] == result["diff"]["after"]
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_check_mode_writes_nothing(run, path):
    result = run(tuning=tuning(), check=True, diff=True)
    assert result["changed"] and "d" in result["record"]["models"] and not path.parent.exists()
    assert '"campaign": "c1"' in result["diff"]["after"]


def test_a_superseded_entry_goes_to_the_history_which_is_pruned(run, path, monkeypatch):
    monkeypatch.setattr(split_record, "KEPT", 3)
    for count in range(5):
        result = run(tuning=tuning(campaign=f"c{count}"))
    kept = [json.loads(name.read_text()) for name in sorted(run.history.iterdir())]
    assert [old["entry"]["campaign"] for old in kept] == ["c1", "c2", "c3"]
    assert kept[0]["schema"] == 3 and kept[0]["deployment"] == "d"
    assert result["history_file"] == str(max(run.history.iterdir()))
    run(tuning=tuning(campaign="c9"))
    assert json.loads(path.read_text())["models"]["d"]["campaign"] == "c9"


def test_one_of_several_deployments_is_active(run, path):
    run("d", tuning=tuning())
    assert run("e", tuning=tuning(), active=False)["record"]["active"] == "d"
    assert run("e")["changed"] and not run("e")["changed"]
    assert json.loads(path.read_text())["active"] == "e"
    result = run("x")
    assert result["failed"] and "no entry for x to make active (there are d, e)" in result["msg"]


def test_entries_are_removed_and_the_file_with_the_last(run, path):
    run("d", tuning=tuning())
    run("e", tuning=tuning())
    assert run("e", state="absent", check=True)["record"]["active"] is None
    assert json.loads(path.read_text())["active"] == "e"
    removed = run("e", state="absent")
    assert removed["changed"] and list(removed["record"]["models"]) == ["d"] and removed["record"]["active"] is None
    assert not run("e", state="absent")["changed"]
    assert run("d", state="absent")["record"] is None and not path.exists()
    assert not run("d", state="absent")["changed"]
    assert len(list(run.history.iterdir())) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no JSON"), ('{"schema": 1', "holds no JSON"), ("[1]", "a list instead of a dict"),
        ('{"schema": 7, "models": {}}', "schema is 7, and this release reads schema 3"),
    ],
)
def test_a_damaged_file_or_another_schema_is_left_alone(run, path, text, words):
    path.parent.mkdir()
    path.write_text(text)
    for state in ("present", "absent", "query"):
        result = run(tuning=tuning(), state=state)
        assert result["failed"] and words in result["msg"] and "\n" not in result["msg"]
        assert f"move it away (mv {path} {path}.old) and run the site playbook again" in result["msg"]
    assert path.read_text() == text and not run.history.exists()


def test_a_query_returns_the_entry_and_changes_nothing(run, path):
    run("d", tuning=tuning())
    run("e", tuning=tuning(campaign="c2"))
    before = path.stat()
    found = run("", state="query", required=True, engine="llama_cpp")
    assert not found["changed"] and found["available"] and found["deployment"] == found["active"] == "e"
    assert found["entry"] == found["record"]["models"]["e"] and found["deployments"] == ["d", "e"]
    assert run("d", state="query", check=True)["entry"]["campaign"] == "c1"
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_query_says_when_a_revalidation_is_due(run, monkeypatch):
    assert run("", state="query")["revalidation"]["needed"] is False
    run("d", tuning=tuning(fingerprint_parts={"driver_version": "580.95.05", "tests": []}))
    now = driver_versions.Versions("580.105.08", "580.105.08")
    monkeypatch.setattr(driver_versions, "read", lambda _root: now)
    found = run("d", state="query")["revalidation"]
    assert found["needed"] and found["now"] and "580.105.08 is loaded" in found["why"]
    assert found["driver"] == {"recorded": "580.95.05", "loaded": "580.105.08", "installed": "580.105.08"}


def test_a_query_returns_the_revalidations_of_its_deployment(run):
    run("d", tuning=tuning())
    assert run("d", state="query")["trend"] == []
    directory = run.history.parent / "revalidations"
    directory.mkdir()
    result = {"at": "2026-11-25T03:00:00Z", "verdict": "ok", "checks": [{"name": "decode", "change_percent": 0.4}]}
    (directory / "d@2026-11-25T03:00:00Z.json").write_text(json.dumps(result))
    (directory / "d@2026-11-26T03:00:00Z.json").write_text("damaged")
    (directory / "e@2026-11-25T03:00:00Z.json").write_text(json.dumps(result))
    (row,) = run("d", state="query")["trend"]
    assert (row["at"], row["decode"]["percent"]) == ("2026-11-25T03:00:00Z", 0.4)


def test_a_renewal_keeps_the_split_and_takes_over_the_host_as_it_is(run, path):
    parts = {"gpus": [], "extra": {"x": 1}, "tests": []}
    run(tuning=tuning(fingerprint_parts={"driver_version": "1", "llama_cpp": "b1", **parts}))
    renewal = {"build": "b2", "gpus": {"driver_version": "2", "gpus": []}, "extra": {}, "device_probe": None}
    assert run(renewal=renewal, active=False, check=True)["changed"]
    result = run(renewal=renewal, active=False)
    entry = json.loads(path.read_text())["models"]["d"]
    assert result["changed"] and not run(renewal=renewal)["changed"] and len(list(run.history.iterdir())) == 1
    assert entry["fingerprint_parts"] == {"driver_version": "2", "llama_cpp": "b2", **parts}
    assert entry["placement"] == [{"id": "a:1", "layers": 20}, {"id": "b:2", "layers": 13}]


def test_a_query_of_what_is_not_recorded_fails_where_it_is_required(run, path):
    found = run("", state="query")
    assert not found["available"] and found["record"]["models"] == {} and f"{path} records no" in found["why"]
    assert run("", state="query", required=True)["msg"] == f"{found['why']}."
    run("d", tuning=tuning())
    wrong = run("", state="query", engine="exllama", required=True)
    assert wrong["failed"] and "d was tuned with llama.cpp" in wrong["msg"] and "exllamav2" in wrong["msg"]


def test_a_wrong_mode_is_put_right(run, path):
    run(tuning=tuning())
    path.chmod(0o600)
    assert run(tuning=tuning())["changed"] and path.stat().st_mode & 0o777 == 0o644
    assert not run(tuning=tuning())["changed"]


def test_a_second_writer_waits_and_then_gives_up(run, path):
    path.parent.mkdir()
    lock = json_file.take_lock(str(path.parent), 0)
    result = run(tuning=tuning())
    assert result["failed"] and "locked by another run" in result["msg"] and not path.exists()
    json_file.release_lock(lock)
    assert run(tuning=tuning())["changed"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"deployment": "../d", "tuning": tuning()}, "'../d' is no usable id"),
        ({"deployment": "", "state": "absent"}, "'' is no usable id"),
        ({"tuning": tuning(fingerprint_parts=None)}, "cannot be recorded: a fingerprint is made of a dict"),
        ({"tuning": {"problem": {}}}, "the result of the tuning cannot be recorded: it lacks 'plan'"),
        ({"renewal": {"gpus": {}}}, "nothing is recorded for d: tune it first"),
        ({"renewal": {}, "tuning": {}}, "mutually exclusive"),
        ({"tuning": tuning(), "lock_wait_seconds": -1}, "lock_wait_seconds is -1"),
        ({}, "no entry for d to make active (there are none)"),
    ],
)
def test_misuse_is_one_sentence(run, path, arguments, words):
    result = run(**arguments)
    assert result["failed"] and words in result["msg"] and "\n" not in result["msg"] and not path.exists()


def test_a_place_that_cannot_be_written_is_one_sentence(run, path):
    path.parent.write_text("a file where the directory should be")
    result = run(tuning=tuning())
    assert result["failed"] and "cannot be" in result["msg"] and str(path.parent) in result["msg"]


@pytest.mark.parametrize(
    "damage",
    [
        {"at": None}, {"at": 7}, {"checks": True}, {"checks": ["decode"]}, {"checks": [{"name": 3}]},
        {"checks": [{"name": "decode", "change_percent": "fast"}]},
    ],
)  # fmt: skip
def test_a_damaged_revalidation_is_left_out_of_the_trend(run, path, tmp_path, damage):
    run(tuning=tuning())
    (tmp_path / "revalidations").mkdir()
    checks = [{"name": "decode", "change_percent": 1.0, "interval_percent": [0.5]}]
    good = {"at": "2099-11-29T07:00:00Z", "verdict": "ok", "accepted": True, "checks": checks}
    for number, result in enumerate((good, {**good, **damage})):
        (tmp_path / f"revalidations/d@20991129T070000Z-00{number}.json").write_text(json.dumps(result))
    (row,) = run(state="query")["trend"]
    assert row["decode"] == {"percent": 1.0, "low": 0.5, "high": None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recorded_at": None}, "models.d.recorded_at must be text, not None"),
        ({"serving": {"micro_batch_size": "512"}}, "serving.micro_batch_size must be a whole number, not '512'"),
        ({"decision": {"table": [{"layers": "20,13"}]}}, "decision.table[0].layers must be a list, not '20,13'"),
        ({"environment": {"CUDA_VISIBLE_DEVICES": 0}}, "environment.CUDA_VISIBLE_DEVICES must be text, not 0"),
    ],
)
def test_an_entry_with_a_field_of_another_type_is_named(run, path, changes, words):
    run(tuning=tuning())
    record = json.loads(path.read_text())
    record["models"]["d"].update(changes)
    path.write_text(json.dumps(record))
    message = run(state="query")["msg"]
    assert words in message and "run the site playbook again" in message


@pytest.mark.parametrize(
    ("lender", "words"),
    [
        ({"servers": None}, "lenders.l.servers must be a list, not None"),
        ({"servers": [{"endpoint": "10.0.0.2:50052"}]}, "lenders.l.servers[0].card is missing"),
        ({"build": {}}, "lenders.l.build.build is missing"),
    ],
)
def test_a_damaged_record_of_lenders_is_named(run, path, tmp_path, lender, words):
    run(tuning=tuning(rpc_endpoints=["10.0.0.2:50052"]))
    whole = {"build": {"build": 1, "commit": "c"}, "servers": []}
    (tmp_path / "lenders.json").write_text(json.dumps({"schema": 1, "lenders": {"l": {**whole, **lender}}}))
    assert f"lenders.json cannot be used: {words}" in run(state="query")["msg"]
