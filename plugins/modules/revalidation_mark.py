#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: revalidation_mark
short_description: Mark a host as in need of revalidation, or take the mark away
version_added: 0.1.0
description:
  - Owns the file O(path). While it is there, every play of this collection says that the recorded split has not been
    revalidated since something changed.
  - A host that is marked already keeps the time and the older versions of its mark.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  state:
    description:
      - V(present) marks the host, V(absent) says that it is revalidated.
      - When O(packages) cancel out what the mark names, V(present) takes it away too.
    type: str
    choices: [present, absent]
    default: present
  packages:
    description: What changed, with C(name), C(from) and C(to), the latter two V(none) for a package that is not there.
    type: list
    elements: dict
    default: []
  path:
    description: The mark.
    type: path
    default: /var/lib/mixed_gpu/needs_revalidation.json
seealso:
  - module: homelab.mixed_gpu.revalidation_mark_info
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: The verdict is accepted, so nothing is due any more
  homelab.mixed_gpu.revalidation_mark:
    state: absent
"""

RETURN = r"""
mark:
  description: The mark as it is now, or would be in check mode; V(none) when there is none.
  returned: success
  type: dict
  sample:
    schema: 1
    since: "2026-11-25T18:20:36Z"
    packages: [{name: nvidia-driver-580, from: 580.95.05-1, to: 580.105.08-1}]
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_mark


def change(module: AnsibleModule) -> dict[str, t.Any]:
    """Return the module's result, after writing what has to change."""
    path = module.params["path"]
    text = json_file.read_text(path)
    try:
        before = None if text is None else driver_mark.parse(text)
    except driver_mark.MarkError:
        before = None  # what it said is lost; a new one takes its place
    after = None
    if module.params["state"] == "present":
        now = json_file.utc_now()
        fresh = {"schema": driver_mark.SCHEMA, "since": now, "packages": []}
        packages = module.params["packages"]
        after = driver_mark.merged(before, packages, now) if packages else before or fresh
    wanted = "" if after is None else json_file.to_text(after)
    changed = (text is None) != (after is None) or after != before
    if changed and not module.check_mode:
        if after is None:
            os.unlink(path)
        else:
            json_file.write_text(path, wanted, 0o644, module.atomic_move)
    result = {"changed": changed, "mark": after}
    if module._diff:
        result["diff"] = {"before_header": path, "after_header": path, "before": text or "", "after": wanted}
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "packages": {"type": "list", "elements": "dict", "default": []},
            "path": {"type": "path", "default": driver_mark.PATH},
        },
        supports_check_mode=True,
    )
    wrong = [entry for entry in module.params["packages"] if not {"name", "from", "to"} <= entry.keys()]
    if wrong:
        module.fail_json(msg=f"packages has {wrong[0]}: each needs name, from and to.")
    try:
        module.exit_json(**change(module))
    except OSError as exc:
        path = exc.filename or module.params["path"]
        module.fail_json(msg=f"{path} cannot be changed ({exc.strerror}): run as root.")


if __name__ == "__main__":
    main()
