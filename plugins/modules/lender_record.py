#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: lender_record
short_description: Record on a box what other hosts lend
version_added: 0.1.0
description:
  - Writes C(/var/lib/mixed_gpu/lenders.json) (docs/data_formats.md, lenders) and returns the endpoints of all lenders.
  - Fails where a lender has another build of llama.cpp than the box, before any model is loaded.
  - A lender that takes no part in the run stays as it was recorded. One that is neither in O(lenders) nor in O(absent)
    is removed from the record.
  - The part of an action plugin of this name reads the facts of the lenders on the controller.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
attributes:
  check_mode:
    details: Writes nothing, and returns what would be recorded.
options:
  lenders:
    description: Names of the lenders that the run has prepared, as M(homelab.mixed_gpu.lender_group) returns them.
    type: list
    elements: str
    default: []
  lent:
    description: What each of O(lenders) lends. The action plugin fills it.
    type: dict
    default: {}
  absent:
    description: Names of the lenders that take no part in the run.
    type: list
    elements: str
    default: []
  box:
    description: Name of the box. The action plugin fills it.
    type: str
    default: this host
  installed:
    description: The fact C(llama_cpp_installed) of the box. The action plugin fills it.
    type: dict
    default: {}
  path:
    description: File of the record.
    type: path
    default: /var/lib/mixed_gpu/lenders.json
seealso:
  - module: homelab.mixed_gpu.lender_group
"""

EXAMPLES = r"""
- name: Record what the lenders lend
  homelab.mixed_gpu.lender_record:
    lenders: [pc2]
  register: example_lent
"""

RETURN = r"""
lenders:
  description: By the name of each lender, its C(address), C(build) and C(servers).
  returned: always
  type: dict
endpoints:
  description: The endpoints of all lenders.
  returned: always
  type: list
  elements: str
  sample: ["192.168.1.20:50052"]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_state
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import lent_devices


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "lenders": {"type": "list", "elements": "str", "default": []},
            "lent": {"type": "dict", "default": {}},
            "absent": {"type": "list", "elements": "str", "default": []},
            "box": {"type": "str", "default": "this host"},
            "installed": {"type": "dict", "default": {}},
            "path": {"type": "path", "default": "/var/lib/mixed_gpu/lenders.json"},
        },
        supports_check_mode=True,
    )
    params = module.params
    file = json_state.StateFile(module, lent_devices.FORM, params["path"])
    with json_state.failures_told(module, params["path"]), file.locked():
        record = lent_devices.merged(file.read(), params["lent"], params["absent"])
        lent_devices.check_builds(params["box"], params["installed"], record["lenders"])
        changed = file.write(record)
    endpoints = lent_devices.endpoints(record)
    module.exit_json(changed=changed, lenders=record["lenders"], endpoints=endpoints, **file.diff())


if __name__ == "__main__":
    main()
