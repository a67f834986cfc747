# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A stage of a role by its tag alone, as site includes the role: what it takes of an earlier stage is known."""

from __future__ import annotations

import json

DEVICE = {"name": "fast", "port": 50052, "program": "/nonexistent/ggml-rpc-server"}
# stages that change something, the variables they need to be reached, and a task that shows that they were
CHANGING = {
    "host_python_install": ({"host_python_venv": "/nonexistent/v"}, "install | Show the planned installation"),
    "gpu_power_configure": ({"gpu_power_limits_watts": {"GPU-none": 300}}, "cards | Read which power settings are"),
    "llama_rpc_configure": ({"llama_rpc_devices": [DEVICE]}, "configure | Ensure that the servers run as their"),
    "llama_server_configure": ({}, "preflight | Read the recorded deployment"),
    "server_watchdog_configure": ({}, "remove_watch | Check for the watchdog's unit"),
    "report_write": ({}, "deployment | Read the recorded deployment"),
    "revalidation_timer_install": ({}, "install | Check whether the host has a copy"),
}
READING = {
    "llama_server_measure": ({}, "deployment | Read the recorded deployment"),
    "server_watchdog_verify": ({}, "verify_units | Read the state of the watchdog"),
}


def test_a_stage_that_changes_something_runs_alone(playbook, tmp_path):
    _run_alone(playbook, tmp_path, CHANGING, "--check")


def test_a_stage_that_reads_runs_alone(playbook, tmp_path):
    _run_alone(playbook, tmp_path, READING)


def _run_alone(playbook, tmp_path, stages, *words):
    """Run the stages in one play, each on a host of its own, which is this machine."""
    hosts = {stage: {"ansible_connection": "local", **variables} for stage, (variables, _task) in stages.items()}
    role = "homelab.mixed_gpu.{{ inventory_hostname.rpartition('_')[0] }}"
    task = {"ansible.builtin.include_role": {"name": role}, "tags": ["always"]}
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    (tmp_path / "play.json").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [task]}]))
    _status, output = playbook(
        str(tmp_path / "play.json"), "--tags", ",".join(stages), *words, inventory=str(tmp_path / "hosts.json")
    )
    assert "undefined" not in output and "has no attribute" not in output, output
    assert [task for _variables, task in stages.values() if task not in output] == [], output
