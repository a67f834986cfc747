#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: measurement_store_info
short_description: Read the measurements of some campaigns from the host's store
version_added: 0.1.0
description:
  - Returns every measurement that M(homelab.mixed_gpu.split_benchmark) and M(homelab.mixed_gpu.split_mode_trial)
    stored for O(campaigns), so that a campaign that goes on need not ask for each of them.
  - A file that cannot be read is left out. It is reported when its measurement is asked for.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
options:
  state_dir:
    description: Directory that keeps one JSON file per load.
    type: path
    default: /var/lib/mixed_gpu/measurements
  campaigns:
    description: Names of the campaigns.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Read what an interrupted tuning has measured
  homelab.mixed_gpu.measurement_store_info:
    campaigns: [after nothing]
"""

RETURN = r"""
loads:
  description: The measurements by file name, each as C(load) of the module that made it.
  returned: success
  type: dict
"""

import contextlib
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import store, types


def measurements(state_dir: str, campaigns: t.Container[str]) -> dict[str, types.Load]:
    """Return file name -> measurement of every sound file in the store that belongs to one of the campaigns."""
    loads: dict[str, types.Load] = {}
    for name in sorted(os.listdir(state_dir)) if os.path.isdir(state_dir) else []:
        if not name.endswith(".json"):
            continue
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            text = json_file.read_text(os.path.join(state_dir, name)) or ""
            key = json_file.from_text(text)["key"]
            if key["campaign"] in campaigns and store.file_name(key) == name:
                loads[name] = store.read_stored(text, key)
    return loads


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "path", "default": "/var/lib/mixed_gpu/measurements"},
            "campaigns": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, loads=measurements(module.params["state_dir"], module.params["campaigns"]))


if __name__ == "__main__":
    main()
