#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: network_info
short_description: Read which machine a host is, its addresses, and its routes to other hosts
version_added: 0.1.0
description:
  - Reads what tells whether two names of the inventory are one machine, and with which address a host reaches another.
  - Opens no connection.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
options:
  routes_to:
    description: Addresses to which a route is looked for.
    type: list
    elements: str
    default: []
requirements:
  - iproute2 (C(ip))
seealso:
  - module: homelab.mixed_gpu.lender_group
"""

EXAMPLES = r"""
- name: Read the route to a lender
  homelab.mixed_gpu.network_info:
    routes_to: [192.168.1.20]
  register: example_network
"""

RETURN = r"""
machine_id:
  description: The id of the installed system (C(/etc/machine-id)); a copied disk has the same.
  returned: always
  type: str
boot_id:
  description: The id of the present boot of the kernel.
  returned: always
  type: str
addresses:
  description: All addresses of the host.
  returned: always
  type: list
  elements: str
  sample: [127.0.0.1, 192.168.1.5]
routes:
  description: By each address of O(routes_to), the own address from which the host reaches it; empty without a route.
  returned: always
  type: dict
  sample: {192.168.1.20: 192.168.1.5}
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file


def ask(module: AnsibleModule, ip: str, *words: str) -> list[dict[str, t.Any]]:
    """Return what ip says as JSON; nothing where it refuses."""
    rc, out, _err = module.run_command([ip, "-j", *words])
    if rc != 0 or not out.strip():
        return []
    found = json_file.from_text(out)
    return found if isinstance(found, list) else []


def main() -> None:
    module = AnsibleModule(
        argument_spec={"routes_to": {"type": "list", "elements": "str", "default": []}},
        supports_check_mode=True,
    )
    ip = module.get_bin_path("ip")
    if ip is None:
        module.fail_json(msg="There is no program ip on this host: install iproute2.")
    addresses = [entry["local"] for link in ask(module, ip, "addr") for entry in link.get("addr_info", [])]
    routes = {}
    for address in module.params["routes_to"]:
        found = ask(module, ip, "route", "get", address)
        routes[address] = str(found[0].get("prefsrc", "")) if found else ""
    module.exit_json(
        changed=False,
        machine_id=(json_file.read_text("/etc/machine-id") or "").strip(),
        boot_id=(json_file.read_text("/proc/sys/kernel/random/boot_id") or "").strip(),
        addresses=addresses,
        routes=routes,
    )


if __name__ == "__main__":
    main()
