# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module with the real nvidia-ml-py, in a process of its own, against a libnvidia-ml.so.1 compiled for the test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv

import pytest
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml.build import build_library, environment

RUN = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.homelab.mixed_gpu.plugins.modules import gpu_facts
with patch_module_args(json.loads(sys.argv[1])):
    gpu_facts.main()
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def run(library):
    def _run(profile, text=None, directory=None, **arguments):
        variables = environment(library, profile, text)
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        if directory is not None:
            variables["LD_LIBRARY_PATH"] = str(directory)
        done = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(arguments)],
            env=variables, capture_output=True, text=True, check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout)

    return _run


def facts(result):
    assert not result.get("failed"), result["msg"]
    assert result["changed"] is False
    return result["ansible_facts"]["mixed_gpu_gpus"]


def test_unlike_cards_in_pci_bus_order(run):
    box = facts(run("rtx4090_rtx3090", required=True))
    assert (box["available"], box["reason"]) == (True, None)
    assert (box["driver_version"], box["cuda_driver_version"]) == ("580.95.05", "13.0")
    assert [gpu["name"][-4:] for gpu in box["gpus"]] == ["4090", "3090"]
    assert [gpu["index"] for gpu in box["gpus"]] == [1, 0]


def test_everything_about_one_card(run):
    fast = facts(run("rtx4090_rtx3090"))["gpus"][0]
    assert fast == {
        "uuid": "GPU-11111111-2222-3333-4444-555555555555",
        "name": "NVIDIA GeForce RTX 4090",
        "pci_bus_id": "00000000:01:00.0",
        "index": 1,
        "compute_capability": "8.9",
        "architecture": "Ada",
        "memory_total_mib": 24564,
        "memory_free_mib": 953,
        "memory_used_mib": 23256,
        "memory_reserved_mib": 354,
        "power_limit_watts": 450.0,
        "power_limit_min_watts": 150.0,
        "power_limit_max_watts": 600.0,
        "power_limit_default_watts": 450.0,
        "power_draw_watts": 448.9,
        "temperature_celsius": 71,
        "clock_graphics_mhz": 2520,
        "clock_graphics_max_mhz": 3105,
        "clock_sm_mhz": 2520,
        "clock_sm_max_mhz": 3105,
        "clock_memory_mhz": 10251,
        "clock_memory_max_mhz": 10501,
        "clock_video_mhz": 1950,
        "clock_video_max_mhz": None,
        "pcie_generation": 4,
        "pcie_generation_max": 4,
        "pcie_width": 8,
        "pcie_width_max": 16,
        "memory_bus_width_bits": 384,
        "memory_bandwidth_gb_per_s": 1008.1,
        "bar1_total_mib": 32768,
        "persistence_mode": True,
        "throttle_reasons": ["sw_power_cap", "sw_thermal_slowdown", "board_limit"],
        "processes": [
            {"pid": 900, "name": None, "memory_mib": 12},
            {"pid": 4242, "name": "/opt/llama.cpp/current/bin/llama-server", "memory_mib": 22888},
        ],
    }


def test_what_a_card_does_not_support_is_null(run):
    box = facts(run("one_card"))
    assert box["available"] and box["cuda_driver_version"] is None
    (card,) = box["gpus"]
    known = {name for name, value in card.items() if value is not None}
    # without the second version of the memory query `used` counts what the driver reserves;
    # graphics processes are readable
    assert known == {
        "uuid", "name", "pci_bus_id", "index", "memory_total_mib", "memory_free_mib", "memory_used_mib", "processes",
    }
    assert card["memory_used_mib"] == 140 and card["processes"] == []


@pytest.mark.parametrize(
    ("profile", "cause", "cure"),
    [
        ("no_driver", "kernel module is not loaded", "nvidia_driver"),
        ("mismatch", "different versions", "reboot"),
        ("no_permission", "refuses access", "run as root"),
        ("lost_card", "GPU 1: An NVIDIA card fell off the bus", "power-cycle"),
        ("card_lost_later", "GPU 0: An NVIDIA card fell off the bus", "dmesg"),
        ("no_card", "lists no card", "seated"),
    ],
)
def test_trouble_is_an_answer_with_cause_and_cure(run, profile, cause, cure):
    box = facts(run(profile))
    assert not box["available"]
    assert cause in box["reason"] and cure in box["reason"]
    failure = run(profile, required=True)
    assert failure["failed"] and failure["msg"] == box["reason"]


def test_a_lost_card_does_not_hide_the_other(run):
    assert [gpu["name"] for gpu in facts(run("lost_card"))["gpus"]] == ["NVIDIA GeForce RTX 4090"]


def test_a_machine_without_the_library(run, tmp_path):
    # an unloadable file of that name ends the search of the loader, also on a machine that has a real driver
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    box = facts(run("rtx4090_rtx3090", directory=tmp_path))
    assert not box["available"] and box["gpus"] == []
    assert "No NVIDIA driver" in box["reason"] and "nvidia_driver" in box["reason"]


def test_check_mode_answers_alike(run):
    assert facts(run("rtx4090_rtx3090", _ansible_check_mode=True)) == facts(run("rtx4090_rtx3090"))


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter without nvidia-ml-py."""
    directory = tmp_path_factory.mktemp("bare")
    venv.create(directory, with_pip=False, symlinks=True)
    return directory / "bin" / "python"


def _through_ansible(library, interpreter, host_python, profile="rtx4090_rtx3090"):
    ansible = shutil.which("ansible", path=os.path.dirname(sys.executable)) or shutil.which("ansible")
    variables = environment(library, profile)
    variables |= {"ANSIBLE_STDOUT_CALLBACK": "minimal", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    variables.pop("PYTHONPATH", None)
    done = subprocess.run(
        [
            ansible, "localhost", "-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={interpreter}",
            "-m", "homelab.mixed_gpu.gpu_facts", "-a", f"host_python={host_python}",
        ],
        env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return facts(json.loads(done.stdout.split("=>", 1)[1]))


def test_moves_to_the_python_that_has_nvidia_ml_py(library, bare_python):
    box = _through_ansible(library, bare_python, sys.executable)
    assert [gpu["name"][-4:] for gpu in box["gpus"]] == ["4090", "3090"]


def test_says_when_nvidia_ml_py_is_missing_everywhere(library, bare_python, tmp_path):
    box = _through_ansible(library, bare_python, tmp_path / "none")
    assert not box["available"] and "pynvml" in box["reason"] and "host_python" in box["reason"]
