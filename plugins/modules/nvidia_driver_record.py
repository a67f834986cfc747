#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_driver_record
short_description: Keep a record of the drivers that a host had, for going back
version_added: 0.1.0
description:
  - Owns the file O(path), which has a schema number and the states that the host was in, oldest first. A state is
    the exact version of
    every package of the driver, the holds, and the pin.
  - A state with the packages of the newest one adds nothing.
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
      - V(read) only returns the record.
      - V(record) adds the present state. A host without a driver adds nothing. One that was V(installed) and is new
        ends a rollback that was broken off.
      - V(begin) chooses the state to go back to and notes that the way back has begun. V(finish) notes that it has
        ended.
    type: str
    choices: [read, record, begin, finish]
    default: read
  driver:
    description: What M(homelab.mixed_gpu.nvidia_driver_info) found. Needed by all actions but V(read) and V(finish).
    type: dict
  main:
    description: Package whose version is the driver's.
    type: str
    default: ""
  reason:
    description: How the present state came about. V(rolled back) also for what a rollback left half done.
    type: str
    choices: [found, installed, rolled back]
    default: found
  holds:
    description: Held packages, where that changed since O(driver) was read.
    type: list
    elements: str
  to:
    description: Version to go back to, for V(begin). Empty means the newest recorded state before the present one.
    type: str
    default: ""
  pin_path:
    description: File of apt preferences whose text belongs to the state.
    type: path
    default: /etc/apt/preferences.d/mixed_gpu-nvidia
  path:
    description: The record.
    type: path
    default: /var/lib/mixed_gpu/driver/record.json
  keep:
    description: Number of states to keep, at least 2.
    type: int
    default: 20
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Look at the driver
  homelab.mixed_gpu.nvidia_driver_info:
  register: found

- name: Record it
  homelab.mixed_gpu.nvidia_driver_record:
    action: record
    driver: "{{ found.driver }}"
"""

RETURN = r"""
record:
  description: The record as it is now, or would be in check mode.
  returned: success
  type: dict
target:
  description: The state to go back to; V(none) where the host is there already, and for other actions than V(begin).
  returned: success
  type: dict
state:
  description: The state to go back to, or else the recorded state that the host is in; V(none) where it is in none.
  returned: success
  type: dict
ours:
  description: Packages of the newest state, when the role nvidia_driver made it.
  returned: success
  type: list
  elements: str
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_record


def change(module: AnsibleModule) -> dict[str, t.Any]:
    """Return the module's result, after writing what has to change."""
    params, path = module.params, module.params["path"]
    text = json_file.read_text(path)
    before = driver_record.empty() if text is None else driver_record.parse(text)
    after, target, now = dict(before), None, json_file.utc_now()
    present: dict[str, str] = {}
    if params["action"] in ("record", "begin"):
        pin = json_file.read_text(params["pin_path"]) or ""
        state = driver_record.snapshot(params["driver"], params["main"], pin, params["reason"], now, params["holds"])
        after = driver_record.with_state(before, state, params["keep"])
        present = state["packages"] if state else {}
        if params["action"] == "record" and params["reason"] == "installed":
            after = driver_record.overtaken(before, after, now)
        if params["action"] == "begin":
            target = driver_record.target(after, present, params["to"])
            if target is not None:
                after = driver_record.begin(after, target, state["version"] if state else "", now)
    elif params["action"] == "finish":
        after = driver_record.finish(before, now)
    wanted = json_file.to_text(after)
    changed = after != before
    if changed and not module.check_mode:
        json_file.write_text(path, wanted, 0o644, module.atomic_move)
    result = {
        "changed": changed,
        "record": after,
        "target": target,
        "state": target or driver_record.state_of(after, present),
        "ours": driver_record.ours(before),
    }
    if module._diff:
        result["diff"] = {"before_header": path, "after_header": path, "before": text or "", "after": wanted}
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "choices": ["read", "record", "begin", "finish"], "default": "read"},
            "driver": {"type": "dict"},
            "main": {"type": "str", "default": ""},
            "reason": {"type": "str", "choices": list(driver_record.REASONS), "default": "found"},
            "holds": {"type": "list", "elements": "str"},
            "to": {"type": "str", "default": ""},
            "pin_path": {"type": "path", "default": "/etc/apt/preferences.d/mixed_gpu-nvidia"},
            "path": {"type": "path", "default": "/var/lib/mixed_gpu/driver/record.json"},
            "keep": {"type": "int", "default": 20},
        },
        required_if=[("action", "record", ("driver",)), ("action", "begin", ("driver",))],
        supports_check_mode=True,
    )
    path = module.params["path"]
    lock = None
    try:
        if module.params["action"] != "read" and not module.check_mode:
            lock = json_file.take_lock(os.path.join(os.path.dirname(path), "lock"), 30)
            if lock is None:
                module.fail_json(msg=f"{path} has been locked by another run for 30 seconds: wait for it to end.")
        module.exit_json(**change(module))
    except driver_record.DriverRecordError as exc:
        if module.params["action"] == "begin" and "recorded" in str(exc):
            module.fail_json(msg=f"There is no driver to go back to: {exc}.")
        module.fail_json(
            msg=f"{path} cannot be used: {exc}; move it away (mv {path} {path}.old) and run the play again: what is "
            "installed now is "
            "recorded anew."
        )
    except OSError as exc:
        module.fail_json(
            msg=f"{exc.filename or path} cannot be written ({exc.strerror}): run as root, and make room there."
        )
    finally:
        if lock is not None:
            json_file.release_lock(lock)


if __name__ == "__main__":
    main()
