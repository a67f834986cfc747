#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_info
short_description: Check a host before anything is installed on it
version_added: 0.1.0
description:
  - Reads system, memory, disk room, port, the NVIDIA cards and other engines, and judges them by what is wanted.
  - Needs nothing but Python. The driver is asked through NVML where O(host_python) and a loaded driver are there.
  - Never fails because of what it finds; RV(problem) says what cannot work.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
  - homelab.mixed_gpu._host_python.nvml
options:
  system:
    description: System whose packages are tried on this one, such as V(Ubuntu 24.04). Empty means the host's own.
    type: str
    default: ""
  serves:
    description: Whether the host serves. One that does not needs neither O(port) nor O(models).
    type: bool
    default: true
  port:
    description: TCP port that the server is to listen on.
    type: int
    required: true
  memory_mib:
    description: Main memory without which building and serving cannot work.
    type: int
    required: true
  disk:
    description: Room that is needed. What lies below a path already counts.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Directory; it need not exist.
        type: path
        required: true
      needed_mib:
        description: Room that its content needs in all.
        type: int
        required: true
  models:
    description: Entries of C(llm_models), see O(homelab.mixed_gpu.llm_models#role:main:llm_models).
    type: list
    elements: dict
    default: []
  models_dir:
    description: Directory of the models that are downloaded or generated.
    type: path
    required: true
  model_sizes_mib:
    description: Sizes by id of models that are not on the host yet.
    type: dict
    default: {}
  gpus_expected:
    description: Cards that the host must have, by UUID or part of the name.
    type: list
    elements: str
    default: []
  slots_left_out:
    description: PCI addresses of cards that may stay without a driver.
    type: list
    elements: str
    default: []
  sample_seconds:
    description: For how long to watch the cards, so that the generation of their PCIe links is seen under load.
    type: float
    default: 0
  psu_watts:
    description: Rating of the power supply, V(0) where it is not known.
    type: int
    default: 0
  rest_of_machine_watts:
    description: What the machine draws under load without its cards.
    type: int
    default: 200
  power_limits_watts:
    description: Power limits that are to be set, by UUID or end of the product name.
    type: dict
    default: {}
  locked_clocks_mhz:
    description: Clocks that are to be locked, by UUID or end of the product name.
    type: dict
    default: {}
  budgets_mib:
    description:
      - Memory in MiB that may be planned on a card, by UUID or llama.cpp's name. A card that is not there is an error.
    type: dict
    default: {}
  power_budget_policy:
    description: What power limits or peaks beyond the power supply are, a warning, an error or nothing.
    type: str
    choices: [warn, fail, ignore]
    default: warn
seealso:
  - module: homelab.mixed_gpu.host_info
"""

EXAMPLES = r"""
- name: Check the host
  homelab.mixed_gpu.preflight_info:
    port: 8080
    memory_mib: 2048
    disk: [{path: /srv/models, needed_mib: 40000}]
    models_dir: /srv/models
    gpus_expected: [RTX 4090, RTX 3090]
  register: found

- name: Show the checks
  ansible.builtin.debug:
    msg: "{{ found.lines }}"
"""

RETURN = r"""
checks:
  description: What was found, in order. Names can repeat, for example C(other engines).
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: What the check is about.
      type: str
    ok:
      description: Whether all is well.
      type: bool
    severity:
      description: What C(ok=false) means. V(error) cannot work, V(warning) works badly, V(note) is worth knowing.
      type: str
    detail:
      description: What was seen.
      type: str
    cure:
      description: What to do, V(none) where nothing is to be done.
      type: str
claims:
  description: What guides say of such a box beside what this one has. Nothing is judged by a claim.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: What the claim is about.
      type: str
    claim:
      description: What is claimed.
      type: str
    found:
      description: What this host has.
      type: str
    source:
      description: Who claims it.
      type: str
lines:
  description: Checks and claims as lines of text.
  returned: always
  type: list
  elements: str
problem:
  description: Everything that cannot work, with the cures, in one sentence each; V(none) where there is nothing.
  returned: always
  type: str
"""

import importlib
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.types import Json
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import host, nvml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware.host_hardware import read
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import (
    model_checks,
    other_engines,
    preflight,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import due, upgrade_stages, upgrade_words
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import host_record


def ask_driver(params: Json) -> Json | None:
    """Return what NVML says of the cards; None where there is no driver, or no environment that could ask it yet."""
    driver = read("/sys/module/nvidia/version")
    if driver is None or not os.path.exists(params["host_python"]):
        return None
    reason = host_python.enter(["pynvml"], params["host_python"])
    if reason is not None:
        return nvml.unavailable(reason)
    return nvml.probe(importlib.import_module("pynvml"), driver, params["sample_seconds"])


def main() -> None:
    disk = {"path": {"type": "path", "required": True}, "needed_mib": {"type": "int", "required": True}}
    module = AnsibleModule(
        argument_spec={
            "system": {"type": "str", "default": ""},
            "serves": {"type": "bool", "default": True},
            "port": {"type": "int", "required": True},
            "memory_mib": {"type": "int", "required": True},
            "disk": {"type": "list", "elements": "dict", "required": True, "options": disk},
            "models": {"type": "list", "elements": "dict", "default": []},
            "models_dir": {"type": "path", "required": True},
            "model_sizes_mib": {"type": "dict", "default": {}},
            "gpus_expected": {"type": "list", "elements": "str", "default": []},
            "slots_left_out": {"type": "list", "elements": "str", "default": []},
            "sample_seconds": {"type": "float", "default": 0},
            "psu_watts": {"type": "int", "default": 0},
            "rest_of_machine_watts": {"type": "int", "default": 200},
            "power_limits_watts": {"type": "dict", "default": {}},
            "locked_clocks_mhz": {"type": "dict", "default": {}},
            "budgets_mib": {"type": "dict", "default": {}},
            "power_budget_policy": {"type": "str", "choices": ["warn", "fail", "ignore"], "default": "warn"},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not params["serves"]:
        params.update(port=0, models=[], model_sizes_mib={}, budgets_mib={})
    gpus = ask_driver(params)
    models = model_checks.read_models(params["models"], params["models_dir"], params["model_sizes_mib"])
    seen = {
        **host.describe(),
        "disks": [host.disk(want["path"]) for want in params["disk"]],
        "files": [{"path": path, "size_bytes": host.size_bytes(path)} for path in models["files"]],
        "listeners": host.listening(params["port"], module.get_bin_path("ss"), module.run_command),
        "gpus": gpus,
        "engines": other_engines.running(),
        "recorded": host_record.usable(),
        "revalidation": due.of_host(),
        "upgrade": upgrade_words.unfinished(read(upgrade_stages.PATH)),
    }
    module.exit_json(changed=False, **preflight.judge(seen, {**params, "models": models}))


if __name__ == "__main__":
    main()
