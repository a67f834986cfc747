#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: revalidation_record
short_description: Manage the baseline of a deployment and the history of its revalidations
version_added: 0.1.0
description:
  - Owns the baseline that revalidations compare with, one file per deployment in C(baselines), and the history of
    revalidations in C(revalidations), both below O(state_dir). Both are written whole or not at all.
  - Without O(measured), O(completion) and O(revalidation) it only reads.
  - A baseline that is replaced is kept in C(baselines/history); the oldest of both histories go first.
  - A damaged baseline is an error, and left as it is, unless O(measured) replaces it; then it is kept beside the new
    one.
  - The history of revalidations is a log, so appending to it counts as no change.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
options:
  deployment:
    description: Id of the deployment, that is a model with a serving profile.
    type: str
    required: true
  measured:
    description: What a new baseline is made of.
    type: dict
    suboptions:
      entry:
        description: Entry of the host's facts that the baseline belongs to.
        type: dict
        required: true
      build:
        description: Key of the engine's build that measured.
        type: str
        required: true
      versions:
        description: Versions in the build of an ExLlama, as M(homelab.mixed_gpu.split_tuning_info) tells them.
        type: dict
        default: {}
      gpus:
        description: The fact C(mixed_gpu_gpus) of M(homelab.mixed_gpu.gpu_facts).
        type: dict
        required: true
      host:
        description: RV(homelab.mixed_gpu.host_info#module:host) of M(homelab.mixed_gpu.host_info).
        type: dict
        required: true
      loads:
        description: Loads of the recorded split, as it is served.
        type: list
        elements: dict
        required: true
      reason:
        description: Whether a tuning measured, or a revalidation that was accepted.
        type: str
        choices: [tuned, accepted]
        required: true
      most_loads:
        description: Loads that a later revalidation may measure.
        type: int
        required: true
      recorded_at:
        description: When it was measured (UTC). Empty means when the entry was recorded.
        type: str
        default: ""
      lenders:
        description:
          - What can move the speed of hosts that lend devices, by name. What is recorded of them
            (C(/var/lib/mixed_gpu/lenders.json)) by default.
        type: dict
  completion:
    description:
      - What a loaded server says, to complete the baseline that is there. What that already holds stays.
    type: dict
    suboptions:
      entry:
        description: Entry of the host's facts, whose planned memory is put beside what is reported.
        type: dict
        required: true
      server:
        description: C(server) of M(homelab.mixed_gpu.llama_server_info).
        type: dict
        required: true
      completions:
        description: >-
          The result of M(homelab.mixed_gpu.llama_server_benchmark) or M(homelab.mixed_gpu.exllama_server_benchmark).
          Its C(tests) are not taken where something else computed meanwhile.
        type: dict
      acceptance:
        description: C(acceptance) of M(homelab.mixed_gpu.draft_acceptance_info).
        type: dict
      ignore_contention:
        description: Whether they are taken all the same.
        type: bool
        default: false
  revalidation:
    description: A verdict of M(homelab.mixed_gpu.campaign), for the history.
    type: dict
  state_dir:
    description: Directory of this collection's state.
    type: path
    default: /var/lib/mixed_gpu
  keep:
    description: Number of old baselines, and of revalidations, to keep per deployment.
    type: int
    default: 50
"""

EXAMPLES = r"""
- name: Read the baseline
  homelab.mixed_gpu.revalidation_record:
    deployment: llama-70b-c8192-np1-f16
  register: example_record

- name: Record a new one
  homelab.mixed_gpu.revalidation_record:
    deployment: llama-70b-c8192-np1-f16
    measured:
      entry: "{{ example_entry }}"
      build: b11312-12da510b62f7
      gpus: "{{ ansible_facts['mixed_gpu_gpus'] }}"
      host: "{{ example_host.host }}"
      loads: "{{ example_loads }}"
      reason: tuned
      most_loads: 6
"""

RETURN = r"""
baseline:
  description: The baseline as it is now, V(none) where there is none.
  returned: always
  type: dict
previous:
  description: The baseline as it was before, V(none) where there was none or it was damaged.
  returned: always
  type: dict
incomplete:
  description: Whether there is a baseline that lacks what only a loaded server says.
  returned: always
  type: bool
comparison:
  description: How the speed changed from the previous baseline, in one sentence; V(none) where there was none.
  returned: always
  type: str
path:
  description: File of the baseline.
  returned: always
  type: str
history_file:
  description: Where the replaced baseline is kept, V(none) when none was replaced.
  returned: always
  type: str
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import fingerprints, json_file, json_state
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.types import Json
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import contention
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import baselines, changes, verdict
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record, lent_devices


def present(file: json_state.StateFile, replaced: bool) -> Json | None:
    """Return the baseline that is there; a damaged one is kept beside a new one, and else raises UserError."""
    try:
        return file.read()
    except UserError:
        if not replaced:
            raise
        if not file.module.check_mode:
            os.rename(file.path, f"{file.path}.damaged-{time.time_ns()}")
        return None


def wanted(params: Json, before: Json | None) -> Json | None:
    """Return the baseline as it shall be. Raises UserError for a new one that is none."""
    after, measured, completion = before, params["measured"], params["completion"]
    try:
        if measured is not None:
            lent = lent_devices.read(params["state_dir"], measured["entry"]["rpc_endpoints"])
            told = {**measured, "lenders": measured["lenders"] or lent_devices.configuration(lent, {})}
            after = baselines.checked(baselines.make(params["deployment"], **told))
        if completion is not None and after is not None:
            memory = baselines.memory(completion["entry"], completion["server"])
            seen = completion["completions"] or {}
            calm = completion["ignore_contention"] or contention.who(seen.get("contention")) is None
            served = seen.get("tests") if calm else None
            said = baselines.complete(after, memory, served, seen.get("answer"), completion["acceptance"])
            after = baselines.checked(said)
    except (ValueError, KeyError) as exc:
        what = f"{exc} is missing" if isinstance(exc, KeyError) else str(exc)
        raise UserError(f"This is no baseline: {what}") from exc
    return after


def run(module: AnsibleModule) -> Json:
    """Return the result of the module, after writing what has to change."""
    params = module.params
    deployment = fact_record.check_deployment(params["deployment"])
    file = json_state.StateFile(module, baselines.FORM, baselines.path(params["state_dir"], deployment))
    before = present(file, replaced=params["measured"] is not None)
    after = wanted(params, before)
    history_file = None
    if before is not None and after is not None and before["recorded_at"] != after["recorded_at"]:
        history = json_state.History(module, os.path.join(params["state_dir"], "baselines/history"), params["keep"])
        history_file = history.add(deployment, before["recorded_at"], before)
    changed = after is not None and after != before and file.write(after)
    if params["revalidation"] is not None:
        data = fingerprints.plain(verdict.without_lines(params["revalidation"]), "revalidation")
        history = json_state.History(module, os.path.join(params["state_dir"], "revalidations"), params["keep"])
        history.add(deployment, json_file.utc_now(), data)
    return {
        "changed": changed,
        "baseline": after,
        "previous": before,
        "incomplete": baselines.incomplete(after),
        "comparison": changes.since(before, after) if changed and after is not None else None,
        "path": file.path,
        "history_file": history_file,
        **file.diff(),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "deployment": {"type": "str", "required": True},
            "measured": {
                "type": "dict",
                "options": {
                    "entry": {"type": "dict", "required": True},
                    "build": {"type": "str", "required": True},
                    "versions": {"type": "dict", "default": {}},
                    "gpus": {"type": "dict", "required": True},
                    "host": {"type": "dict", "required": True},
                    "loads": {"type": "list", "elements": "dict", "required": True},
                    "reason": {"type": "str", "choices": list(baselines.REASONS), "required": True},
                    "most_loads": {"type": "int", "required": True},
                    "recorded_at": {"type": "str", "default": ""},
                    "lenders": {"type": "dict"},
                },
            },
            "completion": {
                "type": "dict",
                "options": {
                    "entry": {"type": "dict", "required": True},
                    "server": {"type": "dict", "required": True},
                    "completions": {"type": "dict"},
                    "acceptance": {"type": "dict"},
                    "ignore_contention": {"type": "bool", "default": False},
                },
            },
            "revalidation": {"type": "dict"},
            "state_dir": {"type": "path", "default": "/var/lib/mixed_gpu"},
            "keep": {"type": "int", "default": 50},
        },
        supports_check_mode=True,
    )
    with json_state.failures_told(module, module.params["state_dir"]):
        module.exit_json(**run(module))


if __name__ == "__main__":
    main()
