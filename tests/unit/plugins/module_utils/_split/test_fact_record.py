# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record
from ansible_collections.homelab.mixed_gpu.tests.fixtures import least_entry

NOW = "2026-11-24T04:40:00Z"


def entry(**changes):
    return least_entry.entry({"GPU-a": 20, "GPU-b": 13}, **changes)


def placed(**layers):
    return [{"id": identity, "layers": count} for identity, count in layers.items()]


def recorded(*names, active=None):
    models = {name: entry(recorded_at="2026-01-01T00:00:00Z") for name in names}
    return {"schema": 3, "active": active, "models": models}


def test_what_is_written_is_read_again():
    record = fact_record.with_entry(fact_record.empty(), "d", entry(), True, NOW)
    assert record["models"]["d"]["recorded_at"] == NOW
    assert fact_record.FORM.parse(json.dumps(record), "/f") == record


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON"),
        ('{"schema": 3, "models": {', "no JSON"),
        ("[]", "a list instead of a dict"),
        ('{"models": {}}', "schema is None"),
        ('{"schema": true, "models": {}}', "schema is True"),
        ('{"schema": 2, "models": {}}', "schema is 2, and this release reads schema 3"),
        ('{"schema": 0, "models": {}}', "schema is 0, and this release reads schema 3"),
        ('{"schema": 3, "models": []}', "models is no dict"),
        ('{"schema": 3, "models": {"d": 3}}', "models is no dict"),
        ('{"schema": 3, "models": {}}', "active is missing"),
        ('{"schema": 3, "models": {"d": {}}}', "models.d.model is missing"),
        ('{"schema": 3, "active": "d", "models": {}}', "active deployment 'd' has no entry"),
    ],
)
def test_a_damaged_file_or_another_schema_is_named_with_the_cure(text, words):
    with pytest.raises(UserError, match=f"^/f cannot be used: .*{words}.*mv /f /f.old.*site playbook"):
        fact_record.FORM.parse(text, "/f")


def asked(record, deployment="", engine=""):
    return fact_record.find(record, "/f", deployment, engine)


def test_the_active_deployment_is_found_where_none_is_named():
    record = recorded("d", "e", active="e")
    record["models"]["d"]["serving"] = {"engine": "exllamav3"}
    found = asked(record, engine="llama_cpp")
    assert (found["available"], found["deployment"], found["engine"]) == (True, "e", "llama_cpp")
    assert (found["entry"], found["why"]) == (record["models"]["e"], None)
    named = asked(record, "d", "exllama")
    assert (named["deployment"], named["active"], named["deployments"]) == ("d", "e", ["d", "e"])
    assert named["entry"] == record["models"]["d"] and named["engine"] == "exllamav3"


@pytest.mark.parametrize(
    ("names", "active", "question", "words"),
    [
        ((), None, {}, "/f records no deployment: run the site playbook"),
        (("d", "e"), None, {}, "/f names no active deployment and holds d, e: run the site playbook"),
        (("d", "e"), "d", {"deployment": "x"}, "deployment x is not in /f, which holds d, e: tune it first"),
        (("d",), "d", {"engine": "exllama"}, "d was tuned with llama.cpp, and a deployment of ExLlama is needed here"),
    ],
)
def test_what_is_not_available_has_a_reason_and_a_cure(names, active, question, words):
    found = asked(recorded(*names, active=active), **question)
    assert not found["available"] and found["entry"] is None and words in found["why"]


def test_the_same_entry_changes_nothing_whenever_it_was_recorded():
    before = recorded("d", active="d")
    assert fact_record.with_entry(before, "d", entry(), True, NOW) == before
    assert fact_record.with_entry(before, "d", entry(recorded_at=NOW), True, NOW) == before


def test_another_entry_replaces_it_and_the_old_one_is_history():
    before = recorded("d", "e", active="e")
    after = fact_record.with_entry(before, "d", entry(campaign="new"), False, NOW)
    assert after["active"] == "e" and after["models"]["d"]["campaign"] == "new"
    assert after["models"]["e"] == before["models"]["e"]
    assert fact_record.superseded(before, after, "d") == before["models"]["d"]
    assert fact_record.superseded(before, after, "e") is None
    assert before == recorded("d", "e", active="e")


def test_making_active_needs_an_entry():
    assert fact_record.with_entry(recorded("d", "e", active="e"), "d", None, True, NOW)["active"] == "d"
    with pytest.raises(UserError, match=r"no entry for x to make active \(there are d, e\)"):
        fact_record.with_entry(recorded("d", "e"), "x", None, True, NOW)


def test_removing_the_active_one_leaves_none_active():
    assert fact_record.without_entry(recorded("d", "e", active="d"), "d") == recorded("e", active=None)
    assert fact_record.without_entry(recorded("d", "e", active="d"), "e") == recorded("d", active="d")
    assert fact_record.without_entry(recorded("d", active="d"), "x") == recorded("d", active="d")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"serving": None}, "entry.serving must be a dict, not None"),
        ({"fingerprint": 3}, "entry.fingerprint must be text, not 3"),
        ({"serving": {"engine": "vllm"}}, "entry.serving names an unknown engine 'vllm'"),
        ({"placement": placed(CUDA0=33)}, "placement is of .*CUDA0.* and entry.devices of .*'GPU-a', 'GPU-b'"),
        ({"placement": [{"device": "GPU-a", "layers": 33}]}, r"entry.placement\[0\].id is missing"),
        ({"placement": placed(**{"GPU-b": 13, "GPU-a": 20})}, "it needs one row per device"),
        ({"placement": []}, "it needs one row per device"),
        ({"placement": placed(**{"GPU-a": "33", "GPU-b": 0})}, r"\[0\].layers must be a whole number, not '33'"),
        ({"placement": placed(**{"GPU-a": 0, "GPU-b": True})}, r"\[1\].layers must be a whole number, not True"),
        ({"placement": placed(**{"GPU-a": 0, "GPU-b": 0})}, "puts no layer on any device"),
        ({"decision": {"gain": float("nan")}}, "entry.decision.gain is nan"),
        ({"decision": {"fit": {"decode_ms_per_layer": ["x"]}}}, r"fit.decode_ms_per_layer\[0\] must be a whole number"),
        ({"decision": {"fit": {"average_layer": {}}}}, "entry.decision.fit.average_layer.weights_bytes is missing"),
        ({"fingerprint_parts": {"tests": [], "gpus": [None]}}, r"gpus\[0\] must be a dict, not None"),
        ({"placement": placed(**{"GPU-a": 34, "GPU-b": -1})}, r"placement is \[34, -1\], which is no split over 2 dev"),
        ({"feasible": [{"layers": [33]}]}, r"feasible\[0\].layers is \[33\], which is no split of 33 la"),
        ({"decision": {"table": [{"layers": [20, 12]}]}}, r"table\[0\].layers is \[20, 12\], which is no split of"),
        ({"speculation": "draft"}, "entry.speculation must be null or a dict, not 'draft'"),
        ({"fallbacks": [{}]}, r"entry.fallbacks\[0\].absent is missing"),
    ],
)
def test_an_entry_that_makes_no_sense_is_named(changes, words):
    with pytest.raises(UserError, match=words):
        fact_record.check_entry(entry(**changes))


@pytest.mark.parametrize("name", ["", "../x", "a b", ".hidden", "a/b", "x" * 201])
def test_a_deployment_has_to_be_a_file_name(name):
    with pytest.raises(UserError, match="no usable id"):
        fact_record.check_deployment(name)
