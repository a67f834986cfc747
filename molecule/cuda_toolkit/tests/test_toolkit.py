"""The toolkit that the role made out of wheels: complete, linkable, and refused where it cannot work."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess

import pytest

HERE = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def root(host):
    found = host.run("ls -d /opt/mixed_gpu/cuda/13.0-*").stdout.split()
    assert len(found) == 1, found
    return found[0]


def play(*variables):
    command = ["ansible-playbook", f"--inventory={HERE}/inventory/hosts.yml", str(HERE / "converge.yml"), *variables]
    return subprocess.run(
        command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False
    )


def ran(host, command):
    done = host.run(command)
    assert done.rc == 0, done.stdout + done.stderr
    return done.stdout


def test_the_compiler_is_the_pinned_one(host, root):
    assert "V13.0.88" in ran(host, f"{root}/bin/nvcc --version")
    assert {"sm_86", "sm_89"} <= set(ran(host, f"{root}/bin/nvcc --list-gpu-code").split())


def test_a_program_for_both_cards_is_compiled_and_linked_against_the_driver(host, root):
    ran(host, "mkdir -p /tmp/cuda && printf '%s' '#include <cuda.h>\n#include <cstdio>\n__global__ void k(int *x) { "
        "*x = 1; }\n"
        "int main() { int n = 0; CUresult r = cuInit(0); CUmemAllocationProp p = {}; size_t g;\n"
        "cuMemGetAllocationGranularity(&g, &p, CU_MEM_ALLOC_GRANULARITY_MINIMUM); k<<<1, 1>>>(&n); "
        "printf(\"%d\\n\", (int) r); }' > /tmp/cuda/a.cu")  # fmt: skip
    flags = "-gencode=arch=compute_86,code=sm_86 -gencode=arch=compute_89,code=sm_89"
    ran(host, f"{root}/bin/nvcc {flags} -o /tmp/cuda/a /tmp/cuda/a.cu -L{root}/lib/stubs -lcuda")
    assert "NEEDED" in ran(host, "objdump -p /tmp/cuda/a | grep 'libcuda.so.1'")
    codes = ran(host, "strings -a /tmp/cuda/a | grep -o 'sm_8[69]' | sort -u").split()
    assert codes == ["sm_86", "sm_89"]


def test_the_stub_says_that_it_is_one(host, root):
    ran(host, f"ln -sf {root}/lib/stubs/libcuda.so /tmp/cuda/libcuda.so.1")
    assert ran(host, "LD_LIBRARY_PATH=/tmp/cuda /tmp/cuda/a").strip() == "34"


def test_cmake_would_find_everything_by_its_plain_name(host, root):
    for name in (
        "lib64/libcudart.so",
        "lib64/libcudart_static.a",
        "lib64/stubs/libcuda.so",
        "include/cuda_runtime.h",
        "include/cccl/cub/cub.cuh",
    ):
        assert host.file(f"{root}/{name}").exists, name


def test_nothing_is_left_of_the_making(host):
    assert (
        ran(
            host,
            "ls -A /opt/mixed_gpu/cuda | grep -v -e '^13.0-' -e '^cuda_wheels.py$' -e '^wheels.log$' -e "
            "'^.lock$' || true",
        )
        == ""
    )


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (["-e", "cuda_toolkit_source=nvidia", "-e", "cuda_toolkit_version=12.4"], "takes gcc up to 13|glibc 2"),
        (["-e", "cuda_toolkit_source=existing"], "correct cuda_toolkit_root, or set cuda_toolkit_source to"),
        (["-e", "cuda_toolkit_source=distribution", "-e", "cuda_toolkit_nccl=true"], "cuda_toolkit_source to wheels"),
    ],
)
def test_what_cannot_work_is_refused_with_what_can(host, variables, words):
    if "12.4" in variables[-1] and host.system_info.release.split(".")[0] != "13":
        pytest.skip("CUDA 12.4 works on this system")
    done = play(*variables)
    assert done.returncode == 2
    assert re.search(words, " ".join(done.stdout.split())), done.stdout[-3000:]


def test_a_damaged_hash_leaves_no_toolkit(host, root):
    wrong = json.dumps({"__cuda_toolkit_requirements": f"nvidia-cuda-crt==13.0.88 --hash=sha256:{'0' * 64}"})
    done = play("-e", "cuda_toolkit_wheels_dir=/opt/other", "-e", wrong)
    assert done.returncode == 2
    text = " ".join(done.stdout.split())
    assert "building CUDA out of wheels: " in text and "check the host's network" in text, done.stdout[-3000:]
    assert host.run("ls -d /opt/other/13.0-*").rc != 0
