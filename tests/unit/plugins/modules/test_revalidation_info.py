# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a revalidation compares, gathered on a host that is a directory."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import manifest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record
from ansible_collections.homelab.mixed_gpu.plugins.modules import revalidation_info
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
    other = {**ENTRY, "serving": {**ENTRY["serving"], "engine": "exllamav2"}}
    record = {"schema": fact_record.SCHEMA, "active": "d", "models": {"d": entry, "e": entry, "exl": other}}
    (tmp_path / "mixed_gpu.fact").write_text(json.dumps(record))
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp/build.json").write_text('{"key": "b11312-0"}')
    return tmp_path


@pytest.fixture
def run(host, capfd):
    def _run(**arguments):
        given = {
            "fact_file": str(host / "mixed_gpu.fact"), "llama_cpp": str(host / "llama.cpp"), "state_dir": str(host),
            "host_python": str(host / "none"), **arguments,
        }  # fmt: skip
        with patch_module_args(given), pytest.raises(SystemExit):
            revalidation_info.main()
        return json.loads(capfd.readouterr().out)

    return _run


def test_the_served_deployment_is_gathered(run, host):
    found = run()
    assert not found["changed"] and found["why"] is None and found["deployment"] == "d"
    assert found["entry"]["placement"] == ENTRY["placement"] and found["baseline"] is None
    assert (found["build"], found["host"]["kernel"]) == ("b11312-0", os.uname().release)
    assert "available" in found["gpus"]
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert found["model"] == {"path": str(host / "m.gguf"), "exists": True, "sha256": sha256}


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
    assert found["model"] == {"path": str(host / "m.gguf"), "exists": False, "sha256": None}


@pytest.mark.parametrize(
    ("deployment", "words"),
    [
        ("none", "the deployment none is not in"),
        ("e", "e is not what is served (d is), and only a served model can be revalidated"),
        ("exl", "was tuned with ExLlamaV2"),
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
