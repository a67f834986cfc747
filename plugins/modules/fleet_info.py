#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_info
short_description: Read what a host has recorded of itself, for a table over many hosts
version_added: 0.1.0
description:
  - Reads the record, the last revalidation, the versions of driver, engine and collection, and the states of watchdog,
    upgrade and units, in one call.
  - Asks no server and no card, measures nothing, and needs nothing but Python.
  - A file that is damaged or cannot be read is a sentence of C(problems), and ends nothing.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
options:
  state_dir:
    description: Directory of the state of this collection.
    type: path
    default: /var/lib/mixed_gpu
  llama_cpp:
    description: Directory of the build of llama.cpp that is in use.
    type: path
    default: /opt/llama.cpp/current
  exllama_root:
    description: Directory of the builds of ExLlama.
    type: path
    default: /opt/exllama
  root:
    description:
      - Directory that holds the files of the host. With another one than V(/), such as a mounted backup, systemd is not
        asked.
    type: path
    default: /
"""

EXAMPLES = r"""
- name: Read what the host has recorded
  homelab.mixed_gpu.fleet_info:
  register: example_fleet
"""

RETURN = r"""
host:
  description: What the host has recorded; docs/data_formats.md of the collection describes it under fleet.
  returned: success
  type: dict
  contains:
    cards:
      description: Names of the devices of the served deployment, or of the cards where nothing is recorded.
      type: list
      elements: str
    deployments:
      description: The recorded deployments, the served one first.
      type: list
      elements: dict
    verdict:
      description: The last verdict on the served deployment and its age, or V(none).
      type: dict
    driver:
      description: Versions of the NVIDIA driver, C(recorded), C(loaded) and C(installed).
      type: dict
    build:
      description: Engine and version of its build, or V(none).
      type: dict
    collection:
      description: The version of this collection that changed the record last, or V(none).
      type: str
    watchdog:
      description: What the watchdog remembers of a day, or V(none).
      type: dict
    units:
      description: States of the units of this collection, V(none) where systemd was not asked.
      type: list
      elements: dict
    problems:
      description: What could not be read, a sentence each.
      type: list
      elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file, json_state, systemd, unit_end
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import fleet_host
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import engines

_PROPERTIES: t.Final = ",".join(("Id", "StatusText", *unit_end.PROPERTIES))


def units(module: AnsibleModule) -> list[dict[str, str]] | None:
    """Return the states of the units that serve, lend and watch; None where systemd does not answer."""
    systemctl = module.get_bin_path("systemctl")
    if systemctl is None or module.params["root"] != "/":
        return None
    names = sorted({engine.unit for engine in engines.TABLE.values()})
    command = [systemctl, "show", "-p", _PROPERTIES, *names, fleet_host.WATCHDOG_UNIT, fleet_host.RPC_UNITS]
    rc, stdout, _stderr = module.run_command(command)
    return systemd.units(stdout) if rc == 0 else None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "path", "default": "/var/lib/mixed_gpu"},
            "llama_cpp": {"type": "path", "default": "/opt/llama.cpp/current"},
            "exllama_root": {"type": "path", "default": "/opt/exllama"},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    params = module.params
    places = fleet_host.Places(params["root"], params["state_dir"], params["llama_cpp"], params["exllama_root"])
    with json_state.failures_told(module, params["state_dir"]):
        module.exit_json(changed=False, host=fleet_host.read(places, units(module), json_file.utc_now()))


if __name__ == "__main__":
    main()
