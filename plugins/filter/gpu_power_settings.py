# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: gpu_power_settings
short_description: Find out which card gets which power limit and clocks
version_added: 0.1.0
description:
  - Resolves limits by UUID and by product name to the cards of a host, and checks them against what each card takes.
options:
  _input:
    description: The list C(gpus) of the fact C(mixed_gpu_gpus).
    type: list
    elements: dict
    required: true
  limits_watts:
    description: Power limits by UUID.
    type: dict
    default: {}
  limits_by_name_watts:
    description:
      - Power limits by the end of the product name, for cards that O(limits_watts) does not name. C(RTX 3090) is not
        C(RTX 3090 Ti).
    type: dict
    default: {}
  locked_clocks_mhz:
    description: Lists of the lowest and the highest clock, by UUID.
    type: dict
    default: {}
  persistence:
    description: Whether the cards that get anything get persistence mode too, without which the driver forgets it.
    type: bool
    default: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show what would be set
  ansible.builtin.debug:
    msg: >-
      {{ ansible_facts['mixed_gpu_gpus'].gpus
         | homelab.mixed_gpu.gpu_power_settings(limits_by_name_watts={'RTX 3090': 280}) }}
"""

RETURN = r"""
_value:
  description: What is to be set.
  type: dict
  contains:
    settings:
      description: The option O(homelab.mixed_gpu.gpu_power#module:settings) of M(homelab.mixed_gpu.gpu_power).
      type: dict
    problems:
      description: One sentence for each setting that the cards would not take.
      type: list
      elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import power_limits


def gpu_power_settings(
    gpus: t.Sequence[t.Mapping[str, t.Any]], limits_watts: t.Mapping[str, t.Any] | None = None,
    limits_by_name_watts: t.Mapping[str, t.Any] | None = None,
    locked_clocks_mhz: t.Mapping[str, t.Any] | None = None, persistence: bool = True,
) -> dict[str, t.Any]:
    """Return {settings, problems}; AnsibleFilterError when what was given has another form."""
    try:
        wanted = power_limits.settings(
            gpus, limits_watts or {}, limits_by_name_watts or {}, locked_clocks_mhz or {}, persistence
        )
        return {"settings": wanted, "problems": power_limits.problems(wanted, gpus)}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(
            f"homelab.mixed_gpu.gpu_power_settings: {error!r}: give the gpus of gpu_facts, and dicts by UUID or name"
        ) from error


class FilterModule:
    """Filter that resolves power settings."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"gpu_power_settings": gpu_power_settings}
