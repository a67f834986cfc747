# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Releases of ExLlama: what they are made of, what changes their key, what stops them; and the split."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import exllama_plan

FILES = pathlib.Path(__file__).resolve().parents[5] / "roles/exllamav2/files"
COMMIT = "79126f904c2e00aece026b36bb70bbb87e4892b2"
NVCC = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\n"
FAST, SLOW = "GPU-fast", "GPU-slow"
SERVING = {"context_size": 8192, "cache_mode": "FP16", "chunk_size": 2048}
RECORD = {
    "tuned": {
        "model": {"id": "m"}, "serving": {"engine": "exllamav2", **SERVING},
        "devices": [{"id": SLOW}, {"id": FAST}], "gpu_split_gb": [17, 20.5],
    },
    "other": {"model": {"id": "m"}, "devices": [{"id": FAST}], "serving": SERVING},
}  # fmt: skip


def requirements(engine="v2"):
    return (FILES / f"requirements_{engine}.txt").read_text(encoding="utf-8")


def plan(engine="v2", **changed):
    given = {
        "python": "3.12", "requirements": requirements(engine),
        "server": {"url": "https://example.com/t.git", "commit": COMMIT},
        "build_extension": True, "nvcc": NVCC, "driver": "580.95.05", "architectures": [89, 86],
    }  # fmt: skip
    return exllama_plan.plan(engine, **(given | changed))


@pytest.mark.parametrize("engine", ["v2", "v3"])
def test_the_roles_own_pins_can_be_compiled_with_the_roles_own_toolkit(engine):
    release = plan(engine)
    assert release["trouble"] == ""
    assert release["record"]["torch_cuda"] == "13.0" and release["record"]["arch_list"] == "8.6;8.9"
    assert release["directory"].startswith({"v2": "0.3.2-", "v3": "1.6.5-"}[engine])


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
    assert exllama_plan.pins(text) == {"torch": "2.9.1", "numpy": "2.5"}
    wheel = "https://example.com/v0.3.2/exllamav2-0.3.2%2Bcu128.torch2.9.0-cp312-cp312-linux_x86_64.whl"
    assert exllama_plan.pins(f"exllamav2 @ {wheel} --hash=sha256:0\n") == {"exllamav2": "0.3.2+cu128.torch2.9.0"}
    assert exllama_plan.torch_cuda({"nvidia-cuda-runtime-cu12": "12.8.93"}) == "12.8"
    assert exllama_plan.torch_cuda({"torch": "2.2"}) == ""


def test_the_key_changes_with_what_changes_the_result_and_with_nothing_else():
    key = plan()["key"]
    mirror = {"url": "https://mirror.example.com/t.git", "commit": COMMIT}
    assert plan(driver="590.1", architectures=["86", "89"], server=mirror)["key"] == key
    changes = [
        {"python": "3.13"}, {"requirements": requirements() + "# x\n"}, {"nvcc": NVCC.replace("13.0", "13.1")},
        {"architectures": [89]}, {"server": mirror | {"commit": "0" * 40}}, {"build_extension": False},
    ]  # fmt: skip
    assert len({plan(**change)["key"] for change in changes} | {key}) == len(changes) + 1


def test_a_wheel_that_brings_the_extension_needs_no_compiler():
    assert plan(build_extension=False, nvcc="", architectures=[])["trouble"] == ""
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
        ({"architectures": []}, "for a 3090 and a 4090 to [86, 89]"),
        ({"architectures": [52, 89]}, "capability 5.2, and exllamav2 needs 6.0"),
        ({"driver": "570.124.06"}, "needs driver 580 or later, and 570.124.06 is loaded"),
        ({"driver": "570.124.06", "build_extension": False}, "needs driver 580"),
    ],
)
def test_what_stops_a_release_is_said_with_what_works(changed, words):
    trouble = plan(**changed)["trouble"]
    assert words in trouble and trouble.endswith(".")


def test_the_engine_v3_needs_ampere():
    assert "exllamav3 needs 8.0" in plan("v3", architectures=[75, 89])["trouble"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"server": {"url": "u", "commit": "main"}}, "the full 40 digits"),
        ({"requirements": "torch==2.11.0\n"}, "pin no exllamav2"),
        ({"architectures": ["8.6"]}, "'8.6' is no compute capability"),
    ],
)
def test_what_cannot_be_meant_is_an_error(changed, words):
    with pytest.raises(exllama_plan.ExllamaError, match=words.replace("(", r"\(")):
        plan(**changed)


def test_architectures_are_written_as_torch_wants_them():
    assert exllama_plan.arch_list([120, "89", 86, 89]) == "8.6;8.9;12.0"


def split(known=(FAST, SLOW), models=None, **changed):
    wanted = {
        "engine": "v2", "model_id": "m", "context_size": 8192, "cache_mode": "FP16", "gpus": [], "gpu_split_gb": [],
    }  # fmt: skip
    return exllama_plan.split(RECORD if models is None else models, wanted | changed, known)


def test_a_given_split_comes_before_the_recorded_one():
    given = split(gpu_split_gb=[20, 17.5])
    assert (given["gpus"], given["gpu_split_gb"], given["source"]) == ([FAST, SLOW], [20.0, 17.5], "variable")
    assert split(gpus=[SLOW], gpu_split_gb=[20])["gpus"] == [SLOW]


def test_the_recorded_split_follows_the_cards_not_their_places():
    shown = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": f"{SLOW},{FAST}"}
    recorded = {"gpus": [SLOW, FAST], "gpu_split_gb": [17.0, 20.5], "source": "record", "environment": shown}
    assert split() == recorded and split(known=(SLOW, FAST)) == recorded
    assert split(gpus=[FAST, SLOW])["gpu_split_gb"] == [20.5, 17.0]


def test_without_a_record_for_this_engine_the_engine_decides():
    shown = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": f"{FAST},{SLOW}"}
    automatic = {"gpus": [FAST, SLOW], "gpu_split_gb": [], "source": "automatic", "environment": shown}
    assert split(model_id="another") == automatic and split(models={}) == automatic
    assert split(models={"other": RECORD["other"]}) == automatic and split(engine="v3") == automatic


def test_a_split_for_another_context_or_cache_is_not_taken():
    assert split(context_size=4096)["source"] == split(cache_mode="Q8")["source"] == "automatic"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gpus": ["GPU-x"]}, "GPU-x of exllamav2_gpus is not in this host, which has GPU-fast, GPU-slow"),
        ({"gpu_split_gb": [20]}, "has 1 numbers for 2 cards"),
        ({"gpu_split_gb": [0, 0]}, "leaves no card any memory"),
        ({"gpu_split_gb": [-1, 20]}, "leaves no card any memory"),
        ({"known": (FAST,)}, "is for the card GPU-slow, which is not in this host"),
        ({"gpus": [FAST]}, "exllamav2_gpus names other cards"),
    ],
)
def test_a_split_that_does_not_fit_the_host_is_an_error(given, words):
    with pytest.raises(exllama_plan.ExllamaError, match=words):
        split(**given)
