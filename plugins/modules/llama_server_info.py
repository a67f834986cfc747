#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_server_info
short_description: Read where a running llama-server put its model
version_added: 0.1.0
description:
  - Reads the journal of the current start of a llama-server unit and returns what the server itself reports, such as
    layers and memory per device, context and pipelining.
  - What a start logged about its load is read once and kept in O(kept_dir), so that a journal that was rotated since
    then does not matter.
  - With O(deployment) it also compares that with the recorded plan.
  - Asks only systemd, the journal and the public C(/health), never a device, so it does not disturb a server in use.
    Note that C(/health) says nothing about RPC devices that have died.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
attributes:
  check_mode:
    details: This action does not modify state. In check mode what is kept is read, but not written.
options:
  unit:
    description: Name of the unit.
    type: str
    default: llama-server.service
  url:
    description: Where the server listens.
    type: str
    default: http://127.0.0.1:8080
  wait_seconds:
    description: How long to wait for a server that is still loading. The state is returned in any case.
    type: int
    default: 0
  deployment:
    description: Entry of the host's facts (C(ansible_local.mixed_gpu.models[deployment])) to compare with.
    type: dict
  kept_dir:
    description: Directory of what was read of the present start. It must be gone after a boot.
    type: path
    default: /run/mixed_gpu
"""

EXAMPLES = r"""
- name: Ask the running server where the model is
  homelab.mixed_gpu.llama_server_info:
    deployment: "{{ ansible_local.mixed_gpu.models[ansible_local.mixed_gpu.active] }}"
  register: example_server

- name: Stop when it is not where it was planned
  ansible.builtin.assert:
    that: example_server.deviations | length == 0
    fail_msg: "{{ example_server.deviations | join(' ') }}"
"""

RETURN = r"""
state:
  description: One of V(absent), V(stopped), V(failed), V(restarting), V(loading) and V(ready).
  returned: always
  type: str
  sample: ready
reason:
  description:
    - Why the server does not run, in one sentence; for example that it ended during each load, so that systemd does not
      start it any more. A chat template that llama.cpp refuses is named in a second one.
    - Empty for a server that runs, and for one that was stopped on purpose.
  returned: always
  type: str
settled:
  description:
    - Whether waiting longer is in vain. A load that systemd has repeated twice fails again, and a server that waits for
      its lenders loads nothing.
  returned: always
  type: bool
failure:
  description: Why the server is not ready, in one line, and the end of its journal; empty for a server that is ready.
  returned: always
  type: list
  elements: str
pid:
  description: Process of the server, V(0) when there is none.
  returned: always
  type: int
automatic_restarts:
  description: How often systemd restarted it since it was last started on purpose.
  returned: always
  type: int
needs_reload:
  description: Whether the unit file changed since systemd read it, so that the running server is not the described one.
  returned: always
  type: bool
invocation_id:
  description: systemd's name for this start of the unit.
  returned: always
  type: str
api_key_file:
  description: File on the host that holds the key which clients send; empty for a server without a key.
  returned: always
  type: str
  sample: /etc/mixed_gpu/llama-server.key
bound_to:
  description: Address that the server binds to; empty where the unit does not say.
  returned: always
  type: str
  sample: 127.0.0.1
last_lines:
  description: The last lines of the journal of this start.
  returned: always
  type: list
  elements: str
server:
  description: What the server says about itself, sizes in MiB.
  returned: always
  type: dict
  contains:
    complete:
      description:
        - Whether the lines of this start are known; everything else is empty or V(none) if not.
        - V(none) for an ExLlama that is compared with O(deployment), whose journal does not say what it holds.
      type: bool
    build:
      description: Build number and commit of llama.cpp.
      type: str
    tensor_devices:
      description: In split mode tensor, the devices that share each layer.
      type: list
      elements: str
    allreduce:
      description:
        - How cards add up in split mode tensor, with C(ran), C(transport) of NCCL and C(fallback); V(none) where the
          server says nothing of it.
      type: dict
    devices:
      description: The devices in use, in order.
      type: list
      elements: dict
      contains:
        device:
          description: Name of llama.cpp.
          type: str
        id:
          description: Endpoint of an RPC device, else the name.
          type: str
        description:
          description: What the device calls itself.
          type: str
        pci_bus_id:
          description: PCI bus address, V(none) where there is none.
          type: str
        free_mib:
          description: Free memory when the server started.
          type: int
        layers:
          description: Repeating blocks and output layer on this device, V(none) where the log does not tell.
          type: int
        output:
          description: Whether the output layer is on this device.
          type: bool
        model_mib:
          description: Weights.
          type: float
        kv_mib:
          description: KV cache and recurrent state.
          type: float
        compute_mib:
          description: Compute and output buffers.
          type: float
        total_mib:
          description: Sum of the three.
          type: float
    host:
      description: The same sizes for host memory.
      type: dict
    layers_source:
      description: V(log) when the log names each layer's device, V(kv_buffers) when the counts follow from KV buffers.
      type: str
    layers_note:
      description: Why the counts are not known.
      type: str
    model_layers:
      description: Repeating blocks and output layer of the model; C(drafting_blocks) of them only draft (MTP).
      type: int
    offloaded_layers:
      description: How many of them are on devices.
      type: int
    host_layers:
      description: How many of them are on the CPU.
      type: int
    context_size:
      description: Tokens over all slots.
      type: int
    context_per_slot:
      description: Tokens of one slot.
      type: int
    slots:
      description: Requests that are served at once.
      type: int
    kv_unified:
      description: Whether the slots share one KV cache.
      type: bool
    batch_size:
      description: Logical batch.
      type: int
    micro_batch_size:
      description: Physical batch.
      type: int
    flash_attention:
      description: V(on), V(off) or V(auto).
      type: str
    cache_type_k:
      description: Type of K in the cache.
      type: str
    cache_type_v:
      description: Type of V in the cache.
      type: str
    pipeline_parallel:
      description: Whether micro-batches are pipelined over the devices.
      type: bool
    load_seconds:
      description: From the start of the process to the loaded model.
      type: float
chats:
  description:
    - What M(homelab.mixed_gpu.serving_proof) proved of this start, its C(chats) with C(proved_at).
    - V(none) where that is not known.
  returned: always
  type: dict
without_lenders:
  description:
    - C(absent) are endpoints that this start does without; the server is compared with what is recorded for that.
    - C(waits) says that nothing is served until they answer, C(sentence) what is shown as a warning, too.
  returned: always
  type: dict
deviations:
  description: One sentence per difference between O(deployment) and the running server.
  returned: when O(deployment) is given
  type: list
  elements: str
allreduce_deviation:
  description:
    - One sentence where cards that share layers add up in another way than the measured one; empty where they do not.
  returned: when O(deployment) of llama.cpp is given
  type: str
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file, systemd, unit_end
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.types import Json
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import server_check as exllama_check
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import (
    chat_proof,
    chat_record,
    llama_client,
    llama_server,
    load_journal,
    server_check,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import engines, fallbacks
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watchdog import lenders

PROPERTIES = ("LoadState", "MainPID", "NeedDaemonReload", "InvocationID", "FragmentPath", "StatusText",
              "ExecMainStartTimestamp", *unit_end.PROPERTIES)  # fmt: skip
POLL_SECONDS = 0.5
LAST_LINES = 20


def _health(url: str) -> int | None:
    """Return the HTTP status of /health, or None when nobody answers."""
    return llama_client.Client(url, None, 5).status("GET", "/health")[0]


def _properties(module: AnsibleModule) -> dict[str, str]:
    try:
        return systemd.show(module, module.params["unit"], *PROPERTIES)
    except UserError as exc:
        module.fail_json(msg=f"{exc}.")


def _last_lines(module: AnsibleModule, journalctl: str, invocation: str) -> list[str]:
    """Return the last lines that one start of the unit printed, with what systemd says about that start."""
    if not invocation:
        return []
    command = [journalctl, "--no-pager", "--quiet", "-o", "cat", "-n", str(LAST_LINES)]
    rc, stdout, stderr = module.run_command([*command, *load_journal.of_start(invocation)])
    if rc not in (0, 1):  # 1: no entries
        raise UserError(f"The journal of {module.params['unit']} cannot be read ({stderr.strip()}): run as root.")
    return stdout.splitlines()[-LAST_LINES:]


def _without_lenders(module: AnsibleModule, properties: dict[str, str]) -> Json:
    """Return which lenders of the deployment this start does without, after warning of it."""
    entry = module.params["deployment"] or {}
    absent, waits = lenders.of_status(properties.get("StatusText", ""), entry.get("rpc_endpoints") or [])
    sentence = fallbacks.sentence(entry, absent, properties.get("ExecMainStartTimestamp", ""), waits)
    if sentence:
        module.warn(sentence)
    return {"absent": list(absent), "waits": waits, "sentence": sentence}


def _compared(deployment: Json, server: Json, unit_text: str, absent: list[str]) -> Json:
    """Return how the server differs from a deployment; TabbyAPI's settings are compared, for it says nothing itself."""
    if engines.of(deployment["serving"]).family == "llama_cpp":
        deployment = fallbacks.serving_without(deployment, absent) or deployment
        return {
            "deviations": server_check.deviations(deployment, server),
            "allreduce_deviation": server_check.allreduce_deviation(deployment, server),
        }
    config = exllama_check.config_path(unit_text)
    text = (json_file.read_text(config) if config else None) or ""
    return {"deviations": exllama_check.deviations(deployment, unit_text, text), "server": {**server, "complete": None}}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "default": "llama-server.service"},
            "url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "wait_seconds": {"type": "int", "default": 0},
            "deployment": {"type": "dict"},
            "kept_dir": {"type": "path", "default": load_journal.DIRECTORY},
        },
        supports_check_mode=True,
    )
    deadline = time.monotonic() + module.params["wait_seconds"]
    while True:
        properties = _properties(module)
        state = llama_server.unit_state(properties, _health(module.params["url"].rstrip("/")))
        if state not in llama_server.COMING or time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
    invocation = properties.get("InvocationID", "")
    journalctl = module.get_bin_path("journalctl", required=True)
    try:
        keep = state == "ready" and not module.check_mode
        server = load_journal.load(
            journalctl, module.params["unit"], invocation, keep, module.params["kept_dir"],
            int(properties.get("MainPID") or 0),
        )  # fmt: skip
        last_lines = _last_lines(module, journalctl, invocation)
    except UserError as exc:
        module.fail_json(msg=str(exc))
    fragment = properties.get("FragmentPath")
    unit_text = (json_file.read_text(fragment) if fragment else None) or ""
    without = _without_lenders(module, properties)
    why = unit_end.why(module.params["unit"], properties) or (without["sentence"] if without["waits"] else "")
    reason = " ".join(filter(None, [why, chat_proof.refused_template(last_lines) if why else ""]))
    restarts = int(properties.get("NRestarts") or 0)
    result = {
        "changed": False,
        "without_lenders": without,
        "state": state,
        "reason": reason,
        "settled": llama_server.settled(state, restarts, without["waits"]),
        "failure": llama_server.failure(module.params["unit"], state, restarts, reason, last_lines),
        "pid": int(properties.get("MainPID") or 0),
        "automatic_restarts": restarts,
        "needs_reload": properties.get("NeedDaemonReload") == "yes",
        "invocation_id": invocation,
        "api_key_file": llama_server.key_file(unit_text),
        "bound_to": llama_server.bound_to(unit_text),
        "last_lines": last_lines,
        "server": server,
        "chats": chat_record.kept(module.params["unit"], module.params["kept_dir"], invocation),
    }
    if module.params["deployment"] is not None:
        try:
            result.update(_compared(module.params["deployment"], server, unit_text, without["absent"]))
        except (KeyError, TypeError, ValueError) as exc:
            module.fail_json(msg=f"The recorded deployment is not complete ({exc}): run the tuning play again.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
