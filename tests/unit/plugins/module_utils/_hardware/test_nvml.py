# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json
import os
import subprocess
import sys

import pynvml
import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import nvml
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml.build import build_library, environment

WATCH = """
import json, time
import pynvml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import nvml
with nvml.watched(pynvml, 20) as found:
    time.sleep(1)
print(json.dumps(found))
"""

BOX = [
    {"id": "GPU-a", "name": "NVIDIA GeForce RTX 4090"},
    {"id": "GPU-b", "name": "NVIDIA GeForce RTX 3090 Ti"},
    {"id": "GPU-c", "name": "NVIDIA GeForce RTX 3090"},
]


@pytest.mark.parametrize(
    ("expected", "missing"),
    [
        ([], []),
        (["rtx 4090", "RTX 3090", "RTX 3090 Ti"], []),
        (["RTX 3090 Ti", "RTX 3090 Ti"], ["RTX 3090 Ti"]),
        (["RTX 3090", "RTX 3090"], []),
        (["GPU-c", "RTX 3090"], []),
        (["GPU-c", "GPU-d"], ["GPU-d"]),
        (["RTX 4090", "RTX 4090"], ["RTX 4090"]),
    ],
)
def test_every_card_satisfies_one_expectation(expected, missing):
    assert nvml.missing_gpus(expected, BOX) == missing


def test_a_text_that_is_no_utf_8_is_asked_for_as_bytes():
    class Strict:
        NVMLError = pynvml.NVMLError

        @staticmethod
        @pynvml.convertStrBytes
        def nvmlSystemGetProcessName(pid):
            return b"/srv/M\xe4rz/server"

        @staticmethod
        def nvmlDeviceGetName(handle):
            return b"\xff".decode()

    assert nvml._ask(Strict, "nvmlSystemGetProcessName", 1) == "/srv/M\ufffdrz/server"
    assert nvml._ask(Strict, "nvmlDeviceGetName", None) is None
    assert nvml._ask(Strict, "nvmlDeviceGetSerial", None) is None


@pytest.mark.parametrize(
    ("clock_mhz", "bits", "bandwidth"),
    [
        (10501, 384, 1008.1),  # RTX 4090: NVIDIA states 1008 GB/s
        (9751, 384, 936.1),  # RTX 3090: 936 GB/s
        (2619, 5120, 3352.3),  # H100 SXM: 3.35 TB/s
        (None, 384, None),
        (10501, None, None),
    ],
)
def test_bandwidth_follows_data_sheets(clock_mhz, bits, bandwidth):
    assert nvml.bandwidth_gb_per_s(clock_mhz, bits) == bandwidth


def test_throttle_reasons_are_named():
    assert nvml.throttle_reasons(0) == []
    assert nvml.throttle_reasons(None) is None
    assert nvml.throttle_reasons(0x44) == ["sw_power_cap", "hw_thermal_slowdown"]
    assert nvml.throttle_reasons(0x8000) == ["unknown_0x8000"]


def test_mismatch_names_the_loaded_version():
    assert "560.35.03" in nvml.explain(18, "", "560.35.03")


def test_unknown_errors_keep_nvmls_own_words():
    sentence = nvml.explain(999, "Unknown Error")
    assert "999" in sentence and "Unknown Error" in sentence and "nvidia-smi" in sentence


@pytest.fixture
def watched(tmp_path):
    def _watched(profile):
        variables = environment(build_library(tmp_path), profile)
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        done = subprocess.run([sys.executable, "-c", WATCH], env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return _watched


def test_the_cards_are_watched_while_something_else_runs(watched):
    found = watched("under_load")
    assert len(found) == 2
    for sampled in found.values():
        assert sampled["count"] > 3 and sampled["temperature_celsius"]["max"] > 0
        assert isinstance(sampled["throttle_reasons"], list)
        assert all(one["gpu_percent"] is None for one in sampled["processes"])  # these cards do not say


@pytest.mark.parametrize("profile", ["no_driver", "no_card"])
def test_without_cards_nothing_is_watched_and_nothing_fails(watched, profile):
    assert watched(profile) == {}
