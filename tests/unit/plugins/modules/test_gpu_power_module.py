# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module with the real nvidia-ml-py, in a process of its own, against a libnvidia-ml.so.1 compiled for the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter.gpu_power_settings import gpu_power_settings
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml.build import HERE, build_library, environment

RUN = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.homelab.mixed_gpu.plugins.modules import gpu_power
with patch_module_args(json.loads(sys.argv[1])):
    gpu_power.main()
"""
SLOW = "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa"


def wanted(watts, clocks=None):
    entry = {"uuid": SLOW, "power_limit_watts": watts, "locked_clocks_mhz": clocks, "persistence_mode": True}
    return {"schema": 1, "cards": [entry]}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def run(library, tmp_path):
    text = (HERE / "profiles" / "rtx4090_rtx3090.txt").read_text() + f"system.state_file={tmp_path}/state\n"

    def _run(check=False, **arguments):
        arguments |= {"_ansible_check_mode": check, "_ansible_diff": True, "record": str(tmp_path / "record.json")}
        variables = environment(library, None, text) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(arguments)],
            env=variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout)

    return _run


def test_check_mode_says_what_would_change_and_changes_nothing(run, tmp_path):
    result = run(check=True, settings=wanted(280, [210, 1700]))
    assert result["changed"] and len(result["deviations"]) == 3
    assert "is 350 W, not 280 W" in result["diff"]["before"]
    assert not (tmp_path / "state").exists() and not (tmp_path / "record.json").exists()


def test_the_second_time_nothing_changes(run):
    assert run(settings=wanted(280, [210, 1700]))["changed"]
    again = run(settings=wanted(280, [210, 1700]))
    assert not again["changed"] and again["deviations"] == []


def test_a_driver_that_was_loaded_anew_is_noticed(run, tmp_path):
    run(settings=wanted(350, [210, 1700]))
    (tmp_path / "state").unlink()
    assert "persistence mode" in run(check=True, settings=wanted(350, [210, 1700]))["deviations"][0]


@pytest.mark.parametrize(
    ("settings", "words"), [(wanted(90), "from 100 to 366 W"), ({"cards": []}, "schema"), ({"schema": 1}, "schema")]
)
def test_senseless_settings_are_refused(run, settings, words):
    result = run(settings=settings)
    assert result["failed"] and words in result["msg"]


def test_the_filter_gives_settings_and_problems():
    card = {
        "uuid": SLOW, "name": "NVIDIA GeForce RTX 3090", "power_limit_min_watts": 100.0, "power_limit_max_watts": 366.0,
        "clock_graphics_max_mhz": 2100,
    }  # fmt: skip
    found = gpu_power_settings([card], limits_by_name_watts={"RTX 3090": 280})
    assert found == {"settings": wanted(280), "problems": []}
    assert len(gpu_power_settings([card], {SLOW: 10})["problems"]) == 1
    with pytest.raises(AnsibleFilterError, match="dicts by UUID"):
        gpu_power_settings([card], [SLOW])
