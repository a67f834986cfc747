#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_devices_info
short_description: List the devices that llama.cpp can put layers on
version_added: 0.1.0
description:
  - Runs C(llama-bench --list-devices) and returns the devices in llama.cpp's own order, each with an id that stays
    the same when the order changes.
  - A CUDA device is known by its UUID (see O(cuda_ids)), an RPC device by its endpoint, any other by llama.cpp's
    name for it.
  - A machine without any such device gives an empty list.
  - This is an active probe. An RPC server serves one client at a time, so listing the devices while a server uses
    them hangs, and ends that RPC server when the listing is given up. Hold the lease
    (M(homelab.mixed_gpu.measurement_lease)) while it runs.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
attributes:
  check_mode:
    details: This action does not modify state. It asks the devices in check mode too.
options:
  llama_bench:
    description: Path to the C(llama-bench) program.
    type: path
    default: /opt/llama.cpp/current/bin/llama-bench
  rpc_endpoints:
    description: Endpoints (C(host:port)) of the C(ggml-rpc-server) processes to use, in the order in which they
      become RPC0, RPC1.
    type: list
    elements: str
    default: []
  cuda_ids:
    description:
      - Ids (UUIDs) of the cards to show to the program, in this order, so that C(CUDA0) is the first of them.
      - When empty, all CUDA devices are listed, and are known by llama.cpp's name.
    type: list
    elements: str
    default: []
  environment:
    description: Further environment variables for the program, beyond those that O(cuda_ids) sets.
    type: dict
    default: {}
  budgets_mib:
    description:
      - Memory in MiB that may be planned on a device, by its id or llama.cpp's name. Fills C(budget_mib).
    type: dict
    default: {}
  expected_devices:
    description:
      - The devices that must be there, in this order, as an earlier call returned them. Anything else is an error that
        names both orders. Empty means any.
      - Their cards are shown to the program unless O(cuda_ids) says otherwise.
    type: list
    elements: dict
    default: []
  timeout_seconds:
    description: Time after which the listing is given up and ended.
    type: int
    default: 60
requirements:
  - coreutils (C(timeout))
seealso:
  - module: homelab.mixed_gpu.split_benchmark
  - module: homelab.mixed_gpu.measurement_lease
"""

EXAMPLES = r"""
- name: List two RPC devices of which the first may use 300 MiB
  homelab.mixed_gpu.llama_devices_info:
    rpc_endpoints: ["127.0.0.1:50052", "127.0.0.1:50053"]
    budgets_mib:
      "127.0.0.1:50052": 300
  register: llama_devices

- name: List two CUDA cards, the faster first
  homelab.mixed_gpu.llama_devices_info:
    cuda_ids:
      - GPU-11111111-1111-1111-1111-111111111111
      - GPU-22222222-2222-2222-2222-222222222222
"""

RETURN = r"""
devices:
  description: The devices in llama.cpp's order.
  returned: always
  type: list
  elements: dict
  contains:
    device:
      description: llama.cpp's name, which its programs are told.
      type: str
      sample: RPC0
    id:
      description: UUID of the card, RPC endpoint, or llama.cpp's name where there is nothing better. This is what is
        stored.
      type: str
      sample: 127.0.0.1:50052
    backend:
      description: Kind of device.
      type: str
      sample: RPC
    description:
      description: What llama.cpp says about the device.
      type: str
      sample: 127.0.0.1:50052
    total_mib:
      description: Memory of the device in MiB.
      type: int
      sample: 24105
    free_mib:
      description: Free memory of the device in MiB.
      type: int
      sample: 24105
    budget_mib:
      description: The device's entry of O(budgets_mib), or V(none).
      type: int
      sample: 300
environment:
  description: The variables under which the devices have these names, O(environment) included.
  returned: always
  type: dict
  sample: {CUDA_DEVICE_ORDER: PCI_BUS_ID, CUDA_VISIBLE_DEVICES: GPU-11111111-1111-1111-1111-111111111111}
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import sandboxed_run, unit_sandbox
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_bench
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import device_list, engines
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split.types import ListedDevice


def list_devices(module: AnsibleModule, environment: dict[str, str]) -> list[ListedDevice]:
    """Run llama-bench and return what it lists; ends the module with one sentence when it cannot."""
    params = module.params
    program = params["llama_bench"]
    endpoints = params["rpc_endpoints"]
    limit = params["timeout_seconds"]
    if not os.path.isfile(program) or not os.access(program, os.X_OK):
        module.fail_json(msg=f"There is no program {program}: install llama.cpp (role llama_cpp), or set llama_bench.")
    command = llama_bench.list_devices_command(program, endpoints)
    # which kinds of devices there are is the question
    sandbox = sandboxed_run.Sandbox(device_nodes=unit_sandbox.ALL_NODES, endpoints=endpoints)
    try:
        ended = sandboxed_run.run(command, sandbox, {"GGML_NO_BACKTRACE": "1", **environment}, limit)
    except UserError as exc:
        module.fail_json(msg=f"The devices cannot be listed: {exc}.")
    rc, stdout, stderr = ended.rc, ended.stdout, ended.stderr
    if rc != 0:
        if ended.timed_out:
            if endpoints:
                cure = (
                    "an RPC server serves one client at a time, so stop whatever uses"
                    f" {', '.join(endpoints)} (a llama-server?), then run this again"
                )
            else:
                cure = "look at the kernel's messages about the cards (journalctl -k)"
            module.fail_json(msg=f"{program} did not list the devices within {limit} seconds: {cure}.")
        sentence = llama_bench.explain_list_failure(rc, f"{stdout}\n{stderr}", endpoints)
        module.fail_json(msg=f"The devices cannot be listed: {sentence}.", rc=rc, stderr=stderr[-4000:])
    try:
        devices = llama_bench.parse_devices(stdout)
    except UserError as exc:
        cure = "install the pinned llama.cpp"
        if endpoints:
            cure += f", and see that {', '.join(endpoints)} are its ggml-rpc-server"
        module.fail_json(
            msg=f"What {program} --list-devices printed cannot be read: {exc}; {cure}.",
            stdout=stdout[-4000:],
        )
    missing = device_list.missing_endpoints(devices, endpoints)
    if missing:
        module.fail_json(
            msg=f"The RPC endpoint {missing[0]} answers but offers no device: look at its ggml-rpc-server's journal."
        )
    return devices


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "llama_bench": {"type": "path", "default": "/opt/llama.cpp/current/bin/llama-bench"},
            "rpc_endpoints": {"type": "list", "elements": "str", "default": []},
            "cuda_ids": {"type": "list", "elements": "str", "default": []},
            "environment": {"type": "dict", "default": {}},
            "budgets_mib": {"type": "dict", "default": {}},
            "expected_devices": {"type": "list", "elements": "dict", "default": []},
            "timeout_seconds": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["timeout_seconds"] < 1:
        module.fail_json(msg=f"timeout_seconds is {params['timeout_seconds']}: give at least 1.")
    doubled = sorted({name for name in params["rpc_endpoints"] if params["rpc_endpoints"].count(name) > 1})
    if doubled:
        module.fail_json(
            msg=f"rpc_endpoints names {doubled[0]} more than once: llama.cpp makes one device of it, so name it once."
        )
    expected = params["expected_devices"]
    try:
        cuda_ids = params["cuda_ids"] or device_list.cuda_ids(expected)
    except KeyError as exc:
        module.fail_json(msg=f"expected_devices has a device without {exc}: give devices as this module returns them.")
    given = {name: str(value) for name, value in params["environment"].items()}
    environment = {**engines.cuda_environment(cuda_ids), **given}
    listed = list_devices(module, environment)
    try:
        devices = device_list.identify(listed, cuda_ids)
        devices = device_list.set_budgets(devices, params["budgets_mib"])
        devices = device_list.in_order(devices, expected)
    except UserError as exc:
        module.fail_json(msg=f"The devices do not fit what was given: {exc}.", devices=listed)
    module.exit_json(changed=False, devices=devices, environment=environment)


if __name__ == "__main__":
    main()
