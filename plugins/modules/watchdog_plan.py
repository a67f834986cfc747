#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: watchdog_plan
short_description: Plan whether and how a host's server is watched
version_added: 0.1.0
description:
  - Says whether a watchdog is due for the deployment that is served, and for how long nothing may move before its
    server counts as hung.
  - That time is O(stall_seconds), or three batches at the slowest prefill of the deployment's baseline where that is
    longer.
  - Changes nothing.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
options:
  state:
    description: Whether it is wanted. V(auto) means where tensor mode or RPC devices serve.
    type: str
    choices: [auto, present, absent]
    default: auto
  deployment:
    description: Id of the recorded deployment; empty for the active one.
    type: str
    default: ""
  url:
    description: Where the server listens.
    type: str
    required: true
  stall_seconds:
    description: Shortest time without progress of which a hang is said.
    type: int
    default: 60
  fact_file:
    description: The file of recorded deployments.
    type: path
    default: /etc/ansible/facts.d/mixed_gpu.fact
  state_dir:
    description: Directory of what was measured.
    type: path
    default: /var/lib/mixed_gpu
"""

EXAMPLES = r"""
- name: Plan the watchdog
  homelab.mixed_gpu.watchdog_plan:
    url: http://127.0.0.1:8080
  register: example_watchdog
"""

RETURN = r"""
wanted:
  description: Whether the server is to be watched.
  returned: success
  type: bool
why:
  description: Why, in words.
  returned: success
  type: str
stall_seconds:
  description: For how long nothing may move.
  returned: success
  type: int
lender_placements:
  description: Endpoints of other hosts that each recorded way to serve uses; the preferred one is first, and uses all.
  returned: success
  type: list
  elements: list
lender_protocol:
  description: Version of the protocol (major.minor) that the server speaks to lenders; empty where it is not known.
  returned: success
  type: str
addresses:
  description: What the watchdog has to reach, for C(IPAddressAllow=).
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_state
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import baselines
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record, host_record
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watch import watchdog_plan


def loads(params: dict[str, t.Any], deployment: str) -> list[dict[str, t.Any]]:
    """Return the loads of the deployment's baseline; none where it has no baseline. Raises UserError."""
    baseline = baselines.FORM.read(baselines.path(params["state_dir"], deployment))
    return [] if baseline is None else baseline["loads"]


def run(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return the module's result. Raises UserError for a file that cannot be used."""
    record = host_record.read(params["fact_file"])
    found = fact_record.find(record, params["fact_file"], params["deployment"], "llama_cpp")
    entry, deployment = found["entry"], found["deployment"]
    measured = loads(params, deployment) if entry is not None and deployment is not None else []
    try:
        plan = watchdog_plan.plan(params["state"], entry, measured, params["stall_seconds"])
    except KeyError as exc:
        raise UserError(f"the entry of {deployment} in {params['fact_file']} lacks {exc}: tune it again") from exc
    placements = watchdog_plan.lender_placements(entry)
    return {
        "changed": False,
        **plan._asdict(),
        "lender_placements": placements,
        "lender_protocol": entry.get("rpc_protocol", "") if entry else "",
        "addresses": watchdog_plan.reachable(params["url"], *placements[:1]),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["auto", "present", "absent"], "default": "auto"},
            "deployment": {"type": "str", "default": ""},
            "url": {"type": "str", "required": True},
            "stall_seconds": {"type": "int", "default": 60},
            "fact_file": {"type": "path", "default": "/etc/ansible/facts.d/mixed_gpu.fact"},
            "state_dir": {"type": "path", "default": "/var/lib/mixed_gpu"},
        },
        supports_check_mode=True,
    )
    with json_state.failures_told(module, module.params["state_dir"]):
        module.exit_json(**run(module.params))


if __name__ == "__main__":
    main()
