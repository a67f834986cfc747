# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: preflight_checks
short_description: Judge what M(homelab.mixed_gpu.host_info) found on a host
version_added: 0.1.0
description:
  - Turns what was found and what is wanted into a list of checks, which
    P(homelab.mixed_gpu.preflight_table#filter) makes readable.
options:
  _input:
    description: C(host) as M(homelab.mixed_gpu.host_info) returns it.
    type: dict
    required: true
  wanted:
    description:
      - C(port), C(server_unit) (the unit that may listen there), C(memory_mib), C(disk) (a list of dicts with C(path)
        and C(needed_mib), in the order of O(homelab.mixed_gpu.host_info#module:paths)), C(gpus_expected) (UUIDs
        or parts of names), C(models) (of P(homelab.mixed_gpu.preflight_models#filter)), C(psu_watts) (0 where it is not
        known), C(rest_of_machine_watts), C(power_limits_watts) and C(locked_clocks_mhz) (what is to be set, by UUID or
        end of the product name), and C(power_budget_policy) (V(warn), V(fail) or V(ignore)).
    type: dict
    required: true
  gpus:
    description: The fact C(mixed_gpu_gpus), or none where it could not be asked.
    type: dict
  engines:
    description: C(engines) of M(homelab.mixed_gpu.llm_engines_info), or none where nobody looked.
    type: list
    elements: dict
  recorded:
    description: The host fact C(mixed_gpu) (C(ansible_local.mixed_gpu)), or none.
    type: raw
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Judge the host
  ansible.builtin.set_fact:
    my_checks: "{{ found.host | homelab.mixed_gpu.preflight_checks(wanted) }}"
  vars:
    wanted:
      port: 8080
      server_unit: llama-server.service
      memory_mib: 2048
      disk: [{path: /srv/models, needed_mib: 40000}]
      gpus_expected: [RTX 4090, RTX 3090]
      models: "{{ llm_models | homelab.mixed_gpu.preflight_models('/srv/models') }}"
      psu_watts: 1300
      rest_of_machine_watts: 200
      power_limits_watts: {RTX 4090: 315}
      locked_clocks_mhz: {}
      power_budget_policy: warn
"""

RETURN = r"""
_value:
  description:
    - One dict per check with C(name), C(ok), C(severity) (V(error), V(warning) or V(note)), C(detail) and C(cure).
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import power_budget
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import host_checks


def preflight_checks(
    host: t.Mapping[str, t.Any],
    wanted: t.Mapping[str, t.Any],
    gpus: t.Mapping[str, t.Any] | None = None,
    engines: t.Sequence[t.Mapping[str, t.Any]] | None = None,
    recorded: t.Any = None,
) -> list[dict[str, t.Any]]:
    """Return the checks of a host. Raises AnsibleFilterError when `host` is not what host_info returns."""
    try:
        return host_checks.checks({**host, "gpus": gpus, "engines": engines, "recorded": recorded}, wanted)
    except power_budget.PolicyError as error:
        raise AnsibleFilterError(f"preflight_checks: {error}.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(
            f"preflight_checks: the input is not what homelab.mixed_gpu.host_info returns as host ({error!r});"
            " give it the paths of wanted.disk and pass its answer on unchanged."
        ) from error


class FilterModule:
    """Filters that judge."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"preflight_checks": preflight_checks}
