# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: nvidia_driver_problems
short_description: Say what keeps the cards from being used
version_added: 0.1.0
description:
  - Compares loaded module, library, PCI bus, NVML, the cards that are expected, and cuInit.
positional: _input, gpus, expected, pci
options:
  _input:
    description: C(driver) as M(homelab.mixed_gpu.nvidia_driver_info) returns it, asked with C(cuda=true).
    type: dict
    required: true
  gpus:
    description: The fact C(mixed_gpu_gpus) of M(homelab.mixed_gpu.gpu_facts).
    type: dict
    required: true
  expected:
    description: UUIDs or parts of names, one per card; empty for any cards.
    type: list
    elements: str
    required: true
  pci:
    description: PCI addresses of the cards, as M(homelab.mixed_gpu.host_info) returns them.
    type: list
    elements: str
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Nothing is wrong
  ansible.builtin.assert:
    that: found.driver | homelab.mixed_gpu.nvidia_driver_problems(gpus, ['RTX 4090', 'RTX 3090'], pci) | length == 0
"""

RETURN = r"""
_value:
  description: One sentence per problem, each with its cure; empty when all is well.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_packages


def nvidia_driver_problems(
    info: t.Mapping[str, t.Any], gpus: t.Mapping[str, t.Any], expected: t.Sequence[str], pci: t.Sequence[str]
) -> list[str]:
    """Return the problems. Raises AnsibleFilterError when the input is not what the modules return."""
    try:
        return driver_packages.problems(info, gpus, expected, pci)
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(
            f"nvidia_driver_problems: the input is not what nvidia_driver_info and gpu_facts return ({error!r}); "
            "pass both on unchanged."
        ) from None


class FilterModule:
    """Filter that judges a driver."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"nvidia_driver_problems": nvidia_driver_problems}
