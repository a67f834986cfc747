#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: server_restart_info
short_description: Tell whether a server has to be restarted, and what is in the way
version_added: 0.1.0
description:
  - A restart is due when the server does not run, when a file that it reads at its start changes, or when such a file
    was written after the start.
  - In the way are a running measurement, other processes on the server's port, and cards with less free memory than the
    recorded plan needs. The server itself and the units that its start stops are not in the way.
  - Also tells which of the other units start at boot.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
    details:
      - This action does not modify state.
  diff_mode:
    support: N/A
    details:
      - This action does not modify state.
options:
  unit:
    description: Unit of the server.
    type: str
    required: true
  conflicting_units:
    description: Units that its start stops.
    type: list
    elements: str
    default: []
  files:
    description: Files that the server reads when it starts.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: The file.
        type: path
        required: true
      content:
        description: Its text as it will be. Empty means that there will be no such file.
        type: str
        required: true
  port:
    description: Its TCP port.
    type: int
    required: true
  entry:
    description:
      - Entry of the deployment, RV(homelab.mixed_gpu.split_record#module:entry). The memory that its plan counts on the
        cards must be free.
    type: dict
  host_python:
    description: Python that has C(nvidia-ml-py), of the role host_python.
    type: path
    default: /opt/mixed_gpu/venv/bin/python
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Check what a restart of llama-server would meet
  homelab.mixed_gpu.server_restart_info:
    unit: llama-server.service
    conflicting_units: [exllama-server.service]
    port: 8080
    files:
      - path: /etc/systemd/system/llama-server.service
        content: "{{ lookup('ansible.builtin.template', 'llama-server.service.j2') }}"
    entry: "{{ example_recorded.entry }}"
  no_log: true
  register: example_restart
"""

RETURN = r"""
due:
  description: Why a restart is due, in words; V(none) when it is not.
  returned: success
  type: str
obstacles:
  description: What is in the way of a restart that is due, one sentence each with the cure.
  returned: success
  type: list
  elements: str
starting_at_boot:
  description: Those of O(conflicting_units) that are enabled.
  returned: success
  type: list
  elements: str
"""

import importlib
import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, json_file, systemd
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import host, nvml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware.host_hardware import read
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import restart_check
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import lease_unit
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import device_list

PROPERTIES: t.Final = (
    "LoadState",
    "ActiveState",
    "SubState",
    "NeedDaemonReload",
    "ActiveEnterTimestampMonotonic",
    "MainPID",
    "UnitFileState",
)


def file_of(path: str, content: str) -> restart_check.File:
    """Return a file as it is and as it will be."""
    now = json_file.read_text(path)
    written_at = 0.0 if now is None else os.stat(path).st_mtime
    return restart_check.File(path, now, content or None, written_at)


def started_at(unit: dict[str, str]) -> float:
    """Return when a unit became active, in seconds since the epoch."""
    microseconds = int(unit.get("ActiveEnterTimestampMonotonic") or 0)
    return time.time() - (time.monotonic() - microseconds / 1e6)


def memory_obstacles(entry: dict[str, t.Any], leaving_pids: set[int], python: str) -> list[str]:
    """Return which cards have no room for the plan; asks no driver where the plan needs no card."""
    if not device_list.cuda_ids(entry["devices"]):
        return []
    reason = host_python.enter(["pynvml"], python)
    driver = read("/sys/module/nvidia/version")
    cards = nvml.unavailable(reason) if reason else nvml.probe(importlib.import_module("pynvml"), driver)
    if not cards["available"]:
        return [f"The free memory of the cards is unknown: {cards['reason']}"]
    return restart_check.memory(entry, cards["gpus"], leaving_pids)


def obstacles_of(module: AnsibleModule, units: dict[str, dict[str, str]]) -> list[str]:
    """Return what is in the way of a restart; C(units) are the server's and those that its start stops."""
    params = module.params
    lease = systemd.show(module, lease_unit.UNIT, "ActiveState")
    leaving = {int(unit.get("MainPID") or 0) for unit in units.values()}
    listeners = host.listening(params["port"], module.get_bin_path("ss"), module.run_command) or []
    return [
        *restart_check.measurement(lease_unit.UNIT, lease.get("ActiveState", "")),
        *restart_check.port(params["port"], listeners, units),
        *(memory_obstacles(params["entry"], leaving, params["host_python"]) if params["entry"] else []),
    ]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "conflicting_units": {"type": "list", "elements": "str", "default": []},
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True, "no_log": True},
                },
            },
            "port": {"type": "int", "required": True},
            "entry": {"type": "dict"},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
        },
        supports_check_mode=True,
    )
    params = module.params
    names = [systemd.unit_name(name) for name in (params["unit"], *params["conflicting_units"])]
    try:
        units = {name: systemd.show(module, name, *PROPERTIES) for name in names}
        files = [file_of(file["path"], file["content"]) for file in params["files"]]
        due = restart_check.due(units[names[0]], started_at(units[names[0]]), files)
        obstacles = obstacles_of(module, units) if due else []
    except UserError as exc:
        module.fail_json(msg=f"{exc}.")
    except OSError as exc:
        module.fail_json(msg=f"{exc.filename} cannot be read ({exc.strerror}): run as root.")
    except (KeyError, TypeError, ValueError) as exc:
        module.fail_json(msg=f"The entry of the deployment is not complete ({exc}): run the tuning play again.")
    boot = [name for name in names[1:] if units[name].get("UnitFileState") == "enabled"]
    module.exit_json(changed=False, due=due, obstacles=obstacles, starting_at_boot=boot)


if __name__ == "__main__":
    main()
