#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: exllama_devices_info
short_description: List the cards as ExLlama sees them
version_added: 0.1.0
description:
  - Asks PyTorch in ExLlama's environment for the cards, in CUDA's order, in the form of
    M(homelab.mixed_gpu.llama_devices_info), so that the same planner reads both.
  - Free memory is what is left with a CUDA context on the card, so ask while nothing else uses the cards, under the
    lease of M(homelab.mixed_gpu.measurement_lease).
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
options:
  python:
    description: Python of the environment that ExLlama is installed in.
    type: path
    required: true
  worker:
    description: The program that asks, C(files/exllama_worker.py) of the role split_tuning.
    type: path
    required: true
  cuda_ids:
    description:
      - Ids (UUIDs) of the cards to show to PyTorch, in this order.
      - It is an error when PyTorch names other cards, or has them in another order.
    type: list
    elements: str
    required: true
  environment:
    description: Further environment variables, beyond those that O(cuda_ids) sets.
    type: dict
    default: {}
  budgets_mib:
    description: Memory that may be planned with at most, in MiB, by UUID or by name (C(CUDA0)).
    type: dict
    default: {}
  timeout_seconds:
    description: Time after which the question is given up. The first import of PyTorch from a cold disk takes a while.
    type: int
    default: 300
requirements:
  - coreutils (C(timeout))
seealso:
  - module: homelab.mixed_gpu.llama_devices_info
"""

EXAMPLES = r"""
- name: List two cards
  homelab.mixed_gpu.exllama_devices_info:
    python: /opt/exllama/v2/venv/bin/python
    worker: /var/lib/mixed_gpu/exllama_worker.py
    cuda_ids:
      - GPU-11111111-1111-1111-1111-111111111111
      - GPU-22222222-2222-2222-2222-222222222222
"""

RETURN = r"""
devices:
  description: The cards, as RV(homelab.mixed_gpu.llama_devices_info#module:devices).
  returned: success
  type: list
  elements: dict
environment:
  description: The variables under which the cards have these names, O(environment) included.
  returned: success
  type: dict
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import sandboxed_run, unit_sandbox
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import exllama_bench
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import outcome
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import device_list, engines


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "python": {"type": "path", "required": True},
            "worker": {"type": "path", "required": True},
            "cuda_ids": {"type": "list", "elements": "str", "required": True},
            "environment": {"type": "dict", "default": {}},
            "budgets_mib": {"type": "dict", "default": {}},
            "timeout_seconds": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not os.access(params["python"], os.X_OK):
        module.fail_json(msg=f"There is no Python {params['python']}: install ExLlama (role exllamav2), or set python.")
    given = {name: str(value) for name, value in params["environment"].items()}
    environment = {**engines.cuda_environment(params["cuda_ids"]), **given}
    command = [params["python"], params["worker"], '{"action": "devices"}']
    sandbox = sandboxed_run.Sandbox(
        engine="exllama", device_nodes=unit_sandbox.nodes(["CUDA"]), files=[params["python"], params["worker"]]
    )
    try:
        ended = sandboxed_run.run(command, sandbox, environment, max(1, params["timeout_seconds"]))
    except UserError as exc:
        module.fail_json(msg=f"PyTorch cannot list the cards: {exc}.")
    rc, stdout, stderr = ended.rc, ended.stdout, ended.stderr
    if rc != 0:
        module.fail_json(
            msg=f"PyTorch cannot list the cards: {outcome.how_it_ended(rc)} ({outcome.last_words(stderr)}).",
            stderr=stderr[-4000:],
        )
    try:
        devices = device_list.identify(exllama_bench.read_devices(stdout, params["cuda_ids"]), params["cuda_ids"])
        devices = device_list.set_budgets(devices, params["budgets_mib"])
    except UserError as exc:
        module.fail_json(msg=f"The cards do not fit what was given: {exc}.")
    module.exit_json(changed=False, devices=devices, environment=environment)


if __name__ == "__main__":
    main()
