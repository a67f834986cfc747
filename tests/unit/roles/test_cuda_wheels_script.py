# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The assembly of a CUDA toolkit; Molecule's scenario cuda_toolkit does it with the real wheels."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

FILES = pathlib.Path(__file__).resolve().parents[3] / "roles/cuda_toolkit/files"
SPEC = importlib.util.spec_from_file_location("cuda_wheels", FILES / "cuda_wheels.py")
cuda_wheels = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(cuda_wheels)

HEADER = "\n".join(
    ["#define cuMemFree cuMemFree_v2", "#define cuMemcpyAsync __CUDA_API_PTSZ(cuMemcpyAsync_v2)"]
    + [f"CUresult CUDAAPI cuFunction{number}(int x);" for number in range(200)]
)


def test_every_requirement_is_pinned_by_version_and_hash():
    for path in FILES.glob("wheels*.txt"):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        assert lines
        for line in lines:
            assert re.fullmatch(r"nvidia-[a-z0-9-]+==[0-9.]+ --hash=sha256:[0-9a-f]{64}", line), line


@pytest.fixture
def stage(tmp_path):
    cu13 = tmp_path / "site/nvidia/cu13"
    for name in ("bin", "include", "lib", "nvvm"):
        (cu13 / name).mkdir(parents=True)
    (cu13 / "include/cuda.h").write_text(HEADER, encoding="utf-8")
    (cu13 / "lib/libcudart.so.13").touch()
    (tmp_path / "site/nvidia/nccl/lib").mkdir(parents=True)
    (tmp_path / "site/nvidia/nccl/lib/libnccl.so.2").touch()
    (tmp_path / "site/nvidia_cuda_nvcc-13.dist-info").mkdir()
    return tmp_path


@pytest.mark.skipif(shutil.which("cc") is None or shutil.which("nm") is None, reason="needs a C compiler")
def test_what_the_wheels_lack_is_added(stage):
    with open(stage / "log", "w", encoding="utf-8") as log:
        cuda_wheels.assemble(stage, log)
    assert (stage / "lib/libcudart.so").readlink() == pathlib.Path("libcudart.so.13")
    assert (stage / "nccl/lib/libnccl.so").readlink() == pathlib.Path("libnccl.so.2")
    assert (stage / "lib64").readlink() == pathlib.Path("lib")
    command = ["nm", "-D", str(stage / "lib/stubs/libcuda.so")]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in ("cuFunction199", "cuMemFree_v2", "cuMemcpyAsync_v2", "cuMemcpyAsync_v2_ptsz"):
        assert f" T {name}\n" in symbols
    assert not (stage / "site").exists()
    assert (stage / "licences/nvidia_cuda_nvcc-13.dist-info").is_dir()


def test_a_header_without_functions_is_refused():
    with pytest.raises(cuda_wheels.Failure, match="next to no function"):
        cuda_wheels.stub_source("int main;")


def test_a_failed_fetch_leaves_nothing_and_says_why(tmp_path):
    job = {"prefix": str(tmp_path / "cuda"), "name": "13.0-x", "requirements": "no such requirement\n", "record": {}}
    command = [sys.executable, str(FILES / "cuda_wheels.py"), str(tmp_path / "log")]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("fetching the wheels failed (") and sentence.endswith("its settings for pip.")
    assert (tmp_path / "log").read_text(encoding="utf-8").startswith("fetching the wheels\n")
    assert sorted(path.name for path in (tmp_path / "cuda").iterdir()) == [".lock"]
