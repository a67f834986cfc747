from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import build_plan, web_ui_plan

SHA = "83" * 32
COMMIT = "0c1e57098bba43ac29e6e3b677cdceebdd22334f"
TOOLCHAIN = {
    "c": "cc (Debian 14.2.0-19) 14.2.0\nCopyright\n",
    "cxx": "c++ (Debian 14.2.0-19) 14.2.0\nCopyright\n",
    "native": "#define __AVX2__ 1\n#define __FMA__ 1\n",
    "cuda": "nvcc: NVIDIA (R) Cuda compiler driver\nBuild cuda_12.8.r12.8/compiler.35404655_0\n",
}
SETTINGS = {
    "source": "sdist",
    "sdist_version": "0.3.36",
    "sdist_sha256": SHA.upper(),
    "sdist_build_number": 11312,
    "sdist_build_commit": "0c1e57098",
    "git_url": "https://example.com/a.git",
    "git_version": COMMIT,
    "archive_url": "https://example.com/a.tar",
    "archive_sha256": SHA,
    "archive_build_number": 0,
    "archive_build_commit": "",
    "packages": ["llama.cpp-tools", "libggml0-backend-rpc"],
    "backends": ["cpu", "rpc"],
    "native": True,
    "cuda_root": "/usr/local/cuda/",
    "nccl_root": "",
    "cmake_options": {},
    "targets": ["llama-bench", "llama-server"],
    "extra_builds": [],
    "quick_compile": False,
    "web_ui": False,
}
SLOW = {"name": "slow", "targets": ["ggml-rpc-server"], "native": False, "cmake_options": {"GGML_AVX": False}}
PACKAGE = {"source": "package"}


def plans(toolchain=TOOLCHAIN, architectures=(86, 89), installed=None, **changes):
    settings = SETTINGS | changes
    build_plan.validate(settings)
    source = build_plan.source(settings, installed or {})
    return build_plan.plan(settings, source, toolchain, architectures)


def plan(**changes):
    return plans(**changes)[0].record


def test_a_plan():
    build = plans()[0]
    record = build.record
    assert (build.name, build.link, build.directory) == ("main", "current", f"b11312-{record['key'][:12]}")
    arguments = record["cmake_arguments"]
    assert arguments == sorted(arguments)
    assert {"-DGGML_RPC=ON", "-DGGML_CUDA=OFF", "-DGGML_NATIVE=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN"} <= set(arguments)
    assert (record["schema"], record["build"], record["commit"]) == (1, 11312, "0c1e57098")
    assert record["source"]["sha256"] == SHA
    assert record["toolchain"]["c"] == "cc (Debian 14.2.0-19) 14.2.0"
    assert set(record["toolchain"]) == {"c", "cxx", "native"}


def test_an_extra_build_inherits_all_but_the_options_of_cmake():
    main, slow = plans(extra_builds=[SLOW], cmake_options={"GGML_AVX512": False})
    assert (slow.name, slow.link, slow.record["targets"]) == ("slow", "slow", ["ggml-rpc-server"])
    arguments = slow.record["cmake_arguments"]
    assert {"-DGGML_RPC=ON", "-DGGML_NATIVE=OFF", "-DGGML_AVX=OFF"} <= set(arguments)
    assert "-DGGML_AVX512=OFF" in main.record["cmake_arguments"] and "-DGGML_AVX512=OFF" not in arguments


@pytest.mark.parametrize(
    "change",
    [
        {"cmake_options": {"GGML_AVX512": False}},
        {"native": False},
        {"backends": ["cpu"]},
        {"backends": ["cuda", "rpc"]},
        {"targets": ["llama-bench"]},
        {"quick_compile": True},
        {"web_ui": True},
        {"sdist_sha256": "84" * 32},
        {"source": "git"},
        {"toolchain": {**TOOLCHAIN, "cxx": "c++ 15"}},
        {"toolchain": {**TOOLCHAIN, "native": "#define __AVX512F__ 1\n"}},
    ],
)
def test_the_key_changes_with_what_changes_the_result(change):
    assert plan(**change)["key"] != plan()["key"]


@pytest.mark.parametrize(
    "change",
    [
        {"extra_builds": [SLOW]},
        {"targets": ["llama-server", "llama-bench", "llama-bench"]},
        {"backends": ["rpc"]},
        {"cuda_root": "/opt/cuda", "architectures": [120], "nccl_root": "/opt/nccl"},
        {"toolchain": {**TOOLCHAIN, "cuda": "another nvcc"}},
        {"archive_url": "https://example.com/mirror.tar"},
        {"extra_builds": [SLOW | {"targets": ["llama-server"]}]},
    ],
)
def test_the_key_stays_with_what_does_not(change):
    assert plan(**change)["key"] == plan()["key"]


def test_every_build_of_the_server_has_the_page_and_says_so():
    main, slow = plans(web_ui=True, extra_builds=[SLOW])
    assert main.record["web_ui_node"] == web_ui_plan.NODE and slow.record["web_ui_node"] == ""
    assert slow.record["key"] == plans(extra_builds=[SLOW])[1].record["key"]


def test_the_cpu_counts_for_native_builds_alone():
    other = {**TOOLCHAIN, "native": "#define __AVX512F__ 1\n"}
    assert plan(native=False)["key"] == plan(native=False, toolchain=other)["key"]


def test_cuda_is_told_its_toolkit_and_architectures_and_counts_its_version():
    planned = plan(backends=["cuda", "rpc"])
    arguments = planned["cmake_arguments"]
    assert "-DCMAKE_CUDA_ARCHITECTURES=86;89" in arguments and "-DGGML_CUDA_NCCL=OFF" in arguments
    assert "-DCMAKE_CUDA_COMPILER=/usr/local/cuda/bin/nvcc" in arguments
    assert planned["toolchain"]["cuda"] == "Build cuda_12.8.r12.8/compiler.35404655_0"
    newer = {**TOOLCHAIN, "cuda": "nvcc: NVIDIA (R) Cuda compiler driver\nBuild cuda_13.0\n"}
    assert plan(backends=["cuda", "rpc"], toolchain=newer)["key"] != planned["key"]
    with_nccl = plan(backends=["cuda", "rpc"], nccl_root="/opt/nccl")["cmake_arguments"]
    assert {"-DGGML_CUDA_NCCL=ON", "-DNCCL_ROOT=/opt/nccl"} <= set(with_nccl)


def test_the_last_word_is_the_users():
    arguments = plan(cmake_options={"GGML_NATIVE": False, "CMAKE_BUILD_TYPE": "Debug"})["cmake_arguments"]
    assert "-DGGML_NATIVE=OFF" in arguments
    assert "-DCMAKE_BUILD_TYPE=Debug" in arguments


@pytest.mark.parametrize(
    ("changes", "version", "build"),
    [
        ({"source": "git"}, "0c1e57098", 0),
        ({"source": "git", "git_version": "b11312"}, "b11312", 11312),
        ({"source": "git", "git_version": "topic/x"}, "topic-x", 0),
        ({"source": "archive"}, "archive-838383838", 0),
        ({"source": "archive", "archive_build_number": 5}, "b5", 5),
    ],
)
def test_the_name_of_a_source(changes, version, build):
    record = plan(**changes)
    assert (record["version"], record["build"]) == (version, build)
    assert build_plan.directory(record) == f"{version}-{record['key'][:12]}"


def test_packages_have_no_flags_and_their_versions_are_the_source():
    installed = {"llama.cpp-tools": "1-1", "dpkg": "1.22"}
    record = plan(**PACKAGE, toolchain={}, installed=installed)
    assert (record["cmake_arguments"], record["toolchain"], record["version"]) == ([], {}, "package")
    assert record["source"] == {"kind": "package", "version": "llama.cpp-tools 1-1"}
    assert plan(**PACKAGE, toolchain={}, installed={"llama.cpp-tools": "1-2"})["key"] != record["key"]


@pytest.mark.parametrize(
    ("changes", "packages", "tools"),
    [
        ({}, {"ccache", "cmake", "ca-certificates"}, ["c", "cxx", "native"]),
        ({"source": "git"}, {"ccache", "git"}, ["c", "cxx", "native"]),
        ({"extra_builds": [{**SLOW, "backends": ["vulkan"]}]}, {"glslc"}, ["c", "cxx", "native"]),
        ({"extra_builds": [{**SLOW, "backends": ["cuda"]}]}, {"cmake"}, ["c", "cxx", "native", "cuda"]),
        ({"source": "package", "backends": ["cuda"]}, {"llama.cpp-tools"}, []),
    ],
)
def test_what_building_needs(changes, packages, tools):
    settings = SETTINGS | changes
    assert packages <= set(build_plan.packages(settings))
    assert [tool.name for tool in build_plan.tools(settings)] == tools
    assert build_plan.uses_cuda(settings) == ("cuda" in tools)


# what nvcc --version prints
CUDA_13 = "Cuda compilation tools, release 13.0, V13.0.88\nBuild cuda_13.0.r13.0/compiler.36424714_0\n"
CUDA_12 = "Cuda compilation tools, release 12.6, V12.6.85\nBuild cuda_12.6.r12.6/compiler.35059454_0\n"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"targets": []}, "has no targets; name at least one program"),
        ({"targets": ["-j99"]}, "has the target '-j99'; name a program"),
        ({"source": "git", "git_version": "--upload-pack=x"}, "llama_cpp_git_version is '--upload-pack=x'; set it"),
        ({"source": "git", "git_version": "b1\n"}, r"llama_cpp_git_version is 'b1\n'; set it"),
        (
            {"source": "git", "git_version": "b1", "git_url": "http://example.com/a"},
            "llama_cpp_git_url is http://example.com/a, where anybody on the way may change what b1 means; use https",
        ),
        ({"source": "git", "git_version": "b1", "git_url": "git://example.com/a"}, "set llama_cpp_git_version to a"),
        ({"sdist_sha256": "83"}, 'llama_cpp_sdist_sha256 is "83"; set it to 64'),
        ({"sdist_sha256": "83" * 32 + "\n"}, "set it to 64"),
        ({"source": "archive", "archive_url": ""}, "its address or its SHA-256 is missing; set llama_cpp_archive_url"),
        ({"source": "package", "extra_builds": [SLOW]}, "choose another source, or empty llama_cpp_extra_builds"),
        ({"extra_builds": [{**SLOW, "name": "current"}]}, "an entry named 'current'; give each build a name"),
        ({"extra_builds": [{**SLOW, "name": "../x"}]}, "an entry named '../x'"),
        ({"extra_builds": [SLOW, SLOW]}, "an entry named 'slow'"),
        ({"backends": ["metal"]}, "llama_cpp_backends names 'metal'; choose from cpu, cuda, rpc, vulkan"),
        ({"backends": ["cuda"], "architectures": []}, "needs a compute capability; set llama_cpp_cuda_architectures"),
        ({"backends": ["cuda"], "architectures": ["8.9"]}, "'8.9' in llama_cpp_cuda_architectures is no CUDA"),
        (
            {"backends": ["cuda"], "architectures": ["61", "86"], "toolchain": {**TOOLCHAIN, "cuda": CUDA_13}},
            "CUDA 13.0 has no target for compute capability 6.1, which ended with 12.9: use another toolkit",
        ),
        (
            {"backends": ["cuda"], "architectures": ["120a-real"], "toolchain": {**TOOLCHAIN, "cuda": CUDA_12}},
            "CUDA 12.6 has no target for compute capability 12.0, which begins with 12.8",
        ),
        ({"cmake_options": {"-DGGML_X": 1}}, "'-DGGML_X' is no name of a CMake option"),
        ({"cmake_options": {"LLAMA_BUILD_NUMBER": 1}}, "is set from the source"),
        ({"cmake_options": {"GGML_X": [1]}}, "The CMake option GGML_X has the value"),
        ({"cmake_options": {"GGML_X": "a\nb"}}, "The CMake option GGML_X has the value"),
    ],
)
def test_what_cannot_be_built_is_an_error_with_a_cure(changes, sentence):
    with pytest.raises(UserError) as raised:
        plans(**changes)
    assert sentence in str(raised.value) and str(raised.value).endswith(".")
