# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Preflight on the machines of tests/described_hosts: real code from files, NVML and command lines to the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import preflight
from ansible_collections.homelab.mixed_gpu.tests.described_hosts import build
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml.build import environment

RUN = """
import sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.homelab.mixed_gpu.plugins.modules import gpu_facts
with patch_module_args({"sample_seconds": float(sys.argv[1])}):
    gpu_facts.main()
"""


def ask_nvml(library, text, sample_seconds):
    """The fact mixed_gpu_gpus, of the real module with the real nvidia-ml-py."""
    variables = environment(library, None, text) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", RUN, str(sample_seconds)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    return json.loads(done.stdout)["ansible_facts"]["mixed_gpu_gpus"]


def said(check):
    return f"{check['detail']}; {check['cure']}"


@pytest.mark.parametrize("name", build.names())
def test_machine(name, library, tmp_path):
    machine = build.description(name)
    build.build(machine, tmp_path)
    text = build.nvml_text(machine)
    gpus = None if text is None else ask_nvml(library, text, machine.get("sample_seconds", 0))
    found = preflight.judge(build.host(machine, tmp_path, gpus), build.wanted(machine))
    checks = found["checks"]
    bad = [check for check in checks if not check["ok"]]
    print("\n".join(found["lines"]))
    expected = [*machine["expected"].items(), *machine.get("second", {}).items()]
    assert sorted(check["name"] for check in bad) == sorted(key for key, _words in expected)
    for key, (severity, *words) in expected:
        fitting = [
            check for check in bad
            if check["name"] == key and check["severity"] == severity and all(word in said(check) for word in words)
        ]
        assert fitting, [said(check) for check in bad if check["name"] == key]
        assert fitting[0]["cure"]
    for key, words in machine.get("seen", {}).items():
        assert words in next(check["detail"] for check in checks if check["name"] == key)
    assert "secret" not in json.dumps(found)
    assert (found["problem"] is None) == all(check["severity"] != "error" for check in bad)
    assert len({check["name"] for check in checks}) == len(checks) - len(machine.get("second", {}))
