#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: revalidation_record
short_description: Keep the baseline of a recorded split, and what became of it
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
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
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
        description: Entry of the host's facts that the baseline belongs to; its C(recorded_at) is the baseline's too.
        type: dict
        required: true
      build:
        description: Key of the llama.cpp build that measured.
        type: str
        required: true
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
      served:
        description: C(tests) of M(homelab.mixed_gpu.llama_server_benchmark).
        type: list
        elements: dict
  revalidation:
    description: What P(homelab.mixed_gpu.revalidation#filter) returned, for the history.
    type: dict
  state_dir:
    description: Directory of this collection's state.
    type: path
    default: /var/lib/mixed_gpu
  keep:
    description: Number of old baselines, and of revalidations, to keep per deployment.
    type: int
    default: 50
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
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
revalidation_file:
  description: File of the history that was written, V(none) without O(revalidation).
  returned: always
  type: str
"""

import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import fingerprints, json_file, json_state
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import baselines, changes, verdict
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record


class RevalidationRecord:
    """The baseline of one deployment and the history of its revalidations."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        try:
            self.deployment = fact_record.check_deployment(module.params["deployment"])
        except UserError as exc:
            module.fail_json(msg=f"This cannot be recorded: {exc}.")
        self.directory = os.path.join(module.params["state_dir"], "baselines")
        self.path = os.path.join(self.directory, f"{self.deployment}.json")

    def run(self) -> dict[str, t.Any]:
        """Return the result of the module, after writing what has to change."""
        text = json_file.read_text(self.path)
        before = self.read(text)
        after = self.wanted(before)
        new = "" if after is None else json_file.to_text(after)
        changed = after is not None and new != text
        history_file = None
        if changed and not self.module.check_mode:
            os.makedirs(self.directory, mode=0o755, exist_ok=True)
            if before is not None and after is not None and before["recorded_at"] != after["recorded_at"]:
                history_file = self.keep("baselines/history", str(before["recorded_at"]), before)
            elif before is None and text is not None:
                os.rename(self.path, f"{self.path}.damaged-{time.time_ns()}")
            json_file.write_text(self.path, new, 0o644, self.module.atomic_move)
        revalidation_file = None
        if self.module.params["revalidation"] is not None and not self.module.check_mode:
            data = fingerprints.plain(verdict.without_lines(self.module.params["revalidation"]), "revalidation")
            revalidation_file = self.keep("revalidations", json_file.utc_now(), data)
        result: dict[str, t.Any] = {
            "changed": changed,
            "baseline": after,
            "previous": before,
            "comparison": changes.since(before, after) if changed and after is not None else None,
            "path": self.path,
            "history_file": history_file,
            "revalidation_file": revalidation_file,
        }
        if self.module._diff:
            header = {"before_header": self.path, "after_header": self.path}
            result["diff"] = {**header, "before": text or "", "after": new or text or ""}
        return result

    def read(self, text: str | None) -> dict[str, t.Any] | None:
        """Return the baseline that is there; a damaged one ends the module unless it is about to be replaced."""
        if text is None:
            return None
        try:
            return baselines.parse(text)
        except baselines.BaselineError as exc:
            if self.module.params["measured"] is None:
                self.module.fail_json(
                    msg=f"{self.path} cannot be used: {exc}; move the file away (mv {self.path} {self.path}.old) and"
                    " make a new baseline with the playbook revalidate and -e accept=true."
                )
            return None

    def wanted(self, before: dict[str, t.Any] | None) -> dict[str, t.Any] | None:
        """Return the baseline as it shall be."""
        after = before
        try:
            measured = self.module.params["measured"]
            if measured is not None:
                after = baselines.check(baselines.make(self.deployment, **measured))
            completion = self.module.params["completion"]
            if completion is not None and after is not None:
                seen = baselines.memory(completion["entry"], completion["server"])
                after = baselines.check(baselines.complete(after, seen, completion["served"]))
        except (ValueError, KeyError) as exc:
            what = f"{exc} is missing" if isinstance(exc, KeyError) else str(exc)
            self.module.fail_json(msg=f"This is no baseline: {what}.")
        return after

    def keep(self, name: str, stamp: str, data: t.Any) -> str | None:
        """Write a file into a history, remove the oldest, and return its path if it is kept."""
        folder = os.path.join(self.module.params["state_dir"], name)
        return json_state.History(self.module, folder, self.module.params["keep"]).add(self.deployment, stamp, data)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "deployment": {"type": "str", "required": True},
            "measured": {
                "type": "dict",
                "options": {
                    "entry": {"type": "dict", "required": True},
                    "build": {"type": "str", "required": True},
                    "gpus": {"type": "dict", "required": True},
                    "host": {"type": "dict", "required": True},
                    "loads": {"type": "list", "elements": "dict", "required": True},
                    "reason": {"type": "str", "choices": list(baselines.REASONS), "required": True},
                    "most_loads": {"type": "int", "required": True},
                },
            },
            "completion": {
                "type": "dict",
                "options": {
                    "entry": {"type": "dict", "required": True},
                    "server": {"type": "dict", "required": True},
                    "served": {"type": "list", "elements": "dict"},
                },
            },
            "revalidation": {"type": "dict"},
            "state_dir": {"type": "path", "default": "/var/lib/mixed_gpu"},
            "keep": {"type": "int", "default": 50},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**RevalidationRecord(module).run())
    except OSError as exc:
        place = exc.filename or module.params["state_dir"]
        module.fail_json(msg=f"{place} cannot be read or written ({exc.strerror}): run as root, and make room there.")


if __name__ == "__main__":
    main()
