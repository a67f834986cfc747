# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a revalidation compares, gathered on a host that is a directory."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import unit_end
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import exl_folder, manifest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record
from ansible_collections.homelab.mixed_gpu.plugins.modules import revalidation_info
from ansible_collections.homelab.mixed_gpu.tests.exl_models import write_model
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.described_pair import (
    ENTRY,
    baseline,
)


@pytest.fixture
def host(tmp_path):
    """A host that serves a small file as its model."""
    model = tmp_path / "m.gguf"
    model.write_bytes(b"weights")
    entry = {**ENTRY, "model": {**ENTRY["model"], "path": str(model)}}
    other = {
        **ENTRY, "serving": {**ENTRY["serving"], "engine": "exllamav2"},
        "model": {**ENTRY["model"], "path": str(tmp_path / "exl")},
    }  # fmt: skip
    record = {"schema": fact_record.SCHEMA, "active": "d", "models": {"d": entry, "e": entry, "exl": other}}
    (tmp_path / "mixed_gpu.fact").write_text(json.dumps(record))
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp/build.json").write_text('{"key": "b11312-0"}')
    return tmp_path


@pytest.fixture
def run(host, call_module):
    def _run(**arguments):
        given = {
            "fact_file": str(host / "mixed_gpu.fact"), "llama_cpp": str(host / "llama.cpp"), "state_dir": str(host),
            "host_python": str(host / "none"), **arguments,
        }  # fmt: skip
        return call_module(revalidation_info, given)

    return _run


def test_the_served_deployment_is_gathered(run, host):
    found = run()
    assert not found["changed"] and found["why"] is None and found["deployment"] == "d"
    assert found["entry"]["placement"] == ENTRY["placement"] and found["baseline"] is None
    assert (found["build"], found["host"]["kernel"]) == ("b11312-0", os.uname().release)
    assert "available" in found["gpus"]
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert found["model"] == {
        "path": str(host / "m.gguf"), "exists": True, "sha256": sha256, "headers_sha256": None,
    }  # fmt: skip
    assert found["versions"] == {}


def test_wrong_answers_are_where_the_unit_looks_whatever_the_state_directory_is(run, host, monkeypatch):
    (host / "wrong_answers").write_text("of nobody")
    monkeypatch.setattr(unit_end, "WRONG_ANSWERS", str(host / "elsewhere"))
    assert run()["wrong_answers"] is False
    (host / "elsewhere").write_text("a card computes wrong")
    assert run()["wrong_answers"] is True


def test_a_baseline_and_a_manifest_are_believed(run, host):
    (host / "baselines").mkdir()
    (host / "baselines/d.json").write_text(json.dumps(baseline()))
    (host / "models").mkdir()
    path = str(host / "m.gguf")
    digest = manifest.Digest("b" * 64)
    manifest.write_manifest(manifest.manifest_path(str(host / "models"), path), path, digest, {}, os.replace)
    found = run()
    assert found["baseline"]["deployment"] == "d" and found["model"]["sha256"] == "b" * 64


def test_what_is_missing_is_none(run, host):
    (host / "m.gguf").unlink()
    (host / "llama.cpp/build.json").write_text("{")
    found = run()
    assert found["build"] is None
    assert found["model"] == {"path": str(host / "m.gguf"), "exists": False, "sha256": None, "headers_sha256": None}


@pytest.mark.parametrize(
    ("deployment", "words"),
    [
        ("none", "the deployment none is not in"),
        ("e", "e is not what is served (d is), and only a served model can be revalidated"),
        ("exl", "exl is not what is served (d is)"),
    ],
)
def test_what_cannot_be_revalidated_is_told_with_the_cure(run, deployment, words):
    assert words in run(deployment=deployment)["why"]


def test_a_host_without_a_record_is_told_so(run, host):
    (host / "mixed_gpu.fact").unlink()
    assert "records no deployment: run the site playbook" in run()["why"]


def test_a_damaged_baseline_names_file_and_cure(run, host):
    (host / "baselines").mkdir()
    (host / "baselines/d.json").write_text(json.dumps(baseline())[:-9])
    message = run()["msg"]
    assert "baselines/d.json cannot be used: it holds no JSON" in message and "-e accept=true" in message


BUILD = {
    "key": "k1", "package": "exllamav2", "version": "0.3.2", "torch": "2.11.0", "server": {"commit": "79126f9"},
}  # fmt: skip


@pytest.fixture
def exllama(host):
    """The host serves a folder, of whose files the role llm_models has made manifests."""
    write_model(host / "exl", "exl2", blocks=2)
    record = json.loads((host / "mixed_gpu.fact").read_text())
    (host / "mixed_gpu.fact").write_text(json.dumps({**record, "active": "exl"}))
    (host / "exllama/v2/current").mkdir(parents=True)
    (host / "exllama/v2/current/build.json").write_text(json.dumps(BUILD))
    (host / "models").mkdir()
    for path in map(str, (host / "exl").iterdir()):
        manifest.write_manifest(
            manifest.manifest_path(str(host / "models"), path), path, manifest.digest(path), {}, os.replace
        )
    return host


def test_an_exllama_is_gathered_with_its_versions_and_all_files_of_its_model(run, exllama):
    found = run(exllama_root=str(exllama / "exllama"))
    assert (found["why"], found["build"]) == (None, "k1")
    assert found["versions"] == {"exllamav2": "0.3.2", "pytorch": "2.11.0", "tabbyapi": "79126f9"}
    hashes = [manifest.digest(str(path)).sha256 for path in sorted((exllama / "exl").iterdir())]
    assert len(hashes) > 1
    # as the role llm_models counts it, whose sha256 the tuning records
    assert found["model"]["sha256"] == hashlib.sha256("".join(f"{one}\n" for one in hashes).encode()).hexdigest()
    assert found["model"]["headers_sha256"] == exl_folder.read(str(exllama / "exl"))[1]


def test_a_file_of_the_folder_that_was_replaced_shows(run, exllama):
    before = run()["model"]
    weights = exllama / "exl/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    now = run()["model"]
    assert now["headers_sha256"] == before["headers_sha256"] and now["sha256"] != before["sha256"]
    weights.unlink()
    assert run()["model"]["exists"] is False


def test_a_folder_without_manifests_has_the_hash_of_its_headers_alone(run, exllama):
    for path in (exllama / "models").iterdir():
        path.unlink()
    found = run()["model"]
    assert (found["exists"], found["sha256"]) == (True, None) and found["headers_sha256"]
