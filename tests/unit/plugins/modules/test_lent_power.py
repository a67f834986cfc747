# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is recorded of lenders that were not seen. A whole measurement: tests/unit/roles/test_lent_power.py."""

from __future__ import annotations

import json
import pathlib
import sys
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import served_store
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watch import power
from ansible_collections.homelab.mixed_gpu.plugins.modules import lent_power
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.modules import test_llama_server_benchmark as benchmark

ENDPOINT: t.Final = "192.168.1.20:50052"
ENTRY: t.Final = {
    "fingerprint": "f", "campaign": "c", "split_mode": "layer", "placement": [{"id": ENDPOINT, "layers": 33}],
    "devices": [{"device": "RPC0", "id": ENDPOINT, "backend": "RPC"}],
}  # fmt: skip
LENDERS: t.Final = {"pc2": {"servers": [{"endpoint": ENDPOINT, "card": {"id": "GPU-9"}}]}}
RECORD: t.Final = {"deployment": "m", "entry": ENTRY, "lenders": LENDERS}
LOAD: t.Final = {"reason": None, "cards": [], "tokens_per_second": 20.0}


def test_a_lender_that_was_not_seen_is_asked_again(tmp_path: pathlib.Path, call_module: t.Any) -> None:
    stored = {
        "schema": served_store.SCHEMA, "configuration": served_store.configuration(ENTRY), "tests": [],
        "power_tokens": 512, "power": {"reason": f"{ENDPOINT} is on another host"},
    }  # fmt: skip
    (tmp_path / "m.json").write_text(json.dumps(stored))
    given = {"record": RECORD, "state_dir": str(tmp_path)}
    start = {"item": "pc2", "failed": True, "msg": "Task failed: Missing sudo password"}
    recorded = {**given, "state": "recorded", "load": LOAD, "watches": [start]}
    reason = {"reason": "pc2 was not seen: Missing sudo password"}
    for changed in (True, False):
        assert call_module(lent_power, given)["watch"] == ["pc2"]
        found = call_module(lent_power, recorded)
        assert (found["changed"], found["power"]) == (changed, reason)
    assert json.loads((tmp_path / "m.json").read_text())["power"] == reason
    seen = {"mixed_gpu_gpus": {"gpus": [{"id": "GPU-9", "sampled": {"power_draw_watts": {"mean": 200.0}}}]}}
    looks = [{"item": {"item": "pc2"}, "ansible_facts": seen}]
    assert call_module(lent_power, {**recorded, "watches": [], "looks": looks})["power"]["joules_per_token"] == 10.0
    assert call_module(lent_power, given)["watch"] == []


def test_the_load_ends_when_the_cards_were_watched_and_says_where_they_were_not(
    tmp_path: pathlib.Path, call_module: t.Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"record": RECORD, "state_dir": str(tmp_path)}
    with benchmark.running() as server:
        loaded = {**given, "state": "loaded", "url": server.url, "host_python": sys.executable}
        monkeypatch.setattr(power, "LOAD_SECONDS", 0.0)
        assert call_module(lent_power, loaded)["load"] == {"reason": power.TOO_LATE}
        monkeypatch.undo()
        call_module(lent_power, {**given, "state": "watched"})
        assert call_module(lent_power, loaded)["load"] == {**LOAD, "tokens_per_second": 50.0}
    assert [path.name for path in tmp_path.iterdir()] == ["m.json.watched"]
    call_module(lent_power, given)
    assert list(tmp_path.iterdir()) == []
