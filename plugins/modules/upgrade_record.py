#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: upgrade_record
short_description: Keep the record of a host's upgrades, and say what comes next
version_added: 0.1.0
description:
  - Owns the file O(path), which has a schema number, the upgrade that is under way, and those that have ended.
  - A damaged record, or one of a newer schema, is an error and left as it is.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  action:
    description:
      - V(open) says what is under way, and whether what is asked for can go together with it. V(decide) says what to do
        next. Both only read.
      - V(begin) notes that an upgrade has begun, V(advance) that it is in another O(stage), V(finish) that it has
        ended with O(outcome).
    type: str
    choices: [open, decide, begin, advance, finish]
    default: open
  component:
    description: What is to be upgraded. Empty, for V(open), means what is under way.
    type: str
    choices: ["", driver, llama_cpp]
    default: ""
  version:
    description: Version that is asked for, for V(open). Empty where the variables of the role say it.
    type: str
    default: ""
  on_resume:
    description: What becomes of an upgrade that was interrupted.
    type: str
    choices: [continue, rollback]
    default: continue
  present:
    description:
      - What the host has, as C(version) and C(builds), for V(decide) and V(begin). For V(decide) it may be missing, as
        O(planned), where V(open) asks for no plan.
    type: dict
  planned:
    description: What is asked for, likewise.
    type: dict
  asked:
    description: How it was asked for, as C(version) and C(sha256), for V(begin).
    type: dict
    default: {}
  stage:
    description: Stage, for V(advance).
    type: str
    choices: [installing, revalidating, keeping, rolling_back, proving]
  outcome:
    description: How the upgrade ended, for V(finish).
    type: str
    choices: [kept, rolled_back, broken, untouched]
  verdict:
    description:
      - C(verdict), C(accepted) and C(summary) of a revalidation. For V(begin) of the state before, for V(advance) of
        the new version, for V(finish) of the version that was brought back.
    type: dict
  why:
    description: Why the new version could not be installed, for V(finish) with V(untouched).
    type: str
  path:
    description: The record.
    type: path
    default: /var/lib/mixed_gpu/upgrade.json
  keep:
    description: Number of ended upgrades to keep.
    type: int
    default: 20
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: See what is under way
  homelab.mixed_gpu.upgrade_record:
  register: example_upgrades

- name: Note that the new version is installed
  homelab.mixed_gpu.upgrade_record:
    action: advance
    stage: revalidating
"""

RETURN = r"""
record:
  description: The record as it is now, or would be in check mode.
  returned: success
  type: dict
opening:
  description:
    - C(error) (empty, or one sentence), C(component), C(version) and C(sha256) that count, C(plan) (whether to look at
      the host) and C(sentence) (where an upgrade stopped).
  returned: action is open
  type: dict
step:
  description: C(do) (V(begin), V(install), V(keep), V(roll_back), V(nothing) or V(refuse)) and C(sentence).
  returned: action is decide
  type: dict
summary:
  description: How the upgrade ended, in one sentence.
  returned: action is finish
  type: str
"""

import contextlib
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file, json_state
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import upgrade_stages


def changed_record(params: t.Mapping[str, t.Any], before: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return the record as the action leaves it."""
    now = json_file.utc_now()
    if params["action"] == "begin":
        return upgrade_stages.begin(
            before,
            params["component"],
            params["present"],
            params["planned"],
            params["asked"],
            params["verdict"],
            now,
        )
    if params["action"] == "advance":
        return upgrade_stages.advance(before, params["stage"], now, params["verdict"])
    if params["action"] == "finish":
        return upgrade_stages.finish(before, params["outcome"], now, params["keep"], params["verdict"], params["why"])
    return before


def run(module: AnsibleModule) -> dict[str, t.Any]:
    """Return the module's result, after writing what has to change."""
    params = module.params
    path = params["path"]
    lock_file = os.path.join(os.path.dirname(path), ".upgrade.lock")
    file = json_state.StateFile(module, upgrade_stages.FORM, path, lock_file)
    reads_only = params["action"] in ("open", "decide")
    with contextlib.nullcontext() if reads_only else file.locked():
        before = file.read() or upgrade_stages.empty()
        try:
            after = changed_record(params, before)
        except UserError as exc:
            raise UserError(
                f"{path}: {exc}; if another play is upgrading this host, let it end, else move the file away"
                f" (mv {path} {path}.old) and {upgrade_stages.FORM.cure}"
            ) from exc
        changed = after != before and file.write(after)
    result: dict[str, t.Any] = {"changed": changed, "record": after}
    if params["action"] == "open":
        result["opening"] = upgrade_stages.opening(before, params["component"], params["version"], params["on_resume"])
    elif params["action"] == "decide":
        result["step"] = upgrade_stages.decide(before, params["present"], params["planned"], params["on_resume"])
    elif params["action"] == "finish":
        result["summary"] = upgrade_stages.summary(after["finished"][-1])
    return {**result, **file.diff()}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "choices": ["open", "decide", "begin", "advance", "finish"], "default": "open"},
            "component": {"type": "str", "choices": ["", *upgrade_stages.COMPONENTS], "default": ""},
            "version": {"type": "str", "default": ""},
            "on_resume": {"type": "str", "choices": ["continue", "rollback"], "default": "continue"},
            "present": {"type": "dict"},
            "planned": {"type": "dict"},
            "asked": {"type": "dict", "default": {}},
            "stage": {"type": "str", "choices": list(upgrade_stages.STAGES)},
            "outcome": {"type": "str", "choices": list(upgrade_stages.OUTCOMES)},
            "verdict": {"type": "dict"},
            "why": {"type": "str"},
            "path": {"type": "path", "default": upgrade_stages.PATH},
            "keep": {"type": "int", "default": 20},
        },
        required_if=[
            ("action", "begin", ("present", "planned", "verdict")),
            ("action", "advance", ("stage",)),
            ("action", "finish", ("outcome",)),
        ],
        supports_check_mode=True,
    )
    with json_state.failures_told(module, module.params["path"]):
        module.exit_json(**run(module))


if __name__ == "__main__":
    main()
