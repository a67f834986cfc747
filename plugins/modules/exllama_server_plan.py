#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: exllama_server_plan
short_description: Plan how TabbyAPI serves a model with ExLlama
version_added: 0.1.0
description:
  - Validates the settings of the server, checks that the model can be read, and decides which cards serve, with how
    much memory each.
  - Memory that is given counts, else what the host's facts record for this engine and model, with this context and
    cache. Without either the engine fills one card after the other.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
attributes:
  check_mode:
    details:
      - This action does not modify state. A host without a driver or model is no failure, since an earlier role may
        install them; RV(available) is V(false) then.
options:
  settings:
    description:
      - The variables of the role P(homelab.mixed_gpu.exllamav2#role), without the prefix C(exllamav2_).
      - C(requirements) is the text of the requirements file.
    type: dict
    required: true
  fact_file:
    description: The host's recorded splits.
    type: path
    default: /etc/ansible/facts.d/mixed_gpu.fact
  cards:
    description: The fact C(mixed_gpu_gpus) of M(homelab.mixed_gpu.gpu_facts).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Plan the server
  homelab.mixed_gpu.exllama_server_plan:
    settings: "{{ example_settings }}"
    cards: "{{ ansible_facts['mixed_gpu_gpus'] }}"
  register: example_server
"""

RETURN = r"""
available:
  description: Whether the host can serve. Always V(true) outside of check mode.
  returned: success
  type: bool
why:
  description: Why RV(available) is V(false).
  returned: success
  type: str
split:
  description:
    - C(gpus) (UUIDs in order), C(gpu_split_gb) (empty when the engine decides), C(tensor_parallel) (how cards add up
      that share each layer, empty where they take turns) and C(source).
  returned: when available
  type: dict
config:
  description: TabbyAPI's C(config.yml) as JSON, which is YAML.
  returned: when available
  type: str
nccl:
  description: Whether NCCL may run, so that the unit must let it.
  returned: when available
  type: bool
environment:
  description: Variables of the unit.
  returned: when available
  type: dict
local:
  description: Whether only this host reaches the server.
  returned: success
  type: bool
networks:
  description: The only networks and addresses that the unit may talk to.
  returned: success
  type: list
  elements: str
limits:
  description:
    - C(start_burst) and C(start_interval_seconds), how often the unit is tried before it is failed for good,
      C(stop_seconds), how long its stop may take, and C(looks), how often a play waits C(look_seconds) for the model.
  returned: when available
  type: dict
"""

import json
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import addresses, unit_end
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError, explained
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import server_plan
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record, host_record


def check_model(module: AnsibleModule, settings: t.Mapping[str, t.Any]) -> None:
    """Raise UserError where the user of the service cannot read the model, or the draft."""
    groups = ",".join(settings["supplementary_groups"])
    # systemd makes the user up at each start, so nobody stands in for that user
    argv = ["setpriv", "--reuid=65534", "--regid=65534", f"--groups={groups}" if groups else "--clear-groups"]
    named = {"exllamav2_model_path": settings["model_path"]}
    if settings["draft"]:
        named["exllamav2_draft.path"] = settings["draft"]["path"]
    for name, folder in named.items():
        rc, _out, err = module.run_command([*argv, "head", "--bytes=4096", f"{folder}/config.json"])
        if rc != 0:
            raise UserError(
                f"The service's user cannot read the model ({err.strip()}): {name} must be a folder with a "
                "config.json, readable for all or for a group in exllamav2_supplementary_groups."
            )


def plan(module: AnsibleModule) -> dict[str, t.Any]:
    """Return the module's result. Raises UserError for a server that cannot run."""
    settings = module.params["settings"]
    found = module.params["cards"]
    server_plan.validate(settings)
    result = {
        "changed": False,
        "available": False,
        "why": "",
        "local": addresses.is_loopback(settings["host"]),
        "networks": server_plan.networks(settings),
    }
    try:
        if not found["available"]:
            raise UserError(
                f"ExLlama computes on NVIDIA cards only, and their driver does not answer ({found['reason']}): correct "
                "that, run the role nvidia_driver for example, or empty exllamav2_model_path to serve nothing."
            )
        check_model(module, settings)
    except UserError as exc:
        if not module.check_mode:
            raise
        return result | {"why": str(exc)}
    record = host_record.read(module.params["fact_file"])
    split = server_plan.split(record["models"], settings, [card["id"] for card in found["gpus"]])
    return result | {
        "available": True,
        "split": split,
        "config": json.dumps(server_plan.config(settings, split), indent=4) + "\n",
        "nccl": bool(split["tensor_parallel"]),
        "environment": server_plan.environment(settings, split),
        "limits": unit_end.limits(settings["load_timeout_seconds"]),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "settings": {"type": "dict", "required": True},
            "fact_file": {"type": "path", "default": fact_record.PATH},
            "cards": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        with explained("exllamav2", "The server cannot be planned here"):
            result = plan(module)
    except UserError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
