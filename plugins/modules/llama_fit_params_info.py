#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_fit_params_info
short_description: Read from llama.cpp how much memory a split needs, without loading the model
version_added: 0.1.0
description:
  - Runs C(llama-fit-params -fitp on) with the flags of the server and returns what it says each device would hold.
  - Where O(model) is given too, the collection's own plan is compared with it.
  - A missing program, a crash or output of another form is a result (RV(available=false) with RV(reason)), not a
    failure, because the dry run only checks a plan.
  - The dry run assumes an output for every token of a micro-batch, so it is an upper bound for the device that holds
    the output layer. In tensor mode it prints nothing per device,
    and tells whether llama.cpp has the mode for a model.
  - This is an active probe. An RPC server serves one client at a time. Hold the lease
    (M(homelab.mixed_gpu.measurement_lease)) while it runs.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
attributes:
  check_mode:
    details: This action does not modify state. It asks the devices in check mode too.
options:
  program:
    description: Path to C(llama-fit-params).
    type: path
    default: /opt/llama.cpp/current/bin/llama-fit-params
  model_path:
    description: The GGUF file.
    type: path
    required: true
  devices:
    description: llama.cpp's names of the devices, in its order.
    type: list
    elements: str
    required: true
  layers:
    description: Layers on each device. Required unless O(fit=true).
    type: list
    elements: int
  experts_in_ram:
    description: Which experts stay in RAM, see C(docs/data_formats.md); none without it.
    type: dict
  fit:
    description:
      - Ask where llama.cpp would place the model by itself, which takes some seconds, instead of what a split needs.
      - O(model) is required then.
    type: bool
    default: false
  margins_mib:
    description: Memory that stays free on each device, with O(fit=true).
    type: list
    elements: int
    default: []
  split_mode:
    description: llama.cpp's split mode.
    type: str
    default: layer
  serving:
    description: The serving profile, see C(docs/data_formats.md).
    type: dict
    required: true
  rpc_endpoints:
    description: RPC endpoints, in the order in which they become RPC0, RPC1.
    type: list
    elements: str
    default: []
  environment:
    description: Environment variables for the program.
    type: dict
    default: {}
  model:
    description: RV(homelab.mixed_gpu.gguf_info#module:model), to compare the plan with.
    type: dict
  timeout_seconds:
    description: When to give up.
    type: int
    default: 60
requirements:
  - coreutils (C(timeout))
seealso:
  - module: homelab.mixed_gpu.gguf_info
  - module: homelab.mixed_gpu.llama_devices_info
"""

EXAMPLES = r"""
- name: Ask llama.cpp about 44 of 81 slots on the first card
  homelab.mixed_gpu.llama_fit_params_info:
    model_path: /srv/models/Llama-3.3-70B-Instruct-Q4_K_M.gguf
    devices: [CUDA0, CUDA1]
    layers: [44, 37]
    serving: "{{ ansible_facts['ansible_local'].mixed_gpu.models['llama-70b-c8192-np1-f16-f16'].serving }}"
  register: dry_run
"""

RETURN = r"""
available:
  description: Whether the dry run answered.
  returned: success
  type: bool
reason:
  description: Why RV(available=false), in one sentence, or V(none).
  returned: success
  type: str
refused:
  description: Whether llama.cpp says that it cannot load the model.
  returned: success
  type: bool
devices:
  description: What each device would hold, in the order of O(devices). Empty when RV(available=false).
  returned: success
  type: list
  elements: dict
  contains:
    device:
      description: llama.cpp's name.
      type: str
    model_mib:
      description: Weights, rounded down.
      type: int
    kv_mib:
      description: KV cache, rounded down.
      type: int
    compute_mib:
      description: Compute buffer, rounded down.
      type: int
    mib:
      description: All three.
      type: int
fitted:
  description: Where llama.cpp would place the model by itself; V(none) without O(fit=true) or RV(available=false).
  returned: success
  type: dict
  contains:
    layers:
      description: Layers on each device.
      type: list
      elements: int
    experts_in_ram:
      description: Which experts it leaves in RAM, or V(none).
      type: dict
    context_size:
      description: The context that it would serve.
      type: int
dry_run:
  description: The same in short, as it is recorded; V(none) when RV(available=false).
  returned: success
  type: dict
  contains:
    mib:
      description: MiB of each device.
      type: list
      elements: int
    difference_mib:
      description: What the collection's plan counts more, per device; V(none) without O(model).
      type: list
      elements: int
command:
  description: The command.
  returned: success
  type: list
  elements: str
"""

import os
import signal
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import sandboxed_run, unit_sandbox
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import fit_params, lost_words
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import expert_placement


def ask(module: AnsibleModule, command: list[str]) -> tuple[str, str | None, bool]:
    """Return (output, None, False), or ("", why there is none, whether llama.cpp refuses what is asked)."""
    params = module.params
    program, limit = params["program"], params["timeout_seconds"]
    if not os.path.isfile(program) or not os.access(program, os.X_OK):
        return "", f"there is no program {program}: install llama.cpp (role llama_cpp)", False
    environment = {"GGML_NO_BACKTRACE": "1", **{name: str(value) for name, value in params["environment"].items()}}
    nodes = unit_sandbox.nodes(params["devices"])
    sandbox = sandboxed_run.Sandbox(
        device_nodes=nodes, endpoints=params["rpc_endpoints"], files=[params["model_path"]],
        nccl=unit_sandbox.uses_nccl(nodes, params["split_mode"]),
    )  # fmt: skip
    try:
        ended = lost_words.run(command, sandbox, environment, limit)
    except UserError as exc:
        return "", str(exc), False
    if ended.timed_out or ended.rc == -signal.SIGKILL:
        busy = f"{program} was ended after {limit} seconds or killed: see whether something else uses the devices"
        return "", busy, False
    if ended.rc != 0:
        output = ended.stderr or ended.stdout
        return "", *fit_params.failure(program, ended.rc, output, params["split_mode"])
    if params["split_mode"] == "tensor":
        return "", fit_params.ONE_SUM, False
    return ended.stdout, None, False


def read(module: AnsibleModule, output: str) -> dict[str, t.Any]:
    """Return what the module returns of an output. Raises UserError where it has another form."""
    params = module.params
    if params["fit"]:
        context, placed = fit_params.parse_fit(output, params["devices"], params["model"]["block_count"])
        fitted = {"layers": list(placed.layers), "experts_in_ram": expert_placement.as_json(placed)}
        return {"fitted": {**fitted, "context_size": context}}
    devices = fit_params.parse(output, params["devices"])
    mib, difference = [entry["mib"] for entry in devices], None
    if params["model"] is not None:
        experts = expert_placement.from_json(params["layers"], params["experts_in_ram"])
        copied = not params["devices"][0].startswith("RPC")
        difference = fit_params.compare(mib, params["model"], params["serving"], params["layers"], experts, copied)
        apart = fit_params.disagreement(mib, difference, params["devices"])
        if apart is not None:
            module.warn(f"{apart}.")
    return {"devices": devices, "dry_run": {"mib": mib, "difference_mib": difference}}


def command_of(params: t.Mapping[str, t.Any]) -> list[str]:
    """Return the command. Raises UserError where the options do not fit together."""
    program, path, endpoints = params["program"], params["model_path"], params["rpc_endpoints"]
    if params["fit"]:
        margins = params["margins_mib"]
        return fit_params.fit_command(program, path, params["devices"], params["serving"], endpoints, margins)
    try:
        experts = expert_placement.from_json(params["layers"], params["experts_in_ram"])
    except ValueError as exc:
        raise UserError(str(exc)) from exc
    return fit_params.command(
        program, path, params["devices"], params["layers"], params["serving"], endpoints, params["split_mode"], experts
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "program": {"type": "path", "default": "/opt/llama.cpp/current/bin/llama-fit-params"},
            "model_path": {"type": "path", "required": True},
            "devices": {"type": "list", "elements": "str", "required": True},
            "layers": {"type": "list", "elements": "int"},
            "experts_in_ram": {"type": "dict"},
            "fit": {"type": "bool", "default": False},
            "margins_mib": {"type": "list", "elements": "int", "default": []},
            "split_mode": {"type": "str", "default": "layer"},
            "serving": {"type": "dict", "required": True},
            "rpc_endpoints": {"type": "list", "elements": "str", "default": []},
            "environment": {"type": "dict", "default": {}},
            "model": {"type": "dict"},
            "timeout_seconds": {"type": "int", "default": 60},
        },
        required_if=[("fit", False, ["layers"]), ("fit", True, ["model"])],
        supports_check_mode=True,
    )
    params = module.params
    if params["timeout_seconds"] < 1:
        module.fail_json(msg=f"timeout_seconds is {params['timeout_seconds']}: give at least 1.")
    result: dict[str, t.Any] = {
        "changed": False, "available": False, "refused": False, "reason": None, "devices": [],
        "fitted": None, "dry_run": None, "command": [],
    }  # fmt: skip
    try:
        result["command"] = command_of(params)
    except UserError as exc:
        module.fail_json(msg=f"Cannot run llama-fit-params: {exc}.")
    output, reason, refused = ask(module, result["command"])
    if reason is None:
        try:
            result |= read(module, output)
        except UserError as exc:
            reason = f"what {params['program']} printed cannot be read: {exc}"
    result |= {"available": reason is None, "reason": f"{reason}." if reason else None, "refused": refused}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
