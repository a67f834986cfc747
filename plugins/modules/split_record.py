#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: split_record
short_description: Read and write the chosen splits in the host's custom facts
version_added: 0.1.0
description:
  - Owns C(/etc/ansible/facts.d/mixed_gpu.fact). Nothing else writes that file, and the roles of this collection read
    it with O(state=query) alone. Other plays can read it as C(ansible_local.mixed_gpu), too.
  - The file has a schema number, the deployment that is served (C(active)), one entry per deployment under C(models),
    and the version of this collection that changed it last (C(collection)).
  - An entry that says the same as the recorded one, apart from C(recorded_at), changes nothing.
  - Superseded entries are kept in O(history_dir).
  - A damaged file, or one of another schema, is an error and left as it is.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
options:
  state:
    description:
      - V(present) records O(tuning) for O(deployment), or with O(renewal) that its recorded split still holds. With
        neither it only makes the recorded deployment the active one.
      - V(absent) removes the deployment. The file goes with its last entry.
      - V(query) changes nothing and returns the entry of O(deployment), or of the active deployment.
    type: str
    choices: [present, absent, query]
    default: present
  deployment:
    description:
      - Id of the deployment, that is a model with a serving profile. With O(state=query) it may be empty, which means
        the active one.
    type: str
    default: ""
  engine:
    description: With O(state=query), the engine of which a deployment is needed. V(exllama) is either generation.
    type: str
    choices: [llama_cpp, exllama]
  required:
    description: With O(state=query), whether the module fails when the deployment is not available.
    type: bool
    default: false
  tuning:
    description:
      - A finished tuning, from which the entry is made.
      - It has C(model) (with C(id), C(path), C(sha256)), C(problem) (what the planner was
        given) and C(plan) (its last answer), C(loads) (all of the campaign), C(rpc_endpoints), C(dry_run),
        C(device_probe) and C(probe_settings) (each may be none), C(fingerprint_parts) and C(campaign).
    type: dict
  renewal:
    description:
      - Another configuration in which the recorded split still holds.
      - It has C(build) (key of the llama.cpp build), C(rpc_protocol) (that it speaks to lenders, C(major.minor);
        empty where it does not say), C(gpus) (the fact C(mixed_gpu_gpus)), C(extra) (replaces what the inventory added
        to the fingerprint, unless it is empty) and C(device_probe) (none keeps the recorded one).
    type: dict
  active:
    description: Whether the deployment becomes the one that is served. With V(false) the served one stays as it is.
    type: bool
    default: true
  path:
    description: The fact file.
    type: path
    default: /etc/ansible/facts.d/mixed_gpu.fact
  history_dir:
    description: Directory for superseded entries, one JSON file each. The last 20 of each deployment stay.
    type: path
    default: /var/lib/mixed_gpu/history
  lock_wait_seconds:
    description: How long to wait for another run that is writing the file.
    type: int
    default: 30
"""

EXAMPLES = r"""
- name: Record that the split holds with another driver
  homelab.mixed_gpu.split_record:
    deployment: llama-70b-c8192-np1-f16
    renewal:
      build: b11312-0123456789ab
      gpus: "{{ ansible_facts['mixed_gpu_gpus'] }}"
      extra: {}
      device_probe:

- name: Serve another deployment that was tuned before
  homelab.mixed_gpu.split_record:
    deployment: qwen-32b-c16384-np1-f16

- name: Read the active deployment
  homelab.mixed_gpu.split_record:
    state: query
  register: example_recorded

- name: Remove a deployment
  homelab.mixed_gpu.split_record:
    deployment: llama-70b-c8192-np1-f16
    state: absent
"""

RETURN = r"""
available:
  description: Whether the deployment is recorded, and of O(engine).
  returned: when O(state=query)
  type: bool
deployment:
  description: Id of the deployment that was asked for, or of the active one; V(none) when there is neither.
  returned: when O(state=query)
  type: str
entry:
  description: Its entry, V(none) when it is not available.
  returned: when O(state=query)
  type: dict
engine:
  description: The engine that it was tuned with, V(none) when it is not recorded.
  returned: when O(state=query)
  type: str
family:
  description: The family of that engine, V(llama_cpp) or V(exllama), or V(none).
  returned: when O(state=query)
  type: str
unit:
  description: The unit of the server of that engine, or V(none).
  returned: when O(state=query)
  type: str
active:
  description: Id of the deployment that is served, or V(none).
  returned: when O(state=query)
  type: str
deployments:
  description: Ids of all recorded deployments.
  returned: when O(state=query)
  type: list
  elements: str
why:
  description: Why the deployment is not available, with the cure; V(none) when it is.
  returned: when O(state=query)
  type: str
revalidation:
  description:
    - Whether a revalidation of the active deployment is due, since another NVIDIA driver is loaded or installed than
      the one with which the speed was validated last.
  returned: when O(state=query)
  type: dict
  contains:
    needed:
      description: Whether it is due.
      type: bool
    now:
      description: Whether another driver is loaded already; else a reboot comes first.
      type: bool
    why:
      description: What changed, in words; V(none) when nothing is due.
      type: str
    cure:
      description: What to do; V(none) when nothing is due.
      type: str
    driver:
      description:
        - Versions C(recorded) (V(none) where no driver was recorded), C(loaded) (empty where none is) and C(installed)
          (empty where no kernel has the module, V(none) where that cannot be known).
      type: dict
draft:
  description:
    - What the role P(homelab.mixed_gpu.exllamav2#role) is to serve as C(exllamav2_draft), empty without a draft and for
      another engine.
  returned: when O(state=query)
  type: dict
lenders:
  description: The hosts that lend devices to the deployment, by name, as in C(/var/lib/mixed_gpu/lenders.json).
  returned: when O(state=query)
  type: dict
trend:
  description: What the kept revalidations of the deployment found, the oldest first.
  returned: when O(state=query)
  type: list
  elements: dict
  contains:
    at:
      description: When it was judged (UTC).
      type: str
    baseline_at:
      description: When the baseline that it compared with was recorded; V(none) where there was none.
      type: str
    driver_version:
      description: The NVIDIA driver that was loaded; V(none) without one.
      type: str
    verdict:
      description: V(ok), V(improved), V(inconclusive), V(regressed) or V(broken).
      type: str
    accepted:
      description: Whether the verdict was one of the accepted ones.
      type: bool
    decode:
      description:
        - The change of the time of a token in percent, more is slower, as C(percent), and its interval as C(low) and
          C(high), which may be V(none).
        - V(none) where it was not compared.
      type: dict
    prefill:
      description: The same of a prompt.
      type: dict
record:
  description:
    - The whole record as it is now, or would be in check mode; V(none) when there is no file.
    - With O(state=query) it is an empty record when there is no file.
  returned: success
  type: dict
path:
  description: The fact file.
  returned: success
  type: str
history_file:
  description: File that keeps the entry that was superseded, or V(none).
  returned: when O(state=present) or O(state=absent)
  type: str
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file, json_state, version
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import server_plan
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import due, trend
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment, fact_record, lent_devices
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split.types import Entry

#: Superseded entries of a deployment that the history keeps.
KEPT: t.Final = 20


class SplitRecord:
    """The fact file and the history beside it."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.path: str = self.params["path"]
        if self.params["lock_wait_seconds"] < 0:
            module.fail_json(msg=f"lock_wait_seconds is {self.params['lock_wait_seconds']}: give at least 0.")
        self.deployment = self.params["deployment"]
        if self.params["state"] != "query":
            fact_record.check_deployment(self.deployment)
        self.file = json_state.StateFile(module, fact_record.FORM, self.path)
        self.history = json_state.History(module, self.params["history_dir"], KEPT)

    def run(self) -> dict[str, t.Any]:
        """Return the result of the module, after writing what has to change."""
        if self.params["state"] == "query":
            return self.query()
        with self.file.locked(self.params["lock_wait_seconds"]):
            return self.change()

    def query(self) -> dict[str, t.Any]:
        """Return the entry that was asked for. Raises UserError when it is required and not available."""
        record = self.file.read() or fact_record.empty()
        found = fact_record.find(record, self.path, self.deployment, self.params["engine"] or "")
        if self.params["required"] and not found["available"]:
            raise UserError(str(found["why"]))
        state_dir = os.path.dirname(self.params["history_dir"])
        endpoints = found["entry"]["rpc_endpoints"] if found["entry"] else ()
        return {
            "changed": False, "path": self.path, "record": record, **found,
            "draft": server_plan.recorded_draft(found["entry"]),
            "lenders": lent_devices.read(state_dir, endpoints),
            "revalidation": due.read(record, state_dir),
            "trend": trend.rows(due.history(state_dir, found["deployment"]) if found["deployment"] else ()),
        }  # fmt: skip

    def new_entry(self, before: fact_record.Record) -> Entry | None:
        """Return the entry to record, None to keep the recorded one. Raises UserError naming what is wrong."""
        tuning, renewal = self.params["tuning"], self.params["renewal"]
        if tuning is None and renewal is None:
            return None
        try:
            if tuning is not None:
                return fact_record.check_entry(deployment.build(tuning))
            known = before["models"].get(self.deployment)
            if known is None:
                raise UserError(f"nothing is recorded for {self.deployment}: tune it first")
            return fact_record.check_entry(deployment.renew(known, renewal))
        except KeyError as exc:
            raise UserError(f"the result of the tuning cannot be recorded: it lacks {exc}") from exc
        except (TypeError, ValueError) as exc:
            raise UserError(f"the result of the tuning cannot be recorded: {exc}") from exc

    def change(self) -> dict[str, t.Any]:
        """Return the result of changing the entry. Raises UserError for what cannot be recorded."""
        before = self.file.read() or fact_record.empty()
        now = json_file.utc_now()
        try:
            if self.params["state"] == "present":
                entry = self.new_entry(before)
                after = fact_record.with_entry(before, self.deployment, entry, self.params["active"], now)
            else:
                after = fact_record.without_entry(before, self.deployment)
        except UserError as exc:
            raise UserError(f"{self.path}: {exc}") from exc
        old = fact_record.superseded(before, after, self.deployment)
        history_file = None
        if old is not None:
            # The history first: a crash in between repeats an entry there, and loses none.
            content = {"schema": fact_record.SCHEMA, "deployment": self.deployment, "superseded_at": now, "entry": old}
            history_file = self.history.add(self.deployment, now, content)
        if after != before:
            after = {**after, "collection": version.COLLECTION}
        wanted = after if after["models"] else None
        changed = self.file.write(wanted)
        return {
            "changed": changed, "record": wanted, "path": self.path, "history_file": history_file, **self.file.diff(),
        }  # fmt: skip


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent", "query"], "default": "present"},
            "deployment": {"type": "str", "default": ""},
            "engine": {"type": "str", "choices": ["llama_cpp", "exllama"]},
            "required": {"type": "bool", "default": False},
            "tuning": {"type": "dict"},
            "renewal": {"type": "dict"},
            "active": {"type": "bool", "default": True},
            "path": {"type": "path", "default": fact_record.PATH},
            "history_dir": {"type": "path", "default": "/var/lib/mixed_gpu/history"},
            "lock_wait_seconds": {"type": "int", "default": 30},
        },
        mutually_exclusive=[("tuning", "renewal")],
        supports_check_mode=True,
    )
    with json_state.failures_told(module, module.params["path"]):
        module.exit_json(**SplitRecord(module).run())


if __name__ == "__main__":
    main()
