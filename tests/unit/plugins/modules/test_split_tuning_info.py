# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record
from ansible_collections.homelab.mixed_gpu.plugins.modules import split_tuning_info
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.described_pair import ENTRY


@pytest.fixture
def look(tmp_path, call_module):
    def _look(**arguments):
        given = {
            "build_file": str(tmp_path / "build.json"), "fact_file": str(tmp_path / "mixed_gpu.fact"),
            "host_python": sys.executable, **arguments,
        }  # fmt: skip
        return call_module(split_tuning_info, given)

    return _look


def test_a_fresh_host_has_nothing_and_nothing_fails(look, tmp_path):
    found = look(needed=[str(tmp_path / "m.gguf")], cuda_library="/nowhere.so", site_packages=str(tmp_path))
    assert found["missing"] == [str(tmp_path / "m.gguf")] and found["build"] is None and not found["changed"]
    assert found["record"]["models"] == {} and found["record_problem"] is None
    assert not found["nccl"] and not found["flash_attention"] and "gpus" in found["gpus"]


def test_what_is_there_is_found(look, tmp_path):
    (tmp_path / "build.json").write_text('{"key": "b1"}')
    (tmp_path / "mixed_gpu.fact").write_text(json.dumps({**fact_record.empty(), "models": {"m": ENTRY}}))
    packages = tmp_path / "lib/python3.11/site-packages"
    (packages / "flash_attn-2.8.dist-info").mkdir(parents=True)
    found = look(needed=[str(tmp_path / "build.json")], site_packages=str(tmp_path / "lib"))
    assert (found["missing"], found["build"], found["flash_attention"]) == ([], "b1", True)
    assert found["record"]["models"] == {"m": ENTRY}


@pytest.mark.parametrize("text", ["{", "[]", '{"other": 1}'])
def test_a_build_file_without_a_key_has_none(look, tmp_path, text):
    (tmp_path / "build.json").write_text(text)
    assert look()["build"] is None


def test_a_damaged_record_is_named_with_the_cure(look, tmp_path):
    (tmp_path / "mixed_gpu.fact").write_text("{")
    problem = look()["record_problem"]
    assert str(tmp_path / "mixed_gpu.fact") in problem and "move it away" in problem.lower()


def test_a_library_linked_with_nccl_is_seen(look, tmp_path, monkeypatch):
    ldd = tmp_path / "bin/ldd"
    ldd.parent.mkdir()
    ldd.write_text("#!/bin/sh\necho '\tlibnccl.so.2 => /usr/lib/libnccl.so.2 (0x0)'\n")
    ldd.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ldd.parent}:/usr/bin:/bin")
    (tmp_path / "libggml-cuda.so").touch()
    assert look(cuda_library=str(tmp_path / "libggml-cuda.so"))["nccl"]
    assert not look(cuda_library=str(tmp_path / "other.so"))["nccl"]
