#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_driver_record
short_description: Record the drivers that a host had, and keep their package files for going back
version_added: 0.1.0
description:
  - Owns C(record.json) in O(directory), which has a schema number and the states that the host was in, oldest first. A
    state is the exact version of every package of the driver, the holds, and the pin.
  - Owns the package files in C(packages) there, one folder per version of the driver, because archives keep the newest
    version only.
  - A state with the packages of the newest one adds nothing. The 20 newest states are kept.
  - A damaged record, or one of another schema, is an error and left as it is.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
attributes:
  check_mode:
    details: Package files are neither downloaded nor removed.
  diff_mode:
    details: Shows the record, not the package files.
options:
  action:
    description:
      - V(record) adds the present state. A host without a driver adds nothing. A state that was V(installed) and is new
        ends a rollback that was interrupted.
      - V(begin) chooses the state to go back to and records that the rollback has begun. V(finish) records its end.
    type: str
    choices: [record, begin, finish]
    required: true
  main:
    description: Package whose version is the driver's.
    type: str
    default: ""
  reason:
    description: How the present state came about. V(rolled back) also for what a rollback left half done.
    type: str
    choices: [found, installed, rolled back]
    default: found
  to:
    description: Version to go back to, for V(begin). Empty means the newest recorded state before the present one.
    type: str
    default: ""
  keep_packages:
    description:
      - For V(record), whether to download the package files of the present driver that are not kept yet, and to remove
        those of all drivers but the present one and the one before.
    type: bool
    default: false
  directory:
    description: Where record and package files are.
    type: path
    default: /var/lib/mixed_gpu/driver
  pin_path:
    description: File of apt preferences whose text belongs to the state.
    type: path
    default: /etc/apt/preferences.d/mixed_gpu-nvidia
"""

EXAMPLES = r"""
- name: Record the present driver and keep its package files
  homelab.mixed_gpu.nvidia_driver_record:
    action: record
    keep_packages: true
  register: recorded

- name: Show the versions that can be gone back to
  ansible.builtin.debug:
    msg: "{{ recorded.record.states | map(attribute='version') }}"
"""

RETURN = r"""
record:
  description: The record as it is now, or would be in check mode.
  returned: success
  type: dict
lost:
  description: Packages with their versions that could not be kept, because no apt source has them any more.
  returned: success
  type: list
  elements: str
"""

import os
import shutil
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file, json_state
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.types import Json
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_packages, driver_record
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver.driver_host import Host


def updated(params: dict[str, t.Any], host: Host, before: driver_record.Record) -> driver_record.Record:
    """Return the record after the action."""
    now = json_file.utc_now()
    if params["action"] == "finish":
        return driver_record.finish(before, now)
    pin = json_file.read_text(params["pin_path"]) or ""
    present = driver_record.Present(host.packages(), pin, host.next_kernel()[0])
    state = driver_record.snapshot(present, params["main"], params["reason"], now)
    after = driver_record.with_state(before, state)
    if params["action"] == "record":
        return driver_record.overtaken(before, after, now) if params["reason"] == "installed" else after
    packages = state["packages"] if state else {}
    target = driver_record.target(after, packages, params["to"])
    if target is None:
        return after
    return driver_record.begin(after, target, state["version"] if state else "", now)


def keep_packages(kept_dir: str, host: Host, record: driver_record.Record) -> tuple[bool, list[str]]:
    """Download the package files of the present driver and remove old ones: (whether files changed, what was lost)."""
    present = driver_packages.own_versions(host.packages())
    keeping = driver_record.keeping(record, present, host.kept())
    changed, lost = False, []
    for package in keeping.download:
        folder = os.path.join(kept_dir, keeping.folder)
        os.makedirs(folder, mode=0o755, exist_ok=True)
        returncode, _out, _err = host.run(["apt-get", "download", "-q", package], cwd=folder)
        changed |= returncode == 0
        lost += [package] if returncode else []
    for name in os.listdir(kept_dir) if os.path.isdir(kept_dir) else []:
        if name not in keeping.folders:
            shutil.rmtree(os.path.join(kept_dir, name), ignore_errors=True)
            changed = True
    return changed, lost


def change(module: AnsibleModule) -> dict[str, t.Any]:
    """Return the module's result, after writing what has to change."""
    directory = module.params["directory"]
    path, kept_dir = os.path.join(directory, "record.json"), os.path.join(directory, "packages")
    host = Host(module, kept_dir)
    file = json_state.StateFile(module, driver_record.FORM, path, os.path.join(directory, "lock"))
    with file.locked():
        found = file.read()
        before = t.cast(driver_record.Record, found) if found else driver_record.empty()
        after = updated(module.params, host, before)
        changed, lost = after != before and file.write(t.cast(Json, after)), list[str]()
        if module.params["keep_packages"] and module.params["action"] == "record" and not module.check_mode:
            files_changed, lost = keep_packages(kept_dir, host, after)
            changed |= files_changed
    if lost:
        module.warn(f"Not kept for going back, because no apt source has them any more: {', '.join(lost)}")
    return {"changed": changed, "record": after, "lost": lost, **file.diff()}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "choices": ["record", "begin", "finish"], "required": True},
            "main": {"type": "str", "default": ""},
            "reason": {"type": "str", "choices": list(driver_record.REASONS), "default": "found"},
            "to": {"type": "str", "default": ""},
            "keep_packages": {"type": "bool", "default": False},
            "directory": {"type": "path", "default": "/var/lib/mixed_gpu/driver"},
            "pin_path": {"type": "path", "default": "/etc/apt/preferences.d/mixed_gpu-nvidia"},
        },
        supports_check_mode=True,
    )
    with json_state.failures_told(module, module.params["directory"]):
        module.exit_json(**change(module))


if __name__ == "__main__":
    main()
