#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_server_busy_info
short_description: Say whether somebody uses the server or its devices now
version_added: 0.1.0
description:
  - Watches for O(seconds), and disturbs nobody. The devices are busy when the measurement lease is held, or when a slot
    of llama-server (C(/slots)) works on a request or did so meanwhile. They are busy as well when the server loads its
    model or is too busy to answer, or when a card computes for any program (NVML), for 20 % of the time at least.
  - A server that is down, and a card that does not say how much it computes, are no sign of use.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
  - homelab.mixed_gpu._host_python.nvml
  - homelab.mixed_gpu._server
options:
  api_key_file:
    default: /etc/mixed_gpu/llama-server.key
  seconds:
    description: How long to watch the slots, and then the cards.
    type: float
    default: 5
  lease_unit:
    description: Unit of the lease. Empty means that the caller holds it, so that it is no sign of use.
    type: str
    default: mixed-gpu-lease.service
  timeout_seconds:
    description: A server that does not answer C(/slots) for this long is busy; it does so between two batches.
    type: int
    default: 30
seealso:
  - module: homelab.mixed_gpu.measurement_lease
"""

EXAMPLES = r"""
- name: Ask whether somebody uses the server
  homelab.mixed_gpu.llama_server_busy_info:
  register: example_use

- name: Leave it alone
  ansible.builtin.meta: end_host
  when: example_use.busy
"""

RETURN = r"""
busy:
  description: Whether somebody uses the server or its devices.
  returned: success
  type: bool
why:
  description: Who or what does, or what said that nobody does, in words.
  returned: success
  type: str
  sample: llama-server is answering 1 request in 4 slots
source:
  description: What told; V(nothing) when neither server nor cards could.
  returned: success
  type: str
  choices: [lease, slots, server, cards, nothing]
"""

import importlib
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, systemd
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import nvml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.llama_client import (
    Client,
    ServerError,
    ServerOccupiedError,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import busy, lease_unit

POLL_SECONDS = 0.5
CARDS_INTERVAL_MS = 200

Answer = dict[str, t.Any]


def lease(module: AnsibleModule) -> Answer | None:
    """The answer when somebody holds the lease."""
    unit = module.params["lease_unit"]
    if not unit:
        return None
    try:
        state = systemd.show(module, unit, "ActiveState").get("ActiveState")
    except UserError:  # without systemd there is no lease
        return None
    if state not in systemd.ACTIVE:
        return None
    return {"busy": True, "why": f"the devices are leased for a measurement ({unit})", "source": "lease"}


def slots(module: AnsibleModule) -> Answer:
    """The answer of the server; source is nothing where it does not tell."""
    params = module.params
    client = Client.of_module(module, params["timeout_seconds"])
    looks = []
    ends = time.monotonic() + params["seconds"]
    try:
        while True:
            looks.append(client.slots())
            why = busy.of_slots(looks)
            if why is not None or time.monotonic() >= ends:
                break
            time.sleep(POLL_SECONDS)
    except ServerOccupiedError as exc:
        return {"busy": True, "why": str(exc), "source": "server"}
    except ServerError as exc:
        return {"busy": False, "why": str(exc), "source": "nothing"}
    return {"busy": why is not None, "why": why or "no slot of llama-server is in use", "source": "slots"}


def cards(module: AnsibleModule) -> Answer:
    """The answer of the cards; source is nothing where they do not tell."""
    # at least one look
    seconds = max(module.params["seconds"], CARDS_INTERVAL_MS / 1000)
    facts = nvml.probe(importlib.import_module("pynvml"), None, seconds, CARDS_INTERVAL_MS)
    why = busy.of_cards(facts["gpus"])
    if why is not None:
        return {"busy": True, "why": why, "source": "cards"}
    if not busy.can_tell(facts["gpus"]):
        why = facts["reason"] or "the cards do not say how much they compute"
        return {"busy": False, "why": why, "source": "nothing"}
    return {"busy": False, "why": "no card computes", "source": "cards"}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "api_key_file": {"type": "path", "default": "/etc/mixed_gpu/llama-server.key", "no_log": False},
            "seconds": {"type": "float", "default": 5},
            "lease_unit": {"type": "str", "default": lease_unit.UNIT},
            "timeout_seconds": {"type": "int", "default": 30},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not 0 <= params["seconds"] <= 3600:
        module.fail_json(msg=f"seconds is {params['seconds']}: give 0, or up to an hour (3600).")
    no_nvml = host_python.enter(["pynvml"], params["host_python"])
    try:
        answer = lease(module) or slots(module)
        if not answer["busy"]:
            seen = cards(module) if no_nvml is None else {"busy": False, "why": no_nvml, "source": "nothing"}
            if seen["busy"] or answer["source"] == "nothing":
                nothing = f"nothing says that the devices are in use: {answer['why']}"
                answer = {**answer, "why": nothing} if seen["source"] == "nothing" else seen
    except OSError as exc:
        module.fail_json(msg=f"{params['api_key_file']} cannot be read ({exc.strerror}): run as root.")
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
