#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: measurement_store
short_description: Remove measurements that nothing refers to any more
version_added: 0.1.0
description:
  - Measurements of one fingerprint and campaign stay or go together. What the host's record and its baselines refer
    to always stays, as does what an interrupted campaign of a recorded deployment has measured.
  - Of all other campaigns the newest O(keep_campaigns) stay. Files that were set aside as damaged count as a campaign
    each.
  - Nothing is removed while something measures, and nothing where a baseline cannot be read.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
options:
  state_dir:
    description: Directory that keeps one JSON file per load.
    type: path
    default: /var/lib/mixed_gpu/measurements
  baselines_dir:
    description: Directory of the baselines.
    type: path
    default: /var/lib/mixed_gpu/baselines
  fact_file:
    description: The host's recorded splits.
    type: path
    default: /etc/ansible/facts.d/mixed_gpu.fact
  keep_campaigns:
    description: How many campaigns stay beside those that are referred to, at least 1.
    type: int
    default: 20
seealso:
  - module: homelab.mixed_gpu.measurement_store_info
"""

EXAMPLES = r"""
- name: Remove old measurements
  homelab.mixed_gpu.measurement_store:
    keep_campaigns: 20
"""

RETURN = r"""
removed:
  description: Names of the files that were removed, or would be in check mode.
  returned: success
  type: list
  elements: str
"""

import contextlib
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file, json_state
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import baselines
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record, host_record, kept_loads


def stored(state_dir: str) -> t.Iterator[kept_loads.Stored]:
    """Yield the files of the store."""
    for name in os.listdir(state_dir):
        path, key = os.path.join(state_dir, name), {}
        if name.endswith(".json"):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                key = dict(json_file.from_text(json_file.read_text(path) or "")["key"])
        elif ".json.damaged-" not in name:
            continue
        written_ns = os.stat(path).st_mtime_ns
        yield kept_loads.Stored(name, str(key.get("fingerprint", name)), str(key.get("campaign", "")), written_ns)


def superfluous(params: t.Mapping[str, t.Any]) -> list[str]:
    """Return the names of the files to remove. Raises UserError where the record or a baseline cannot be read."""
    record = host_record.read(params["fact_file"])
    folder, found = params["baselines_dir"], []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        path = os.path.join(folder, name)
        if name.endswith(".json"):
            found.append(baselines.FORM.parse(json_file.read_text(path) or "", path))
    return kept_loads.superfluous(stored(params["state_dir"]), record, found, params["keep_campaigns"])


def run(module: AnsibleModule) -> list[str]:
    """Remove what is superfluous, unless something measures; return the names of the files."""
    state_dir = module.params["state_dir"]
    if not os.path.isdir(state_dir):
        return []
    try:
        if module.check_mode:
            return superfluous(module.params)
        lock = json_file.take_lock(os.path.join(state_dir, ".lock"), 0)
        if lock is None:
            return []
        try:
            names = superfluous(module.params)
            for name in names:
                os.unlink(os.path.join(state_dir, name))
        finally:
            json_file.release_lock(lock)
        return names
    except UserError as exc:
        module.warn(f"No measurement is removed: {exc}.")
        return []


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "path", "default": "/var/lib/mixed_gpu/measurements"},
            "baselines_dir": {"type": "path", "default": "/var/lib/mixed_gpu/baselines"},
            "fact_file": {"type": "path", "default": fact_record.PATH},
            "keep_campaigns": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    if module.params["keep_campaigns"] < 1:
        module.fail_json(msg=f"keep_campaigns is {module.params['keep_campaigns']}: give at least 1.")
    with json_state.failures_told(module, module.params["state_dir"]):
        removed = run(module)
        diff = {"before": "".join(f"{name}\n" for name in removed), "after": ""}
        module.exit_json(changed=bool(removed), removed=removed, diff=diff)


if __name__ == "__main__":
    main()
