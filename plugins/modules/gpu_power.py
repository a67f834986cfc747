#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_power
short_description: Set power limits and locked clocks of NVIDIA cards through NVML
version_added: 0.1.0
description:
  - Puts power limits, locked clocks and persistence mode into force, each card by its UUID.
  - Everything is checked against the cards' own constraints before anything is changed. When a card refuses in spite
    of that, what was changed before is set back.
  - The driver forgets all of it when it is loaded anew and, without persistence mode, as soon as nothing uses the
    card. Role P(homelab.mixed_gpu.gpu_power#role) keeps it in force with a systemd unit.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  settings:
    description:
      - What is wanted, as P(homelab.mixed_gpu.gpu_power_settings#filter) returns it.
      - C(schema) is 1; C(cards) is a list of dicts with C(uuid), C(power_limit_watts), C(locked_clocks_mhz) (lowest and
        highest) and C(persistence_mode). What is V(none) is left alone.
    type: dict
    required: true
  record:
    description:
      - File that keeps what was applied. NVML cannot tell which clocks are locked, so the module believes this file.
      - Without, locked clocks count as not in force, and nothing is remembered.
    type: path
  host_python:
    description: Python interpreter that has C(nvidia-ml-py), used when the one that runs this module lacks it.
    type: path
    default: /opt/mixed_gpu/venv/bin/python
requirements:
  - nvidia-ml-py >= 12.535.108, in the interpreter that runs the module or in O(host_python)
seealso:
  - module: homelab.mixed_gpu.gpu_facts
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Limit one card until the driver is loaded anew
  homelab.mixed_gpu.gpu_power:
    settings:
      schema: 1
      cards:
        - uuid: GPU-11111111-2222-3333-4444-555555555555
          power_limit_watts: 320
          locked_clocks_mhz:
          persistence_mode: true
"""

RETURN = r"""
deviations:
  description: What was not in force before, one phrase each.
  returned: success
  type: list
  elements: str
  sample: ["power limit of NVIDIA GeForce RTX 3090 (GPU-1111) is 350 W, not 280 W"]
found:
  description: The O(settings) that bring all cards back to how they were before; locked clocks are not among them.
  returned: success
  type: dict
"""

import importlib

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import power_limits


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "settings": {"type": "dict", "required": True},
            "record": {"type": "path"},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
        },
        supports_check_mode=True,
    )
    wanted = module.params["settings"]
    if wanted.get("schema") != power_limits.SCHEMA or not isinstance(wanted.get("cards"), list):
        module.fail_json(msg=f"settings is not of schema {power_limits.SCHEMA}: take it from gpu_power_settings.")
    reason = host_python.enter(["pynvml"], module.params["host_python"])
    if reason is not None:
        module.fail_json(msg=reason)
    nvml = importlib.import_module("pynvml")
    path = module.params["record"]
    try:
        power_limits.open_nvml(nvml)
        try:
            record = power_limits.read_settings(path) if path else None
            cards = power_limits.read_cards(nvml)
            wrong = power_limits.problems(wanted, cards)
            if wrong:
                module.fail_json(msg=" ".join(wrong))
            deviations = power_limits.deviations(wanted, cards, record)
            if deviations and not module.check_mode:
                new = power_limits.apply(nvml, wanted, record)
                if path:
                    power_limits.write_record(path, new)
        finally:
            nvml.nvmlShutdown()
    except power_limits.PowerError as error:
        module.fail_json(msg=str(error))
    result = {
        "changed": bool(deviations), "deviations": deviations, "found": power_limits.found_settings(cards)
    }  # fmt: skip
    if module._diff:
        result["diff"] = {"before": "".join(f"{line}\n" for line in deviations), "after": ""}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
