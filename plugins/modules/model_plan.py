#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: model_plan
short_description: Compare the models of a host with llm_models
version_added: 0.1.0
description:
  - Finds out which files each entry of O(models) needs, and which of them are on the host.
  - Says what has to be generated (M(homelab.mixed_gpu.random_gguf)) and downloaded (M(homelab.mixed_gpu.model_file)).
  - Downloads no model. It records what the Hugging Face hub answers, and nothing else.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.no_diff
  - homelab.mixed_gpu._host_python
  - homelab.mixed_gpu._model_files
options:
  models:
    description: Entries as in the variable C(llm_models) of the role P(homelab.mixed_gpu.llm_models#role).
    type: list
    elements: dict
    required: true
  path:
    description: Directory of the models, with one directory per model.
    type: path
    default: /srv/models
  state:
    description:
      - V(planned) finds what is missing, and fails where the disk has no room for it.
      - V(verified) compares every file with what was recorded, and fails with a sentence per file that differs.
      - V(found) says which files there are, reads none and asks nobody.
      - V(listed) does that and returns a table of the models.
    type: str
    choices: [planned, verified, found, listed]
    default: planned
  verify:
    description: V(full) reads every file from start to end; V(size) believes a manifest that fits size, time and inode.
    type: str
    choices: [size, full]
    default: size
  verified:
    description: Paths that need not be read again with O(state=verified), since they were read in this play.
    type: list
    elements: path
    default: []
  hub:
    description: How the Hugging Face hub is asked.
    type: dict
    default: {}
    suboptions:
      endpoint:
        description: Address of the hub, or of a mirror.
        type: str
        default: ""
      update:
        description: Whether a branch is looked up again that was resolved to a commit before.
        type: bool
        default: false
      token_file:
        description: File with an access token. It must be readable for its owner alone.
        type: path
        default: /etc/mixed_gpu/hub_token
      source_dir:
        description: Directory with files and recorded answers, looked at before the hub is asked.
        type: path
        default: ""
  reserve_mib:
    description: Disk space that stays free.
    type: int
    default: 1024
  keep_corrupt_days:
    description: How many days a file with a wrong hash stays beside the right one.
    type: int
    default: 14
  fact_file:
    description: The host's record, which says which model is served.
    type: path
    default: /etc/ansible/facts.d/mixed_gpu.fact
  progress_log:
    description: File for lines of progress, while the hub asks to wait and while files are read with O(verify=full).
    type: path
seealso:
  - module: homelab.mixed_gpu.model_file
  - module: homelab.mixed_gpu.random_gguf
"""

EXAMPLES = r"""
- name: Plan the models of a host
  homelab.mixed_gpu.model_plan:
    models:
      - id: qwen2_5_coder_32b_instruct_q4_k_m
  register: example_plan

- name: Show the files to download
  ansible.builtin.debug:
    msg: "{{ example_plan.download | map(attribute='path') }}"
"""

RETURN = r"""
download:
  description: Files to download or take in, with the options of M(homelab.mixed_gpu.model_file).
  returned: with O(state=planned)
  type: list
  elements: dict
generate:
  description: Options of M(homelab.mixed_gpu.random_gguf), one dict per model to generate.
  returned: with O(state=planned)
  type: list
  elements: dict
remove:
  description: Files with a wrong hash that were set aside longer ago than O(keep_corrupt_days).
  returned: with O(state=planned)
  type: list
  elements: str
files:
  description: Every file of every model.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Id of the model.
      type: str
    path:
      description: The file on the host.
      type: str
    first:
      description: Whether it is the first file of its model.
      type: bool
    gguf:
      description: Whether it is a GGUF file.
      type: bool
    model_path:
      description: What an engine is given, the first file or the folder.
      type: str
    present:
      description: Whether the file is there.
      type: bool
    sha256:
      description: SHA-256 that is expected, or V(none).
      type: str
installed:
  description: By model id a dict of C(path), C(sha256), C(size_bytes) and C(draft_for). An unknown SHA-256 is empty.
  returned: success
  type: dict
lines:
  description: The table of the models.
  returned: with O(state=listed)
  type: list
  elements: str
"""

import importlib
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import host, nvml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import (
    entries,
    model_table,
    store,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models.model_state import ModelState
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import catalogue_fit, ram_speed, tuning_experts
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record, host_record, known_devices


def table(module: AnsibleModule, state: ModelState) -> list[str]:
    """Return the table of the models. Raises UserError, OSError."""
    try:
        record = host_record.read(module.params["fact_file"])
    except UserError as exc:
        raise UserError(f"It is not known which model is served: {exc}.") from exc
    served = fact_record.served_path(record)
    found = store.look(os.path.abspath(module.params["path"]), module.params["manifest_dir"], served, module.warn)
    total_mib = host.memory(json_file.read_text("/proc/meminfo") or "")["memory_total_mib"]
    in_ram = {"mode": "auto", "ram_mib": tuning_experts.ram_mib(total_mib), "ram_speed": ram_speed.known(0, record)}
    fits = catalogue_fit.words(devices(record), in_ram)
    return model_table.table(state.looks, state.answers, found, fits)


def devices(record: t.Mapping[str, t.Any]) -> list[t.Any]:
    """Return the devices of the deployment that is served, or else the cards, as far as they can be read here."""
    entry = record["models"].get(record["active"] or "", {})
    try:
        gpus = nvml.probe(importlib.import_module("pynvml"), None)["gpus"]
    except ImportError:
        gpus = []
    return list(known_devices.host_devices(entry.get("devices") or [], gpus))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "list", "elements": "dict", "required": True},
            "path": {"type": "path", "default": "/srv/models"},
            "state": {"type": "str", "choices": ["planned", "verified", "found", "listed"], "default": "planned"},
            "verify": {"type": "str", "choices": ["size", "full"], "default": "size"},
            "verified": {"type": "list", "elements": "path", "default": []},
            "hub": {
                "type": "dict",
                "default": {},
                "apply_defaults": True,
                "options": {
                    "endpoint": {"type": "str", "default": ""},
                    "update": {"type": "bool", "default": False},
                    "token_file": {"type": "path", "default": "/etc/mixed_gpu/hub_token", "no_log": False},
                    "source_dir": {"type": "path", "default": ""},
                },
            },
            "reserve_mib": {"type": "int", "default": 1024},
            "keep_corrupt_days": {"type": "int", "default": 14},
            "manifest_dir": {"type": "path", "default": "/var/lib/mixed_gpu/models"},
            "fact_file": {"type": "path", "default": fact_record.PATH},
            "progress_log": {"type": "path"},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
            "trusted_owners": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    if module.params["state"] == "listed":
        host_python.enter(["pynvml"], module.params["host_python"])  # without it the cards are not told of
    state = ModelState(module)
    try:
        looks = {"planned": state.plan, "verified": state.verify, "found": state.present, "listed": state.present}
        result = looks[module.params["state"]]()
        if module.params["state"] == "listed":
            result["lines"] = table(module, state)
    except UserError as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        module.fail_json(msg=f"{exc.filename or module.params['path']} cannot be read: {exc.strerror or exc}.")
    files = [{**look["item"], "present": look["present"]} for look in state.looks]
    module.exit_json(**result, files=files, installed=entries.installed_models(state.looks))


if __name__ == "__main__":
    main()
