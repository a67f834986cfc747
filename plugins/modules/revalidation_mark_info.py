#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: revalidation_mark_info
short_description: Say whether a host needs revalidation
version_added: 0.1.0
description:
  - Reads the mark that the hook of the role C(revalidation_timer) leaves when the NVIDIA driver's packages change.
  - A mark that cannot be read counts as a mark.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
    details: This module changes nothing.
  diff_mode:
    support: N/A
options:
  path:
    description: The mark.
    type: path
    default: /var/lib/mixed_gpu/needs_revalidation.json
  warn:
    description: Whether to show a warning, with the command that ends it, on a marked host.
    type: bool
    default: true
seealso:
  - module: homelab.mixed_gpu.revalidation_mark
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Say when a revalidation is due
  homelab.mixed_gpu.revalidation_mark_info:
"""

RETURN = r"""
needed:
  description: Whether the host is marked.
  returned: success
  type: bool
since:
  description: Since when (UTC); V(none) when it is not marked, or the mark is damaged.
  returned: success
  type: str
packages:
  description: What changed since the last revalidation, with C(name), C(from) and C(to).
  returned: success
  type: list
  elements: dict
why:
  description: The same in words; V(none) when it is not marked.
  returned: success
  type: str
cure:
  description: The command that ends it; V(none) when it is not marked.
  returned: success
  type: str
  sample: ansible-playbook homelab.mixed_gpu.revalidate
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_mark


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": driver_mark.PATH},
            "warn": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    try:
        state = driver_mark.state(json_file.read_text(path))
    except OSError as exc:
        module.fail_json(msg=f"{path} cannot be read ({exc.strerror}): run as root, or remove what is in its place.")
    if state["needed"] and module.params["warn"]:
        why = state["why"]
        module.warn(f"{why[0].upper()}{why[1:]}. Revalidate with: {state['cure']}")
    module.exit_json(changed=False, **state)


if __name__ == "__main__":
    main()
