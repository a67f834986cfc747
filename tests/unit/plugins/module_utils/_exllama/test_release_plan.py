# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Releases of ExLlama: what they are made of, what changes their key, what stops them."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import release_plan

FILES = pathlib.Path(__file__).resolve().parents[5] / "roles/exllamav2/files"
COMMIT = "79126f904c2e00aece026b36bb70bbb87e4892b2"
NVCC = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\n"
CARDS = {
    "available": True,
    "reason": None,
    "gpus": [{"id": "GPU-a", "compute_capability": "8.9"}, {"id": "GPU-b", "compute_capability": "8.6"}],
}


def requirements(engine="v2"):
    return (FILES / f"requirements_{engine}.txt").read_text(encoding="utf-8")


def settings(engine="v2", **changed):
    return {
        "engine": engine, "requirements": requirements(engine), "server_git_url": "https://example.com/t.git",
        "server_commit": "", "build_extension": True, "cuda_architectures": [], "gpus": [],
    } | changed  # fmt: skip


def plan(engine="v2", python="3.12", nvcc=NVCC, architectures=(89, 86), **changed):
    return release_plan.plan(settings(engine, **changed), python, nvcc, architectures)


def obstacle(engine="v2", driver="580.95.05", **changed):
    return release_plan.obstacle(plan(engine, **changed), driver)


@pytest.mark.parametrize("engine", ["v2", "v3"])
def test_the_roles_own_pins_can_be_compiled_with_the_roles_own_toolkit(engine):
    record = plan(engine)
    assert release_plan.obstacle(record, "580.95.05") == ""
    assert record["torch_cuda"] == "13.0" and record["arch_list"] == "8.6;8.9"
    assert release_plan.directory(record) == f"{ {'v2': '0.3.2', 'v3': '1.6.5'}[engine] }-{record['key'][:12]}"


@pytest.mark.parametrize("engine", ["v2", "v3"])
def test_every_package_is_pinned_with_hashes(engine):
    """pip runs with --no-deps --require-hashes, so a line without a hash or version would stop it on every host."""
    blocks = [
        block for block in requirements(engine).replace("\\\n", " ").splitlines() if block and block[0] not in " #"
    ]
    assert len(blocks) > 50
    assert all("==" in block and "--hash=sha256:" in block for block in blocks)


def test_the_pins_are_read():
    text = "Torch==2.9.1 \\\n    --hash=sha256:0\nnumpy==2.4 ; python_version < '3' \\\n"
    text += "numpy==2.5 ; python_version >= '3'\n"
    assert release_plan.pins(text) == {"torch": "2.9.1", "numpy": "2.5"}
    wheel = "https://example.com/v0.3.2/exllamav2-0.3.2%2Bcu128.torch2.9.0-cp312-cp312-linux_x86_64.whl"
    assert release_plan.pins(f"exllamav2 @ {wheel} --hash=sha256:0\n") == {"exllamav2": "0.3.2+cu128.torch2.9.0"}
    assert release_plan.torch_cuda({"nvidia-cuda-runtime-cu12": "12.8.93"}) == "12.8"
    assert release_plan.torch_cuda({"torch": "2.2"}) == ""


def test_the_key_changes_with_what_changes_the_result_and_with_nothing_else():
    key = plan()["key"]
    mirror = "https://mirror.example.com/t.git"
    assert plan(architectures=["86", "89"], server_git_url=mirror, server_commit=COMMIT)["key"] == key
    changes = [
        {"python": "3.13"}, {"requirements": requirements() + "# x\n"}, {"nvcc": NVCC.replace("13.0", "13.1")},
        {"architectures": [89]}, {"server_commit": "0" * 40}, {"build_extension": False},
    ]  # fmt: skip
    assert len({plan(**change)["key"] for change in changes} | {key}) == len(changes) + 1


def test_a_wheel_that_brings_the_extension_needs_no_compiler():
    assert obstacle(build_extension=False, nvcc="", architectures=[]) == ""
    assert plan(build_extension=False, nvcc="")["key"] == plan(build_extension=False)["key"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"nvcc": ""}, "there is no nvcc; run the role cuda_toolkit"),
        ({"nvcc": "release 12.8, V12.8.93"}, "built with CUDA 13.0 and nvcc is 12.8"),
        (
            {"nvcc": "release 12.8, V12.8.93"},
            "use a toolkit of CUDA 13 (cuda_toolkit_source wheels or nvidia, driver 580",
        ),
        ({"architectures": [52, 89]}, "capability 5.2, and exllamav2 needs 6.0"),
        ({"architectures": [61, 89]}, "CUDA 13.0 has no target for compute capability 6.1"),
        ({"driver": "570.124.06"}, "needs driver 580 or later, and 570.124.06 is loaded"),
        ({"driver": "570.124.06", "build_extension": False}, "needs driver 580"),
    ],
)
def test_what_stops_a_release_is_said_with_what_works(changed, words):
    found = obstacle(**changed)
    assert words in found and found.endswith(".")


def test_the_engine_v3_needs_ampere():
    assert "exllamav3 needs 8.0" in obstacle("v3", architectures=[75, 89])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"server_commit": "main"}, "the full 40 digits"),
        ({"requirements": "torch==2.11.0\n"}, "pin no exllamav2"),
        ({"architectures": ["8.6"]}, "'8.6' in exllamav2_cuda_architectures is no compute capability"),
        ({"engine": "v4"}, "exllamav2_engine is 'v4'; set it to v2 or v3"),
    ],
)
def test_what_cannot_be_meant_is_an_error(changed, words):
    with pytest.raises(UserError) as raised:
        release_plan.plan(settings() | changed, "3.12", NVCC, changed.get("architectures", [86]))
    assert words in str(raised.value)


def test_architectures_are_written_as_torch_wants_them():
    assert release_plan.arch_list([120, "89", 86, 89]) == "8.6;8.9;12.0"


def test_architectures_are_those_given_or_those_of_the_cards_in_use():
    assert release_plan.architectures(settings(), CARDS) == ["86", "89"]
    assert release_plan.architectures(settings(gpus=["GPU-a"]), CARDS) == ["89"]
    assert release_plan.architectures(settings(cuda_architectures=[120]), CARDS) == [120]
    assert release_plan.architectures(settings(build_extension=False), {"available": False, "gpus": []}) == []


def test_a_card_that_is_not_there_is_refused_whatever_is_compiled():
    with pytest.raises(UserError, match="The card GPU-x of exllamav2_gpus is not in this host"):
        release_plan.architectures(settings(gpus=["GPU-a", "GPU-x"], cuda_architectures=[89]), CARDS)


@pytest.mark.parametrize(
    ("gpus", "cards", "words"),
    [
        (
            [],
            {"available": False, "reason": "No NVIDIA driver.", "gpus": []},
            "(No NVIDIA driver.); correct that, or set",
        ),
        ([], {**CARDS, "gpus": []}, "(there is none); correct that"),
        (["GPU-a", "GPU-x"], CARDS, "The card GPU-x of exllamav2_gpus is not in this host, which has GPU-a, GPU-b"),
    ],
)
def test_unknown_architectures_are_an_error(gpus, cards, words):
    with pytest.raises(UserError) as raised:
        release_plan.architectures(settings(gpus=gpus), cards)
    assert words in str(raised.value)


@pytest.mark.parametrize(("version", "words"), [("3.9", "is Python 3.9, which is too old"), ("", "cannot be run")])
def test_a_python_that_cannot_make_the_environment_is_an_error(version, words):
    with pytest.raises(UserError, match=f"/usr/bin/python3 {words}: ExLlama needs Python 3.11 or later; set"):
        release_plan.check_python("/usr/bin/python3", version)
    release_plan.check_python("/usr/bin/python3", "3.11")


def test_packages_to_compile_are_installed_only_where_the_extension_is_compiled():
    assert "g++" in release_plan.packages(settings())
    assert release_plan.packages(settings(build_extension=False)) == ["ca-certificates", "git", "python3-venv"]
