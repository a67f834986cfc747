#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_server_diagnosis
short_description: Load a running llama-server for some seconds and judge each of its devices
version_added: 0.1.0
description:
  - Sends a fixed prompt again and again to a running llama-server, one request at a time. It watches what each device
    does meanwhile, and compares that with what the record of the tuning expects. Nothing is stopped, started or stored.
  - Cards are watched through NVML. A device that is an RPC server on this host is watched through the kernel's accounts
    of its process; one on another host is not seen.
  - While other requests are handled nothing is sent, and what overlaps with other requests is left out.
  - Also reads the Xid errors of the kernel's journal, and the baseline of the deployment.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
  - homelab.mixed_gpu._host_python.nvml
  - homelab.mixed_gpu._server
attributes:
  check_mode:
    details: Sends nothing in check mode; RV(lines) says what would be sent.
options:
  deployment:
    description: Id of the deployment that is served, as under C(models) in the host's record.
    type: str
    required: true
  entry:
    description: Its entry in the host's record, from M(homelab.mixed_gpu.split_record).
    type: dict
    required: true
  server:
    description:
      - What M(homelab.mixed_gpu.llama_server_info) returned with this entry. A server that is not ready is not loaded.
    type: dict
    required: true
  load:
    description: Whether the server is loaded. With V(false) only cards, journal and record are read.
    type: bool
    default: true
  seconds:
    description: For how long generation and prompt are measured, each, after a short warm-up.
    type: float
    default: 8
  blocks:
    description: Parts that each measurement is divided into; they show the noise.
    type: int
    default: 4
  tolerance_percent:
    description: A device is called slower or faster only beyond this, and only where the noise allows it.
    type: float
    default: 10.0
  wait_seconds:
    description: How long to wait for a server that is busy with other requests.
    type: int
    default: 30
  journal_days:
    description: How far back the journal is searched for Xid errors. V(0) does not read it.
    type: int
    default: 7
  timeout_seconds:
    description: Time limit of one request.
    type: int
    default: 300
  state_dir:
    description: Directory of the host in which the baseline of the deployment is read, if there is one.
    type: path
    default: /var/lib/mixed_gpu
"""

EXAMPLES = r"""
- name: Read the active deployment
  homelab.mixed_gpu.split_record:
    state: query
  register: example_recorded

- name: Read where the server placed the model
  homelab.mixed_gpu.llama_server_info:
    deployment: "{{ example_recorded.entry }}"
  register: example_server

- name: Check each device of the server
  homelab.mixed_gpu.llama_server_diagnosis:
    deployment: "{{ example_recorded.deployment }}"
    entry: "{{ example_recorded.entry }}"
    server: "{{ example_server }}"
  register: example_diagnosis
"""

RETURN = r"""
diagnosis:
  description: The verdict and what it rests on, see C(docs/data_formats.md); V(none) in check mode.
  returned: always
  type: dict
failure:
  description: Why the server was not diagnosed, V(none) where it runs, and in check mode.
  returned: always
  type: str
lines:
  description: The diagnosis as lines of text.
  returned: always
  type: list
  elements: str
"""

import importlib
import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.types import Json
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._diagnosis import diagnosis, expected, hangs, lines
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.llama_client import (
    Client,
    ServerError,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import acceptance
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watch import server_under_load, watched_devices


def asked_of(params: Json) -> server_under_load.Asked:
    """Return what to load the server with; nothing where it is not ready, or does without a recorded device."""
    phases = []
    absent = (params["server"].get("without_lenders") or {}).get("absent")
    if params["load"] and params["server"]["state"] == "ready" and not absent:
        phases = expected.phases(params["entry"], params["seconds"] / params["blocks"])
    return server_under_load.Asked(
        phases, params["seconds"], params["blocks"], params["wait_seconds"], params["journal_days"]
    )


def examine(module: AnsibleModule, asked: server_under_load.Asked) -> Json:
    """Watch the devices and return the diagnosis."""
    params = module.params
    reason = host_python.enter(["pynvml"], params["host_python"])
    nvml = reason if reason else importlib.import_module("pynvml")
    client = Client.of_module(module, params["timeout_seconds"])
    speculates = acceptance.comparable(params["entry"]) and params["server"]["state"] == "ready"
    metrics = client.text("/metrics") if speculates else ""
    tools = watched_devices.Tools(module, nvml)
    watched = server_under_load.watch(client, params["entry"]["devices"], asked, tools)
    baseline = json_file.read_text(os.path.join(params["state_dir"], "baselines", f"{params['deployment']}.json"))
    state = json_file.read_text(os.path.join(params["state_dir"], "watchdog", "state.json"))
    hung = hangs.findings(state or "", "llama-server.service", params["journal_days"], time.time())
    judged = diagnosis.diagnose(
        params["entry"], watched, params["server"], baseline or "", params["tolerance_percent"], hung, metrics
    )
    return {**judged, "deployment": params["deployment"], "at": json_file.utc_now()}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "api_key_file": {"type": "path", "no_log": False},
            "deployment": {"type": "str", "required": True},
            "entry": {"type": "dict", "required": True},
            "server": {"type": "dict", "required": True},
            "load": {"type": "bool", "default": True},
            "seconds": {"type": "float", "default": 8},
            "blocks": {"type": "int", "default": 4},
            "tolerance_percent": {"type": "float", "default": 10.0},
            "wait_seconds": {"type": "int", "default": 30},
            "journal_days": {"type": "int", "default": 7},
            "timeout_seconds": {"type": "int", "default": 300},
            "state_dir": {"type": "path", "default": "/var/lib/mixed_gpu"},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not 0 < params["seconds"] <= 600 or params["blocks"] < 2:
        module.fail_json(
            msg="seconds must be more than 0 and at most 600, and blocks at least 2: "
            f"they are {params['seconds']} and {params['blocks']}."
        )
    try:
        asked = asked_of(params)
        if module.check_mode:
            would = lines.would_send(params["url"], params["entry"], asked.phases, params["seconds"])
            module.exit_json(changed=False, diagnosis=None, failure=None, lines=would)
        judged = examine(module, asked)
    except ServerError as exc:
        module.fail_json(msg=str(exc))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
        module.fail_json(
            msg=f"The recorded deployment {params['deployment']} is not complete ({exc!r}): run the tuning play again."
        )
    failure = diagnosis.failure(params["server"])
    module.exit_json(changed=False, diagnosis=judged, failure=failure, lines=lines.table(judged))


if __name__ == "__main__":
    main()
