# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import store

PREFILL = {"kind": "prefill", "n_prompt": 256, "n_gen": 0, "n_depth": 0, "repetitions": 2}
DECODE = {"kind": "decode", "n_prompt": 0, "n_gen": 32, "n_depth": 0, "repetitions": 3}
LOAD = {"label": "x", "split_mode": "layer", "layers": [20, 13], "load": 1, "tests": [PREFILL, DECODE]}
KEY = store.load_key("f", "c", LOAD)
MEASURED = {**LOAD, "status": "ok", "reason": None, "results": [
    {"kind": test["kind"], "n_prompt": test["n_prompt"], "n_gen": test["n_gen"], "n_depth": 0, "samples_ms": [1.0]}
    for test in (PREFILL, DECODE)
]}


def stored(**changes):
    return {**store.stored_form(KEY, MEASURED, "11312", ["/b"], []), **changes}


def test_a_stored_load_is_read_again():
    assert store.read_stored(json.dumps(stored()), KEY) == MEASURED


def test_every_part_of_the_key_makes_another_file():
    keys = [KEY] + [{**KEY, name: value} for name, value in (
        ("fingerprint", "g"), ("campaign", "d"), ("split_mode", "row"), ("layers", [13, 20]), ("load", 2),
    )]
    assert len({store.file_name(key) for key in keys}) == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON"),
        (json.dumps(stored())[:-20], "no JSON"),
        ("[]", "a list instead of a dict"),
        (json.dumps(stored(schema=2)), "schema is 2"),
        (json.dumps(stored(key={**KEY, "load": 2})), "belongs to another load"),
        (json.dumps(stored(load=None)), "load must be a dict, not None"),
        (json.dumps(stored(load={**MEASURED, "status": "fine"})), "load.status must be one of ok, .*, not 'fine'"),
        (json.dumps(stored(load={**MEASURED, "results": []})), "ok and has no results"),
    ],
)
def test_a_damaged_store_is_named(text, words):
    with pytest.raises(UserError, match=words):
        store.read_stored(text, KEY)


@pytest.mark.parametrize(
    ("status", "again"),
    [("out_of_memory", True), ("crashed", True), ("timed_out", True), ("device_lost", False), ("unreadable", False)],
)
def test_only_lasting_failures_are_reused(status, again):
    assert store.reusable({"status": status, "results": []}, [PREFILL]) is again


def test_a_stored_load_has_to_answer_the_tests():
    assert store.reusable(MEASURED, [DECODE])
    assert not store.reusable(MEASURED, [PREFILL, {**DECODE, "n_depth": 4096}])


def test_names_of_stored_loads_stay_what_they_were():
    """A measurement of an hour is found under its name by every later release, so a move of code must not change it."""
    more = {"micro_batch_size": 1024, "environment": {"NCCL_ALGO": "Ring"}, "reference": True}
    assert store.file_name(KEY) == "627d6661e46476b562150b50dffc47b3c70d5c22091732283d4f1954ff300e3e.json"
    with_more = store.load_key("f", "c", {**LOAD, **more})
    assert store.file_name(with_more) == "57071c005000c9de9df004d144e7b8e8221244e5322280b22f982d9882ffee12.json"
