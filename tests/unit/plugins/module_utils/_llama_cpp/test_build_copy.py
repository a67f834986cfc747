# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which builds are copied to another host, and which are made there."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import build_copy, build_plan

NVCC = "Cuda compilation tools, release 12.8, V12.8.93\nBuild cuda_12.8.r12.8/compiler.35583870_0\n"
SETTINGS: dict[str, t.Any] = {
    "source": "sdist", "sdist_version": "0.3.36", "sdist_sha256": "a" * 64, "sdist_build_number": 11312,
    "sdist_build_commit": "0c1e57098", "backends": ["cuda", "rpc"], "native": True, "cuda_root": "/usr/local/cuda",
    "cuda_architectures": [], "nccl_root": "", "cmake_options": {}, "targets": ["llama-server", "ggml-rpc-server"],
    "extra_builds": [], "quick_compile": False, "web_ui": True, "copy": True, "offer_to": [],
}  # fmt: skip
FLAGS = ["fpu", "sse4_2", "avx2", "fma", "hypervisor", "md_clear"]
BOX = build_copy.Machine("debian 13", FLAGS, "Build cuda_12.8.r12.8/compiler.35583870_0", ["86", "89"])


def offer(architectures=("86", "89"), there=BOX, **other):
    """Return what a box offers that was built with these settings."""
    said = {"c": "cc 14", "cxx": "c++ 14", "native": "#define __AVX2__ 1", "cuda": NVCC}
    settings = {**SETTINGS, **other}
    [build, *_more] = build_plan.plan(settings, build_plan.source(settings, {}), said, architectures)
    return build_copy.offer("llm-box", build.record, there, ["libgomp1"])


def why_not(settings=None, here=BOX, offered=None):
    return build_copy.why_not(offered or offer(), {**SETTINGS, "web_ui": False, **(settings or {})}, here)


def test_equal_hosts_copy_also_without_the_chat_page():
    assert why_not() == ""


def test_fewer_programs_fewer_cards_and_more_instructions_copy():
    here = BOX._replace(targets=["86"], cpu_flags=["avx512f", *FLAGS])
    assert why_not({"targets": ["ggml-rpc-server"]}, here) == ""
    assert why_not(here=BOX._replace(targets=[])) == "", "a lender of its CPU"


def test_flags_that_name_no_instructions_do_not_count():
    assert why_not(here=BOX._replace(cpu_flags=["sse4_2", "avx2", "fma"])) == ""


@pytest.mark.parametrize(
    ("here", "why"),
    [
        ({"system": "debian 12"}, "it runs debian 12 and llm-box debian 13"),
        ({"cpu_flags": ["fpu", "sse4_2", "fma"]}, "its CPU has no avx2"),
        ({"cpu_flags": []}, "the instructions of a CPU are unknown"),
        ({"toolkit": "Build cuda_13.0.r13.0/compiler.36424714_0"}, "its CUDA toolkit is Build cuda_13.0"),
        ({"toolkit": ""}, "its CUDA toolkit is unknown"),
        ({"targets": ["86", "120"]}, "its cards need the CUDA architecture 120"),
        ({"targets": None}, "the CUDA architecture of its cards is unknown"),
    ],
)
def test_another_host_builds(here, why):
    assert why_not(here=BOX._replace(**here)).startswith(why)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"copy": False}, "llama_cpp_copy is false"),
        ({"sdist_sha256": "b" * 64}, "its variables ask for another source"),
        ({"source": "package", "packages": []}, "its variables ask for another source"),
        ({"extra_builds": [{"name": "slow"}]}, "llama_cpp_extra_builds asks for further builds"),
        ({"targets": ["llama-cli"]}, "llama_cpp_targets asks for llama-cli, too"),
        ({"native": False}, "its variables ask for another value of GGML_NATIVE"),
        ({"backends": ["cuda", "rpc", "vulkan"]}, "its variables ask for another value of GGML_VULKAN"),
        ({"nccl_root": "/opt/nccl"}, "its variables ask for another value of GGML_CUDA_NCCL, NCCL_ROOT"),
        ({"cmake_options": {"GGML_LTO": True}}, "its variables ask for another value of GGML_LTO"),
        ({"quick_compile": True}, "its variables ask for another value of llama_cpp_quick_compile"),
    ],
)
def test_other_variables_build(settings, why):
    assert why_not(settings) == why


def test_what_is_not_native_has_the_same_instructions_everywhere():
    offered = offer(native=False)
    assert why_not({"native": False}, BOX._replace(cpu_flags=["sse4_2"]), offered) == ""


def test_without_cuda_no_toolkit_and_no_card_counts():
    cpu = {"backends": ["cpu", "rpc"]}
    assert why_not(cpu, BOX._replace(toolkit="", targets=None), offer(**cpu)) == ""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", "../../etc/cron.d/x"), ("key", "../x"), ("key", "a" * 63), ("targets", ["llama-server", "../sh"]),
        ("name", "../current"),
    ],
)  # fmt: skip
def test_an_offer_whose_names_lead_elsewhere_is_refused(field, value):
    offered = offer()
    offered["record"][field] = value
    settings = {"targets": ["llama-server"]}
    with pytest.raises(UserError, match="names that no build has: look who has changed llm-box"):
        why_not(settings, offered=offered)


@pytest.mark.parametrize("name", ["-oDPkg::Pre-Invoke::=sh", "libgomp1-", "./evil.deb", "a b", ""])
def test_an_offer_with_what_is_no_package_is_refused(name):
    with pytest.raises(UserError, match="names that no build has"):
        why_not(offered={**offer(), "packages": ["libgomp1", name]})


LENDER = BOX._replace(targets=["75", "86"])


def lender(here=LENDER, **settings):
    """Return what a lender says of itself to the host that builds."""
    return build_copy.described({**SETTINGS, "web_ui": False, **settings}, here)


def further(*lenders, in_use=None, nvcc=NVCC, **settings):
    """Return what a box with an 89 and an 86 compiles for beside them."""
    record = offer()["record"]
    there = BOX._replace(toolkit=nvcc, targets=None)
    return build_copy.further_architectures({**SETTINGS, "offer_to": lenders, **settings}, record, there, in_use)


def test_the_build_has_the_architectures_of_who_copies_it_and_then_is_copied():
    other = BOX._replace(targets=["120"])
    found = further(lender(), lender(other))
    assert found == ["75", "120"]
    said = {"c": "cc 14", "cxx": "c++ 14", "native": "#define __AVX2__ 1", "cuda": NVCC}
    [build] = build_plan.plan(SETTINGS, build_plan.source(SETTINGS, {}), said, BOX.targets, found)
    assert "-DCMAKE_CUDA_ARCHITECTURES=86;89;75;120" in build.record["cmake_arguments"]
    assert build.record["further_architectures"] == found
    offered = build_copy.offer("llm-box", build.record, BOX, ["libgomp1"])
    assert why_not(here=LENDER, offered=offered) == why_not(here=other, offered=offered) == ""


@pytest.mark.parametrize(
    "other",
    [
        lender(BOX), lender(LENDER._replace(system="debian 12")), lender(LENDER._replace(cpu_flags=["fpu"])),
        lender(LENDER._replace(toolkit="Build cuda_13.0.r13.0/compiler.36424714_0")), lender(copy=False),
        lender(LENDER._replace(targets=None)), lender(backends=["cpu", "rpc"]),
        lender(cmake_options={"GGML_LTO": True}),
    ],
)  # fmt: skip
def test_who_needs_no_more_or_builds_in_any_case_adds_no_architecture(other):
    assert further(other) == []
    assert further(other, in_use={"further_architectures": ["75"]}) == []


def test_who_is_away_does_not_change_what_is_built():
    assert further(in_use={"further_architectures": ["75", "86"]}) == ["75"]
    assert further(in_use={"further_architectures": []}) == further() == []


def test_what_the_toolkit_does_not_compile_for_is_left_out_and_named_architectures_are_all():
    newest = "Cuda compilation tools, release 13.0, V13.0.48\nBuild cuda_13.0.r13.0/compiler.36424714_0\n"
    assert further(in_use={"further_architectures": ["61", "75"]}, nvcc=newest) == ["75"]
    assert further(lender(), cuda_architectures=[86, 89]) == []


def test_a_build_without_cuda_has_no_further_architectures():
    cpu = {"backends": ["cpu", "rpc"]}
    record = offer(**cpu)["record"]
    settings = {**SETTINGS, **cpu, "offer_to": [lender()]}
    assert build_copy.further_architectures(settings, record, BOX, {"further_architectures": ["75"]}) == []


def test_an_extra_build_is_for_this_host_alone():
    settings = {**SETTINGS, "extra_builds": [{"name": "slow", "targets": ["ggml-rpc-server"]}]}
    said = {"c": "cc 14", "cxx": "c++ 14", "native": "#define __AVX2__ 1", "cuda": NVCC}
    main, extra = build_plan.plan(settings, build_plan.source(settings, {}), said, BOX.targets, ["75"])
    assert "-DCMAKE_CUDA_ARCHITECTURES=86;89;75" in main.record["cmake_arguments"]
    assert "-DCMAKE_CUDA_ARCHITECTURES=86;89" in extra.record["cmake_arguments"]


def test_who_has_built_nothing_offers_nothing():
    assert build_copy.offer("llm-box", None, BOX, []) == {}
    packages = {"source": {"kind": "package", "version": "llama.cpp-tools 1-1"}}
    assert build_copy.offer("llm-box", packages, BOX, []) == {}
    assert build_copy.why_not({}, SETTINGS, BOX) == "no other host has a build to copy"


def test_the_packages_of_a_build_are_those_of_its_libraries_without_its_own_and_those_of_cards():
    dynamic = """
File: bin/llama-server
 0x0000000000000001 (NEEDED)             Shared library: [libggml.so.0]
 0x0000000000000001 (NEEDED)             Shared library: [libcuda.so.1]
 0x0000000000000001 (NEEDED)             Shared library: [libcublas.so.12]
 0x0000000000000001 (NEEDED)             Shared library: [libnccl.so.2]
 0x0000000000000001 (NEEDED)             Shared library: [libgomp.so.1]
 0x0000000000000001 (NEEDED)             Shared library: [libstdc++.so.6]
 0x000000000000001d (RUNPATH)            Library runpath: [$ORIGIN]
"""
    assert build_copy.libraries(dynamic, {"libggml.so.0"}) == ["libgomp.so.1", "libstdc++.so.6"]
    answer = (
        "libgomp1:amd64: /usr/lib/x86_64-linux-gnu/libgomp.so.1\n"
        "dpkg-query: no path found matching pattern */libabsent.so.1\n"
        "diversion by x from: /usr/lib/y\n"
    )
    assert build_copy.owners(answer) == ["libgomp1"]
