# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""On a real NVIDIA card: preflight's table, from the real kernel, the real NVML and a process that looks like vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import card_ages
from ansible_collections.homelab.mixed_gpu.tests.gpu.conftest import module


def test_preflight_of_this_machine(box, tmp_path):
    """The table of the real machine. It is printed; what is asserted holds on every healthy box."""
    names = [gpu["name"] for gpu in box["gpus"]]
    program = tmp_path / "vllm"
    program.write_text("import time\ntime.sleep(60)\n")
    command = [sys.executable, str(program), "serve", "m", "--tensor-parallel-size", "2", "--api-key", "sk-secret"]
    with subprocess.Popen(command) as vllm:
        try:
            time.sleep(0.5)
            result = module(
                "preflight_info", port=8080, memory_mib=2048, gpus_expected=names, models_dir=str(tmp_path),
                disk=[{"path": str(tmp_path), "needed_mib": 1}], psu_watts=1, rest_of_machine_watts=0,
                host_python=sys.executable,
            )
        finally:
            vllm.kill()
    print("\n".join(result["lines"]))
    host = module("host_info")["host"]
    checks = result["checks"]
    found = {check["name"]: check for check in checks}
    assert found["GPUs"]["ok"], found["GPUs"]
    assert {device["driver"] for device in host["nvidia_devices"]} <= {"nvidia", None}  # a sandbox may hide it
    assert "nvidiactl" in host["nvidia_nodes"]
    for device, gpu in zip(host["nvidia_devices"], box["gpus"], strict=True):
        # where the kernel says something, it says the same as NVML
        assert device["bar1_mib"] in (None, gpu["bar1_total_mib"])
        assert device["width"] in (None, gpu["pcie_width"])
        architecture, capability = card_ages.of_id(device["device_id"])
        assert (architecture.name, capability) == (gpu["architecture"], gpu["compute_capability"])
    limits = sum(round(gpu["power_limit_watts"]) for gpu in box["gpus"])
    assert f"more than the power supply gives: steady {limits} W of 1 W" in found["power supply"]["detail"]
    alike = len({(gpu["name"], gpu["compute_capability"]) for gpu in box["gpus"]}) == 1
    (engine,) = [check for check in checks if f"pid {vllm.pid}" in check["detail"]]
    assert engine["ok"] is alike and "secret" not in json.dumps(result)
    assert alike or "_PP_LAYER_PARTITION=" in engine["cure"]
