from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import build_plan

SHA = "83" * 32
TOOLCHAIN = {
    "c": "cc (Debian 14.2.0-19) 14.2.0\nCopyright\n",
    "cxx": "c++ (Debian 14.2.0-19) 14.2.0\nCopyright\n",
    "native": "#define __AVX2__ 1\n#define __FMA__ 1\n",
    "cuda": "nvcc: NVIDIA (R) Cuda compiler driver\nBuild cuda_12.8.r12.8/compiler.35404655_0\n",
}
WANTED = {
    "name": "main",
    "source": {"kind": "sdist", "version": "0.3.36", "sha256": SHA, "build": 11312, "commit": "0c1e57098"},
    "backends": ["cpu", "rpc"],
    "native": True,
    "cuda_root": "/usr/local/cuda/",
    "cuda_architectures": [86, 89],
    "cmake_options": {},
    "targets": ["llama-bench", "llama-server"],
    "toolchain": TOOLCHAIN,
}


def plan(**changes):
    return build_plan.plan(**{**WANTED, **changes})


def test_a_plan():
    planned = plan()
    assert planned["name"] == "main"
    assert planned["directory"] == f"b11312-{planned['key'][:12]}"
    arguments = planned["cmake_arguments"]
    assert arguments == sorted(arguments)
    assert {"-DGGML_RPC=ON", "-DGGML_CUDA=OFF", "-DGGML_NATIVE=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN"} <= set(arguments)
    record = planned["record"]
    assert (record["schema"], record["build"], record["commit"]) == (1, 11312, "0c1e57098")
    assert record["key"] == planned["key"]
    assert record["toolchain"]["c"] == "cc (Debian 14.2.0-19) 14.2.0"
    assert set(record["toolchain"]) == {"c", "cxx", "native"}


@pytest.mark.parametrize(
    "change",
    [
        {"cmake_options": {"GGML_AVX512": False}},
        {"native": False},
        {"backends": ["cpu"]},
        {"backends": ["cuda", "rpc"]},
        {"targets": ["llama-bench"]},
        {"source": {**WANTED["source"], "sha256": "84" * 32}},
        {"source": {"kind": "git", "url": "https://example.com/a.git", "version": "b11312"}},
        {"toolchain": {**TOOLCHAIN, "cxx": "c++ 15"}},
        {"toolchain": {**TOOLCHAIN, "native": "#define __AVX512F__ 1\n"}},
    ],
)
def test_the_key_changes_with_what_changes_the_result(change):
    assert plan(**change)["key"] != plan()["key"]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"targets": ["llama-server", "llama-bench", "llama-bench"]},
        {"backends": ["rpc"]},
        {"cuda_root": "/opt/cuda", "cuda_architectures": [120]},
        {"toolchain": {**TOOLCHAIN, "cuda": "another nvcc"}},
    ],
)
def test_the_key_stays_with_what_does_not(change):
    assert plan(**change)["key"] == plan()["key"]


def test_the_cpu_counts_for_native_builds_alone():
    other = {**TOOLCHAIN, "native": "#define __AVX512F__ 1\n"}
    assert plan(native=False)["key"] == plan(native=False, toolchain=other)["key"]


def test_cuda_is_told_its_toolkit_and_architectures_and_counts_its_version():
    planned = plan(backends=["cuda", "rpc"])
    assert "-DCMAKE_CUDA_ARCHITECTURES=86;89" in planned["cmake_arguments"]
    assert "-DCMAKE_CUDA_COMPILER=/usr/local/cuda/bin/nvcc" in planned["cmake_arguments"]
    assert planned["record"]["toolchain"]["cuda"] == "Build cuda_12.8.r12.8/compiler.35404655_0"
    newer = {**TOOLCHAIN, "cuda": "nvcc: NVIDIA (R) Cuda compiler driver\nBuild cuda_13.0\n"}
    assert plan(backends=["cuda", "rpc"], toolchain=newer)["key"] != planned["key"]


def test_the_last_word_is_the_users():
    arguments = plan(cmake_options={"GGML_NATIVE": False, "CMAKE_BUILD_TYPE": "Debug"})["cmake_arguments"]
    assert "-DGGML_NATIVE=OFF" in arguments
    assert "-DCMAKE_BUILD_TYPE=Debug" in arguments


@pytest.mark.parametrize(
    ("source", "version", "build"),
    [
        ({"kind": "git", "url": "u", "version": "0c1e57098bba43ac29e6e3b677cdceebdd22334f"}, "0c1e57098", 0),
        ({"kind": "git", "url": "u", "version": "b11312"}, "b11312", 11312),
        ({"kind": "git", "url": "u", "version": "topic/x"}, "topic-x", 0),
        ({"kind": "archive", "sha256": SHA, "build": 0, "commit": None}, "archive-838383838", 0),
        ({"kind": "archive", "sha256": SHA, "build": 5, "commit": None}, "b5", 5),
    ],
)
def test_the_name_of_a_source(source, version, build):
    planned = plan(source=source)
    assert planned["directory"].rpartition("-")[0] == version
    assert planned["record"]["build"] == build


def test_packages_have_no_flags():
    planned = plan(source={"kind": "package", "version": "llama.cpp-tools installed 1"}, toolchain={})
    assert planned["cmake_arguments"] == []
    assert planned["record"]["toolchain"] == {}
    assert planned["directory"].startswith("package-")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "current"}, "'current' cannot name a build"),
        ({"name": "../x"}, "cannot name a build"),
        ({"targets": []}, "has no targets"),
        ({"targets": ["-j99"]}, "'-j99' cannot be a target"),
        ({"source": {"kind": "zip"}}, "the source 'zip' is unknown"),
        ({"source": {"kind": "git", "url": "u", "version": "--upload-pack=x"}}, "is no git tag or commit"),
        ({"backends": ["metal"]}, "the backend metal is unknown; choose from cpu, cuda, rpc, vulkan"),
        ({"backends": ["cuda"], "cuda_architectures": []}, "at least one compute capability"),
        ({"backends": ["cuda"], "cuda_architectures": ["8.9"]}, "'8.9' is no CUDA architecture"),
        ({"cmake_options": {"-DGGML_X": 1}}, "'-DGGML_X' is no name of a CMake option"),
        ({"cmake_options": {"LLAMA_BUILD_NUMBER": 1}}, "is set from the source"),
        ({"cmake_options": {"GGML_X": [1]}}, "the CMake option GGML_X has the value"),
        ({"cmake_options": {"GGML_X": "a\nb"}}, "the CMake option GGML_X has the value"),
    ],
)
def test_what_cannot_be_built_is_said(change, sentence):
    with pytest.raises(build_plan.BuildError, match=sentence):
        plan(**change)
