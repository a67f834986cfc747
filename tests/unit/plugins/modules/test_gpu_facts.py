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
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml.build import environment


@pytest.fixture
def run(library, start_module):
    def _run(profile, text=None, directory=None, **arguments):
        variables = environment(library, profile, text)
        if directory is not None:
            variables["LD_LIBRARY_PATH"] = str(directory)
        return start_module("gpu_facts", arguments, variables)

    return _run


def facts(result):
    assert not result.get("failed"), result["msg"]
    assert result["changed"] is False
    return result["ansible_facts"]["mixed_gpu_gpus"]


def test_strings_that_are_no_text_do_not_hide_the_rest(start_module, library, tmp_path):
    profile = tmp_path / "profile.txt"
    profile.write_bytes(
        b"system.count=1\nsystem.driver_version=580.95.05\n0.uuid=GPU-0\n0.pci=0:01:00\n0.name=\xc3\x28 P40\xff\n"
    )
    variables = {**environment(library, None), "FAKE_NVML_PROFILE": str(profile), "PYTHONIOENCODING": "utf-8"}
    box = facts(start_module("gpu_facts", {}, variables))
    assert box["available"] and box["gpus"][0]["name"] == "\ufffd( P40\ufffd" and box["gpus"][0]["id"] == "GPU-0"


def test_unlike_cards_in_pci_bus_order(run):
    box = facts(run("rtx4090_rtx3090", required=True))
    assert (box["available"], box["reason"]) == (True, None)
    assert (box["driver_version"], box["cuda_driver_version"]) == ("580.95.05", "13.0")
    assert [gpu["name"][-4:] for gpu in box["gpus"]] == ["4090", "3090"]
    assert [gpu["index"] for gpu in box["gpus"]] == [1, 0]


def test_everything_about_one_card(run):
    fast = facts(run("rtx4090_rtx3090"))["gpus"][0]
    assert fast == {
        "id": "GPU-11111111-2222-3333-4444-555555555555",
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
        "power_limit_enforced_watts": 430.0,
        "power_draw_watts": 448.9,
        "temperature_celsius": 71,
        "pcie_generation": 4,
        "pcie_generation_max": 4,
        "pcie_generation_device_max": 4,
        "pcie_width": 8,
        "pcie_width_max": 16,
        "memory_bandwidth_gb_per_s": 1008.1,
        "bar1_total_mib": 32768,
        "persistence_mode": True,
        "ecc_enabled": False,
        "nvlink": None,
        "sampled": None,
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
        "id", "name", "pci_bus_id", "index", "memory_total_mib", "memory_free_mib", "memory_used_mib", "processes",
    }
    assert card["memory_used_mib"] == 140 and card["processes"] == []


def test_swapped_slots_change_the_order_and_not_the_cards(run):
    before, after = facts(run("rtx4090_rtx3090"))["gpus"], facts(run("swapped_slots"))["gpus"]
    assert [gpu["id"] for gpu in after] == [gpu["id"] for gpu in reversed(before)]
    assert [gpu["pci_bus_id"] for gpu in after] == [gpu["pci_bus_id"] for gpu in before]


def test_links_between_unlike_cards(run):
    box = facts(run("rtx4090_rtx3090"))
    fast, slow = box["gpus"]
    assert box["p2p"] == [{
        "a": fast["id"], "b": slow["id"], "read": "chipset_not_supported", "write": "chipset_not_supported",
        "nvlink": "ioh_topology_not_supported", "atomics": "chipset_not_supported", "pci": "chipset_not_supported",
    }]  # fmt: skip
    # an RTX 3090 has links without a bridge too, they are not active; error correction is what it does not have
    assert slow["nvlink"] == [{"link": link, "active": False} for link in range(4)]
    assert slow["ecc_enabled"] is None


def test_links_between_bridged_cards(run):
    box = facts(run("two_rtx3090_nvlink"))
    (pair,) = box["p2p"]
    assert (pair["read"], pair["write"], pair["nvlink"], pair["atomics"]) == ("ok",) * 4
    assert all(gpu["nvlink"] == [{"link": link, "active": True} for link in range(4)] for gpu in box["gpus"])


def test_three_cards_are_three_pairs(run):
    box = facts(run("three_cards"))
    names = {gpu["id"]: gpu["name"][-4:] for gpu in box["gpus"]}
    assert [(names[pair["a"]], names[pair["b"]]) for pair in box["p2p"]] == [
        ("4090", "3090"), ("4090", "3060"), ("3090", "3060"),
    ]  # fmt: skip
    assert box["gpus"][2]["pcie_width_max"] == 4


def test_what_a_pair_does_not_answer_is_null(run):
    text = "".join(f"{index}.uuid=GPU-{index}\n{index}.pci=0:0{index}:00\n" for index in (0, 1))
    (pair,) = facts(run(None, text="system.count=2\n" + text))["p2p"]
    assert pair == {
        "a": "GPU-0", "b": "GPU-1", "read": None, "write": None, "nvlink": None, "atomics": None, "pci": None,
    }  # fmt: skip


def test_sampling_shows_what_a_card_does_at_work(run):
    box = facts(run("under_load", sample_seconds=0.5, sample_interval_ms=50))
    fast, slow = (gpu["sampled"] for gpu in box["gpus"])
    assert box["available"] and box["xid_events"] == []
    assert 5 <= fast["count"] <= 11 and 0.5 <= fast["seconds"] < 5
    # at rest the link is of generation 1; the limit of 450 W caps what the card would draw
    assert fast["pcie_generation"]["min"] == 1 and fast["pcie_generation"]["max"] == 4
    assert fast["power_draw_watts"]["min"] == 100 and fast["power_draw_watts"]["max"] == 450
    assert 100 < fast["power_draw_watts"]["mean"] < 450
    assert fast["clock_sm_mhz"] == {"min": 2520, "mean": pytest.approx(2610, abs=60), "max": 2700}
    assert fast["temperature_celsius"]["max"] == 62
    assert fast["utilization_gpu_percent"]["max"] == 60
    assert fast["throttle_reasons"] == ["sw_power_cap"]
    # the other one does not say how busy its memory is, and then not how busy it is either: NVML gives both or none
    assert slow["pcie_generation"] == {"min": 4, "mean": 4, "max": 4}


def test_without_sampling_there_is_nothing_sampled(run):
    assert [gpu["sampled"] for gpu in facts(run("under_load"))["gpus"]] == [None, None]


def test_errors_of_the_driver_are_seen_while_sampling(run):
    box = facts(run("xid_events", sample_seconds=0.2, sample_interval_ms=50))
    fast, slow = (gpu["id"] for gpu in box["gpus"])
    assert box["available"] and box["xid_events"] == [{"id": slow, "xid": 31}, {"id": fast, "xid": 79}]


def test_a_driver_without_events_is_sampled_all_the_same(run):
    text = "system.count=1\n0.uuid=GPU-0\n0.pci=0:01:00\n0.temperature_celsius=40\n0.error.nvmlDeviceRegisterEvents=3\n"
    box = facts(run(None, text=text, sample_seconds=0.2, sample_interval_ms=50))
    assert box["xid_events"] is None
    assert box["gpus"][0]["sampled"]["temperature_celsius"] == {"min": 40, "mean": 40, "max": 40}
    assert box["gpus"][0]["sampled"]["throttle_reasons"] is None


def test_a_card_that_is_lost_while_sampling_is_trouble(run):
    box = facts(run("lost_under_load", sample_seconds=0.2, sample_interval_ms=50))
    assert not box["available"] and "GPU 1: An NVIDIA card fell off the bus" in box["reason"]
    fast, slow = box["gpus"]
    assert box["xid_events"] == [{"id": slow["id"], "xid": 79}]
    assert fast["sampled"]["count"] >= 2 and slow["sampled"]["count"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sample_seconds": -1}, "sample_seconds is -1"),
        ({"sample_seconds": 7200}, "up to an hour"),
        ({"sample_interval_ms": 1}, "at least 10"),
    ],
)
def test_senseless_sampling_is_refused(run, arguments, words):
    result = run("under_load", **arguments)
    assert result["failed"] and words in result["msg"]


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
