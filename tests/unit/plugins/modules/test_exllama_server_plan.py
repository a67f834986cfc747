# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import os

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record
from ansible_collections.homelab.mixed_gpu.plugins.modules import exllama_server_plan
from ansible_collections.homelab.mixed_gpu.tests.fixtures import least_entry

SETTINGS = {
    "engine": "v2", "requirements": "torch==2\n", "model_id": "", "context_size": 4096, "cache_mode": "FP16",
    "gpus": [], "gpu_split_gb": [], "tensor_parallel": "", "draft": {}, "host": "127.0.0.1", "port": 5000,
    "keyed": True, "supplementary_groups": [], "allowed_networks": [], "load_timeout_seconds": 900,
}  # fmt: skip
CARDS = {"available": True, "reason": None, "gpus": [{"id": "GPU-a"}, {"id": "GPU-b"}]}
ENTRY = least_entry.entry(
    {"GPU-b": 6, "GPU-a": 7}, gpu_split_gb=[17.5, 20.5], tensor_parallel="",
    model={"id": "tiny", "path": "/tiny", "sha256": None},
    serving={"engine": "exllamav2", "context_size": 4096, "cache_mode": "FP16"},
)  # fmt: skip


@pytest.fixture
def run(tmp_path, call_module, monkeypatch):
    """Call the module for a model that head can read, or not; setpriv is left out, since it needs root."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/setpriv").write_text('#!/bin/sh\nshift 3\nexec "$@"\n')
    (tmp_path / "bin/setpriv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(
        exllama_server_plan.server_plan, "_HIDDEN", exllama_server_plan.server_plan.re.compile("/home/")
    )
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/config.json").write_text("{}")

    def _run(fact=None, more=(), cards=CARDS, **changed):
        path = tmp_path / "mixed_gpu.fact"
        if fact is not None:
            path.write_text(fact)
        settings = SETTINGS | {"model_path": str(tmp_path / "tiny")} | changed
        arguments = {"settings": settings, "fact_file": str(path), "cards": cards, **dict(more)}
        return call_module(exllama_server_plan, arguments)

    return _run


def test_without_a_record_the_engine_decides(run):
    plan = run()
    assert plan["available"] and not plan["changed"]
    automatic = {"gpu_split_gb": [], "tensor_parallel": "", "source": "automatic"}
    assert plan["split"] == {"gpus": ["GPU-a", "GPU-b"], **automatic} and not plan["nccl"]
    assert plan["limits"] == {"start_burst": 10, "start_interval_seconds": 10250, "stop_seconds": 120,
                              "look_seconds": 10, "looks": 90}  # fmt: skip
    assert json.loads(plan["config"])["model"]["gpu_split_auto"] and plan["networks"] == ["localhost"]


def test_the_recorded_split_counts_in_the_order_of_its_cards(run):
    plan = run(json.dumps({"schema": fact_record.SCHEMA, "active": None, "models": {"tuned": ENTRY}}))
    assert plan["split"] == {
        "gpus": ["GPU-b", "GPU-a"], "gpu_split_gb": [17.5, 20.5], "tensor_parallel": "", "source": "record",
    }  # fmt: skip
    assert plan["environment"]["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-a"


def test_a_damaged_record_names_the_file_and_the_cure(run, tmp_path):
    assert f"mv {tmp_path}/mixed_gpu.fact" in run("{")["msg"]


def test_what_is_missing_or_unreadable_is_one_sentence(run, tmp_path, monkeypatch):
    (tmp_path / "mixed_gpu.fact").mkdir()
    assert run()["msg"].startswith(f"The server cannot be planned here ({tmp_path}/mixed_gpu.fact: Is a directory)")
    monkeypatch.delitem(SETTINGS, "cache_mode")
    assert run()["msg"] == "The settings lack 'cache_mode': pass all variables of the role exllamav2."


def test_a_model_that_cannot_be_read_is_refused(run, tmp_path):
    failed = run(model_path=str(tmp_path))
    assert failed["failed"] and "must be a folder with a config.json, readable for all" in failed["msg"]
    foreseen = run(model_path=str(tmp_path), more={"_ansible_check_mode": True})
    assert not foreseen["available"] and "cannot read the model" in foreseen["why"]


def test_without_a_driver_nothing_is_planned(run):
    none = {"available": False, "reason": "No driver", "gpus": []}
    assert (
        "computes on NVIDIA cards only, and their driver does not answer (No driver): correct" in run(cards=none)["msg"]
    )
    assert not run(cards=none, more={"_ansible_check_mode": True})["available"]


def test_settings_that_make_no_sense_are_refused(run):
    assert "exllamav2_allowed_networks has the entry 'lan'" in run(allowed_networks=["lan"])["msg"]


def test_a_server_without_a_key_asks_nobody_for_one(run):
    assert json.loads(run(keyed=False)["config"])["network"]["disable_auth"] is True
    assert json.loads(run(keyed=True)["config"])["network"]["disable_auth"] is False
